"""How far a run has come: the counters that a checkpoint holds."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self

from peft_pretraining.errors import UsageError


@dataclass
class Progress:
    """update: updates done, skipped ones included. tokens_seen: input tokens of all processes, no padding.

    bad_in_a_row: skipped updates since the last good one. recent_losses: the window that loss spikes are
    judged by. seconds: time spent in updates. evaluated_at: the update of the last evaluation.
    """

    update: int = 0
    tokens_seen: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    seconds: float = 0.0
    evaluated_at: int = 0
    evaluation: dict[str, Any] = field(default_factory=dict)
    recent_losses: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Self:
        """Raises UsageError where a counter is missing or is no number."""
        for one in dataclasses.fields(cls):
            kind = type(getattr(cls(), one.name))
            if type(saved.get(one.name)) is not kind:
                raise UsageError(f"--continue_from: the checkpoint's {one.name} is not of type {kind.__name__}")
        if any(type(loss) is not float for loss in saved["recent_losses"]):
            raise UsageError("--continue_from: the checkpoint's recent_losses are not numbers")
        return cls(**{one.name: saved[one.name] for one in dataclasses.fields(cls)})
