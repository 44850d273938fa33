"""The command `thrift-train`, which torchrun_main.py is too: a configuration, then the run, then an exit status."""

import os
from collections.abc import Sequence

from loguru import logger

from peft_pretraining.cli.parse import parse_config
from peft_pretraining.console import configure_logging, explain, leave
from peft_pretraining.errors import AgreedError, RunFailed, UsageError
from peft_pretraining.training.preemption import StopSignals


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; says mistakes and known failures in one message, without a traceback."""
    _prepare_allocator()
    rank, config = int(os.environ.get("RANK", "0")), None
    configure_logging(rank, processes=int(os.environ.get("WORLD_SIZE", "1")))
    try:
        with StopSignals() as stop:
            config = parse_config(argv)
            from peft_pretraining.training.pretrain import pretrain  # takes seconds; a mistake is told before

            return pretrain(config, stop)
    except UsageError as error:
        # A mistake that all processes see is reported once.
        if rank == 0 or not (config is None or isinstance(error, AgreedError)):
            logger.error("{}", error)
            explain(str(error))
        return 2
    except RunFailed as error:
        logger.error("{}", error)
        return 1


def _prepare_allocator() -> None:
    """Has torch's CUDA allocator grow its segments instead of keeping blocks that fit no other request.

    Torch reads this once, so it is set before torch is imported. What the user has set, by either name, is left alone.
    """
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


if __name__ == "__main__":
    leave(main())
