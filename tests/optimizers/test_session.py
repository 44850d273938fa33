"""Sessions: one loop for every torch optimizer, the loop of docs/own_loop.md among them."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import optimizers
from tests.tiny_runs import ROOT

_BLOCK = re.compile(r"^```python own_loop.py\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def own_loop(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module that the document's pieces of code make."""
    path: Path = tmp_path_factory.mktemp("own_loop") / "own_loop.py"
    document = (ROOT / "docs" / "own_loop.md").read_text(encoding="utf-8")
    path.write_text("\n\n".join(_BLOCK.findall(document)), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("own_loop", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain_loop(updates: list[list[torch.Tensor]], max_norm: float) -> nn.Module:
    """The same training without a session, by torch's own classes."""
    torch.manual_seed(0)
    model = nn.Linear(8, 8, bias=False)
    list(torch.randn(2, 4, 8) for _ in range(5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batches in updates:
        for batch in batches:
            (model(batch).square().mean() / len(batches)).backward()
        if max_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()
    return model


def batches() -> list[list[torch.Tensor]]:
    torch.manual_seed(0)
    nn.Linear(8, 8, bias=False)
    return [list(torch.randn(2, 4, 8)) for _ in range(5)]


@pytest.mark.parametrize("per_layer", [False, True])
def test_the_document_s_loop_trains_as_a_plain_one(own_loop: ModuleType, per_layer: bool) -> None:
    model, warnings = own_loop.main(per_layer)
    expected = plain_loop(batches(), 0.0 if per_layer else 1.0)
    torch.testing.assert_close(model.weight, expected.weight)
    assert warnings == []


@pytest.mark.parametrize("max_norm", [0.0, 0.05])
def test_an_optimizer_of_torch_trains_in_the_same_loop(own_loop: ModuleType, max_norm: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 8, bias=False)
    own_loop.train(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), batches(), max_norm)
    torch.testing.assert_close(model.weight, plain_loop(batches(), max_norm).weight)
    assert model.weight.grad is None


@pytest.mark.parametrize("kind", ["torch", "engine", "per_layer"])
def test_an_abandoned_update_leaves_weights_and_no_gradient(kind: str) -> None:
    model = nn.Linear(4, 4, bias=False)
    if kind == "torch":
        made: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    else:  # one micro-batch of two: nothing is updated yet
        made = optimizers.build_optimizer("adamw_sn", model, 0.1)
    if kind == "per_layer":
        group = {"params": [model.weight], "rank": 2, "update_proj_gap": 10}
        made = optimizers.GaLoreAdamW([group], lr=0.1, per_layer=True)
    session = optimizers.session(made, micro_batches=2)
    before = model.weight.detach().clone()
    session.begin(2)
    model(torch.ones(2, 4)).sum().backward()
    session.abandon()
    assert torch.equal(model.weight, before) and model.weight.grad is None
    assert session.in_backward == (kind == "per_layer")
    assert session.bytes_sent == 0 and not session.replicated


def test_what_cannot_be_accumulated_is_refused_when_the_session_is_made() -> None:
    model = nn.Linear(4, 4)
    optimizer = optimizers.build_optimizer("adamw_sn", model, 0.1, per_layer=True)
    optimizers.session(optimizer)
    with pytest.raises(ValueError, match="micro-batch"):
        optimizers.session(optimizer, micro_batches=2)
