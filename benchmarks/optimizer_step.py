"""Time one optimizer step of every family at LLaMA-60M shapes, as a ratio to named peers in the same run.

    python -m benchmarks.optimizer_step [--repeats 9] [--threads 2] [--cases adamw_sn,...] [--decoder_alone]

Peers: torch's fused AdamW for methods that move bytes, the plain transcriptions of plain_optimizers.py for those that
multiply matrices, torch's Muon for Muon, our GaLore at equal rank for APOLLO; in float32 also the released packages
adam-mini, galore-torch and sgd-sai (extra `test`), where a method has one. Repeats are interleaved, so a busy machine
slows neighbours alike; the figure is the median of paired ratios. Beside it: the bound, from bytes moved at the
bandwidth of an in-place pass in the same repeats, and products at the measured rate.
The speed-up of GaLore is amortised: each step bears 1/200 of a refresh, full SVD for the peer, randomized for ours.
Writes benchmarks/results/optimizer_step.json and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import optimizers
from benchmarks.common import interleaved, matmul_rate, median_ratio, write_result
from benchmarks.plain_optimizers import PlainAdam, PlainGaLore, PlainLDAdam, PlainOnlineSubspace, PlainSOAP
from optimizers.primitives.projection import randomized_basis, singular_basis

HIDDEN, MLP, LAYERS, VOCABULARY, RANK, GAP = 512, 1376, 8, 32000, 128, 200
ELEMENTWISE = ("adamw_sn", "adam_mini", "sgd_boost", "rmsprop_sn", "scale")
PRODUCTS = {"galore": 2, "continuous": 3, "ldadam": 6, "apollo": 1}
"""Products with a basis of RANK per update."""
SQUARE = {"muon": (10, 5), "soap": (3, 3)}
"""Products per update of a matrix with one of its shorter side, and of two of the shorter side; for SOAP of each side
with the matrix: two turns and the preconditioner (refreshes are left out of the bound)."""


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


def ours(name: str, dtype: torch.dtype, ends: bool = True, rounding: str = "stochastic") -> optimizers.EngineOptimizer:
    """A method of the project on the engine, compiled; in bfloat16 with bfloat16 state and this rounding of weights."""
    method, arguments = METHODS[name]
    if dtype != torch.float32:
        arguments = {**arguments, "state_dtype": "bfloat16", "weight_rounding": rounding}
    optimizer = optimizers.build_optimizer(method, Shapes(dtype, ends), 1e-5, execution="compiled", **arguments)
    assert isinstance(optimizer, optimizers.EngineOptimizer)
    optimizer.trusts_gradients = True  # as the training loop sets it, which has looked at the norm
    return optimizer


_NEVER = {"rank": RANK, "update_proj_gap": 10**9}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw_sn": ("adamw_sn", {}),
    "rmsprop_sn": ("adamw_sn", {"beta1": 0.0}),
    "adam_mini": ("adam_mini", {}),
    "sgd_boost": ("sgd_boost", {}),
    "galore": ("galore_adamw", {**_NEVER, "proj_type": "std"}),
    "continuous": ("galore_adamw", {**_NEVER, "proj_type": "continuous"}),
    "ldadam": ("ldadamw", {"rank": RANK}),
    "apollo": ("apollo", {"rank": RANK}),
    "scale": ("scale", {}),
    "muon": ("muon", {}),
    "soap": ("soap", {"max_precond_dim": 2 * MLP}),
}


def plain(name: str, dtype: torch.dtype, ends: bool) -> Callable[[], object]:
    """The peers of the low-rank methods, with plain AdamW on embedding and head."""
    kinds: dict[str, Any] = {"galore": PlainGaLore, "continuous": PlainOnlineSubspace, "ldadam": PlainLDAdam}
    arguments = {} if name == "ldadam" else {"gap": 10**9}
    model = Shapes(dtype, ends)
    method = kinds[name](list(model.layers.parameters()), **arguments)
    rest = PlainAdam([p for n, p in model.named_parameters() if not n.startswith("layers.")])

    def step() -> None:
        method.step()
        rest.step()

    return step


def torch_muon(dtype: torch.dtype, ends: bool) -> Callable[[], object]:
    """torch's Muon on the decoder's matrices, its fused AdamW on embedding and head."""
    model = Shapes(dtype, ends)
    muon = torch.optim.Muon(model.layers.parameters(), lr=1e-5, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    rest = [p for n, p in model.named_parameters() if not n.startswith("layers.")]
    adamw = torch.optim.AdamW(rest, lr=1e-5, weight_decay=0.0, fused=True) if rest else None

    def step() -> None:
        muon.step()
        if adamw is not None:
            adamw.step()

    return step


def peer_of(name: str, dtype: torch.dtype, ends: bool) -> tuple[Callable[[], object], str]:
    """The peer of a method, and what it is."""
    if name in ELEMENTWISE:
        return fused_adamw(dtype), "torch fused AdamW"
    if name == "muon":
        return torch_muon(dtype, ends), "torch Muon and fused AdamW"
    if name == "soap":
        return PlainSOAP(list(Shapes(dtype, ends).parameters()), longest=2 * MLP).step, "plain soap"
    if name == "apollo":
        return ours("galore", dtype, ends).step, "galore of this project"
    return plain(name, dtype, ends), f"plain {name}"


def packaged(name: str) -> Callable[[], object]:
    """The released package of a method's authors, float32. Raises ImportError without it."""
    model = Shapes(torch.float32)
    if name == "adam_mini":
        from adam_mini import Adam_mini

        sizes = {"dim": HIDDEN, "n_heads": 8, "n_kv_heads": 8}
        return Adam_mini(list(model.named_parameters()), lr=1e-5, weight_decay=0.0, verbose=False, **sizes).step
    if name == "sgd_boost":
        from sgd_sai import SGD_sai

        optimizer = SGD_sai(model.parameters(), lr=1e-5, weight_decay=0.0)
        optimizer.warmup_step()
        return optimizer.step
    from galore_torch import GaLoreAdamW

    low = {"rank": RANK, "update_proj_gap": 10**9, "scale": 0.25, "proj_type": "std"}
    rest = [p for n, p in model.named_parameters() if not n.startswith("layers.")]
    groups = [{"params": rest}, {"params": list(model.layers.parameters()), **low}]
    return GaLoreAdamW(groups, lr=1e-5, weight_decay=0.0, no_deprecation_warning=True).step


