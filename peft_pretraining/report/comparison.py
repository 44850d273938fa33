"""Methods against the baseline: mean and spread over seeds, and how sure a difference is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from peft_pretraining.report.arms import Arm, Task, by_lr, final_loss
from peft_pretraining.report.runs import RunRecord

SURE = 0.05
_FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Row:
    """An arm at its chosen learning rate. spread: standard deviation over seeds; None for a single one.

    difference: relative to the baseline's perplexity. p: of Welch's t-test on the final losses, after Holm's
    correction for the number of methods tested; None where either has a single seed. seconds: the median time of
    an update. state_bytes and peak_mib are the largest of the runs.
    """

    arm: Arm
    perplexity: float
    spread: float | None
    bits_per_byte: float | None
    difference: float | None
    p: float | None
    tokens: float
    tokens_per_second: float
    seconds: float
    state_bytes: int | None
    peak_mib: float | None

    @property
    def mark(self) -> str:
        """* where the difference to the baseline is significant, else nothing."""
        return "*" if self.p is not None and self.p < SURE else ""


def compare(task: Task, baseline: str) -> list[Row]:
    """A row for every arm with a finished run, the best first. baseline: an arm's label or optimizer."""
    arms = [arm for arm in task.arms if arm.lr is not None]
    reference = find_baseline(arms, baseline)
    others = [arm for arm in arms if arm is not reference]
    chances = dict(zip((arm.label for arm in others), _holm([_welch(arm, reference) for arm in others]), strict=True))
    rows = [_row(arm, reference, chances.get(arm.label)) for arm in arms]
    return sorted(rows, key=lambda row: row.perplexity)


def find_baseline(arms: Sequence[Arm], baseline: str) -> Arm | None:
    """The arm of this label, or else the first one of this optimizer."""
    by_label = [arm for arm in arms if arm.label == baseline]
    return next(iter(by_label + [arm for arm in arms if arm.settings["optimizer"] == baseline]), None)


def cautions(task: Task, baseline: str) -> list[str]:
    """What a reader should know before believing the comparison."""
    said = []
    finished = [arm for arm in task.arms if arm.lr is not None]
    if find_baseline(finished, baseline) is None:
        said.append(f"No finished run of the baseline {baseline}: nothing is tested against it.")
    counts = {arm.label: len(by_lr(arm.runs)) for arm in finished}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{label} {count}" for label, count in counts.items())
        said.append(f"Unequal budgets: learning rates tried per method: {listed}.")
    for arm in finished:
        rates = sorted(by_lr(arm.runs))
        if len(rates) > 1 and arm.lr in (rates[0], rates[-1]):
            said.append(f"{arm.label}: the best learning rate {arm.lr:g} is at the edge of those tried.")
    if any(count == 1 for count in counts.values()):
        said.append("A method with a single learning rate was not searched; its figure is for that rate alone.")
    few = [arm.label for arm in finished if len(arm.chosen) < _FEWEST_SEEDS]
    if few:
        said.append(f"Fewer than {_FEWEST_SEEDS} seeds at the compared learning rate: {', '.join(few)}.")
    said += [_unfinished(run) for arm in task.arms for run in arm.runs if run.final is None]
    return said


def _unfinished(run: RunRecord) -> str:
    state = "its last loss is not finite" if run.updates and run.updates[-1]["loss"] is None else "not finished"
    total = run.settings["num_training_steps"]
    return f"{run.folder.name} is left out of tables: {state} (update {run.last_update} of {total})."


def _row(arm: Arm, reference: Arm | None, p: float | None) -> Row:
    runs = arm.chosen
    perplexities = [_perplexity(run) for run in runs]
    mean = fmean(perplexities)
    base = fmean(_perplexity(run) for run in reference.chosen) if reference is not None else math.nan
    bits = [run.final["eval_bits_per_byte"] for run in runs if run.final and run.final.get("eval_bits_per_byte")]
    updates = [record for run in runs for record in run.updates]
    seconds = median(record["step_seconds"] for record in updates)
    return Row(
        arm=arm,
        perplexity=mean,
        spread=stdev(perplexities) if len(runs) > 1 else None,
        bits_per_byte=fmean(bits) if bits else None,
        difference=None if reference is None or reference is arm else mean / base - 1,
        p=p,
        tokens=fmean(run.updates[-1]["tokens_seen"] for run in runs),
        tokens_per_second=median(record["tokens_per_second"] for record in updates),
        seconds=seconds,
        state_bytes=max((run.state_bytes for run in runs if run.state_bytes is not None), default=None),
        peak_mib=max((record["peak_memory_mib"] for record in updates if "peak_memory_mib" in record), default=None),
    )


def _perplexity(run: RunRecord) -> float:
    return math.exp(min(final_loss(run), 700))


def _welch(arm: Arm, reference: Arm | None) -> float | None:
    """Two-sided p of equal mean final losses; None where a single seed tells nothing about the spread."""
    if reference is None or min(len(arm.chosen), len(reference.chosen)) < 2:
        return None
    from scipy.stats import ttest_ind

    samples = [[final_loss(run) for run in a.chosen] for a in (arm, reference)]
    if max(stdev(sample) for sample in samples) == 0:
        return None
    return float(ttest_ind(*samples, equal_var=False).pvalue)


def _holm(chances: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction: the k-th smallest of n is multiplied by n - k, and none falls below the last."""
    tested = sorted((p, index) for index, p in enumerate(chances) if p is not None)
    corrected: list[float | None] = [None] * len(chances)
    lowest = 0.0
    for rank, (p, index) in enumerate(tested):
        lowest = max(lowest, min(1.0, p * (len(tested) - rank)))
        corrected[index] = lowest
    return corrected
