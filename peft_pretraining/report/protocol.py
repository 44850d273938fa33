"""How a run was done beside how a published figure came about: what differs, and what the source leaves open."""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimizers.engine import registry
from peft_pretraining.report.arms import model_name
from peft_pretraining.report.published import Result, protocols, published_settings

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([mb])$", re.IGNORECASE)
_PROTOCOL = {
    "dataset": "dataset",
    "tokenizer": "tokenizer",
    "max_length": "tokens a row",
    "packing": "packing",
    "total_batch_size": "rows per update",
    "eval_tokens": "evaluation tokens",
    "dtype": "dtype",
    "scheduler": "scheduler",
    "warmup_share": "warm-up share",
    "min_lr_ratio": "min_lr_ratio",
    "weight_decay": "weight decay",
    "grad_clipping": "gradient clipping",
    "weight_rounding": "rounding of the weights",
}
_OF_METHOD = ("beta1", "beta2", "galore_scale", "update_proj_gap")
_DECAYS_TO_A_TENTH = ("cosine", "cosine_restarts")


@dataclass
class Comparison:
    """differ: in words. unstated: what the source does not say. Where both are empty, the figures can be compared."""

    differ: list[str] = field(default_factory=list)
    unstated: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.differ) + len(self.unstated)

    def sentences(self) -> list[str]:
        """What differs, then all that is not stated in one sentence."""
        return self.differ + ([f"not stated by the source: {', '.join(self.unstated)}"] if self.unstated else [])

    def note(self, name: str, own: Any, published: Any) -> None:
        """Notes a value that is not the published one; None is a published value that is not stated."""
        if published is None:
            self.unstated.append(name)
        elif not _same(own, published):
            self.differ.append(f"{name} {_text(own)}, published {_text(published)}")


def compare_settings(settings: dict[str, Any], result: Result) -> Comparison:
    """A run with these flags beside a published perplexity of its method."""
    found = Comparison()
    if model_size(settings) != result.model:
        found.differ.append(f"model {model_size(settings)}, published {result.model}")
    protocol = protocols()[result.protocol] if result.protocol else {}
    method = published_settings(settings, result.paper)
    if protocol.get("quantity") != "validation":
        found.differ.append(
            f"published: {protocol.get('quantity') or 'training or validation (not stated)'} perplexity"
        )
    own = {**settings, **_schedule(settings), "weight_rounding": _rounding(settings, protocol)}
    for flag, name in _PROTOCOL.items():
        found.note(name, own[flag], method.get(flag, protocol.get(flag)))
    _note_evaluation(found, settings["evaluation"], protocol.get("evaluation"))
    _note_length(found, settings, result)
    found.note("lr", settings["lr"], result.lr)
    if settings.get("rank") is not None:
        found.note("rank", settings["rank"], result.rank)
    for flag in _OF_METHOD:
        if settings.get(flag) is not None:
            found.note(flag, settings[flag], method.get(flag))
    _note_unusual(found, settings, method)
    return found


def model_size(settings: dict[str, Any]) -> str:
    """60M or 1B, from the name of the model's configuration; the whole name where it has no size."""
    name = model_name(settings)
    match = _SIZE.search(name)
    return f"{match[1]}{match[2].upper()}" if match else name


def _schedule(settings: dict[str, Any]) -> dict[str, float]:
    """The defaults of the schedule's flags written out."""
    steps, warmup, floor = (settings[flag] for flag in ("num_training_steps", "warmup_steps", "min_lr_ratio"))
    warmup = steps // 10 if warmup is None else warmup
    if settings["scheduler"] == "constant":
        floor = 1.0
    elif floor is None:
        floor = 0.1 if settings["scheduler"] in _DECAYS_TO_A_TENTH else 0.0
    # A share that whole updates cannot meet better counts as met.
    return {"warmup_share": round(warmup / steps, 3), "min_lr_ratio": floor}


def _rounding(settings: dict[str, Any], protocol: dict[str, Any]) -> str | None:
    """float32 weights are not rounded, so they differ in dtype alone; optimizers of libraries round to nearest."""
    if settings["dtype"] != "bfloat16":
        return protocol.get("weight_rounding")
    return settings.get("weight_rounding") or "nearest"


def _note_evaluation(found: Comparison, own: str, published: str | None) -> None:
    if published is None:
        found.unstated.append("whether the evaluation is biased")
    elif own != published:
        found.differ.append(f"evaluation {own}; the published one divides by one batch too many, so it is too low")


def _note_length(found: Comparison, settings: dict[str, Any], result: Result) -> None:
    steps = settings["num_training_steps"]
    if result.steps is not None or result.tokens is None:
        found.note("updates", steps, result.steps)
        return
    tokens = steps * settings["total_batch_size"] * settings["max_length"]
    if not math.isclose(tokens, result.tokens, rel_tol=0.05):
        found.differ.append(f"tokens {tokens:,}, published {result.tokens:,}")


def _note_unusual(found: Comparison, settings: dict[str, Any], method: dict[str, Any]) -> None:
    """What else was changed: a published run has the method's other settings at their defaults."""
    entry = registry.get(settings["optimizer"])
    told_apart = {*_PROTOCOL, *_OF_METHOD, "rank", "proj_type"}
    for hyperparameter in dataclasses.fields(entry.settings):
        flag, own = hyperparameter.name, settings.get(hyperparameter.name)
        if flag not in told_apart and own is not None:
            found.note(flag, own, method.get(flag) if flag in method else hyperparameter.default)
    usual: dict[str, Any] = {"stagger_refresh": False}
    if settings.get("state_dtype") == "int8":
        usual["state_dtype"] = "unquantized"
    if settings["grad_clipping"]:
        usual["per_layer"] = False
    for flag, published in {**usual, **entry.presets}.items():
        if flag in settings and settings[flag] is not None:
            found.note(flag, settings[flag], published)


def _same(own: Any, published: Any) -> bool:
    if isinstance(own, float | int) and isinstance(published, float | int):
        return math.isclose(own, published)
    return own == published


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, float | int):
        return Path(str(value)).stem
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
