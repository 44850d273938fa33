"""`python -m peft_pretraining` and `torchrun -m peft_pretraining`: the command of torchrun_main.py, from anywhere."""

import sys

from peft_pretraining.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
