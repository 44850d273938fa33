"""The routing tables of docs/models.md: python -m tests.scripts.model_tables writes them anew."""

from __future__ import annotations

import re
from pathlib import Path

from optimizers.engine import parts, roles
from tests.optimizers.architectures import ARCHITECTURES, tiny

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "models.md"


def table_of(name: str) -> str:
    """Role, shape and group of every parameter of a tiny model."""
    described = roles.describe(tiny(name))
    return parts.table(described, ["body" if p.block else p.part if p.part != "body" else "rest" for p in described])


if __name__ == "__main__":
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in ARCHITECTURES:
        text = re.sub(
            rf"(### {re.escape(name)}\n\n```\n).*?(\n```)",
            lambda m, n=name: m[1] + table_of(n) + m[2],
            text,
            flags=re.S,
        )
    DOCUMENT.write_text(text, encoding="utf-8")
