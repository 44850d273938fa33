"""The classes in other people's loops: LR schedulers, closures, GradScaler, deepcopy, the Hugging Face Trainer."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimizers
from tests.optimizers.makers import METHODS
from tests.optimizers.models import LENGTH, loss_of, tiny_llama, tokens
from tests.optimizers.test_guards import gradients_of, same, step, weights_of

SHAPES = [(7, 5), (5, 7), (6,)]
MODELS = {
    "adamw_sn": {},
    "adamw_sng": {},
    "adam_mini": {},
    "sgd_boost": {},
    "ldadamw": {"rank": 8},
    "galore_adamw": {"rank": 8, "update_proj_gap": 3},
    "galore_adamw8bit": {"rank": 70, "update_proj_gap": 3},
    "galore_adafactor": {"rank": 8, "proj_type": "continuous"},
    "galore_lion": {"rank": 8, "proj_type": "full"},
    "lion": {},
}
SMALL_LR = {"sgd_boost": 1e-3, "lion": 1e-3, "galore_lion": 1e-3}


@pytest.mark.parametrize("name", METHODS)
def test_is_a_torch_optimizer(name: str) -> None:
    optimizer = METHODS[name](weights_of(*SHAPES))
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert repr(optimizer)


@pytest.mark.parametrize("name", METHODS)
def test_learning_rate_scheduler(name: str) -> None:
    """The scheduler's rate is the one applied: equal to setting it by hand, and zero stops everything."""
    scheduled, by_hand = weights_of(*SHAPES), weights_of(*SHAPES)
    one, two = METHODS[name](scheduled), METHODS[name](by_hand)
    scheduler = torch.optim.lr_scheduler.LambdaLR(one, lambda t: max(0.0, 1 - t / 4))
    for update in range(6):
        for group in two.param_groups:
            group["lr"] = 0.01 * max(0.0, 1 - update / 4)
        before = [w.detach().clone() for w in scheduled]
        step(one, scheduled, gradients_of(update, scheduled))
        step(two, by_hand, gradients_of(update, by_hand))
        scheduler.step()
        if update >= 4 and name != "GaLoreAdafactor-std-momentum":  # it averages updates, lr included
            assert same(before, [w.detach() for w in scheduled])
    assert same([w.detach() for w in scheduled], [w.detach() for w in by_hand])


@pytest.mark.parametrize("name", METHODS)
def test_cyclic_schedulers_may_touch_momentum(name: str) -> None:
    """OneCycleLR refuses optimizers without momentum or betas; with cycle_momentum off it must work for all."""
    weights = weights_of(*SHAPES)
    optimizer = METHODS[name](weights)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=6, cycle_momentum=False)
    for update in range(5):
        step(optimizer, weights, gradients_of(update, weights))
        scheduler.step()
    assert all(torch.isfinite(w).all() for w in weights)


@pytest.mark.parametrize("name", METHODS)
def test_closure(name: str) -> None:
    """The closure runs once with gradients enabled, and its loss comes back."""
    weights = weights_of(*SHAPES)
    optimizer = METHODS[name](weights)
    calls = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum(((w - 1) ** 2).sum() for w in weights)
        loss.backward()
        calls.append(loss.item())
        return loss

    losses = [optimizer.step(closure).item() for _ in range(4)]
    assert losses == calls and len(calls) == 4
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_zero_grad_takes_set_to_none(name: str, set_to_none: bool) -> None:
    """Both ways give the same run."""
    ours, theirs = weights_of(*SHAPES), weights_of(*SHAPES)
    one, two = METHODS[name](ours), METHODS[name](theirs)
    for update in range(4):
        for weight, gradient in zip(ours, gradients_of(update, ours), strict=True):
            weight.grad = gradient if weight.grad is None else weight.grad + gradient
        one.step()
        one.zero_grad(set_to_none=set_to_none)
        step(two, theirs, gradients_of(update, theirs))
    assert same([w.detach() for w in ours], [w.detach() for w in theirs])


@pytest.mark.parametrize("name", METHODS)
def test_grad_scaler(name: str) -> None:
    """A power of two unscales exactly, so the run is the same; an overflow skips the update, the count included."""
    scaled, plain = weights_of(*SHAPES), weights_of(*SHAPES)
    one, two = METHODS[name](scaled), METHODS[name](plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1000)

    def backward(weights: list[nn.Parameter], seed: int, factor: Any = None, spoil: bool = False) -> None:
        loss = sum((w * g).sum() for w, g in zip(weights, gradients_of(seed, weights), strict=True))
        loss = loss * float("inf") if spoil else loss
        (loss if factor is None else factor(loss)).backward()

    for update in range(5):
        one.zero_grad()
        backward(scaled, update, scaler.scale, spoil=update == 2)
        scaler.step(one)
        scaler.update()
        if update != 2:
            two.zero_grad()
            backward(plain, update)
            two.step()
    assert same([w.detach() for w in scaled], [w.detach() for w in plain])


