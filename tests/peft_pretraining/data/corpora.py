"""Small corpora in C4's format, a small tokenizer, and data built from them."""

import gzip
import hashlib
import json
import random
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peft_pretraining.data import DataConfig, TrainingData, Update, build_data, merge_states
from peft_pretraining.data.building import Processes

VOCABULARY = 600
GLOBAL_BATCH = 8
_WORDS = ("the", "a", "of", "model", "loss", "data", "over", "and", "rate", "step", "with", "small", "deep", "row")


def documents(count: int, seed: int = 0) -> list[str]:
    """Distinct documents of 3 to 60 words; the first word says which one it is."""
    draw = random.Random(seed)
    return [
        f"doc{seed}x{index} " + " ".join(draw.choices(_WORDS, k=draw.randint(2, 59))) + "." for index in range(count)
    ]


def lines(texts: Sequence[str]) -> bytes:
    """The texts as C4's records."""
    records = ({"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "https://a.b"} for text in texts)
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def write_c4(folder: Path, shards: int, per_shard: int, validation: int = 30) -> Path:
    """C4's layout: `en/c4-train.*` and `en/c4-validation.*` under `folder`, which is returned."""
    (folder / "en").mkdir(parents=True)
    for index in range(shards):
        data = lines(documents(per_shard, seed=index))
        (folder / f"en/c4-train.{index:05d}-of-{shards:05d}.json.gz").write_bytes(gzip.compress(data, mtime=0))
    data = lines(documents(validation, seed=999))
    (folder / "en/c4-validation.00000-of-00001.json.gz").write_bytes(gzip.compress(data, mtime=0))
    return folder


def save_tokenizer(folder: Path) -> Path:
    """A byte-level BPE of VOCABULARY ids for `documents`, with pad, EOS and BOS 0, 1 and 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(300, seed=7), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>")
    fast.save_pretrained(folder)
    return folder


def sentencepiece_model() -> bytes:
    """A SentencePiece BPE model: <unk>, <s>, </s>, the bytes, and the pieces of `abab`, best merges first."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [(text, -float(rank), 1) for rank, text in enumerate(("ab", "\u2581ab", "abab", "a", "b", "\u2581"))]
    message = b""
    for text, score, kind in pieces:
        encoded = text.encode()
        piece = bytes([10, len(encoded)]) + encoded + b"\x15" + struct.pack("<f", score) + bytes([24, kind])
        message += bytes([10, len(piece)]) + piece
    return message


def open_data(rank: int = 0, world_size: int = 1, processes: Processes | None = None, **flags: Any) -> TrainingData:
    """One rank's data. Updates of `global_batch` sequences, `batch_size` at a time unless that does not divide."""
    global_batch = flags.pop("global_batch", GLOBAL_BATCH)
    batch_size = flags.pop("batch_size", 1)
    config = DataConfig(**{"max_length": 32, "shuffle_block": 16, "workers": 0, **flags})
    return build_data(
        config,
        vocab_size=VOCABULARY,
        batch_size=batch_size,
        global_batch=global_batch,
        rank=rank,
        world_size=world_size,
        processes=processes,
    )


def digest(updates: Sequence[Update]) -> str:
    """What an update trains on, over its ranks in order, whatever their number."""
    content = hashlib.sha256()
    for update in updates:
        for batch in update.micro_batches:
            for tensor in (batch.input_ids, batch.lengths, batch.bytes):
                content.update(tensor.numpy().tobytes())
    return content.hexdigest()


class Ranks:
    """The data of all ranks of a job, in one process."""

    def __init__(self, world_size: int = 1, state: dict[str, Any] | None = None, **flags: Any) -> None:
        self.ranks = [open_data(rank, world_size, **flags) for rank in range(world_size)]
        for data in self.ranks if state is not None else ():
            data.load_state_dict(json.loads(json.dumps(state)))

    def digests(self, count: int) -> list[str]:
        """What each of the next `count` updates trains on."""
        return [digest([next(data) for data in self.ranks]) for _ in range(count)]

    def state(self) -> dict[str, Any]:
        """The merged position."""
        return merge_states([data.state_dict() for data in self.ranks])

    def close(self) -> None:
        """Ends the workers."""
        for data in self.ranks:
            data.close()


def texts_of(data: TrainingData, updates: int) -> Iterator[str]:
    """The decoded rows of the next updates, EOS and padding left out."""
    for _ in range(updates):
        for batch in next(data).micro_batches:
            for ids, length in zip(batch.input_ids, batch.lengths, strict=True):
                yield data.tokenizer.decode(ids[:length], skip_special_tokens=True)
