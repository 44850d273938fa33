"""A cache of the tests' own, and small corpora shared by several of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peft_pretraining.data import corpora


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """THRIFT_CACHE of the tests, also of the processes they start."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THRIFT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tokenizer of `corpora.VOCABULARY` ids."""
    return str(corpora.save_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="session")
def c4(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six training shards of 70 documents and one for validation."""
    return str(corpora.write_c4(tmp_path_factory.mktemp("c4"), shards=6, per_shard=70))
