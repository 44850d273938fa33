"""What run_glue.py and run_sft.py share: flags of the loop, the optimizer's flags, folders, exit status."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import torch

from optimizers import build_optimizer
from peft_pretraining.errors import UsageError
from peft_pretraining.finetuning.training import SCHEDULERS, LoopSettings
from peft_pretraining.flags.choice import OptimizerFlags
from peft_pretraining.flags.fields import flag
from peft_pretraining.flags.help import print_help
from peft_pretraining.flags.optimizer import OptimizerConfig, choose, optimizer_config, read
from peft_pretraining.flags.parser import FlagParser
from peft_pretraining.flags.unknown import check_words


@dataclass(frozen=True, kw_only=True)
class LoopFlags:
    """Flags of the training loop, named as in transformers' examples."""

    _argument_group_name: ClassVar[str] = "fine-tuning"

    model_name_or_path: str = flag(help="a folder, a checkpoint of a run (runs/NAME/model_N) or a name on the hub")
    output_dir: str | None = flag(None, help="folder of the results (default: under runs/)")
    num_train_epochs: float = flag(3.0, help="passes over the training examples")
    per_device_train_batch_size: int = flag(16, help="examples per micro-batch", aliases=("batch_size",))
    per_device_eval_batch_size: int = flag(64, help="examples per batch of an evaluation")
    gradient_accumulation_steps: int = flag(1, help="micro-batches per update")
    lr_scheduler_type: str = flag("linear", choices=SCHEDULERS, help="shape of the learning rate's decay")
    num_warmup_steps: int = flag(0, help="updates of linear warm-up", aliases=("warmup_steps",))
    max_train_steps: int = flag(0, help="updates in all; 0: as many as the epochs have")
    max_grad_norm: float = flag(0.0, help="clip the gradients to this norm; 0: no clipping, as in the published runs")
    lora_rank: int = flag(0, help="train LoRA adapters of this rank instead of all weights; 0: none")
    seed: str = flag("0", metavar="N[,N...]", help="seed of data order and new weights; several: one run for each")
    device: str = flag("auto", choices=("auto", "cpu"), help="auto takes CUDA where there is one")

    def __post_init__(self) -> None:
        for name, low in (
            ("per_device_train_batch_size", 1),
            ("per_device_eval_batch_size", 1),
            ("gradient_accumulation_steps", 1),
            ("num_warmup_steps", 0),
            ("max_train_steps", 0),
            ("max_grad_norm", 0),
            ("lora_rank", 0),
        ):
            if getattr(self, name) < low:
                raise UsageError(f"--{name} {getattr(self, name)}: give at least {low}")
        if not 0 < self.num_train_epochs < float("inf"):
            raise UsageError(f"--num_train_epochs {self.num_train_epochs}: give a number above 0")

    def loop(self, *, bf16: bool = False) -> LoopSettings:
        """The settings of the training loop."""
        return LoopSettings(
            epochs=self.num_train_epochs,
            batch_size=self.per_device_train_batch_size,
            accumulation=self.gradient_accumulation_steps,
            schedule=self.lr_scheduler_type,
            warmup=self.num_warmup_steps,
            max_updates=self.max_train_steps,
            max_norm=self.max_grad_norm,
            device=self.device,
            bf16=bf16,
        )

    def seeds(self) -> list[int]:
        """The seeds. Raises UsageError."""
        try:
            seeds = [int(part) for part in self.seed.split(",")]
        except ValueError:
            raise UsageError(f"--seed {self.seed}: give whole numbers, several as 0,1,2") from None
        if len(set(seeds)) < len(seeds):
            raise UsageError(f"--seed {self.seed}: a seed is given twice")
        return seeds

    def folder(self, fallback: str) -> Path:
        """Where results go, made if need be. Raises UsageError where it cannot be made."""
        folder = Path(self.output_dir or fallback).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--output_dir {folder}: {error.strerror}") from error
        return folder


Flags = TypeVar("Flags", bound=LoopFlags)


def read_flags(section: type[Flags], argv: Sequence[str], prog: str, description: str) -> tuple[Flags, OptimizerConfig]:
    """The command's own flags and the optimizer's. Raises UsageError; --help prints and raises SystemExit(0)."""

    def parser(own: Mapping[str, type] | None = None) -> FlagParser:
        made = FlagParser([section, OptimizerFlags], prog=prog, description=description)
        for title, declared in (own or {}).items():
            made.add_section(declared, title)
        return made

    shared = parser()
    given, of_method = shared.split(argv)
    if "help" in given:
        print_help(parser, given)
        raise SystemExit(0)
    if "optimizer_file" not in given:
        check_words(of_method, given.get("optimizer"), shared.flags)
    shared.require(given)
    own = section(**{name: given[name] for name in given if name in section.__dataclass_fields__})
    method = choose(given)
    assert method is not None
    return own, optimizer_config(method, {**given, **read(method, of_method, shared.flags)})


def builder(config: OptimizerConfig) -> Callable[[torch.nn.Module], torch.optim.Optimizer]:
    """Makes the optimizer of a model, a new one for each seed."""

    def build(model: torch.nn.Module) -> torch.optim.Optimizer:
        try:
            return build_optimizer(config.optimizer, model, config.lr, **config.arguments())
        except ValueError as error:
            raise UsageError(f"--optimizer {config.optimizer}: {error}") from error

    return build