PACKAGES = {"adam_mini": "package adam-mini", "sgd_boost": "package sgd-sai", "galore": "package galore-torch"}


def bound_seconds(name: str, optimizer: optimizers.EngineOptimizer, limits: dict[str, float]) -> dict[str, float]:
    """The least time: bytes of weights (twice), gradients and state (twice) over the bandwidth, and large products over
    the rate of products."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    weights = sum(p.nbytes for p in parameters)
    moved = 3 * weights + 2 * optimizer.state_bytes()
    matrices = [p.shape for n, p in _named(optimizer) if n.startswith("layers.")]
    flops = PRODUCTS.get(name, 0) * sum(2 * m * n * RANK for m, n in matrices)
    wide, square = SQUARE.get(name, (0, 0))
    if name == "soap":
        flops += sum(2 * m * n * (wide * m + square * n) for m, n in matrices)
    else:
        flops += sum(2 * min(m, n) ** 2 * (wide * max(m, n) + square * min(m, n)) for m, n in matrices)
    return {"bytes": moved / limits["bandwidth"], "products": flops / limits[str(parameters[0].dtype)]}


def _named(optimizer: optimizers.EngineOptimizer) -> list[tuple[str, torch.Tensor]]:
    pairs = [zip(g["param_names"], g["params"], strict=True) for g in optimizer.param_groups]
    return [pair for group in pairs for pair in group]


def refresh_seconds(repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds to compute all bases of the model, by full SVD one by one and by the randomized method."""
    shapes = Shapes(torch.float32, ends=False)
    gradients = [p.grad for p in shapes.parameters() if p.grad is not None]
    rng = torch.Generator().manual_seed(0)
    sides = ["right" if g.shape[0] >= g.shape[1] else "left" for g in gradients]
    actions: dict[str, Callable[[], object]] = {
        "svd": lambda: [singular_basis(g, RANK, s) for g, s in zip(gradients, sides, strict=True)],  # type: ignore[arg-type]
        "randomized": lambda: [randomized_basis(g, RANK, s, rng) for g, s in zip(gradients, sides, strict=True)],  # type: ignore[arg-type]
    }
    return {name: statistics.median(times) for name, times in interleaved(actions, repeats, clock).items()}


_STREAM = torch.ones(1 << 26)


def stream() -> None:
    """Reads and writes 512 MB in place, as an update does: the bandwidth in the same repeats."""
    _STREAM.mul_(1.0)


