"""Flags of the training itself: its batches, length, clipping, evaluation and seeds."""

from dataclasses import dataclass
from typing import ClassVar

from peft_pretraining.errors import UsageError
from peft_pretraining.flags.fields import TokenCount, flag

FEWEST_LOSSES = 20  # a mean and a deviation of fewer say little about a spike

_COUNTS = (
    "batch_size",
    "gradient_accumulation",
    "total_batch_size",
    "num_training_steps",
    "max_train_tokens",
    "stop_at",
    "eval_every",
)


@dataclass(frozen=True)
class TrainingConfig:
    """How much is trained in one update and in the run, and what happens when an update goes wrong."""

    _argument_group_name: ClassVar[str] = "training"

    batch_size: int = flag(16, help="sequences a process works on at once (one micro-batch)")
    gradient_accumulation: int | None = flag(None, help="micro-batches a process sums into an update (default: 1)")
    total_batch_size: int | None = flag(
        None,
        help="sequences of an update over all processes (default: batch_size x accumulation x processes)",
    )
    num_training_steps: int = flag(10_000, help="updates of the weights in the run")
    max_train_tokens: TokenCount | None = flag(
        None,
        help="length of the run in tokens instead of updates, as 100M or 1.5B; counts max_length positions a "
        "sequence, padding included",
    )
    stop_at: int | None = flag(
        None, help="end the run after this update, on the schedule of the whole run (default: after the last one)"
    )
    grad_clipping: float = flag(0.0, help="largest global norm of the gradient; 0 does not clip")
    eval_every: int | None = flag(
        None,
        help="updates between evaluations; the last update is always evaluated (default: a twentieth of the run, "
        "at most 1000)",
    )
    evaluation: str = flag(
        "exact",
        choices=("exact", "published"),
        help="exact: sum of losses over tokens; published: the biased mean of the published harness",
    )
    micro_batch_means: bool = flag(
        False,
        help="the gradient of an update is the mean of its micro-batches' means, as in the published harnesses: "
        "a token counts less in a micro-batch with more of them",
    )
    protocol: str | None = flag(
        None,
        choices=("published", "tuned"),
        help="defaults of several flags at once. published: what the papers' harnesses did. tuned: what good practice "
        "sets for a fair comparison. A flag that is typed still wins; docs/replays.md has the lists",
    )
    seed: int = flag(0, help="seed of the weights, and of the data order without --data_seed")
    deterministic: bool = flag(False, help="deterministic kernels only: the same command gives the same losses")
    max_bad_steps: int = flag(
        10, help="skipped updates in a row, for a non-finite loss or gradient, that are tolerated"
    )
    spike_window: int = flag(100, help="updates whose losses a loss spike is judged by; 0 does not look")
    spike_zscore: float = flag(6.0, help="standard deviations above the window's mean that make a loss spike")

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} {value}: give at least 1")
        for name in ("grad_clipping", "max_bad_steps", "spike_window", "seed"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"--{name} {getattr(self, name)}: give 0 or more")
        if 0 < self.spike_window < FEWEST_LOSSES:
            raise UsageError(
                f"--spike_window {self.spike_window}: give at least {FEWEST_LOSSES} updates to judge by, or 0 for none"
            )
        if not self.spike_zscore > 0:
            raise UsageError(f"--spike_zscore {self.spike_zscore}: give a number above 0")
