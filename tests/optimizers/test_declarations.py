"""A hyperparameter is declared once: class, groups, name and rule see the same value, type and range."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import nn

import optimizers
from optimizers.engine import registry
from tests.optimizers.models import tiny_llama

# What users of the released classes pass, by position or by name, and get where they pass nothing.
RELEASED = {
    "AdamWSN": "params, lr=0.001, betas=(0.9, 0.999), eps=1e-06, weight_decay=0.0, correct_bias=True",
    "AdamWSNG": "params, lr=0.001, betas=(0.9, 0.999), eps=1e-06, weight_decay=0.0, correct_bias=True, subset_size=-1",
    "AdamMini": "named_parameters, lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0",
    "SGDBoost": "params, lr=0.01, momentum=0.9, eps=1e-08, weight_decay=0.01",
    "Lion": "params, lr=0.0001, betas=(0.9, 0.99), weight_decay=0.0",
    "LDAdamW": "params, lr=0.001, betas=(0.908, 0.99), eps=1e-08, weight_decay=0.0, rank=16, rho=0.908, "
    "proj_type='std', proj_method='power_iteration', error_feedback=True",
    "GaLoreAdamW": "params, lr=0.001, betas=(0.9, 0.999), eps=1e-06, weight_decay=0.0, correct_bias=True",
    "GaLoreAdamW8bit": "params, lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01",
    "GaLoreAdafactor": "params, lr, eps=(1e-30, 0.001), clip_threshold=1.0, decay_rate=-0.8, beta1=0.0, "
    "weight_decay=0.0, scale_parameter=False, relative_step=False, warmup_init=False",
    "Muon": "params, lr=0.001, weight_decay=0.1, momentum=0.95, nesterov=True, ns_steps=5, adjust_lr_fn=None",
    "SOAP": "params, lr=0.003, betas=(0.95, 0.95), eps=1e-08, weight_decay=0.01",
    "APOLLOAdamW": "params, lr=0.001, betas=(0.9, 0.999), eps=1e-06, weight_decay=0.0, correct_bias=True",
    "FiraAdamW": "params, lr=0.001, betas=(0.9, 0.999), eps=1e-06, weight_decay=0.0, correct_bias=True",
    "AdamWSNSM": "params, lr=0.001, betas=(0.9, 0.999), eps=1e-06, weight_decay=0.0, correct_bias=True",
    "Dion2": "params, lr=0.01, fraction=0.25, ef_decay=0.95, betas=(0.9, 0.95), weight_decay=0.01, epsilon=1e-08",
    "SCALE": "params, lr=0.0001, weight_decay=0.0, momentum=0.9, adam_lr=None, adamw_betas=(0.9, 0.999)",
    "GaLoreLion": "params, lr=0.0001, betas=(0.9, 0.99), weight_decay=0.0",
}
# By name these differ: released groups without a rank are not projected, four released classes decay by default, and
# torch's Muon has the other factor.
RELEASED_APART = {"rank": (None,), "weight_decay": (0.01, 0.1), "adjust_lr_fn": (None,)}
PLAIN_RULES = ("lion", "adafactor", "adam8bit")
"""Methods whose rules serve others too, and so do not hold the method's settings."""
ON_THE_ENGINE = [method for method in registry.methods() if method.kind is not None]


@pytest.mark.parametrize("name", RELEASED)
def test_a_class_keeps_the_signature_of_its_release(name: str) -> None:
    signature = inspect.signature(getattr(optimizers, name))
    assert str(signature).removeprefix("(").startswith(RELEASED[name])
    assert {"state_dtype", "per_layer"} <= set(signature.parameters)


@pytest.mark.parametrize("method", ON_THE_ENGINE, ids=lambda method: method.name)
def test_class_and_name_have_the_same_defaults(method: registry.Method) -> None:
    by_class = method.settings.from_group({})
    by_name = method.settings()
    for declared in method.settings.names():
        ours, theirs = getattr(by_name, declared), getattr(by_class, declared)
        assert ours == theirs or theirs in RELEASED_APART.get(declared, ()), declared


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(6, 4))]


