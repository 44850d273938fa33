"""Tokenizers, and documents as token ids."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from loguru import logger

from peft_pretraining.data.holdout import Document
from peft_pretraining.data.hub import ask_hub, reason_of
from peft_pretraining.data.sentencepiece_models import load_sentencepiece
from peft_pretraining.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# A row of n tokens is cut from the first _CHARACTERS_PER_TOKEN * n characters where they hold enough tokens: English
# has 4 to 5 a token.
_CHARACTERS_PER_TOKEN = 5
_LONGEST_WORD = 4096
_USUAL_NAMES = {
    "eos_token": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[SEP]"),
    "bos_token": ("<s>", "<|begin_of_text|>", "<bos>", "[CLS]"),
    "pad_token": ("<pad>", "[PAD]"),
    "unk_token": ("<unk>", "[UNK]"),
}
# A vocabulary so many times the tokenizer's is called wasteful.
_WASTEFUL = 1.5
_WORD_END = re.compile(r"\S\s")
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


def load_tokenizer(name: str, vocab_size: int, timeout: float) -> "PreTrainedTokenizerFast":
    """The fast tokenizer of a hub name, a folder or a file, with an EOS and a pad token. Raises UsageError.

    One that the hub's cache holds is taken from there without asking the hub.
    """
    path = Path(name).expanduser()
    try:
        tokenizer = _from_file(path) if path.is_file() else _from_disk(name) or _from_hub(name, timeout)
    except Exception as error:
        raise UsageError(
            f"--tokenizer {name} cannot be loaded: {reason_of(error)}; check the network or set HF_ENDPOINT to a "
            "mirror; or give the folder of a saved tokenizer; or use --tokenizer builtin, which goes with any "
            "--dataset and needs no network"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(f"--tokenizer {name} has no fast version (tokenizer.json): choose another")
    return check_tokenizer(tokenizer, name, vocab_size)


def _from_file(path: Path) -> Any:
    """The tokenizer of a SentencePiece model or of a tokenizer.json.

    What lies beside a tokenizer.json says which tokens are special, or their usual names do.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if path.suffix == ".model":
        return load_sentencepiece(path)
    if path.name == "tokenizer.json" and (path.parent / "tokenizer_config.json").is_file():
        return AutoTokenizer.from_pretrained(str(path.parent), local_files_only=True, trust_remote_code=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), clean_up_tokenization_spaces=False)
    vocabulary = tokenizer.get_vocab()
    for role, names in _USUAL_NAMES.items():
        named = next((name for name in names if name in vocabulary), None)
        if named is not None:
            setattr(tokenizer, role, named)
    return tokenizer


def _from_disk(name: str) -> Any:
    """None where the tokenizer is no folder and not in the hub's cache."""
    from transformers import AutoTokenizer

    folder = Path(name).expanduser()
    name = str(folder) if folder.is_dir() else name
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except Exception:
        if folder.is_dir():
            raise
        return None


def _from_hub(name: str, timeout: float) -> Any:
    from huggingface_hub import HfApi
    from transformers import AutoTokenizer

    # Without an answer transformers would try for most of a minute.
    ask_hub(lambda: HfApi().model_info(name), f"the tokenizer {name}", timeout)
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def check_tokenizer(tokenizer: Any, name: str, vocab_size: int) -> "PreTrainedTokenizerFast":
    """Returns the tokenizer, with a pad token. Raises UsageError if ids do not fit the vocabulary, or without EOS."""
    if tokenizer.eos_token_id is None:
        raise UsageError(f"--tokenizer {name} has no end-of-sequence token: choose another")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    ordinary = [index for token, index in tokenizer.get_vocab().items() if token not in special]
    largest = max([tokenizer.eos_token_id, tokenizer.pad_token_id, *ordinary])
    if largest >= vocab_size:
        raise UsageError(
            f"--tokenizer {name} makes token ids up to {largest}, but the model's vocab_size is {vocab_size}: "
            "use --tokenizer builtin, another tokenizer, or a --model_config with a larger vocab_size"
        )
    if vocab_size > _WASTEFUL * (largest + 1):
        logger.warning(
            "the model's vocabulary of {:,} is much larger than the tokenizer's {:,} ids: the other {:,} rows of "
            "embedding and head are never used; set vocab_size in --model_config to what the tokenizer needs",
            vocab_size,
            largest + 1,
            vocab_size - largest - 1,
        )
    return tokenizer  # type: ignore[no-any-return]


