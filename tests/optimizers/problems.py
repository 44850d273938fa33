"""Small optimization problems as data, run by the public classes and by the oracles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

import optimizers
from tests.optimizers.given import Given, taken
from tests.oracles.cases import oracle_for

RECORDED = Path(__file__).resolve().parent.parent / "data" / "trajectories"
Trajectory = list[dict[str, Tensor]]  # the parameters after each update


@dataclass
class Problem:
    """A class under test with its arguments, the starting point, and the gradients of every update.

    `groups` holds dictionaries whose "params" are names, or is "named_parameters" for classes that take pairs.
    """

    class_name: str
    arguments: dict[str, Any]
    groups: list[dict[str, Any]] | str
    start: dict[str, Tensor]
    gradients: list[dict[str, Tensor]]
    learning_rates: list[float] | None = None
    adds_to_gradient: bool = False
    limit: float = 0.0
    recorded: Trajectory = field(default_factory=list)
    bases: Trajectory = field(default_factory=list)  # recorded: those made for each update
    only_oracle: dict[str, Any] = field(default_factory=dict)  # settings that the class finds out by itself

    def lr(self, update: int) -> float:
        """The learning rate of the update, counted from 0."""
        return self.learning_rates[update] if self.learning_rates else self.arguments["lr"]

    def settings(self, name: str) -> dict[str, Any]:
        """The class's arguments under those of the group that holds the parameter."""
        if isinstance(self.groups, str):
            return {**self.arguments, **self.only_oracle}
        group = next(g for g in self.groups if name in g["params"])
        own = {key: value for key, value in group.items() if key != "params"}
        return {**self.arguments, **own, **self.only_oracle}


