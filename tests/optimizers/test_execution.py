"""Compiled execution is the eager one, and is compiled once for a whole run."""

import pytest
import torch
from torch import nn

import optimizers
from optimizers.baselines import EngineAdamW
from optimizers.engine import execution as engine
from tests.optimizers.matrix import Cell, engine_methods, learning_rate


def model() -> nn.Module:
    """One attention and one MLP matrix, a norm and an embedding, under names that every method knows."""
    torch.manual_seed(0)
    root, attention, mlp = nn.Module(), nn.Module(), nn.Module()
    attention.q_proj = nn.Linear(16, 16, bias=False)
    mlp.up_proj = nn.Linear(16, 40, bias=False)
    root.self_attn, root.mlp, root.input_layernorm = attention, mlp, nn.RMSNorm(16)
    root.embed_tokens = nn.Embedding(30, 16)
    root.config = type("Config", (), {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 4})()
    return root


def trajectory(method: str, execution: str, **options) -> torch.Tensor:
    """Weights after 8 updates under a moving learning rate."""
    net = model()
    arguments = Cell(method).arguments() | {"execution": execution, **options}
    optimizer = optimizers.build_optimizer(method, net, learning_rate(method), **arguments)
    generator = torch.Generator().manual_seed(1)
    for step in range(8):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(method) * (8 - step) / 8
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


QUICK = ("adamw_sn", "galore_adamw")
"""Compiling takes seconds a rule and shape: these stand for the others by default."""


@pytest.mark.parametrize(
    "method", [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in engine_methods()]
)
def test_compiled_equals_eager_without_recompiling(method):
    eager = trajectory(method, "eager")
    torch._dynamo.utils.counters.clear()
    compiled = trajectory(method, "compiled")
    # a sign of a nearly cancelling entry turns with the last bit; elsewhere only rounding differs
    signed = "lion" in method
    assert float((compiled - eager).norm() / eager.norm()) < (1e-3 if signed else 1e-6)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    # one graph a rule and shape for the first update, one for all later ones
    assert graphs <= 2 * len(list(model().parameters()))
    assert not torch._dynamo.utils.counters["recompiles"]


def test_tensors_updated_together_get_the_bits_of_each_alone(monkeypatch):
    """Twenty matrices of one shape: a full call, and one for those left over."""

    def weights(together: int) -> list[torch.Tensor]:
        monkeypatch.setattr(engine, "TOGETHER", together)
        engine.program.cache_clear()
        generator = torch.Generator().manual_seed(2)
        parameters = [nn.Parameter(torch.randn(48, 64, generator=generator)) for _ in range(20)]
        optimizer = optimizers.AdamWSN(
            [{"params": parameters, "sn": True}], lr=1e-2, weight_decay=0.1, execution="compiled"
        )
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = torch.randn(48, 64, generator=generator)
            optimizer.step()
        assert {int(optimizer.state[p]["step"]) for p in parameters} == {3}
        return [p.detach() for p in parameters]

    torch._dynamo.utils.counters.clear()
    alone = weights(1)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # the first update, and all later ones
    torch._dynamo.utils.counters.clear()
    together = weights(16)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("state_dtype", ["bfloat16", pytest.param("int8", marks=pytest.mark.slow)])
def test_compiled_equals_eager_in_small_formats(state_dtype):
    """The same codes and the same stochastic rounding: state tensors above the size that stays float32."""
    results = []
    for execution in ("eager", "compiled"):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(96, 64).bfloat16())
        options = {"state_dtype": state_dtype, "weight_rounding": "stochastic", "execution": execution}
        optimizer = optimizers.AdamWSN([{"params": [weight], "sn": True}], lr=1e-2, **options)
        for _ in range(5):
            weight.grad = torch.randn(96, 64).bfloat16()
            optimizer.step()
        results.append(weight.detach().float())
    # an average that differs in its last bit may round to the neighbouring value, one part in 256
    assert float((results[0] - results[1]).abs().max()) <= 2**-7 * 4
    assert float((results[0] == results[1]).float().mean()) > 0.99


@pytest.fixture
def front_end(monkeypatch):
    """torch.compile without its code generator, which takes seconds a graph: what counts here is which tensors the
    front end takes for one."""
    compile = torch.compile

    def without_guards(function, **_):
        options = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        return compile(function, backend="aot_eager", fullgraph=True, options=options)

    monkeypatch.setattr(torch, "compile", without_guards)
    engine.program.cache_clear()
    yield
    engine.program.cache_clear()


def _updates(execution: str, parameters: list[nn.Parameter], groups: list[dict], before) -> list[torch.Tensor]:
    """Weights after 4 updates; before(optimizer, update) changes groups and gradients."""
    with torch.no_grad():
        for number, parameter in enumerate(parameters):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    optimizer = EngineAdamW(groups, lr=1e-2, execution=execution)
    generator = torch.Generator().manual_seed(3)
    for update in range(4):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        before(optimizer, update)
        optimizer.step()
    return [p.detach().clone() for p in parameters]


