"""Seeds, and random generator states as JSON."""

import base64
import os
import random
from typing import Any

import numpy as np
import torch

_BETWEEN_RANKS = 1_000_003  # any two ranks' seeds differ, and stay apart for seeds that people choose side by side


def prepare_randomness(seed: int, deterministic: bool, rank: int = 0) -> None:
    """Seeds every generator of this process; `deterministic` also refuses kernels whose result varies.

    Each rank has its own seed, so that dropout draws other masks on each; weights and bases have generators of their
    own, the same on all ranks.
    """
    seed += _BETWEEN_RANKS * rank
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of this process's generators."""
    version, words, gauss = random.getstate()
    _, numpy_words, position, has_gauss, numpy_gauss = np.random.get_state()
    state = {
        "python": [version, list(words), gauss],
        "numpy": [np.asarray(numpy_words).tolist(), position, has_gauss, numpy_gauss],
        "torch": _encode(torch.get_rng_state()),
    }
    if device.type == "cuda":
        state["cuda"] = _encode(torch.cuda.get_rng_state(device))
    return state


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Sets the generators as `random_state` found them."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    numpy_words, position, has_gauss, numpy_gauss = state["numpy"]
    np.random.set_state(("MT19937", np.array(numpy_words, dtype=np.uint32), position, has_gauss, numpy_gauss))
    torch.set_rng_state(_decode(state["torch"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(_decode(state["cuda"]), device)


def _encode(tensor: torch.Tensor) -> str:
    return base64.b64encode(tensor.numpy().tobytes()).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text, validate=True)), dtype=torch.uint8)
