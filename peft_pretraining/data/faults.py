"""What can be wrong with data, and how it is counted."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from peft_pretraining.errors import RunFailed

REMEDIES = (
    "check the network or set HF_ENDPOINT to a mirror; or give the path of a local copy; "
    "or use --dataset builtin (with --tokenizer builtin), which needs no network"
)
INVALID_JSON = "invalid JSON"
INVALID_UTF8 = "invalid UTF-8"
NO_TEXT = "no text"
NOT_TEXT = "not text"
EMPTY = "empty"
TOO_LONG = "too long"
DAMAGED = "damaged"


class DataError(RunFailed):
    """Data that was there cannot be read any more (a shard stalls or is gone); the message names it."""


@dataclass
class Skipped:
    """Documents passed over, by reason, and the shards of which the rest could not be read."""

    documents: Counter[str] = field(default_factory=Counter)
    shards: dict[str, str] = field(default_factory=dict)

    def copy(self) -> "Skipped":
        return Skipped(Counter(self.documents), dict(self.shards))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"documents": dict(self.documents), "shards": dict(self.shards)}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Skipped":
        """The inverse of `to_dict`."""
        return cls(Counter(saved["documents"]), dict(saved["shards"]))

    def add(self, other: "Skipped") -> None:
        """Adds the counts of another stream; a shard that both found damaged stays one shard."""
        self.documents.update(other.documents)
        self.shards.update(other.shards)
