"""Which files train and which validate: by the names that C4 and Hugging Face datasets use; without them all train.

A name says its part where a folder is called so (`train/`, `validation/`) or the file itself is (`train.jsonl`,
`train-00000-of-00008.parquet`, `c4-validation.00000-of-00008.json.gz`). A word inside other words says nothing:
`how-to-train-a-model.txt` is text like any other. A name of two parts (`train_dev.jsonl`, `dev/train.jsonl`) decides
nothing either.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

TRAIN, VALIDATION, TEST, UNCLEAR = "train", "validation", "test", "unclear"
_PARTS = {
    TRAIN: ("train", "training"),
    VALIDATION: ("validation", "valid", "val", "dev"),
    TEST: ("test", "testing", "eval", "evaluation"),
}
_PART_OF = {word: part for part, words in _PARTS.items() for word in words}
_WORD = "|".join(_PART_OF)
_NUMBER = r"(?:(?:part|shard|chunk|file|split)[-._]?)?(?:\d+|[a-z])"
_NAME = re.compile(
    rf"(?:(?P<prefix>.+)[-._])?(?P<word>{_WORD})(?P<number>(?:[-._]{_NUMBER}(?:[-._]of[-._]\d+)?(?:[-._][0-9a-f]+)?)?)"
)
_OF = re.compile(r"[-._]of[-._]\d+")
_ENDINGS = re.compile(r"(\.(json|jsonl|ndjson|txt|parquet|bin))?(\.(gz|zst))?$")


@dataclass(frozen=True)
class Said:
    """What a name says: a part, and the prefix that its file shares with those of other parts (None for none)."""

    part: str | None
    prefix: str | None = None
    sure: bool = True


def split(names: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """(training, validation, left out) of the relative names of all data files, `/` between folders."""
    said = {name: _said(name) for name in names}
    parts_of_prefix: dict[str | None, set[str | None]] = {}
    for each in said.values():
        parts_of_prefix.setdefault(each.prefix, set()).add(each.part)

    def part(name: str) -> str | None:
        each = said[name]
        # `x-train.txt` alone may be a title; beside `x-val.txt` it is a part.
        return each.part if each.sure or len(parts_of_prefix[each.prefix]) > 1 else None

    parts = {name: part(name) for name in names}
    of = {wanted: [name for name in names if parts[name] == wanted] for wanted in (TRAIN, VALIDATION)}
    train = of[TRAIN] or [name for name in names if parts[name] in (None, UNCLEAR)]
    chosen = {*train, *of[VALIDATION]}
    return train, of[VALIDATION], [name for name in names if name not in chosen]


def _said(name: str) -> Said:
    path = PurePosixPath(name.lower())
    folders = {_PART_OF[folder] for folder in path.parts[:-1] if folder in _PART_OF}
    match = _NAME.fullmatch(_ENDINGS.sub("", path.name))
    if match is None:
        return Said(None) if not folders else Said(folders.pop() if len(folders) == 1 else UNCLEAR)
    prefix = match["prefix"]
    named = {_PART_OF[word] for word in re.split(r"[-._]", prefix or "") if word in _PART_OF}
    parts = {*folders, *named, _PART_OF[match["word"]]}
    if len(parts) > 1:
        return Said(UNCLEAR)
    sure = bool(folders) or prefix in (None, "c4") or bool(_OF.search(match["number"]))
    return Said(parts.pop(), f"{path.parent}/{prefix}", sure)
