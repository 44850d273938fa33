"""Writes shards as C4 has them: gzipped lines of JSON with text, timestamp and url."""

import gzip
import io
import json
from collections.abc import Iterable
from pathlib import Path


def write_shard(path: Path, documents: Iterable[tuple[str, str]]) -> Path:
    """Writes (place, text) pairs, and returns the path; the same documents always make the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=6, mtime=0) as file:
        for place, text in documents:
            record = {"text": text, "timestamp": "1970-01-01T00:00:00Z", "url": place}
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    path.write_bytes(buffer.getvalue())
    return path
