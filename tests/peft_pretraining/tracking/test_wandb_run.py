"""Weights & Biases with the real package: offline runs read back, however the data is prepared."""

import json
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_runs import command, environment, records, train_here

pytest.importorskip("wandb")


def environment_of_a_user(**more: str) -> dict[str, str]:
    """Without the settings that keep other tests from wandb."""
    hidden = ("WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC")
    return {key: value for key, value in environment().items() if key not in hidden} | more


def run(folder: Path, *more: str, processes: int | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    words = command(folder, *more, processes=processes, updates=6)
    home = {"HOME": str(folder.parent), **env}
    return subprocess.run(words, capture_output=True, text=True, env=environment_of_a_user(**home), timeout=200)


def stored(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*/*.wandb"))


def stored_records(file: Path) -> Iterator[bytes]:
    """What the file holds, in LevelDB's log format: blocks of 32 KiB, records in parts of crc, length and kind."""
    content, offset, parts = file.read_bytes(), 7, b""
    assert content.startswith(b":W&B")
    while offset + 7 <= len(content):
        if (left := 32768 - offset % 32768) < 7:
            offset += left
            continue
        length, kind = struct.unpack_from("<HB", content, offset + 4)
        parts += content[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield parts
            parts = b""


def history(file: Path) -> Iterator[dict[str, Any]]:
    """The rows that `wandb sync` would send."""
    from wandb.proto.wandb_internal_pb2 import Record

    for data in stored_records(file):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            yield {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}


def sent(folder: Path, kind: str = "loss") -> dict[int, float]:
    """A column by update, as all offline runs of the folder together hold it."""
    rows = [row for file in stored(folder) for row in history(file)]
    return {row["update_step"]: row[kind] for row in rows if kind in row}


def logged(folder: Path, kind: str = "loss") -> dict[int, float]:
    return {line["update_step"]: line[kind] for line in records(folder) if kind in line}


@pytest.mark.parametrize(("workers", "processes"), [(4, None), (1, 2)])
def test_an_offline_run_holds_every_line(tmp_path: Path, workers: int, processes: int | None) -> None:
    """wandb's import hook talks to its service, which a forked worker that imports something cannot.

    With 0 workers and with 1: the flag that wins, and the resumed run.
    """
    more = ("--wandb_mode", "offline", "--workers", str(workers), "--total_batch_size", "16", "--tags", "a, b,")
    done = run(tmp_path / "run", *more, processes=processes)
    assert done.returncode == 0, done.stderr
    assert len(stored(tmp_path / "run")) == 1
    assert sent(tmp_path / "run") == logged(tmp_path / "run") and len(logged(tmp_path / "run")) == 6
    assert sent(tmp_path / "run", "eval_loss") == logged(tmp_path / "run", "eval_loss")


def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path: Path) -> None:
    folder, more = tmp_path / "run", ("--wandb_mode", "offline", "--workers", "1")
    assert run(folder, *more).returncode == 0
    again = run(folder, *more, "--continue_from", str(folder / "model_4"))
    assert again.returncode == 0, again.stderr
    assert len(stored(folder)) == 2
    assert len({file.stem for file in stored(folder)}) == 1, "one id, so the service joins them"
    assert sent(folder) == logged(folder)
    assert "`resume`" not in again.stderr, "wandb has nothing to say against its settings"


def closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_credentials_without_a_network_are_one_line_and_an_offline_run(tmp_path: Path) -> None:
    done = run(tmp_path / "run", "--wandb_mode", "auto", WANDB_API_KEY="0" * 40, WANDB_BASE_URL=closed_port())
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stderr.splitlines() if "wandb is offline" in line]) == 1
    assert sent(tmp_path / "run") == logged(tmp_path / "run")


@pytest.mark.parametrize("name", ["WANDB_MODE=false", "WANDB_MODE=Disabled", "WANDB_DISABLED=true"])
def test_the_environment_can_switch_it_off(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv(*name.split("="))
    assert train_here(tmp_path / "run", "--wandb_mode", "auto", updates=4) == 0
    assert "wandb is off" in capfd.readouterr().err
    assert not (tmp_path / "run" / "wandb").exists()


def test_a_flag_wins_over_a_mode_that_wandb_does_not_know(tmp_path: Path) -> None:
    done = run(tmp_path / "run", "--wandb_mode", "offline", WANDB_MODE="false", WANDB_DISABLED="true")
    assert done.returncode == 0, done.stderr
    assert sent(tmp_path / "run") == logged(tmp_path / "run")


def test_an_unknown_mode_in_the_environment_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    assert train_here(tmp_path / "run", "--wandb_mode", "auto", updates=4) == 2
    assert "WANDB_MODE=ofline" in capfd.readouterr().err
    assert os.environ["WANDB_MODE"] == "ofline"


@pytest.mark.parametrize(
    ("written", "answer"),
    [("", "https://api.wandb.ai"), ("[default]\nbase_url = https://wandb.lab\n", "https://wandb.lab"), ("?", None)],
)
def test_the_server_of_wandb_login_is_the_one_whose_credentials_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, answer: str | None
) -> None:
    from peft_pretraining.tracking import wandb_run

    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "settings").write_text(written)
    (tmp_path / "netrc").write_text(f"machine {(answer or '').removeprefix('https://')} login user password x\n")
    assert wandb_run._base_url() == (answer or "https://api.wandb.ai")
    assert wandb_run._has_credentials() == (answer is not None)
