"""The flags that choose an optimizer; those of the chosen one are in `peft_pretraining.flags.optimizer`."""

import math
from dataclasses import dataclass
from typing import ClassVar

from peft_pretraining.errors import UsageError
from peft_pretraining.flags.fields import flag


@dataclass(frozen=True)
class OptimizerFlags:
    """Which method updates the weights, and at which rate."""

    _argument_group_name: ClassVar[str] = "optimizer"

    optimizer: str = flag(metavar="NAME", help="the method, by name or alias; --help lists them")
    lr: float = flag(1e-4, help="peak learning rate, reached after the warmup")
    optimizer_file: str | None = flag(
        None, metavar="FILE.py", help="a Python file that registers a method of your own; its code is run"
    )

    def __post_init__(self) -> None:
        if not self.lr > 0 or math.isinf(self.lr):
            raise UsageError(f"--lr {self.lr}: a learning rate is a positive number")
