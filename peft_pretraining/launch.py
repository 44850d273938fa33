"""torchrun for this project: `python -m peft_pretraining.launch --standalone --nproc_per_node 8 torchrun_main.py ...`.

Takes torchrun's flags and does what torchrun does, with three differences. It ends with the exit status of the process
that failed first (torchrun always ends with 1). What the processes have explained themselves, a mistake in a flag or a
stop after a checkpoint, is not followed by torchrun's traceback of some 45 lines. After a signal the processes have 280
seconds to save (torchrun: 30), and SIGUSR1 is handed on as SIGTERM is.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence

SAVING_SECONDS = "280"
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
# What torchrun reads in its environment; what the user has set is left alone.
ENVIRONMENT = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": SAVING_SECONDS, "PET_SIGNALS_TO_HANDLE": SIGNALS}
_EXPLAINED = (2, 75, 130)  # statuses of processes that have said in a line of their own why they ended


def main(argv: Sequence[str] | None = None) -> int:
    """Starts the processes and waits for them. Returns the exit status."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(_says_more_than_the_processes)
    try:
        run(parse_args(argv))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode not in _EXPLAINED:
            sys.stderr.write(f"{error}\n")
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 130 if error.sigval == signal.SIGINT else 75
    return 0


def _says_more_than_the_processes(record: logging.LogRecord) -> bool:
    """Whether a line of torchrun's log is worth reading after what the processes have said."""
    message = record.getMessage()
    explained = any(f"failed (exitcode: {status})" in message for status in _EXPLAINED)
    return not explained and not message.startswith("Sending process")


if __name__ == "__main__":
    sys.exit(main())
