"""Reads SentencePiece BPE models (the `tokenizer.model` of LLaMA 1 and 2 and of Mistral) without that package.

The file is a protocol buffer (sentencepiece_model.proto): field 1 holds the pieces one after another, each with its
text (1), score (2) and kind (3). A piece is made by merging two others; merges come in the order of the scores.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6
_SPACE = "\u2581"


def load_sentencepiece(path: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a BPE model with bytes as its last resort. Raises ValueError for any other file."""
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    pieces = list(_pieces(path.read_bytes()))
    kinds = {kind for _, _, kind in pieces}
    if _UNKNOWN not in kinds or _BYTE not in kinds:
        raise ValueError("this is no SentencePiece BPE model with byte pieces")
    vocabulary = {text: index for index, (text, _, _) in enumerate(pieces)}
    unknown = next(text for text, _, kind in pieces if kind == _UNKNOWN)
    merges = _merges(pieces, vocabulary)
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [text for text, _, kind in pieces if kind in (_UNKNOWN, _CONTROL)]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    named = {role: text for role, text in (("bos_token", "<s>"), ("eos_token", "</s>")) if text in vocabulary}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unknown, clean_up_tokenization_spaces=False, **named
    )


def _merges(pieces: list[tuple[str, float, int]], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best scores first."""
    found = []
    for text, score, kind in pieces:
        if kind not in (_NORMAL, _USER):
            continue
        halves = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        possible = [half for half in halves if half[0] in vocabulary and half[1] in vocabulary]
        possible.sort(key=lambda half: (vocabulary[half[0]], vocabulary[half[1]]))
        found += [(score, half) for half in possible]
    return [half for _, half in sorted(found, key=lambda each: each[0], reverse=True)]


def _pieces(data: bytes) -> Iterator[tuple[str, float, int]]:
    """(text, score, kind) of every piece."""
    for field, value in _fields(data):
        if field != 1 or not isinstance(value, bytes):
            continue
        text, score, kind = "", 0.0, _NORMAL
        for inner, content in _fields(value):
            if inner == 1 and isinstance(content, bytes):
                text = content.decode()
            elif inner == 2 and isinstance(content, bytes):
                score = struct.unpack("<f", content)[0]
            elif inner == 3 and isinstance(content, int):
                kind = content
        yield text, score, kind


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(number, value) of the fields of a message: integers, or the bytes of anything else."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire == 2:
            size, place = _varint(data, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError("no protocol buffer")
        if place + size > len(data):
            raise ValueError("a protocol buffer that is cut off")
        yield number, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(data):
            raise ValueError("a protocol buffer that is cut off")
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
