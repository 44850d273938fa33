"""Loops that are not the harness's, per-layer and on several processes: each is right, or refused with the remedy."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimizers
from optimizers.baselines import EngineAdamW, EngineSGD
from optimizers.engine.in_backward import ordered_streams
from tests.optimizers.models import loss_of, tiny_llama
from tests.optimizers.test_integration import Rows

ROOT = Path(__file__).resolve().parents[2]


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 4, bias=False)


def adamw_sn(*weights: Tensor, **options: Any) -> Any:
    return optimizers.AdamWSN([{"params": list(weights), "sn": True}], lr=0.1, **options)


def per_layer(*weights: Tensor) -> Any:
    """An optimizer whose loop has said that it makes one backward pass per update and clips nothing."""
    optimizer = adamw_sn(*weights, per_layer=True)
    optimizer.begin_update()
    return optimizer


def backward(net: nn.Module, value: float = 1.0) -> None:
    net(torch.full((2, 4), value)).square().sum().backward()


def test_a_second_backward_pass_before_the_step_is_refused() -> None:
    net = layer()
    optimizer = per_layer(net.weight)
    backward(net)
    with pytest.raises(ValueError, match=r"begin_update\(micro_batches=N\)"):
        backward(net)
    assert int(optimizer.state[net.weight]["step"]) == 1


def test_more_backward_passes_than_begun_are_refused() -> None:
    net = layer()
    optimizer = EngineSGD([net.weight], lr=0.1, momentum=0.9, per_layer=True)
    optimizer.begin_update(2)
    backward(net)
    backward(net)
    with pytest.raises(ValueError, match="backward pass 3 of an update of 2"):
        backward(net)
    optimizer.step()
    with pytest.raises(ValueError, match="abandon_update"):
        backward(net)
        optimizer.begin_update(2)


def test_begin_update_holds_for_the_updates_after_it() -> None:
    inside, ordinary = layer(), layer()
    one = EngineSGD([inside.weight], lr=0.01, momentum=0.9, per_layer=True)
    two = EngineSGD([ordinary.weight], lr=0.01, momentum=0.9)
    one.begin_update(2)
    for _ in range(3):
        for optimizer, net in ((one, inside), (two, ordinary)):
            backward(net, 1.0)
            backward(net, 2.0)
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(inside.weight, ordinary.weight)
    assert int(one.state[inside.weight]["step"]) == 3


def test_a_loop_that_never_says_how_it_clips_is_told_once() -> None:
    net = layer()
    optimizer = adamw_sn(net.weight, per_layer=True)
    with pytest.warns(UserWarning, match="max_grad_norm"):
        backward(net)
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backward(net)
        optimizer.step()


def test_a_grad_scaler_is_refused() -> None:
    net = layer()
    optimizer = per_layer(net.weight)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    scaler.scale(net(torch.ones(2, 4)).sum()).backward()
    with pytest.raises(ValueError, match="GradScaler"):
        scaler.step(optimizer)


def test_parameters_unfrozen_later_are_updated() -> None:
    net, start = layer(), layer().weight
    net.weight.requires_grad_(False)
    optimizer = per_layer(net.weight)
    assert not net.weight.requires_grad
    net.weight.requires_grad_(True)
    backward(net)
    optimizer.step()
    assert not torch.equal(net.weight, start) and net.weight.grad is None


@pytest.mark.parametrize("second", [{}, {"per_layer": True}])
def test_a_second_optimizer_on_the_model_is_refused(second: dict[str, Any]) -> None:
    net = layer()
    optimizer = per_layer(net.weight)
    with pytest.raises(ValueError, match="second optimizer"):
        adamw_sn(net.weight, **second)
    backward(net)
    with pytest.raises(ValueError, match="SGD, parameter 0 of a group"):
        torch.optim.SGD(net.parameters(), lr=0.1).step()
    optimizer.step()


def test_an_optimizer_that_was_deleted_makes_room_for_another() -> None:
    net = layer()
    optimizer = per_layer(net.weight)
    backward(net)
    optimizer.step()
    before = net.weight.detach().clone()
    del optimizer
    gc.collect()
    backward(net)
    assert torch.equal(net.weight, before) and net.weight.grad is not None
    net.zero_grad()
    optimizer = per_layer(net.weight)
    backward(net)
    assert int(optimizer.state[net.weight]["step"]) == 1 and not torch.equal(net.weight, before)


@pytest.mark.parametrize("options", [{}, {"per_layer": True}])
def test_sparse_gradients_are_refused(options: dict[str, Any]) -> None:
    table = nn.Embedding(8, 4, sparse=True)
    optimizer = EngineSGD(table.parameters(), lr=0.1, momentum=0.9, **options)
    if options:
        optimizer.begin_update(2)
    with pytest.raises(ValueError, match="sparse=False"):
        table(torch.tensor([1])).sum().backward()
        optimizer.step()


def trained_by_trainer(folder: Path, begins: bool, **options: Any) -> nn.Module:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments, get_constant_schedule

    model = tiny_llama()
    optimizer = optimizers.build_optimizer("sgd", model, lr=0.05, **options)
    if begins:
        optimizer.begin_update(micro_batches=2)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_grad_norm=0.0,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    made = (optimizer, get_constant_schedule(optimizer))
    Trainer(model=model, args=arguments, train_dataset=Rows(), optimizers=made).train()
    return model


def test_the_trainer_accumulates_per_layer_once_it_is_told(tmp_path: Path) -> None:
    """Momentum adds up gradients as the ordinary optimizer does; without begin_update the message names it."""
    ordinary = trained_by_trainer(tmp_path, begins=False)
    inside = trained_by_trainer(tmp_path, begins=True, per_layer=True)
    for ours, theirs in zip(inside.parameters(), ordinary.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps\) call optimizer.begin_update"):
        trained_by_trainer(tmp_path, begins=False, per_layer=True)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_per_layer_clipping_limits_the_projection(micro_batches: int) -> None:
    """The projection's norm, whatever the number of micro-batches: what the weight moves by is that of the limit."""
    weight = nn.Parameter(torch.zeros(32, 16))
    group = {"params": [weight], "rank": 2, "scale": 1.0}
    optimizer = optimizers.GaLoreAdamW([group], lr=1.0, betas=(0.0, 0.5), eps=1e6, per_layer=True)
    generator = torch.Generator().manual_seed(3)
    for update in range(2):
        gradient = 3 * torch.randn(32, 16, generator=generator)
        optimizer.begin_update(micro_batches, max_norm=0.5)
        before = weight.detach().clone()
        for _ in range(micro_batches):
            (weight * gradient / micro_batches).sum().backward()
        optimizer.step()
        # With eps this large and no momentum the step is (R clipped) times its bias correction over eps, lifted.
        step = (weight.detach() - before).norm() * 1e6 / (1 - 0.5 ** (update + 1)) ** 0.5
        assert float(step) == pytest.approx(0.5, rel=1e-3)