class Encoder:
    """Turns documents into ids: what the tokenizer puts before a text (BOS), the text, EOS."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", vocab_size: int) -> None:
        from tokenizers import Tokenizer

        # A copy: text that spells a special token is text here, and the user's tokenizer stays as it is.
        description = json.loads(tokenizer.backend_tokenizer.to_str())
        description["truncation"] = description["padding"] = None
        self._tokenizer = Tokenizer.from_str(json.dumps(description))
        self._tokenizer.encode_special_tokens = True
        self.vocab_size = vocab_size
        self.eos, self.pad = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)
        self._unknown = self.eos if tokenizer.unk_token_id is None else int(tokenizer.unk_token_id)
        with_special = self._tokenizer.encode("a", add_special_tokens=True).ids
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        start = next((i for i in range(len(with_special)) if with_special[i : i + len(bare)] == bare), 0)
        self._before: list[int] = with_special[:start]
        self.token_bytes = _token_bytes(description, self._tokenizer.get_vocab(with_added_tokens=True), tokenizer)

    def documents(self, texts: Sequence[Document]) -> list[list[int]]:
        """Ids of each document with EOS at its end; no ids at all for one that has no tokens.

        Raises UsageError for a document of ids that are not this tokenizer's.
        """
        encoded = iter(self._encode([text for text in texts if isinstance(text, str)]))
        return [self._close(next(encoded) if isinstance(text, str) else self._own(text), None) for text in texts]

    def heads(self, documents: Sequence[Document], length: int) -> list[list[int]]:
        """As `documents`, cut to `length` ids, the last of which is EOS all the same."""
        encoded = [[] if isinstance(each, str) else self._own(each[:length]) for each in documents]
        texts = {index: each for index, each in enumerate(documents) if isinstance(each, str)}
        left, limit = list(texts), length * _CHARACTERS_PER_TOKEN
        while left:
            heads = [_head(texts[index], limit) for index in left]
            short = []
            for index, head, ids in zip(left, heads, self._encode(heads), strict=True):
                encoded[index] = ids
                # The end of a head may be split unlike the same characters inside the document: keep clear of it.
                if len(ids) < length + 8 and len(head) < len(texts[index]):
                    short.append(index)
            left, limit = short, 4 * limit
        return [self._close(ids, length) for ids in encoded]

    def _own(self, ids: np.ndarray) -> list[int]:
        """Ids that were read, without the BOS that they may begin with."""
        found: list[int] = ids.tolist()
        if found and max(found) >= self.vocab_size:
            raise UsageError(
                f"--dataset: a document holds the token id {max(found)}, and the model's vocab_size is "
                f"{self.vocab_size}: these ids were made by another tokenizer; give it as --tokenizer"
            )
        return found[len(self._before) :] if found[: len(self._before)] == self._before else found

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        return [each.ids for each in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _close(self, ids: list[int], length: int | None) -> list[int]:
        if not ids:
            return []
        if length is not None:
            ids = ids[: max(0, length - len(self._before) - 1)]
        if ids and max(ids) >= self.vocab_size:
            ids = [index if index < self.vocab_size else self._unknown for index in ids]
        return [*self._before, *ids, self.eos]


def _head(text: str, limit: int) -> str:
    """The first words of a text, `limit` characters and up to the end of a word."""
    if len(text) <= limit:
        return text
    end = limit + _LONGEST_WORD
    match = _WORD_END.search(text, limit, end)
    return text[:end] if match is None else text[: match.start() + 1]


def _token_bytes(
    description: dict[str, Any], vocabulary: dict[str, int], tokenizer: "PreTrainedTokenizerFast"
) -> np.ndarray:
    """UTF-8 bytes of text that each id stands for, int64 by id; 0 for special tokens."""
    kinds = set(re.findall(r'"type": ?"(\w+)"', json.dumps([description["decoder"], description["pre_tokenizer"]])))
    special = set(tokenizer.all_special_tokens)
    table = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
    for token, index in vocabulary.items():
        if token in special:
            continue
        if "ByteLevel" in kinds:  # every byte is written as one character
            table[index] = len(token)
        elif _BYTE_TOKEN.fullmatch(token):
            table[index] = 1
        else:
            word = token.removeprefix("##") if "WordPiece" in kinds else token.replace("\u2581", " ")
            table[index] = len(word.encode())
    return table
