"""What all benchmarks share: paired timing, the machine's own limits, peak memory and stamped result files."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from optimizers.primitives.products import product

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes", "galore-torch", "adam-mini", "sgd-sai")


def interleaved(
    actions: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each action, `repeats` times, all actions in turn: a busy machine slows neighbours alike.

    Actions return when their work is done; warm them up before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            started = clock()
            action()
            seconds[name].append(clock() - started)
    return seconds


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median of the ratios of the paired measurements."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def matmul_rate(
    dtype: torch.dtype, size: int = 2048, repeats: int = 7, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Floating-point operations a second of a square matrix product on the CPU, the best of the repeats.

    Of the faster kernel: for float32 the project's own choice, which is not torch's.
    """
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
    kernel = product if dtype == torch.float32 else torch.matmul
    kernel(left, right)
    return 2 * size**3 / min(interleaved({"product": lambda: kernel(left, right)}, repeats, clock)["product"])


def reset_peak_memory() -> None:
    """Starts a new measurement of `peak_memory_mib` (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> float:
    """Largest resident memory of this process since the last reset, in MiB."""
    return _status_mib("VmHWM")


def resident_memory_mib() -> float:
    """Resident memory of this process now, in MiB."""
    return _status_mib("VmRSS")


def _status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def write_result(name: str, content: Mapping[str, Any]) -> Path:
    """Writes benchmarks/results/NAME.json with the stamp of machine, versions and commit."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(as_text({"stamp": stamp(), **content}))
    return path


def as_text(content: Mapping[str, Any]) -> str:
    """JSON for people who read it and its changes: of a list of records, one per line."""
    parts = []
    for name, value in content.items():
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            text = "[\n" + ",\n".join(f"    {json.dumps(item)}" for item in value) + "\n  ]"
        else:
            text = json.dumps(value, indent=2).replace("\n", "\n  ")
        parts.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def stamp() -> dict[str, Any]:
    """What a figure depends on besides the code: processor, threads, load, versions, commit."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no", ":!benchmarks/results")),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {package: found for package in _PACKAGES if (found := _version(package))},
    }


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stdout.strip()


def _processor() -> str:
    names = {line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name")}
    features = {word for line in _cpu_lines() if line.startswith("flags") for word in line.split()}
    wide = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in features]
    return f"{', '.join(sorted(names)) or platform.processor()} ({' '.join(wide)})"


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
