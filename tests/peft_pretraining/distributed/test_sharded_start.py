"""The start of a sharded run: the weights of one process, held by none alone, and masks that differ."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peft_pretraining.tiny import write_config
from tests.tiny_runs import ROOT, environment


def test_two_processes_start_from_the_weights_of_one(tmp_path: Path) -> None:
    tied = [False, True]
    configs = [str(write_config(tmp_path / str(value), tie_word_embeddings=value)) for value in tied]
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command += ["tests.peft_pretraining.distributed.sharded_start", str(results), *configs]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = json.loads(results.read_text())
    for found, expected in zip((*first, *second), tied * 2, strict=True):
        assert all(found["equal"]) and all(found["buffers"]) and found["tied"] == expected
        assert found["losses"][0] == pytest.approx(found["losses"][1], rel=1e-6)
        assert found["held"] <= 0.51 * found["whole"]
    assert first[0]["mask"] != second[0]["mask"]
