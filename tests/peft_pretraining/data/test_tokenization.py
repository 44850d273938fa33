"""Documents as ids: cut as the papers cut them, counted in bytes, within the model's vocabulary."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from peft_pretraining.data.corpus.packages import files
from peft_pretraining.data.rows import to_rows
from peft_pretraining.data.sentencepiece_models import load_sentencepiece
from peft_pretraining.data.tokenization import Encoder, load_tokenizer
from peft_pretraining.errors import UsageError
from tests.peft_pretraining.data.corpora import VOCABULARY, documents, sentencepiece_model

ODD = [
    "",
    " ",
    "word " * 400,
    "x" * 9000,
    "caf\u00e9 \u2615 na\u00efve \u65e5\u672c " * 60,
    "a </s> <pad> b",
    "\n\n tab\tend \n" * 200,
]


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer built like T5's: Unigram, Metaspace, </s> by template, sentinel tokens at the end."""
    sentinels = [f"<extra_id_{index}>" for index in range(10)]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(documents(200, seed=3), trainer)
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=sentinels,
    )
    folder = tmp_path_factory.mktemp("t5")
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=["bpe", "t5"])
def folder(request: pytest.FixtureRequest, tokenizer: str, t5: str) -> str:
    return {"bpe": tokenizer, "t5": t5}[request.param]


def texts() -> list[str]:
    return [*documents(50, seed=1), *(" ".join(documents(40, seed=s)) for s in range(5)), *ODD]


@pytest.mark.parametrize("length", [2, 8, 64])
def test_rows_are_those_of_the_published_harnesses(folder: str, length: int) -> None:
    """They call the tokenizer with truncation: ids, cut, and EOS at the end all the same."""
    tokenizer = load_tokenizer(folder, VOCABULARY, 1.0)
    encoder = Encoder(tokenizer, VOCABULARY)
    wanted = [text for text in texts() if "<pad>" not in text]
    plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in wanted]
    expected = [[*ids[: length - 1], tokenizer.eos_token_id] if ids else [] for ids in plain]
    assert encoder.heads(wanted, length) == expected
    assert encoder.documents(wanted) == [[*ids, tokenizer.eos_token_id] if ids else [] for ids in plain]


def test_a_template_with_bos_keeps_it(tokenizer: str, tmp_path: Path) -> None:
    fast = AutoTokenizer.from_pretrained(tokenizer)
    backend = fast.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 2)])
    fast.save_pretrained(tmp_path)
    encoder = Encoder(load_tokenizer(str(tmp_path), VOCABULARY, 1.0), VOCABULARY)
    (ids,) = encoder.heads(["the model and the data"], 4)
    assert (len(ids), ids[0], ids[-1]) == (4, 2, 1)


def test_text_that_spells_special_tokens_is_text(tokenizer: str, t5: str) -> None:
    (ids,) = Encoder(load_tokenizer(tokenizer, VOCABULARY, 1.0), VOCABULARY).documents(["a </s> b <pad> d"])
    assert ids.count(1) == 1 and ids[-1] == 1 and 0 not in ids
    sentinel = len(load_tokenizer(t5, VOCABULARY, 1.0)) - 10
    (ids,) = Encoder(load_tokenizer(t5, sentinel, 1.0), sentinel).documents(["a <extra_id_3> b"])
    assert max(ids) < sentinel


def test_bytes_of_scored_tokens_are_those_of_the_text(tokenizer: str) -> None:
    encoder = Encoder(load_tokenizer(tokenizer, VOCABULARY, 1.0), VOCABULARY)
    for text in texts():
        for ids in encoder.documents([text]):
            if ids:
                rows = to_rows([ids], len(ids) + 3, encoder)
                first = encoder.token_bytes[ids[0]]
                assert rows.bytes.item() == len(text.encode()) - first
                assert rows.lengths.item() == len(ids)


