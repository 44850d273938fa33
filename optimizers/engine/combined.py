"""Several optimizers behind one: for methods that serve only part of a model's parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class CombinedOptimizer(torch.optim.Optimizer):
    """Steps its parts in order; groups and state are theirs, so schedulers and checkpoints see one optimizer."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        groups = [group for part in self.parts for group in part.param_groups]
        super().__init__([{"params": list(group["params"])} for group in groups], {})
        self.param_groups = groups
        for part in self.parts:
            self.state.update(part.state)
            part.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every part. Returns the loss of the closure, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state saved by `state_dict`; every part takes its own groups, with its own loader."""
        start = 0
        for part in self.parts:
            groups = state_dict["param_groups"][start : start + len(part.param_groups)]
            start += len(part.param_groups)
            ids = [i for group in groups for i in group["params"]]
            renumbered = {old: new for new, old in enumerate(ids)}
            local = [{**g, "params": [renumbered[i] for i in g["params"]]} for g in groups]
            state = {renumbered[i]: state_dict["state"][i] for i in ids if i in state_dict["state"]}
            part.load_state_dict({"state": state, "param_groups": local})
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        loaded: dict[Any, Any] = {}
        for part in self.parts:  # the state of a part may still hold what the others had before
            own = [p for group in part.param_groups for p in group["params"]]
            loaded.update({p: part.state[p] for p in own if p in part.state})
            part.state = self.state
        self.state.clear()
        self.state.update(loaded)
