"""Large tensors are updated some rows at a time."""

import pytest
import torch
from torch import Tensor

from optimizers import build_optimizer
from optimizers.engine import execution
from tests.optimizers.matrix import Cell, engine_methods, model

COUPLED = ("galore_adafactor", "adafactor", "soap")
"""Methods that have no rule whose rows do not depend on each other."""


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", engine_methods())
def test_large_tensors_updated_in_slices_are_those_updated_whole(
    name: str, state_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice is no shard of its own: same 8-bit blocks, same random bits, same statistics of the whole tensor."""

    def trained() -> tuple[dict[str, Tensor], int]:
        torch.manual_seed(0)
        net = model().bfloat16()
        options = dict(Cell(name).arguments(), state_dtype=state_dtype, weight_rounding="stochastic")
        optimizer = build_optimizer(name, net, 1e-2, **options)
        for _ in range(3):
            for param in net.parameters():
                param.grad = torch.randn_like(param)
            optimizer.step()
        return dict(net.named_parameters()), sum(m.slices > 1 for m in optimizer.managed.values())

    whole, none = trained()
    monkeypatch.setattr(execution, "SLICE", 2048)
    sliced, some = trained()
    assert none == 0
    assert some > 0 or name in COUPLED
    for key, weight in whole.items():
        assert weight.equal(sliced[key]), key
