"""Reads documents that are token ids already: nanoGPT's .bin files, and parquet columns of ids.

A .bin file is one row of little-endian unsigned integers, two bytes each (four where the vocabulary has more than
65,536 ids), with the end-of-sequence id between documents. The 256 words of llm.c's header are passed over.
"""

from collections.abc import Iterator

import numpy as np

from peft_pretraining.data.lines import Record

# A longer stretch without an end is several documents, as a long text is.
LONGEST_DOCUMENT = 1 << 18
_CHUNK = 1 << 20
_MAGIC, _HEADER_BYTES = 20240520, 1024


def bin_records(path: str, wide: bool, end: int, start: int, stripe: int, stripes: int) -> Iterator[list[Record]]:
    """The documents of a .bin file as Records of uint32 ids without their end, some at a time; see Reader.records."""
    ids = _open(path, wide)
    row, first = 0, 0
    while first < len(ids):
        chunk = ids[first : first + _CHUNK]
        ends = np.flatnonzero(chunk == end)
        if len(ends) == 0:  # cut a document that has no end in sight
            pieces, used = [chunk[i : i + LONGEST_DOCUMENT] for i in range(0, len(chunk), LONGEST_DOCUMENT)], len(chunk)
        elif first + len(chunk) == len(ids):
            pieces, used = np.split(chunk, ends), len(chunk)
        else:
            pieces, used = np.split(chunk[: ends[-1]], ends[:-1]), int(ends[-1]) + 1
        records = []
        for piece in pieces:
            document = piece[piece != end]
            if len(document) == 0:
                continue
            if row >= start and row % stripes == stripe:
                records.append(Record(row, True, document.astype("<u4").tobytes(), ids=True))
            row += 1
        first += used
        yield records


def _open(path: str, wide: bool) -> np.ndarray:
    header = np.fromfile(path, dtype="<i4", count=1)
    offset = _HEADER_BYTES if len(header) and header[0] == _MAGIC else 0
    kind = np.dtype("<u4" if wide else "<u2")
    size = np.fromfile(path, dtype="u1", offset=offset, count=1).size
    return np.memmap(path, dtype=kind, mode="r", offset=offset) if size else np.zeros(0, kind)


def holds_ids(path: str, column: str) -> bool:
    """Whether a column of a parquet file holds lists of integers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    if column not in schema.names:
        return False
    kind = schema.field(column).type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and pa.types.is_integer(kind.value_type))