def test_bytes_of_a_metaspace_tokenizer(t5: str) -> None:
    encoder = Encoder(load_tokenizer(t5, VOCABULARY, 1.0), VOCABULARY)
    text = documents(1)[0].replace("doc0x0 ", "the ")
    (ids,) = encoder.documents([text])
    assert encoder.token_bytes[np.array(ids)].sum() == len(text) + 1  # the space put before the first word


def test_heads_do_not_read_the_whole_of_a_long_document(tokenizer: str) -> None:
    encoder = Encoder(load_tokenizer(tokenizer, VOCABULARY, 1.0), VOCABULARY)
    draw = random.Random(0)
    long = " ".join(draw.choices(["the", "model", "x" * 50], k=400_000))
    (head,) = encoder.heads([long], 64)
    assert head == encoder.heads([long[:4000]], 64)[0]


def test_ids_must_fit_the_model_sentinels_left_out(t5: str) -> None:
    words = len(load_tokenizer(t5, VOCABULARY, 1.0)) - 10
    load_tokenizer(t5, words, 1.0)
    message = rf"--tokenizer .* up to {words - 1}.* vocab_size is {words - 1}: use --tokenizer builtin"
    with pytest.raises(UsageError, match=message):
        load_tokenizer(t5, words - 1, 1.0)


@pytest.mark.parametrize("missing", ["eos_token", "pad_token"])
def test_eos_is_needed_and_pad_is_not(tokenizer: str, tmp_path: Path, missing: str) -> None:
    kept: dict[str, Any] = {"eos_token": "</s>", "pad_token": "<pad>"}
    del kept[missing]
    PreTrainedTokenizerFast(tokenizer_file=f"{tokenizer}/tokenizer.json", **kept).save_pretrained(tmp_path)
    if missing == "eos_token":
        with pytest.raises(UsageError, match="no end-of-sequence token"):
            load_tokenizer(str(tmp_path), VOCABULARY, 1.0)
    else:
        assert load_tokenizer(str(tmp_path), VOCABULARY, 1.0).pad_token_id == 1


def test_a_folder_without_a_tokenizer_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--tokenizer {tmp_path} cannot be loaded.*--tokenizer builtin"):
        load_tokenizer(str(tmp_path), VOCABULARY, 1.0)


def test_a_sentencepiece_model_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_model())
    tokenizer = load_tokenizer(str(path), 300, 1.0)
    assert (len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id) == (265, 1, 2)
    tokens = {
        text: tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) for text in ("abab", "b ab", "a\u00e9")
    }
    assert tokens == {
        "abab": ["\u2581ab", "ab"],
        "b ab": ["\u2581", "b", "\u2581ab"],
        "a\u00e9": ["\u2581", "a", "<0xC3>", "<0xA9>"],
    }
    for text in (*tokens, "any text\n", " two  spaces"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    encoder = Encoder(tokenizer, 300)
    assert encoder.documents(["ab </s>"])[0].count(2) == 1  # text that spells a special token is text


def test_the_tokenizer_of_mistral_equals_sentencepiece(tmp_path: Path) -> None:
    """The real model, where the corpus command has downloaded it and the package is there to compare with."""
    package = pytest.importorskip("sentencepiece")
    archives = sorted((Path.home() / ".cache/thrift-llama/downloads").glob("mistral_common-*.whl"))
    if not archives:
        pytest.skip("mistral-common is not among the downloads of this user")
    ((_, content),) = files(archives[0], r"mistral_common/data/tokenizer\.model\.v1")
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    ours = load_sentencepiece(path)
    theirs = package.SentencePieceProcessor(model_file=str(path))
    for text in (*documents(50), "\u65e5\u672c\u8a9e \U0001f600\n\n  two  spaces\ttab", "na\u00efve caf\u00e9\r\n", ""):
        assert ours(text, add_special_tokens=False)["input_ids"] == theirs.encode(text)


@pytest.mark.parametrize("content", [b"", b"\x0a\x05ab", b"no model at all", sentencepiece_model()[:-3]])
def test_a_file_that_is_no_model_is_one_message(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UsageError, match="--tokenizer .*tokenizer.model cannot be loaded"):
        load_tokenizer(str(tmp_path / "tokenizer.model"), 300, 1.0)
