"""Time one optimizer step of every family at LLaMA-60M shapes, as a ratio to named peers in the same run.

    python -m benchmarks.optimizer_step [--repeats 9] [--threads 2] [--cases sn,mini,...] [--dtypes float32,bfloat16]

Peers: torch's fused AdamW for methods that move bytes, the plain transcriptions of plain_optimizers.py for those that
multiply matrices. Repeats are interleaved, so a busy machine slows neighbours alike; the figure is the median of paired
ratios. Beside it: the bound, from bytes moved at the measured copy bandwidth and products at the measured rate.
Writes benchmarks/results/optimizer_step.json and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import optimizers
from benchmarks.common import copy_bandwidth, interleaved, matmul_rate, median_ratio, write_result
from benchmarks.plain_optimizers import PlainAdam, PlainGaLore, PlainLDAdam, PlainOnlineSubspace
from optimizers.primitives.projection import randomized_basis, singular_basis

HIDDEN, MLP, LAYERS, VOCABULARY, RANK, GAP = 512, 1376, 8, 32000, 128, 200
BYTES = {  # reads and writes of weight, gradient and state, in elements a parameter
    "fused AdamW": 7,
    "adamw_sn": 5,
    "adam_mini": 5,
    "sgd_boost": 5,
    "rmsprop_sn": 3,
}
PRODUCTS = {"galore": 2, "continuous": 3, "ldadam": 6}


class Layer(nn.Module):
    """The matrices of one decoder layer, under Hugging Face's names."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            self.self_attn.add_module(name, nn.Linear(HIDDEN, HIDDEN, bias=False))
        self.mlp.gate_proj = nn.Linear(HIDDEN, MLP, bias=False)
        self.mlp.up_proj = nn.Linear(HIDDEN, MLP, bias=False)
        self.mlp.down_proj = nn.Linear(MLP, HIDDEN, bias=False)