def _freeze_later(optimizer, update: int) -> None:
    optimizer.param_groups[1]["lr"] = 1e-2 if update < 2 else 0.0


def _miss_one(optimizer, update: int) -> None:
    if update == 1:
        optimizer.param_groups[1]["params"][0].grad = None


def _share_gradients_at_first(optimizer, update: int) -> None:
    first, second = (group["params"] for group in optimizer.param_groups)
    if update < 2:
        second[0].grad = first[0].grad


def _gradient_is_the_weight_at_first(optimizer, update: int) -> None:
    if update < 2:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = parameter.detach()


def _transposed_gradients_later(optimizer, update: int) -> None:
    if update >= 2:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = parameter.grad.T.contiguous().T


CHANGES = [
    _freeze_later,
    _miss_one,
    _share_gradients_at_first,
    _gradient_is_the_weight_at_first,
    _transposed_gradients_later,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__.strip("_"))
def test_a_compiled_update_takes_its_own_numbers_and_gradient(change, front_end):
    """What tensors share at the first update they need not share later: lr, missed updates, gradients, memory."""
    parameters = [nn.Parameter(torch.empty(16, 8)) for _ in range(4)]
    groups = [{"params": parameters[:2]}, {"params": parameters[2:]}]
    eager, compiled = (
        _updates(way, parameters, [dict(group) for group in groups], change) for way in ("eager", "compiled")
    )
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_layer_wise_learning_rates_cut_by_a_call_in_any_place(front_end):
    """20 tensors, 3 to a group: calls of 16 and 4 cut groups; each tensor has its own rate."""
    parameters = [nn.Parameter(torch.empty(16, 8)) for _ in range(20)]
    groups = [{"params": parameters[i : i + 3], "lr": 1e-2 * 0.8 ** (i // 3)} for i in range(0, 20, 3)]
    eager, compiled = (
        _updates(way, parameters, [dict(group) for group in groups], lambda *_: None) for way in ("eager", "compiled")
    )
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def _auto(updates: int, resume_at: int | None = None, execution: str = "auto") -> list[torch.Tensor]:
    """Weights after the updates, some of them perhaps by another optimizer that took the state over."""
    generator = torch.Generator().manual_seed(3)
    parameters = [nn.Parameter(torch.randn(16, 8, generator=generator)) for _ in range(3)]
    optimizer = EngineAdamW(parameters, lr=1e-2, execution=execution)
    for update in range(updates):
        if update == resume_at:
            state = optimizer.state_dict()
            optimizer = EngineAdamW(parameters, lr=1e-2, execution=execution)
            optimizer.load_state_dict(state)
        for parameter in parameters:
            parameter.grad = torch.randn(16, 8, generator=generator)
        optimizer.step()
    return [p.detach() for p in parameters]


def test_auto_is_eager_at_first_compiled_later_and_resumes_exactly(front_end, monkeypatch):
    assert optimizers.Lion([nn.Parameter(torch.zeros(2))]).options.execution == "auto"
    monkeypatch.setattr(engine, "AUTO_AFTER", 2)
    torch._dynamo.utils.counters.clear()
    short = _auto(2)
    assert not torch._dynamo.utils.counters["stats"]
    assert all(torch.equal(a, b) for a, b in zip(short, _auto(2, execution="eager"), strict=True))
    straight = _auto(5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for at in (1, 2, 4):
        assert all(torch.equal(a, b) for a, b in zip(straight, _auto(5, resume_at=at), strict=True))


def test_auto_falls_back_where_the_compiler_fails(monkeypatch, caplog):
    monkeypatch.setattr(engine, "AUTO_AFTER", 2)
    compile = torch.compile

    def without_a_compiler(graph, inputs):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda f, **_: compile(f, backend=without_a_compiler, fullgraph=True))
    engine.program.cache_clear()
    eager = _auto(4, execution="eager")
    assert all(torch.equal(a, b) for a, b in zip(eager, _auto(4), strict=True))
    assert caplog.text.count("updates stay eager") == 1 and "no C++ compiler" in caplog.text
    with pytest.raises(engine.CompilationError, match="no C\\+\\+ compiler"):
        _auto(1, execution="compiled")
    engine.program.cache_clear()


def test_betas_that_change_at_every_update_are_not_compiled_for_ever(front_end):
    weight = nn.Parameter(torch.ones(8, 8))
    optimizer = EngineAdamW([weight], lr=1e-2, execution="compiled")
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=12)
    torch._dynamo.utils.counters.clear()
    for _ in range(12):
        weight.grad = torch.ones(8, 8)
        optimizer.step()
        schedule.step()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6
    assert any("runs eagerly" in warning for warning in optimizer.warnings)
