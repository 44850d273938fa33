"""Updates inside the backward pass: no gradient outlives its update, and accumulation is exact where it is offered."""

import pytest
import torch
from torch import Tensor, nn

import optimizers
from optimizers.engine import registry
from tests.optimizers.matrix import BATCH, LENGTH, VOCABULARY, Cell, engine_methods, flatten, learning_rate, model

UPDATES, MICRO_BATCHES = 12, 4
FIXED_BASES = ("std", "reverse_std", "left", "right", "full", "random")


def batches(count: int) -> list[Tensor]:
    data = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=data) for _ in range(count)]


def backward(net: nn.Module, rows: Tensor) -> None:
    (net(input_ids=rows, labels=rows).loss * len(rows) / BATCH).backward()


def trained(cell: Cell, **more: object) -> Tensor:
    """Weights after a first update of one micro-batch, which makes the bases, and others of four."""
    net = model()
    arguments = cell.arguments() | more
    optimizer = optimizers.build_optimizer(cell.method, net, learning_rate(cell.method), **arguments)
    for number, batch in enumerate(batches(UPDATES)):
        parts = batch.chunk(MICRO_BATCHES if number else 1)
        if cell.per_layer:
            optimizer.begin_update(len(parts))
        for rows in parts:
            backward(net, rows)
        optimizer.step()
        optimizer.zero_grad()
    return flatten(net)


def accumulating() -> list[Cell]:
    """Methods that add up projected gradients, momentum or error, with settings that fit the small model."""
    cells = [Cell("galore_adamw", f"proj_type={kind}") for kind in FIXED_BASES]
    cells += [Cell(method) for method in ("galore_lion", "galore_adafactor", "ldadamw", "sgd", "sgd_boost")]
    return [*cells, Cell("galore_adamw", "proj_type=std", "bfloat16"), Cell("galore_adamw", "proj_type=std", "int8")]


@pytest.mark.parametrize("cell", accumulating(), ids=lambda c: f"{c.method} {c.variant} {c.state_dtype}")
def test_four_micro_batches_between_refreshes_are_ordinary_accumulation(cell: Cell) -> None:
    ordinary = trained(cell)
    inside = trained(Cell(cell.method, cell.variant, cell.state_dtype, per_layer=True))
    moved = (ordinary - flatten(model())).norm()
    # A sign of a lifted, nearly cancelling entry hangs on the last bit of the sum.
    limit = 3e-2 if cell.method == "galore_lion" or cell.state_dtype != "float32" else 1e-4
    assert float((inside - ordinary).norm() / moved) <= limit


@pytest.mark.parametrize("method", engine_methods())
def test_gradients_are_gone_as_soon_as_they_are_used(method: str) -> None:
    """Live bytes of gradients at every moment that one comes to exist: its own, and those of nobody else."""
    net = model()
    live: list[int] = []

    def count(_: Tensor) -> None:
        live.append(sum(p.grad.nbytes for p in net.parameters() if p.grad is not None))

    for param in net.parameters():
        param.register_post_accumulate_grad_hook(count)  # before the optimizer's own
    optimizer = optimizers.build_optimizer(method, net, 1e-3, **Cell(method, per_layer=True).arguments())
    sizes = [p.nbytes for p in net.parameters()]
    for batch in batches(2):
        optimizer.begin_update()
        backward(net, batch)
        assert all(p.grad is None for p in net.parameters())
        optimizer.step()
    assert len(live) == 2 * len(sizes)
    assert max(live) == max(sizes) and sum(live) == 2 * sum(sizes)


def test_accumulation_of_a_projected_method_keeps_projections_and_the_unprojected_gradients() -> None:
    """Between micro-batches: r x n sums for the body's matrices, ordinary gradients for embedding, head and norms."""
    net = model()
    optimizer = optimizers.build_optimizer("galore_adamw", net, 1e-3, rank=8, per_layer=True)
    optimizer.begin_update(2)
    first, second = batches(1)[0].chunk(2)
    backward(net, first)
    projected = {p for p, m in optimizer.managed.items() if m.rule.compresses}
    assert all((p.grad is None) == (p in projected) for p in net.parameters())
    assert set(optimizer.layers.sums) == projected
    assert all(s.numel() == 8 * max(p.shape) for p, s in optimizer.layers.sums.items())
    backward(net, second)
    assert not optimizer.layers.sums and all(p.grad is None for p in net.parameters())


def test_names_that_preset_options_build_the_same_optimizer() -> None:
    for method in registry.methods():
        if not method.presets:
            continue
        plain = "galore_adamw"
        named = optimizers.build_optimizer(method.name, model(), 1e-3, rank=8)
        spelled = optimizers.build_optimizer(plain, model(), 1e-3, rank=8, **method.presets)
        assert named.options == spelled.options
        assert named.routing_table() == spelled.routing_table()
