"""What a run shows on the way: lines in a file, a bar in a terminal of 80 columns, and how well a device is used."""

import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from peft_pretraining.tracking.utilisation import flops_per_token, known_peak
from tests.tiny_runs import command, environment, train_here

LINE = re.compile(r"update (\d+)/12: loss \d\.\d{4}, lr \S+, [\d,]+ tokens/s(, \d+:\d\d left)?$")


def test_a_log_file_gets_lines_and_no_carriage_returns(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train_here(tmp_path / "run", "--log_every", "5") == 0
    log = capfd.readouterr().err
    assert "\r" not in log
    found = [match for line in log.splitlines() if (match := LINE.search(line))]
    assert [int(match[1]) for match in found] == [1, 6, 11, 12]
    assert [bool(match[2]) for match in found] == [True, True, True, False]


@pytest.mark.skipif(shutil.which("tmux") is None, reason="no tmux")
def test_the_bar_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    words = command(tmp_path / "run", "--eval_every", "1000", updates=100_000)
    name = f"test{time.monotonic_ns()}"
    screen = ["tmux", "new-session", "-d", "-s", name, "-x", "80", "-y", "24", shlex.join(words)]
    subprocess.run(screen, check=True, env=environment() | {"TERM": "screen"})
    try:
        until, bar = time.monotonic() + 120, None
        while bar is None and time.monotonic() < until:
            time.sleep(0.5)
            done = subprocess.run(["tmux", "capture-pane", "-p", "-t", name], capture_output=True, text=True)
            lines = done.stdout.splitlines()
            bar = next((line for line in lines if "tok/s" in line), None)
        assert bar is not None, done
    finally:
        subprocess.run(["tmux", "kill-session", "-t", name], check=False)
    assert re.fullmatch(r" +\d+%\|.{10}\| \d+/100000 \[.*<.*, loss .*, lr .*, .* tok/s\]", bar.rstrip()), bar
    assert not any("update/s" in line or line.count("%|") > 1 for line in lines), "no bar is glued to another line"


def test_the_flops_of_a_token_are_those_of_the_products_that_torch_counts() -> None:
    """Without the causal half of attention, as PaLM counts it; head and embedding apart, then one table."""
    for tied in (False, True):
        config = LlamaConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            tie_word_embeddings=tied,
            attn_implementation="eager",
        )
        model, ids = LlamaForCausalLM(config), torch.randint(0, 97, (2, 24))
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids).logits.sum().backward()
        assert flops_per_token(model, 24) == pytest.approx(counter.get_total_flops() / ids.numel(), rel=0.01)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("Something else", None),
    ],
)
def test_peaks_are_found_by_the_names_that_cuda_gives(name: str, peak: float | None) -> None:
    assert known_peak(name) == peak
