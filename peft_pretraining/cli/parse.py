"""From the words of a command line, and perhaps a saved configuration, to one checked RunConfig.

Importing this imports neither torch nor transformers, which take seconds: most mistakes are answered before them.
"""

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from loguru import logger

from peft_pretraining.checkpoint.config import CheckpointConfig
from peft_pretraining.cli.protocols import of_method as protocol_of_method
from peft_pretraining.cli.protocols import with_initial_tokenizer, with_protocol
from peft_pretraining.cli.resolve import give_way, resolve
from peft_pretraining.cli.saved import read_saved
from peft_pretraining.data.config import DataConfig
from peft_pretraining.distributed.config import ParallelConfig
from peft_pretraining.flags.choice import OptimizerFlags
from peft_pretraining.flags.help import print_help
from peft_pretraining.flags.parser import FlagParser
from peft_pretraining.flags.unknown import check_words
from peft_pretraining.model.config import ModelConfig
from peft_pretraining.tracking.config import LoggingConfig
from peft_pretraining.training.config import TrainingConfig
from peft_pretraining.training.run_config import RunConfig
from peft_pretraining.training.schedule import ScheduleConfig

if TYPE_CHECKING:
    from peft_pretraining.flags.optimizer import OptimizerConfig

Flags = dict[str, Any]

SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "optimizer": OptimizerFlags,
    "schedule": ScheduleConfig,
    "training": TrainingConfig,
    "checkpoint": CheckpointConfig,
    "parallel": ParallelConfig,
    "logging": LoggingConfig,
}
"""Section of run.json -> its flags; the optimizer's section has those of the chosen method too."""

_ABOUT = """\
Pretrains a LLaMA model on text.

  python torchrun_main.py --single_gpu --model_config FILE --optimizer NAME ...
  torchrun --standalone --nproc_per_node N torchrun_main.py \\
      --model_config FILE --optimizer NAME ...

A switch is turned off by --no_NAME. Names may be written with hyphens. Counts
of updates are updates of the weights, whatever the accumulation. Counts of
tokens may be written as 100M or 1.5B."""


def parse_config(argv: Sequence[str] | None = None, *, world_size: int | None = None) -> RunConfig:
    """The configuration of a run, complete and checked.

    argv: the words after the program's name (default: those of this process). world_size: the number of
    processes (default: WORLD_SIZE of the environment, as torchrun sets it, else 1). Raises UsageError with
    one readable message for every mistake; `--help` and `--version` print and raise SystemExit(0).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    processes = int(os.environ.get("WORLD_SIZE", "1")) if world_size is None else world_size
    shared = shared_parser()
    typed, of_method = shared.split(words)
    _answer_questions(typed)
    path = typed.pop("config", None)
    saved, saved_of_method = read_saved(path, shared, SECTIONS, typed) if path is not None else ({}, [])
    given = with_initial_tokenizer(with_protocol({**give_way(saved, typed), **typed}))
    _check_method(given, of_method, shared.flags)
    sections = _shared_sections(shared, given)
    own, optimizer = _method_section(given, of_method, saved, saved_of_method, shared.flags)
    return resolve(RunConfig(**{**sections, "optimizer": optimizer}), {**given, **own}, processes)


def shared_parser(own: Mapping[str, type] | None = None) -> FlagParser:
    """The flags that every run has, whatever its method; own: those of a method, by heading."""
    parser = FlagParser(prog="torchrun_main.py", usage="%(prog)s --model_config FILE --optimizer NAME [flags]")
    parser.description = _ABOUT
    for section in SECTIONS.values():
        parser.add_section(section)
        for title, declared in (own or {}).items() if section is OptimizerFlags else ():
            parser.add_section(declared, title)
    parser.add_argument(
        "--config",
        metavar="run.json",
        type=os.path.expanduser,
        help="start from a saved configuration (run.json of a run's folder); flags typed beside it override it",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    return parser


def _answer_questions(typed: Flags) -> None:
    if "version" in typed:
        sys.stdout.write(f"thrift-llama {version('thrift-llama')}\n")
    elif "help" in typed:
        print_help(shared_parser, typed)
    else:
        return
    raise SystemExit(0)


def _check_method(given: Flags, words: Sequence[str], shared: Sequence[str]) -> None:
    """Refuse a method or flags that do not exist; only a user's own file must be run for that, which needs torch."""
    if "optimizer_file" not in given:
        return check_words(words, given.get("optimizer"), shared)
    from peft_pretraining.flags.optimizer import choose

    choose(given)


def _shared_sections(shared: FlagParser, given: Mapping[str, Any]) -> dict[str, Any]:
    shared.require(given)
    sections = {}
    for name, kind in SECTIONS.items():
        names = [field.name for field in dataclasses.fields(kind) if field.init]
        sections[name] = kind(**{flag: given[flag] for flag in names if flag in given})
    return sections


def _method_section(
    given: Flags, words: Sequence[str], saved: Flags, saved_words: Sequence[str], shared: Sequence[str]
) -> tuple[Flags, "OptimizerConfig"]:
    """The method's flags that count, and the configuration that they give.

    Saved ones count as far as they are not typed and the method is the same: another method takes its own defaults.
    The engine's options stay, unless the old method's name implied them.
    """
    from peft_pretraining.flags.optimizer import choose, flags_of, optimizer_config, read

    method = choose(given)
    before = choose({"optimizer": saved.get("optimizer")}) or method
    assert method is not None and before is not None
    own = read(method, words, shared)
    kept = {name: value for name, value in read(before, saved_words, shared).items() if name not in own}
    if before.name != method.name:
        stays = set(flags_of(method)) - set(before.settings.names()) - set(before.presets)
        for name in [name for name in kept if name not in stays]:
            logger.info("saved --{} {} belonged to {} and is left out", name, kept.pop(name), before.name)
    counted = {**protocol_of_method(given, flags_of(method)), **kept, **own}
    return counted, optimizer_config(method, {**given, **counted})