def random_problem(
    class_name: str,
    shapes: dict[str, tuple[int, ...]],
    groups: list[dict] | str,
    seed: int,
    *,
    scheduled: bool = False,
    scale: float = 0.01,
    updates: int = 7,
    **arguments: Any,
) -> Problem:
    """Normal weights and gradients. Gradients of size 0.01 let an eps of 1e-6 in the wrong place show, and keep
    rounding noise in a projected gradient (1e-9) far below it."""
    generator = torch.Generator().manual_seed(seed)
    start = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    gradients = [
        {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        for _ in range(updates)
    ]
    lr = arguments.setdefault("lr", 0.01)
    rates = [lr * factor for factor in (0.25, 0.5, 0.75, 1.0, 0.9, 0.6, 0.3)] if scheduled else None
    return Problem(class_name, arguments, groups, start, gradients, rates)


LAYER = "model.layers.0."


def llama_shapes(kv_heads: int, group_size: int, head_dim: int, dim: int) -> dict[str, tuple[int, ...]]:
    """One LLaMA-like layer with biases; query heads outnumber key heads by group_size."""
    queries, keys = kv_heads * group_size * head_dim, kv_heads * head_dim
    return {
        "model.embed_tokens.weight": (11, dim),
        LAYER + "self_attn.q_proj.weight": (queries, dim),
        LAYER + "self_attn.q_proj.bias": (queries,),
        LAYER + "self_attn.k_proj.weight": (keys, dim),
        LAYER + "self_attn.v_proj.weight": (keys, dim),
        LAYER + "self_attn.o_proj.weight": (dim, queries),
        LAYER + "mlp.gate_proj.weight": (13, dim),
        LAYER + "mlp.up_proj.weight": (13, dim),
        LAYER + "mlp.down_proj.weight": (dim, 13),
        LAYER + "input_layernorm.weight": (dim,),
        "model.norm.weight": (dim,),
        "lm_head.weight": (11, dim),
    }


def build(problem: Problem, dtype: torch.dtype = torch.float32, **more: Any) -> tuple[Any, dict[str, nn.Parameter]]:
    """The optimizer under test over fresh parameters; `more` are further keyword arguments of the class."""
    parameters = {name: nn.Parameter(value.to(dtype).clone()) for name, value in problem.start.items()}
    make = getattr(optimizers, problem.class_name)
    if isinstance(problem.groups, str):
        return make(list(parameters.items()), **problem.arguments, **more), parameters
    groups = [{**g, "params": [parameters[name] for name in g["params"]]} for g in problem.groups]
    return make(groups, **problem.arguments, **more), parameters


def give_gradients(parameters: dict[str, nn.Parameter], gradients: dict[str, Tensor], adds: bool) -> None:
    """Put the gradients where backward would; `adds` keeps what is there, as backward does."""
    for name, gradient in gradients.items():
        parameter = parameters[name]
        gradient = gradient.to(parameter.dtype)
        parameter.grad = parameter.grad + gradient if adds and parameter.grad is not None else gradient.clone()


def run_updates(
    problem: Problem,
    optimizer: Any,
    parameters: dict[str, nn.Parameter],
    first: int = 0,
    last: int | None = None,
) -> Trajectory:
    """Updates first..last of the problem; the parameters after each."""
    trajectory = []
    given: Given = {}
    for update in range(first, len(problem.gradients) if last is None else last):
        recorded = problem.bases[update] if problem.bases else {}
        given |= {parameters[name].shape: basis for name, basis in recorded.items()}
        for group in optimizer.param_groups if problem.learning_rates else ():
            group["lr"] = problem.lr(update)
        give_gradients(parameters, problem.gradients[update], problem.adds_to_gradient)
        with taken(given) if given else nullcontext():
            optimizer.step()
        optimizer.zero_grad()
        trajectory.append({name: p.detach().clone() for name, p in parameters.items()})
    return trajectory


def follow(problem: Problem, **more: Any) -> Trajectory:
    """The whole problem with the class under test."""
    return run_updates(problem, *build(problem, **more))


def follow_oracle(problem: Problem, dtype: torch.dtype = torch.float64) -> Trajectory:
    """The whole problem with the oracles."""
    oracles = {
        name: oracle_for(problem.class_name, name, value, problem.settings(name), dtype)
        for name, value in problem.start.items()
    }
    trajectory = []
    for update, gradients in enumerate(problem.gradients):
        for name, gradient in gradients.items():
            if problem.bases and name in problem.bases[update]:
                oracles[name].given = problem.bases[update][name]
            rate = problem.lr(update) if problem.learning_rates else problem.settings(name)["lr"]
            oracles[name].step(gradient, rate)
        trajectory.append({name: oracle.weight.clone() for name, oracle in oracles.items()})
    return trajectory


def deviation(problem: Problem, trajectory: Trajectory, reference: Trajectory) -> float:
    """The largest distance from the reference, relative to the largest distance it moved; infinite when not finite."""
    worst = 0.0
    for ours, theirs in zip(trajectory, reference, strict=True):
        for name, start in problem.start.items():
            want = theirs[name].double()
            moved = (want - start.double()).abs().max().clamp_min(1e-8)
            distance = ((ours[name].double() - want).abs().max() / moved).item()
            worst = max(worst, distance if distance == distance else float("inf"))
    return worst


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def load_recorded(path: Path) -> Problem:
    """A recorded trajectory: the problem, with `recorded` and `limit` filled in."""
    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["problem"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)

    def at(kind: str, update: int) -> dict[str, Tensor]:
        keys = {name: f"{kind}/{update}/{name}" for name in description["shapes"]}
        return {name: tensors[key] for name, key in keys.items() if key in tensors}

    updates = range(1, description["steps"] + 1)
    return Problem(
        class_name=description["class"],
        arguments={key: _tuples(value) for key, value in description["arguments"].items()},
        groups=description["groups"],
        start=at("parameter", 0),
        gradients=[at("gradient", update) for update in updates],
        learning_rates=description["learning_rates"],
        adds_to_gradient=description["adds_to_gradient"],
        limit=description["limit"],
        recorded=[at("parameter", update) for update in updates],
        bases=[at("basis", update) for update in updates],
    )


def recorded_paths() -> Iterator[Path]:
    return iter(sorted(RECORDED.glob("*/*.safetensors")))