@pytest.mark.parametrize("name", METHODS)
def test_state_dict_keeps_dtypes_through_a_file(name: str) -> None:
    """bfloat16 weights beside float32, 8-bit and integer state: nothing is cast to the weights' dtype."""
    weights = [nn.Parameter(w.detach().bfloat16()) for w in weights_of((80, 60), (7, 5), (6,))]
    optimizer = METHODS[name](weights, **({} if name.startswith("GaLoreAdamW8bit") else {"state_dtype": "int8"}))
    for update in range(2):
        for weight, gradient in zip(weights, gradients_of(update, weights), strict=True):
            weight.grad = gradient.bfloat16()
        optimizer.step()
        optimizer.zero_grad()
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    other = METHODS[name](weights, **({} if name.startswith("GaLoreAdamW8bit") else {"state_dtype": "int8"}))
    other.load_state_dict(loaded)
    for weight in weights:
        for key, tensor in optimizer.state[weight].items():
            assert other.state[weight][key].dtype == tensor.dtype
            assert torch.equal(other.state[weight][key], tensor)


@pytest.mark.parametrize("name", METHODS)
def test_loaded_state_is_a_copy(name: str) -> None:
    """Loading must not tie two optimizers together."""
    ours, theirs = weights_of(*SHAPES), weights_of(*SHAPES)
    one, two = METHODS[name](ours), METHODS[name](theirs)
    step(one, ours, gradients_of(0, ours))
    two.load_state_dict(one.state_dict())
    kept = [t.clone() for state in two.state.values() for t in state.values()]
    step(one, ours, gradients_of(1, ours))
    assert same(kept, [t for state in two.state.values() for t in state.values()])


@pytest.mark.parametrize("name", METHODS)
def test_deepcopy_goes_on_alike(name: str) -> None:
    """An optimizer copied together with its weights is independent of the original."""
    weights = weights_of(*SHAPES)
    optimizer = METHODS[name](weights)
    step(optimizer, weights, gradients_of(0, weights))
    copied, other = copy.deepcopy((weights, optimizer))
    step(optimizer, weights, gradients_of(1, weights))
    step(other, copied, gradients_of(1, copied))
    assert same([w.detach() for w in weights], [w.detach() for w in copied])


@pytest.mark.parametrize("arguments", [{"lr": -1.0}, {"weight_decay": -0.1}, {"lrr": 1.0}])
@pytest.mark.parametrize("name", METHODS)
def test_bad_arguments_are_refused(name: str, arguments: dict[str, float]) -> None:
    with pytest.raises((ValueError, TypeError)):
        METHODS[name](weights_of(*SHAPES), **arguments)


def test_unknown_names_are_answered_with_near_ones() -> None:
    with pytest.raises(ValueError, match="galore_adamw"):
        optimizers.build_optimizer("galore_adamww", nn.Linear(2, 2), lr=0.1)


@pytest.mark.parametrize("alias, name", [("sgd_sai", "sgd_boost"), ("ldadam", "ldadamw")])
def test_aliases(alias: str, name: str) -> None:
    ours, theirs = (optimizers.build_optimizer(n, tiny_llama(), lr=0.1) for n in (alias, name))
    assert type(ours) is type(theirs)


@pytest.mark.parametrize("name", MODELS)
def test_model_gets_every_parameter_exactly_once(name: str) -> None:
    model = tiny_llama()
    optimizer = optimizers.build_optimizer(name, model, lr=0.01, **MODELS[name])
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == set(model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_plain_loop_over_a_model_learns(name: str) -> None:
    model = tiny_llama()
    optimizer = optimizers.build_optimizer(name, model, lr=SMALL_LR.get(name, 0.01), **MODELS[name])
    before = loss_of(model, 0).item()
    for _ in range(8):
        optimizer.zero_grad()
        loss_of(model, 0).backward()
        optimizer.step()
    assert loss_of(model, 0).item() < before - 0.05


class Rows(torch.utils.data.Dataset):
    """A few fixed rows of tokens."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = tokens(index, 1)[0]
        return {"input_ids": row, "labels": row, "attention_mask": torch.ones(LENGTH, dtype=torch.long)}


def trainer_run(name: str, folder: Path, steps: int, resume: bool = False) -> Any:
    from transformers import Trainer, TrainingArguments, get_cosine_schedule_with_warmup

    model = tiny_llama()
    optimizer = optimizers.build_optimizer(name, model, lr=SMALL_LR.get(name, 0.01), **MODELS[name])
    # The schedule is that of 6 steps, however many of them this run makes.
    scheduler = get_cosine_schedule_with_warmup(optimizer, 1, 6)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_steps=3,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows(), optimizers=(optimizer, scheduler))
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


@pytest.mark.parametrize("name", MODELS)
def test_hugging_face_trainer(name: str, tmp_path: Path) -> None:
    """Six steps with clipping, accumulation, a schedule and checkpoints; the loss falls, and a run stopped at its
    checkpoint of step 3 resumes to the same weights."""
    pytest.importorskip("accelerate")
    straight = trainer_run(name, tmp_path / "straight", 6)
    losses = [entry["loss"] for entry in straight.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    trainer_run(name, tmp_path / "halted", 3)
    resumed = trainer_run(name, tmp_path / "halted", 6, resume=True)
    for ours, theirs in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