class Shapes(nn.Module):
    """The parameters of LLaMA-60M with random gradients."""

    def __init__(self, dtype: torch.dtype, ends: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        if ends:
            self.embed_tokens = nn.Embedding(VOCABULARY, HIDDEN)
            self.lm_head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        self.to(dtype)
        for parameter in self.parameters():
            parameter.grad = torch.randn(parameter.shape).mul_(1e-3).to(dtype)

    @property
    def config(self) -> Any:
        """What Adam-mini asks of a model."""
        return argparse.Namespace(hidden_size=HIDDEN, num_attention_heads=8, num_key_value_heads=8)


def fused_adamw(dtype: torch.dtype) -> Callable[[], object]:
    """torch's fused AdamW."""
    return torch.optim.AdamW(Shapes(dtype).parameters(), lr=1e-5, weight_decay=0.0, fused=True).step


def ours(name: str, dtype: torch.dtype, ends: bool = True, **arguments: Any) -> torch.optim.Optimizer:
    """A method of the project on the engine, compiled."""
    arguments = {"execution": "compiled", **arguments}
    optimizer = optimizers.build_optimizer(name, Shapes(dtype, ends), 1e-5, **arguments)
    optimizer.trusts_gradients = True  # as the training loop sets it, which has looked at the norm
    return optimizer


def elementwise(name: str, dtype: torch.dtype) -> Callable[[], object]:
    """SN, Adam-mini and SGD-Boost; in bfloat16 with bfloat16 state and stochastic rounding."""
    formats = {} if dtype == torch.float32 else {"state_dtype": "bfloat16", "weight_rounding": "stochastic"}
    method, more = ("adamw_sn", {"beta1": 0.0}) if name == "rmsprop_sn" else (name, {})
    return ours(method, dtype, **formats, **more).step


def low_rank(name: str, dtype: torch.dtype) -> Callable[[], object]:
    """GaLore, Online Subspace Descent and LDAdam on the decoder's matrices."""
    if name == "ldadam":
        return ours("ldadamw", dtype, ends=False, rank=RANK).step
    kind = {"galore": "std", "continuous": "continuous"}[name]
    return ours("galore_adamw", dtype, ends=False, rank=RANK, update_proj_gap=10**9, proj_type=kind).step


def plain(name: str, dtype: torch.dtype) -> Callable[[], object]:
    """The peers of the low-rank methods."""
    kinds = {"galore": PlainGaLore, "continuous": PlainOnlineSubspace, "ldadam": PlainLDAdam, "adam": PlainAdam}
    arguments = {"gap": 10**9} if name in ("galore", "continuous") else {}
    return kinds[name](list(Shapes(dtype, ends=False).parameters()), **arguments).step  # type: ignore[operator]


def bound_seconds(name: str, dtype: torch.dtype, bandwidth: float, rate: float) -> float:
    """The least time: bytes over bandwidth, or products over the rate of float32 products."""
    size = 4 if dtype == torch.float32 else 2
    matrices = [p.shape for p in Shapes(torch.float32, ends=False).parameters()]
    if name in PRODUCTS:
        return PRODUCTS[name] * sum(2 * m * n * RANK for m, n in matrices) / rate
    total = sum(m * n for m, n in matrices) + 2 * VOCABULARY * HIDDEN
    return BYTES[name] * size * total / bandwidth


def refresh_seconds(repeats: int) -> dict[str, float]:
    """Seconds to compute all bases of the model, by full SVD one by one and by the randomized method."""
    gradients = [p.grad.float() for p in Shapes(torch.float32, ends=False).parameters()]  # type: ignore[union-attr]
    rng = torch.Generator().manual_seed(0)
    sides = ["right" if g.shape[0] >= g.shape[1] else "left" for g in gradients]
    actions: dict[str, Callable[[], object]] = {
        "svd": lambda: [singular_basis(g, RANK, s) for g, s in zip(gradients, sides, strict=True)],  # type: ignore[arg-type]
        "randomized": lambda: [randomized_basis(g, RANK, s, rng) for g, s in zip(gradients, sides, strict=True)],  # type: ignore[arg-type]
    }
    return {name: statistics.median(times) for name, times in interleaved(actions, repeats).items()}


def compare(name: str, dtype: torch.dtype, repeats: int, bandwidth: float, rate: float) -> dict[str, Any]:
    """Paired times of a method and its peer."""
    moves_bytes = name in BYTES
    mine = (elementwise if moves_bytes else low_rank)(name, dtype)
    peer = fused_adamw(dtype) if moves_bytes else plain(name, dtype)
    for action in (mine, peer):
        for _ in range(3):
            action()
    times = interleaved({"mine": mine, "peer": peer}, repeats)
    bound = bound_seconds(name, dtype, bandwidth, rate)
    milliseconds = {key: statistics.median(values) * 1e3 for key, values in times.items()}
    return {
        "method": name,
        "dtype": str(dtype).removeprefix("torch."),
        "peer": "torch fused AdamW" if moves_bytes else f"plain {name}",
        "ratio": median_ratio(times["mine"], times["peer"]),
        "milliseconds": milliseconds,
        "bound_ms": bound * 1e3,
        "of_bound": bound * 1e3 / milliseconds["mine"],
    }


def amortise(row: dict[str, Any], refresh: dict[str, float]) -> None:
    """Add a GaLore row's share of refreshes: full SVD for the peer, the randomized basis and the SVD for ours."""
    mine, peer = row["milliseconds"]["mine"], row["milliseconds"]["peer"]
    svd, randomized = refresh["svd"] * 1e3 / GAP, refresh["randomized"] * 1e3 / GAP
    row["speedup_amortised_svd"] = (peer + svd) / (mine + svd)
    row["speedup_amortised_randomized"] = (peer + svd) / (mine + randomized)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cases", default="adamw_sn,adam_mini,sgd_boost,rmsprop_sn,galore,continuous,ldadam")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bandwidth, rate = copy_bandwidth(), matmul_rate(torch.float32)
    refresh = refresh_seconds(3)
    rows = []
    print(f"copy {bandwidth / 1e9:.1f} GB/s, float32 products {rate / 1e9:.0f} GFLOP/s, {arguments.threads} threads")
    print(f"bases of the model: svd {refresh['svd']:.2f} s, randomized {refresh['randomized']:.2f} s")
    head = ("method", "dtype", "peer", "time / peer", "speed-up", "ms", "peer ms", "bound ms", "of bound")
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|", flush=True)
    for dtype in (getattr(torch, name) for name in arguments.dtypes.split(",")):
        for name in arguments.cases.split(","):
            row = compare(name, dtype, arguments.repeats, bandwidth, rate)
            if name == "galore":
                amortise(row, refresh)
            rows.append(row)
            ms = row["milliseconds"]
            print(
                f"| {name} | {row['dtype']} | {row['peer']} | {row['ratio']:.2f} | {1 / row['ratio']:.2f} | "
                f"{ms['mine']:.1f} | {ms['peer']:.1f} | {row['bound_ms']:.1f} | {row['of_bound']:.0%} |",
                flush=True,
            )
    content = {"rows": rows, "refresh_seconds": refresh, "bandwidth": bandwidth, "matmul_rate": rate}
    write_result("optimizer_step", {**content, "threads": arguments.threads})


if __name__ == "__main__":
    main()