OUT_OF_RANGE: list[tuple[str, dict[str, Any], str]] = [
    ("LDAdamW", {"betas": (1.0, 0.99)}, "beta1=1.0: it must be at least 0 and below 1"),
    ("AdamWSN", {"betas": (0.9, -0.1)}, "beta2=-0.1: it must be at least 0 and below 1"),
    ("AdamWSN", {"betas": 0.9}, "betas=0.9: it must be 2 numbers"),
    ("AdamWSN", {"betas": (0.9, 0.9, 0.9)}, "it must be 2 numbers"),
    ("LDAdamW", {"rank": 0}, "rank=0: it must be at least 1"),
    ("LDAdamW", {"rank": 2.5}, "rank=2.5: it must be a whole number"),
    ("LDAdamW", {"rank": True}, "rank=True: it must be a whole number"),
    ("LDAdamW", {"rho": 1.0}, "rho=1.0: it must be at least 0 and below 1"),
    ("LDAdamW", {"proj_method": "qr"}, "proj_method='qr': choose one of power_iteration, svd, svd_lowrank"),
    ("GaLoreAdamW", {"rank": 4, "update_proj_gap": 0}, "update_proj_gap=0: it must be at least 1"),
    ("GaLoreAdamW", {"rank": 4, "proj_type": "rihgt"}, "proj_type='rihgt': choose one of std, "),
    ("GaLoreAdamW", {"rank": 4, "scale": math.nan}, "galore_scale=nan: it must be finite"),
    ("GaLoreAdafactor", {"eps": (1e-30, -1.0)}, "it must be at least 0"),
    ("GaLoreAdafactor", {"relative_step": True}, "must be False"),
    ("SGDBoost", {"eps": -1e-8}, "eps=-1e-08: it must be at least 0"),
    ("SGDBoost", {"momentum": "0.9"}, "momentum='0.9': it must be a number"),
    ("Lion", {"weight_decay": -0.1}, "weight_decay=-0.1: it must be at least 0"),
    ("Lion", {"lr": -0.1}, "lr=-0.1: it must not be negative"),
    ("AdamWSNG", {"subset_size": 0}, "subset_size=0"),
    ("FiraAdamW", {"rank": 0}, "rank=0: give a positive rank, or -j"),
    ("Muon", {"ns_steps": 3, "coefficients": "polar_express"}, "ns_steps=3: Polar Express has 5 steps; leave it out"),
    ("Muon", {"normuon_beta2": 0.9}, "normuon_beta2=0.9: it belongs to normuon"),
    ("Muon", {"adjust_lr_fn": "keller"}, "adjust_lr_fn='keller': choose one of original, match_rms_adamw"),
    ("Dion2", {"fraction": 0.0}, "fraction=0.0: it must be above 0 and at most 1"),
    ("AdamWSNSM", {"betas": (0.0, 0.9)}, "use adamw_sn with beta1 0"),
    ("APOLLOMini", {"rank": 2}, "rank=2: it must be at least 1 and at most 1"),
]


@pytest.mark.parametrize("where", ["class", "group"])
@pytest.mark.parametrize(("name", "settings", "words"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused(name: str, settings: dict[str, Any], words: str, where: str) -> None:
    kind, lr = getattr(optimizers, name), {"lr": 0.1} | settings
    with pytest.raises(ValueError) as refused:
        kind(weights(), **lr) if where == "class" else kind([{"params": weights(), **settings}], lr=0.1)
    assert words in str(refused.value)


def test_a_value_out_of_range_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="rank=0: it must be at least 1"):
        optimizers.build_optimizer("galore_adamw", tiny_llama(), 0.01, rank=0)


def test_a_value_that_a_group_gets_later_is_refused_too() -> None:
    (weight,) = weights()
    optimizer = optimizers.Lion([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.param_groups[0]["betas"] = (0.9, 1.0)
    with pytest.raises(ValueError, match="beta2=1.0"):
        optimizer.step()


def test_what_nothing_reads_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="unknown key 'rnak' of a parameter group; did you mean rank?"):
        optimizers.GaLoreAdamW([{"params": weights(), "rnak": 8}])
    with pytest.raises(TypeError, match="no argument weight_deacy; did you mean weight_decay?"):
        optimizers.GaLoreAdamW(weights(), weight_deacy=0.1)
    with pytest.raises(ValueError, match="does not take rnk; did you mean rank?"):
        optimizers.build_optimizer("galore_adamw", tiny_llama(), 0.01, rnk=8)
    with pytest.raises(ValueError, match="does not take enable_lowrank"):
        optimizers.build_optimizer("ldadamw", tiny_llama(), 0.01, enable_lowrank=False)


def test_arguments_are_taken_by_position_as_in_the_release() -> None:
    by_position = optimizers.GaLoreAdamW([{"params": weights(), "rank": 2}], 0.1, (0.8, 0.9), 1e-5, 0.2, False)
    by_name = optimizers.GaLoreAdamW(
        [{"params": weights(), "rank": 2}], lr=0.1, betas=(0.8, 0.9), eps=1e-5, weight_decay=0.2, correct_bias=False
    )
    assert {k: v for k, v in by_position.param_groups[0].items() if k != "params"} == {
        k: v for k, v in by_name.param_groups[0].items() if k != "params"
    }
    with pytest.raises(TypeError, match="got lr twice"):
        optimizers.Lion(weights(), 0.1, lr=0.2)
    with pytest.raises(TypeError, match="at most 4 arguments by position, 5 were given"):
        optimizers.Lion(weights(), 0.1, (0.9, 0.99), 0.0, 1)
    with pytest.raises(TypeError, match="GaLoreAdafactor needs lr"):
        optimizers.GaLoreAdafactor(weights())


@pytest.mark.parametrize("method", ON_THE_ENGINE, ids=lambda method: method.name)
def test_the_settings_reach_the_rule(method: registry.Method) -> None:
    """What a rule reads is the method's settings class, with the group's values; weight decay is the engine's."""
    optimizer = optimizers.build_optimizer(method.name, tiny_llama(), 0.01, weight_decay=0.125)
    held = [managed.rule.h for managed in optimizer.managed.values() if hasattr(managed.rule, "h")]
    assert held or method.name in PLAIN_RULES
    for settings in held:
        assert isinstance(settings, method.settings) and settings.weight_decay is None
    assert {group["weight_decay"] for group in optimizer.param_groups} <= {0.125, 0.0}


def test_a_rank_above_the_matrix_is_lowered_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        optimizers.GaLoreAdamW([{"params": [nn.Parameter(torch.ones(11, 7)) for _ in range(3)], "rank": 4096}])
    assert [record.getMessage() for record in caplog.records] == [
        "rank 4096 is above the smaller side of a 11 x 7 matrix, which is projected with rank 7: nothing is saved"
    ]