def test_gradients_are_compressed_without_loading_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    from optimizers.engine import precision

    model = tiny_llama()
    optimizer = optimizers.build_optimizer("galore_adamw8bit", model, 1e-3, rank=64)
    loss_of(model, 0).backward()
    optimizer.step()
    loaded: list[str] = []
    load = precision.load
    monkeypatch.setattr(precision, "load", lambda name, *rest: loaded.append(name) or load(name, *rest))
    managed = next(m for m in optimizer.managed.values() if m.rule.compresses)
    managed.compress(managed.param.grad)
    assert loaded == ["basis"]


class Stream:
    """A stand-in for a CUDA stream that notes what is done, and knows no device."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.mark.parametrize("quantised", [True, False])
def test_eight_bit_state_is_updated_on_the_default_stream(quantised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the stream that FSDP2 calls the hook on; without 8-bit state nothing has to change streams."""
    log: list[str] = []
    side, default = Stream("side", log), Stream("default", log)

    @contextmanager
    def on(stream: Stream) -> Any:
        log.append(f"on {stream.name}")
        yield

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: default)
    monkeypatch.setattr(torch.cuda, "stream", on)
    with ordered_streams(torch.device("cuda", 0), quantised):
        log.append("update")
    ordered = ["default waits for side", "on default", "update", "side waits for default"]
    assert log == (ordered if quantised else ["update"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_eight_bit_state_behind_a_long_kernel_on_a_side_stream() -> None:
    def trained(stream: torch.cuda.Stream) -> Tensor:
        torch.manual_seed(0)
        weight = nn.Parameter(torch.zeros(512, 512, device="cuda"))
        optimizer = EngineAdamW([weight], lr=0.1, per_layer=True, state_dtype="int8")
        optimizer.begin_update()
        for _ in range(3):
            gradient = torch.randn(512, 512, device="cuda")
            stream.wait_stream(torch.cuda.default_stream())
            with torch.cuda.stream(stream):
                torch.cuda._sleep(50_000_000)
                weight.grad = gradient.clone()
                optimizer.layers.on_gradient(weight)
            torch.cuda.synchronize()
            optimizer.step()
        return weight.detach()

    assert torch.equal(trained(torch.cuda.Stream()), trained(torch.cuda.default_stream()))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the cases of two_processes.py gave on each of two processes."""
    file = tmp_path_factory.mktemp("two_processes") / "results.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "tests.optimizers.two_processes", str(file)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(file.read_text())


def test_per_layer_in_torchs_ddp_is_refused(together: list[dict[str, Any]]) -> None:
    for results in together:
        assert "replicate(optimizer)" in results["per_layer_under_ddp"]
        assert "DistributedDataParallel" in results["per_layer_under_ddp_and_replicated"]


def test_a_non_finite_shard_is_every_process_s(together: list[dict[str, Any]]) -> None:
    """The update is left out on all, and the other parameter and later updates go on."""
    for results in together:
        for name in ("ldadam", "continuous"):
            assert results["non_finite_shard"][name] == {"updates": [2, 3], "finite": [True, True], "moved": True}
        assert results["non_finite_shard"]["galore"]["updates"] == [3, 3]


def test_a_gradient_that_some_processes_lack_is_summed(together: list[dict[str, Any]]) -> None:
    expected = [1 - 0.5 * (1 + 2), 1 - 0.5, 1.0]
    for results in together:
        assert results["missing_gradients"] == {"sgd": expected, "torch": expected}


def test_owners_compute_their_bases_at_the_same_time(together: list[dict[str, Any]]) -> None:
    """Eight bases of 0.2 s: 1.6 s in one process."""
    for results in together:
        for measured in results["refreshes_at_the_same_time"].values():
            assert 0.8 <= measured["seconds"] <= 1.2
            assert measured["signs"] == 4


def test_per_layer_clipping_is_the_same_in_every_layout(together: list[dict[str, Any]]) -> None:
    for results in together:
        assert len(results["clipped_per_layer"]) == 7
        assert max(results["clipped_per_layer"].values()) <= 1e-4, results["clipped_per_layer"]
