"""The builtin corpus: prose from source files, built once however many ask, and a tokenizer trained on it."""

import gzip
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peft_pretraining.data import DataConfig, build_data, builtin_corpus
from peft_pretraining.data.builtin_corpus import ensure_corpus
from peft_pretraining.data.builtin_tokenizer import builtin_tokenizer
from peft_pretraining.errors import UsageError

LONG = "Says what this does. " * 20


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and three installed packages instead of all."""
    monkeypatch.setenv("THRIFT_CACHE", str(tmp_path))
    monkeypatch.setattr(builtin_corpus, "PACKAGES", ("huggingface_hub", "datasets", "not_installed"))
    monkeypatch.setattr(builtin_corpus, "_libraries", lambda: [])
    return tmp_path


def documents(folder: Path, pattern: str) -> list[dict[str, str]]:
    return [
        json.loads(line)
        for shard in sorted(folder.glob(pattern))
        for line in gzip.decompress(shard.read_bytes()).decode().splitlines()
    ]


def test_shards_are_those_of_c4_with_distinct_long_documents(small: Path) -> None:
    folder = ensure_corpus()
    train, held_out = documents(folder, "en/c4-train.*"), documents(folder, "en/c4-validation.*")
    texts = [document["text"] for document in (*train, *held_out)]
    assert len(texts) > 800 and len(set(texts)) == len(texts)
    assert min(map(len, texts)) >= 200
    assert len(texts) / 30 < len(held_out) < len(texts) / 20
    known = {sequence for document in train for sequence in sequences(document["text"])}
    assert not any(sequence in known for document in held_out for sequence in sequences(document["text"]))
    assert set(train[0]) == {"text", "timestamp", "url"}


def sequences(text: str) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[start : start + 13]) for start in range(len(words) - 12)]


def build_in_process(folder: str, results: "multiprocessing.Queue[tuple[str, float]]") -> None:
    os.environ["THRIFT_CACHE"] = folder
    results.put((str(ensure_corpus()), time.time()))


def test_processes_that_build_at_once_get_one_corpus(small: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[tuple[str, float]] = context.Queue()
    processes = [context.Process(target=build_in_process, args=(str(small), results)) for _ in range(3)]
    for process in processes:
        process.start()
    folders = {results.get(timeout=120)[0] for _ in processes}
    for process in processes:
        process.join()
    assert len(folders) == 1
    assert len(list(small.glob("builtin-*/"))) == 1  # no half-built folder is left


def test_nothing_is_imported_and_odd_files_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "odd"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f'"""{LONG}"""\nraise SystemExit("imported")\n')
    (package / "broken.py").write_text('"""unfinished')
    (package / "binary.py").write_bytes(b"\0\xff" + b'"""')
    (package / "inner.py").write_text(
        f'if True:\n class A:\n  """A. {LONG}"""\n  def f(self):\n   """F. {LONG}"""\n   try: ...\n'
        f'   except E:\n    async def g():\n     """G. {LONG}"""\n     "short"\ndef h():\n """H. {LONG}\\ud800"""\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(builtin_corpus, "PACKAGES", ("odd",))
    monkeypatch.setattr(builtin_corpus, "_libraries", lambda: [])
    found = dict((text[:2], place) for place, text in builtin_corpus.docstrings())
    assert found == {"Sa": "odd/__init__.py#", "A.": "odd/inner.py#A", "F.": "odd/inner.py#f", "G.": "odd/inner.py#g"}


def test_an_unwritable_cache_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("THRIFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="--dataset builtin cannot be kept in .*set THRIFT_CACHE"):
        ensure_corpus()


def test_the_tokenizer_has_the_models_vocabulary_and_is_trained_once(small: Path) -> None:
    tokenizer = builtin_tokenizer(1000)
    assert len(tokenizer) == 1000
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2)
    text = "Any text, with d\u00e9tails\n\tand \u65e5\u672c."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    (file,) = small.glob("tokenizers/*.json")
    written = file.stat().st_mtime_ns
    assert builtin_tokenizer(1000).get_vocab() == tokenizer.get_vocab()
    assert file.stat().st_mtime_ns == written
    with pytest.raises(UsageError, match="vocab_size of 259"):
        builtin_tokenizer(258)


def test_both_go_together_without_a_flag_for_the_tokenizer(small: Path) -> None:
    data = build_data(DataConfig(dataset="builtin", workers=0), vocab_size=1000, batch_size=4, global_batch=8)
    update = next(data)
    assert [batch.input_ids.shape for batch in update.micro_batches] == [(4, 256), (4, 256)]
    assert len(data.tokenizer) == 1000


@pytest.mark.slow
def test_the_whole_corpus_is_about_20_mb_and_takes_less_than_45_seconds_on_two_cores(tmp_path: Path) -> None:
    code = "from peft_pretraining.data.builtin_corpus import ensure_corpus; print(ensure_corpus())"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "THRIFT_CACHE": str(tmp_path)}
    finished = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time: the wall clock of a busy machine says little.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2 * 45
    texts = [document["text"] for document in documents(Path(finished.stdout.strip()), "en/*")]
    assert 15e6 < sum(len(text.encode()) for text in texts) < 30e6
