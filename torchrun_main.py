"""Pretrains a LLaMA, in one process (`python torchrun_main.py --single_gpu ...`) or in several (torchrun).

The run itself is told in peft_pretraining/training/pretrain.py.

Exit status: 0 when the run is done, 2 for a mistake in the command line or its files, 75 when SIGTERM or
SIGUSR1 ended it after a checkpoint, 130 when Ctrl-C did, 1 for a failure. After 75 and 130 the same command
with --continue_from auto goes on.
"""

from peft_pretraining.cli.main import main
from peft_pretraining.console import leave

if __name__ == "__main__":
    leave(main())
