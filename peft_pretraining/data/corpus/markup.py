"""Takes the markup out of texts: HTML, reStructuredText, pod, wiki text, and the tags of the Brown corpus."""

import html
import re
from collections.abc import Iterable, Iterator

_TAG = re.compile(r"<[^<>]*>")
_BREAK = re.compile(r"</?(?:p|li|ul|ol|br|div|note|important|h\d|dl|dt|dd|tr|table)\b[^<>]*>", re.IGNORECASE)
_SPACES = re.compile(r"[ \t]+")
_BLANKS = re.compile(r"\n\s*\n\s*")
_WIKI_INNER = re.compile(r"\{\{[^{}]*\}\}|\{\|[^{}]*?\|\}|<ref[^<>]*/>|<ref[^<>]*>.*?</ref>|<!--.*?-->", re.DOTALL)
_WIKI_FILE = re.compile(r"\[\[(?:File|Image|Category|[a-z-]{2,12}):[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]")
_WIKI_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
_WIKI_URL = re.compile(r"\[https?://\S+ ?([^\]]*)\]")
_WIKI_LINE = re.compile(r"^(?:[=|!{}].*|[*#:;]+ ?)", re.MULTILINE)
_RST_ROLE = re.compile(r":[\w:+-]+:`~?([^`<]*?)(?: ?<[^`>]*>)?`")
_RST_LINE = re.compile(r"^\s*(?:\.\. .*|:\w[\w -]*:(?: .*)?|([=\-~^\"'#*+.])\1{2,}|\+[-=+]+\+|\|.*\|)$")
_POD_CODE = re.compile(r"[A-Z]<<* ?([^<>]*) ?>*>")
_GCIDE_SOUND = re.compile(r" \\[^\\\n]*\\")
_GCIDE_SOURCE = re.compile(r"\s*\[(?:1913 Webster|Webster 1913 Suppl\.|WordNet[^\]]*|[^\]\n]{0,30}PJC[^\]\n]{0,30})\]")
_LETTERS = re.compile(r"[A-Za-z]")


def from_html(text: str) -> str:
    """The text of HTML, a paragraph for each block."""
    return tidy(html.unescape(_TAG.sub("", _BREAK.sub("\n\n", text))))


def from_wiki(text: str) -> str:
    """The paragraphs of wiki text without tables, templates, references and lists of links."""
    before = None
    while before != text:
        before, text = text, _WIKI_INNER.sub("", text)
    text = _WIKI_LINK.sub(r"\1", _WIKI_FILE.sub("", text))
    text = _TAG.sub("", _WIKI_URL.sub(r"\1", text)).replace("'''", "").replace("''", "")
    text = html.unescape(_WIKI_LINE.sub("", text))
    return "\n\n".join(line.strip() for line in text.splitlines() if len(line) > 80 and line.rstrip()[-1] in ".!?)\"'")


def from_rst(text: str) -> str:
    """The prose of reStructuredText; directives, tables and underlines go."""
    lines = [_RST_ROLE.sub(r"\1", line) for line in text.splitlines() if not _RST_LINE.match(line)]
    return _prose("\n".join(lines).replace("``", "").replace("**", "").replace("::\n", ":\n"))


def from_pod(text: str) -> str:
    """The prose of Perl's pod."""
    text = re.sub(r"^=(?:over|back|cut|pod|encoding|begin|end|for)\b.*$", "", text, flags=re.MULTILINE)
    return _prose(_POD_CODE.sub(r"\1", re.sub(r"^=\w+ ?", "", text, flags=re.MULTILINE)))


def from_brown(text: str) -> str:
    """Sentences of words with tags (`The/at jury/nn`) as plain text, a paragraph for each blank line."""
    paragraphs = re.split(r"\n\s*\n\s*\n", text)
    return "\n\n".join(filter(None, (_joined(token for token in each.split()) for each in paragraphs)))


def from_gcide(entry: str) -> str:
    """A dictionary entry without pronunciation (`\\Gom"bo\\`), braces of references, and the names of its sources."""
    text = _GCIDE_SOURCE.sub("", _GCIDE_SOUND.sub("", entry)).replace("{", "").replace("}", "")
    return tidy("\n".join(line.strip() for line in text.splitlines()))


def _joined(tokens: Iterable[str]) -> str:
    line = " ".join(token.rsplit("/", 1)[0] for token in tokens)
    line = re.sub(r"`` ?", '"', line).replace(" ''", '"').replace("''", '"')
    line = re.sub(r" ([,.;:?!)\]])", r"\1", line)
    return re.sub(r"([(\[]) ", r"\1", line).replace(" '", "'")


def tidy(text: str) -> str:
    """One space between words, one blank line between paragraphs."""
    return _BLANKS.sub("\n\n", _SPACES.sub(" ", text.replace("\r", ""))).strip()


def _prose(text: str) -> str:
    """The paragraphs that are mostly letters and not indented, as code is."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph[:4].strip() and len(_LETTERS.findall(paragraph)) > 0.6 * len(paragraph):
            kept.append(tidy(paragraph))
    return "\n\n".join(kept)


def grouped(entries: Iterable[str], characters: int) -> Iterator[str]:
    """Short entries joined to documents of at least so many characters, in their order."""
    pending: list[str] = []
    size = 0
    for entry in entries:
        pending.append(entry)
        size += len(entry) + 2
        if size >= characters:
            yield "\n\n".join(pending)
            pending, size = [], 0
    if pending:
        yield "\n\n".join(pending)
