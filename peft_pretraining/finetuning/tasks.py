"""What is to be classified: GLUE's tasks by name, or files of one's own with a column `label`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_pretraining.errors import UsageError

_READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Task:
    """A classification or regression task.

    columns: one or two columns of text. metrics: names in `metrics.METRICS`, the first is the one reported as the
    score. validation: names of the validation splits on the hub. regression: the label is a number.
    """

    name: str
    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    validation: tuple[str, ...] = ("validation",)
    regression: bool = False


GLUE = {
    task.name: task
    for task in (
        Task("cola", ("sentence",), ("matthews_correlation",)),
        Task("mnli", ("premise", "hypothesis"), ("accuracy",), ("validation_matched", "validation_mismatched")),
        Task("mrpc", ("sentence1", "sentence2"), ("accuracy", "f1")),
        Task("qnli", ("question", "sentence"), ("accuracy",)),
        Task("qqp", ("question1", "question2"), ("accuracy", "f1")),
        Task("rte", ("sentence1", "sentence2"), ("accuracy",)),
        Task("sst2", ("sentence",), ("accuracy",)),
        Task("stsb", ("sentence1", "sentence2"), ("pearson", "spearman"), regression=True),
        Task("wnli", ("sentence1", "sentence2"), ("accuracy",)),
    )
}


@dataclass(frozen=True)
class Labelled:
    """A task with its data: datasets with the columns of the task and `label`; labels are the names of the classes."""

    task: Task
    train: Any
    validation: dict[str, Any]
    labels: tuple[str, ...]


def load_task(name: str | None, train_file: str | None, validation_file: str | None) -> Labelled:
    """The task's data: of the hub by name, or of files. Raises UsageError for what cannot be read."""
    if name is not None:
        glue_task(name)
        if train_file is None:
            return _from_hub(name)
    if train_file is None or validation_file is None:
        raise UsageError("give --task_name, or --train_file together with --validation_file")
    return _from_files(name, train_file, validation_file)


def _from_hub(name: str) -> Labelled:
    from datasets import load_dataset

    task = glue_task(name)
    try:
        data = load_dataset("nyu-mll/glue", task.name)
    except Exception as error:  # the hub's client raises many kinds
        raise UsageError(
            f"--task_name {name}: GLUE could not be fetched from the hub ({type(error).__name__}); "
            "give --train_file and --validation_file to read files"
        ) from error
    labels = () if task.regression else tuple(data["train"].features["label"].names)
    validation = {split.removeprefix("validation_"): data[split] for split in task.validation}
    return Labelled(task, data["train"], validation, labels)


def glue_task(name: str) -> Task:
    """A GLUE task. Raises UsageError with the names."""
    if name not in GLUE:
        raise UsageError(f"--task_name {name}: choose one of {', '.join(GLUE)}")
    return GLUE[name]


def _from_files(name: str | None, train_file: str, validation_file: str) -> Labelled:
    train, validation = (
        _read(flag, path) for flag, path in (("--train_file", train_file), ("--validation_file", validation_file))
    )
    for flag, data in (("--train_file", train), ("--validation_file", validation)):
        if "label" not in data.column_names:
            raise UsageError(f"{flag}: there is no column 'label' (columns: {', '.join(data.column_names)})")
        if data.num_rows == 0:
            raise UsageError(f"{flag}: there are no examples")
    regression = train.features["label"].dtype.startswith("float")
    task = glue_task(name) if name else Task("files", _text_columns(train), _metrics(regression), (), regression)
    missing = [c for c in task.columns if c not in train.column_names or c not in validation.column_names]
    if missing:
        raise UsageError(f"--task_name {task.name} needs a column {missing[0]!r} in both files")
    if task.regression:
        return Labelled(task, train, {"validation": validation}, ())
    labels = sorted(set(train["label"]))
    unknown = sorted(set(validation["label"]) - set(labels))
    if unknown:
        raise UsageError(f"--validation_file: label {unknown[0]!r} does not occur in --train_file")
    numbers = {label: number for number, label in enumerate(labels)}
    train, validation = (data.map(lambda row: {"label": numbers[row["label"]]}) for data in _plain(train, validation))
    return Labelled(task, train, {"validation": validation}, tuple(map(str, labels)))


def _metrics(regression: bool) -> tuple[str, ...]:
    return ("pearson", "spearman") if regression else ("accuracy",)


def _plain(*data: Any) -> Sequence[Any]:
    """The label as whole numbers, whatever its type was."""
    from datasets import Value

    renamed = []
    for part in data:
        values = list(part["label"])
        renamed.append(part.remove_columns("label").add_column("label", values))
        if isinstance(values[0], str):
            continue
        renamed[-1] = renamed[-1].cast_column("label", Value("int64"))
    return renamed


def _text_columns(data: Any) -> tuple[str, ...]:
    texts = [name for name in data.column_names if name != "label" and data.features[name].dtype in _STRINGS]
    for pair in (("sentence1", "sentence2"), ("premise", "hypothesis"), ("sentence",), ("text",)):
        if set(pair) <= set(texts):
            return pair
    if not 1 <= len(texts) <= 2:
        raise UsageError(
            f"--train_file: one or two columns of text are expected beside 'label', found {len(texts)} "
            f"({', '.join(texts) or 'none'})"
        )
    return tuple(texts)


_STRINGS = ("string", "large_string")


def _read(flag: str, path: str) -> Any:
    from datasets import load_dataset

    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"{flag} {path}: no such file")
    if file.suffix not in _READERS:
        raise UsageError(f"{flag} {path}: the name must end in {', '.join(_READERS)}")
    options = {"delimiter": "\t"} if file.suffix == ".tsv" else {}
    try:
        return load_dataset(_READERS[file.suffix], data_files=str(file), split="train", **options)
    except Exception as error:  # each reader raises its own kinds
        cause = error.__cause__ or error
        raise UsageError(f"{flag} {path}: it cannot be read ({type(cause).__name__}: {cause})") from error
