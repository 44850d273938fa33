"""Train every method with float32 and 8-bit state, and with bfloat16 weights rounded stochastically and to nearest.

    python -m benchmarks.state_formats [--jobs 2] [--folder runs/state_formats]

300 updates on the builtin corpus with the protocol of `benchmarks.methods`; only the formats differ. Learning rates are
about a third of the best ones there: at those a change of the rate by a thousandth moves the perplexity of so short a
run by more than the formats do (AdamW at 3e-3: 476; at 3.001e-3: 469; at 2.999e-3: 467). What is done is skipped.
Writes benchmarks/results/state_formats.json and prints its table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common import ROOT, write_result
from benchmarks.methods import GRID, train

UPDATES = 300
METHODS = {
    "AdamW": "--optimizer adamw --lr 1e-3",
    "AdamW-SN": "--optimizer adamw_sn --lr 7e-3",
    "AdamW-SN general, 64": "--optimizer adamw_sng --subset_size 64 --lr 0.01",
    "RMSProp-SN": "--optimizer adamw_sn --beta1 0 --lr 3e-3",
    "Adam-mini": "--optimizer adam_mini --lr 7e-4",
    "SGD-Boost": "--optimizer sgd_boost --lr 1e-3",
    "LDAdam": "--optimizer ldadamw --rank 32 --lr 3e-3",
    "GaLore": "--optimizer galore_adamw --rank 32 --update_proj_gap 50 --lr 3e-3",
    "GaLore random": "--optimizer galore_adamw --proj_type random --rank 32 --update_proj_gap 50 --lr 3e-3",
    "Online Subspace Descent": "--optimizer galore_adamw --proj_type continuous --rank 32 --lr 3e-3",
    "GaLore Adafactor": "--optimizer galore_adafactor --rank 32 --update_proj_gap 50 --lr 3e-3",
    "GaLore Lion": "--optimizer galore_lion --rank 32 --beta1 0.95 --beta2 0.98 --update_proj_gap 50 --lr 3e-4",
    "Lion": "--optimizer lion --lr 2e-4",
    "SGD, momentum 0.9": "--optimizer sgd --lr 0.1",
}
FORMATS = {
    "float32": "--state_dtype float32",
    "int8 state": "--state_dtype int8",
    "bfloat16, stochastic": "--dtype bfloat16 --state_dtype bfloat16 --weight_rounding stochastic",
    "bfloat16, nearest": "--dtype bfloat16 --state_dtype bfloat16 --weight_rounding nearest",
}

STATE_FORMATS = tuple(FORMATS)[:2]
VARIANTS = {"AdamW-SN general, 64", "GaLore random", "GaLore Adafactor", "GaLore Lion", "Lion", "SGD, momentum 0.9"}
"""Close relatives of others: their state formats are tried, bfloat16 weights are not."""


def table(runs: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown: final perplexity in float32; perplexity or loss of the other formats relative to it."""
    columns = ("method", "float32 perplexity", "int8 state: perplexity", "bf16 stochastic: loss", "bf16 nearest: loss")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name, found in runs.items():
        perplexity = {key: run.get("eval_perplexity", math.nan) for key, run in found.items()}
        base = perplexity["float32"]
        cells = [name, f"{base:.1f}", f"{perplexity['int8 state'] / base:.4f}x"]
        rest = [math.log(perplexity[k]) / math.log(base) for k in FORMATS if k not in STATE_FORMATS and k in found]
        cells += [f"{ratio:.4f}x" for ratio in rest] or ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run all methods in all formats."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "state_formats", help="of the runs")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    common = json.loads(GRID.read_text())["common"]
    common += ["--num_training_steps", str(UPDATES), "--eval_every", str(UPDATES)]
    jobs = [(name, kind) for name in METHODS for kind in (STATE_FORMATS if name in VARIANTS else FORMATS)]

    def work(job: tuple[str, str]) -> dict[str, Any]:
        flags = f"{METHODS[job[0]]} {FORMATS[job[1]]}"
        return {"flags": flags, **train([*common, *shlex.split(flags)], arguments.folder)}

    with ThreadPoolExecutor(arguments.jobs) as pool:
        done = list(tqdm(pool.map(work, jobs), total=len(jobs), unit="run"))
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    for (name, kind), result in zip(jobs, done, strict=True):
        runs.setdefault(name, {})[kind] = result
    text = table(runs)
    write_result("state_formats", {"common": common, "updates": UPDATES, "runs": runs, "table": text})
    print(text)


if __name__ == "__main__":
    main()