def compare(
    name: str,
    dtype: torch.dtype,
    ends: bool,
    repeats: int,
    limits: dict[str, float],
    clock: Callable[[], float],
    package: bool = False,
    rounding: str = "stochastic",
) -> dict[str, Any]:
    """Paired times of a method and its peer, or its authors' package."""
    optimizer = ours(name, dtype, ends, rounding)
    if package:
        peer, peer_name = packaged(name), PACKAGES[name]
    else:
        peer, peer_name = peer_of(name, dtype, ends)
    started = time.perf_counter()
    optimizer.step()
    optimizer.step()
    cold = time.perf_counter() - started
    for action in (optimizer.step, peer, peer, stream):
        action()
    times = interleaved({"mine": optimizer.step, "peer": peer, "stream": stream}, repeats, clock)
    bandwidth = 2 * _STREAM.nbytes / statistics.median(times["stream"])
    bound = bound_seconds(name, optimizer, {**limits, "bandwidth": bandwidth})
    milliseconds = {key: statistics.median(values) * 1e3 for key, values in times.items()}
    return {
        "method": name + ("" if ends else ", decoder alone"),
        "dtype": str(dtype).removeprefix("torch.") + (" to nearest" if rounding == "nearest" else ""),
        "peer": peer_name,
        "ratio": median_ratio(times["mine"], times["peer"]),
        "milliseconds": milliseconds,
        "seconds_of_first_two": cold,
        "bound_ms": {key: value * 1e3 for key, value in bound.items()},
        "of_bound": sum(bound.values()) * 1e3 / milliseconds["mine"],
        "bandwidth": bandwidth,
        "load_average": os.getloadavg()[0],
    }


def amortise(row: dict[str, Any], refresh: dict[str, float]) -> None:
    """Add a GaLore row's share of refreshes: full SVD for the peer, the randomized basis and the SVD for ours."""
    mine, peer = row["milliseconds"]["mine"], row["milliseconds"]["peer"]
    svd, randomized = refresh["svd"] * 1e3 / GAP, refresh["randomized"] * 1e3 / GAP
    row["speedup_amortised_svd"] = (peer + svd) / (mine + svd)
    row["speedup_amortised"] = (peer + svd) / (mine + randomized)


def print_row(row: dict[str, Any]) -> None:
    """One row of the Markdown table."""
    ms, bound = row["milliseconds"], sum(row["bound_ms"].values())
    speedup = row.get("speedup_amortised", 1 / row["ratio"])
    print(
        f"| {row['method']} | {row['dtype']} | {row['peer']} | {row['ratio']:.2f} | {speedup:.2f} | "
        f"{ms['mine']:.1f} | {ms['peer']:.1f} | {bound:.1f} | {row['of_bound']:.0%} |",
        flush=True,
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cases", default=",".join((*ELEMENTWISE, *PRODUCTS, *SQUARE)))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--decoder_alone", action="store_true", help="low-rank methods without embedding and head")
    parser.add_argument("--name", default="optimizer_step", help="of the result file")
    parser.add_argument(
        "--cpu_time", action="store_true", help="one thread, timed in CPU seconds: ratios hold on a busy machine"
    )
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    torch.set_num_threads(1 if arguments.cpu_time else arguments.threads)
    dtypes, cases = [getattr(torch, name) for name in arguments.dtypes.split(",")], arguments.cases.split(",")
    limits = {str(dtype): matmul_rate(dtype, clock=clock) for dtype in dtypes}
    print(
        ", ".join(f"{key} {value / 1e9:.0f} G/s" for key, value in limits.items()), f"{torch.get_num_threads()} threads"
    )
    refresh = refresh_seconds(3, clock) if "galore" in cases else {}
    if refresh:
        print(f"bases of the model: svd {refresh['svd']:.2f} s, randomized {refresh['randomized']:.2f} s")
    head = ("method", "dtype", "peer", "time / peer", "speed-up", "ms", "peer ms", "bound ms", "of bound")
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|", flush=True)
    rows = []
    for dtype in dtypes:
        for name in cases:
            ends = name in ELEMENTWISE or not arguments.decoder_alone
            row = compare(name, dtype, ends, arguments.repeats, limits, clock)
            if name == "galore":
                amortise(row, refresh)
            rows.append(row)
            print_row(row)
            if dtype == torch.float32 and name in PACKAGES:
                rows.append(compare(name, dtype, True, arguments.repeats, limits, clock, package=True))
                print_row(rows[-1])
            if dtype != torch.float32 and name in PRODUCTS:  # as the peer rounds
                rows.append(compare(name, dtype, ends, arguments.repeats, limits, clock, rounding="nearest"))
                if name == "galore":
                    amortise(rows[-1], refresh)
                print_row(rows[-1])
            content = {"clock": clock.__name__, "limits": limits, "refresh_seconds": refresh, "rows": rows}
            write_result(arguments.name, content)  # after each: a run of all takes long


if __name__ == "__main__":
    main()
