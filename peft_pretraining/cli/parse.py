"""From the words of a command line, and perhaps a saved configuration, to one checked RunConfig."""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_pretraining.checkpoint.config import CheckpointConfig
from peft_pretraining.cli.resolve import give_way, resolve
from peft_pretraining.data import DataConfig
from peft_pretraining.distributed.config import ParallelConfig
from peft_pretraining.errors import UsageError
from peft_pretraining.flags.optimizer import load_method_file, optimizer_config_type
from peft_pretraining.flags.parser import FlagParser, nearest
from peft_pretraining.model.llama import ModelConfig
from peft_pretraining.tracking.config import LoggingConfig
from peft_pretraining.training.config import TrainingConfig
from peft_pretraining.training.run_config import RunConfig
from peft_pretraining.training.schedule import ScheduleConfig

_DESCRIPTION = """\
Pretrain a LLaMA model on text.

  torchrun --standalone --nproc_per_node N torchrun_main.py --model_config FILE --optimizer NAME ...
  python torchrun_main.py --single_gpu --model_config FILE --optimizer NAME ...

A switch is turned off by --no_NAME. Names may be written with hyphens. Counts of updates are updates of the
weights, whatever the accumulation; counts of tokens may be written as 100M or 1.5B."""

_FILE_LIMIT = 1 << 20


def parse_config(argv: Sequence[str] | None = None, *, world_size: int | None = None) -> RunConfig:
    """The configuration of a run, complete and checked.

    argv: the words after the program's name (default: those of this process). world_size: the number of
    processes (default: WORLD_SIZE of the environment, as torchrun sets it, else 1). Raises UsageError with
    one readable message for every mistake; `--help` prints and raises SystemExit(0).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    processes = int(os.environ.get("WORLD_SIZE", "1")) if world_size is None else world_size
    _load_method_files(arguments)
    parser = _parser()
    typed = parser.read(arguments)
    path = typed.pop("config", None)
    saved = give_way(_read_saved(parser, path, typed), typed) if path is not None else {}
    given = {**saved, **typed}
    return resolve(_sections(parser, given), given, processes)


def _section_types() -> dict[str, type]:
    return {
        "model": ModelConfig,
        "data": DataConfig,
        "optimizer": optimizer_config_type(),
        "schedule": ScheduleConfig,
        "training": TrainingConfig,
        "checkpoint": CheckpointConfig,
        "parallel": ParallelConfig,
        "logging": LoggingConfig,
    }


def _parser() -> FlagParser:
    parser = FlagParser(
        _section_types().values(),
        prog="torchrun_main.py",
        usage="%(prog)s --model_config FILE --optimizer NAME [flags]",
        description=_DESCRIPTION,
    )
    parser.add_argument(
        "--config",
        metavar="run.json",
        help="start from a saved configuration (run.json of a run's folder); flags typed beside it override it",
    )
    return parser


def _load_method_files(arguments: Sequence[str]) -> None:
    """Load the user's own method first: its hyperparameters are flags too. Only a typed path is ever run."""
    first = FlagParser([], add_help=False)
    first.add_argument("--optimizer_file", "--optimizer-file", dest="path", action="append")
    known, _ = first.parse_known_args(list(arguments))
    for path in known.path or ():
        load_method_file(path)


def _sections(parser: FlagParser, given: Mapping[str, Any]) -> RunConfig:
    missing = [name for name in parser.required if name not in given]
    if missing:
        raise UsageError(f"--{missing[0]} is required: {parser.fields[missing[0]].metadata['help']}")
    sections = {}
    for name, kind in _section_types().items():
        names = [field.name for field in dataclasses.fields(kind) if field.init]
        sections[name] = kind(**{flag: given[flag] for flag in names if flag in given})
    return RunConfig(**sections)


def _read_saved(parser: FlagParser, path: str, typed: Mapping[str, Any]) -> dict[str, Any]:
    try:
        if Path(path).stat().st_size > _FILE_LIMIT:
            raise UsageError(f"--config {path}: larger than any configuration; give the run.json of a run")
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror or error}; give the run.json of a run") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--config {path}: not valid JSON ({error})") from error
    try:
        return _stated(parser, content, typed)
    except UsageError as error:
        raise UsageError(f"--config {path}: {error}") from error


def _stated(parser: FlagParser, content: Any, typed: Mapping[str, Any]) -> dict[str, Any]:
    """The flags in a saved configuration that differ from the defaults."""
    saved = parser.read(_as_arguments(content))
    if "optimizer_file" in saved and "optimizer_file" not in typed:
        raise UsageError(
            f"the saved run used a method of its own; type --optimizer_file {saved['optimizer_file']} to run that code"
        )
    return {name: value for name, value in saved.items() if value != parser.fields[name].default}


def _as_arguments(content: Any) -> list[str]:
    """The command line that states a saved configuration: saved and typed values pass the same checks."""
    if not isinstance(content, Mapping):
        raise UsageError("a saved configuration is an object of sections")
    sections, arguments = _section_types(), []
    for section, values in content.items():
        if section not in sections or not isinstance(values, Mapping):
            raise UsageError(
                f"{section!r} is no section{nearest(section, sections) or '; one of ' + ', '.join(sections)}"
            )
        names = [field.name for field in dataclasses.fields(sections[section])]
        for name, value in values.items():
            if name not in names:
                raise UsageError(f"{section}.{name} is no setting{nearest(name, names)}")
            if value is not None:
                arguments += _argument(f"{section}.{name}", name, value)
    return arguments


def _argument(where: str, name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}={str(value).lower()}"]
    if isinstance(value, str | int | float):
        return [f"--{name}={value}"]
    if isinstance(value, list) and value and all(isinstance(item, str | int | float) for item in value):
        return [f"--{name}", *map(str, value)]
    raise UsageError(f"{where}: a {type(value).__name__} is no value of a flag")
