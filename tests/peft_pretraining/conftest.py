"""Command lines that several tests start from."""

from pathlib import Path

import pytest


@pytest.fixture
def minimal(root: Path) -> list[str]:
    """The flags that have no default."""
    return ["--model_config", str(root / "configs/llama_9m.json"), "--optimizer", "adamw_sn"]
