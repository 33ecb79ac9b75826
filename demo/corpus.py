"""The texts the built-in model learns from: three public-domain books that Debian packages carry.

| book | Debian package | why it may be used |
|---|---|---|
| King James Bible, 1611 | bible-kjv-text | copyright expired; the file is "provided for unrestricted use" |
| The Devil's Dictionary, A. Bierce, 1911 | dict-devil | copyright expired; the file says "public domain" |
| The Jargon File 4.4.7, 2003 | jargon-text | its authors put it in the public domain |

A document is a chapter of the Bible, an entry of a dictionary or a chapter of the Jargon File's own prose. Documents
are held out whole: seven books of the Bible, and every sixteenth entry of the dictionaries.
"""

from __future__ import annotations

import gzip
import itertools
import re
import struct
import subprocess
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import xxhash

PACKAGES = ("bible-kjv-text", "dict-devil", "jargon-text")
HELD_OUT_BOOKS = ("Ruth", "Ezra", "Ecclesiastes", "Jonah", "Acts", "Galatians", "James")
HELD_OUT_SHARE = 16

BOOKS = (
    "Genesis",
    "Exodus",
    "Leviticus",
    "Numbers",
    "Deuteronomy",
    "Joshua",
    "Judges",
    "Ruth",
    "1 Samuel",
    "2 Samuel",
    "1 Kings",
    "2 Kings",
    "1 Chronicles",
    "2 Chronicles",
    "Ezra",
    "Nehemiah",
    "Esther",
    "Job",
    "Psalms",
    "Proverbs",
    "Ecclesiastes",
    "Song of Solomon",
    "Isaiah",
    "Jeremiah",
    "Lamentations",
    "Ezekiel",
    "Daniel",
    "Hosea",
    "Joel",
    "Amos",
    "Obadiah",
    "Jonah",
    "Micah",
    "Nahum",
    "Habakkuk",
    "Zephaniah",
    "Haggai",
    "Zechariah",
    "Malachi",
    "Matthew",
    "Mark",
    "Luke",
    "John",
    "Acts",
    "Romans",
    "1 Corinthians",
    "2 Corinthians",
    "Galatians",
    "Ephesians",
    "Philippians",
    "Colossians",
    "1 Thessalonians",
    "2 Thessalonians",
    "1 Timothy",
    "2 Timothy",
    "Titus",
    "Philemon",
    "Hebrews",
    "James",
    "1 Peter",
    "2 Peter",
    "1 John",
    "2 John",
    "3 John",
    "Jude",
    "Revelation",
)
VERSES = 31_102
_ASCII = str.maketrans(
    {0x201C: '"', 0x201D: '"', 0x2018: "'", 0x2019: "'", 0x2014: "--", 0x2013: "-", 0x2026: "...", 0xA0: " "}
)


@dataclass(frozen=True)
class Document:
    """A request and its answer, which is how the chat template will render them."""

    book: str
    """`bible`, `devil` or `jargon`."""

    title: str
    """What a user would ask for, such as "Genesis 20" or "Define heart."."""

    text: str
    held_out: bool

    @property
    def plain(self) -> str:
        """The bytes that compressors and the model are measured on."""
        return f"{self.title}\n{self.text}\n"


def read_corpus(root: Path) -> list[Document]:
    """Reads all documents, in the order of the books.

    Args:
        root: where the packages are unpacked, as printed by `scripts/fetch_debian.sh bible-kjv-text dict-devil
            jargon-text`.

    Raises:
        ValueError: a package holds something else than expected.
    """
    bible = _bible((root / "usr/lib/bible.data").read_bytes())
    devil = _devil(gzip.decompress((root / "usr/share/dictd/devil.dict.dz").read_bytes()).decode())
    jargon = _jargon(gzip.decompress((root / "usr/share/doc/jargon-text/jargon.txt.gz").read_bytes()).decode())
    return bible + devil + jargon


def _bible(data: bytes) -> list[Document]:
    """Chapters, a verse a line.

    The file is a table of 64 KiB windows of text, each of them compressed by compress(1) without its header, which
    stands once before the first. Big-endian; a verse is `Ge1:1 In the beginning ...`.
    """
    window_bytes, windows = struct.unpack_from(">II", data, 0x54)
    offsets = struct.unpack_from(f">{windows + 1}I", data, 0x5C)
    if not data.startswith(b"EC02") or window_bytes != 65536:
        raise ValueError("bible.data is not in the format of bible-kjv-text 4.38")
    header = data[offsets[0] - 3 : offsets[0]]
    spans = [data[begin:end] for begin, end in itertools.pairwise(offsets)]
    inflated = [subprocess.run(["gzip", "-dc"], input=header + span, capture_output=True).stdout for span in spans]
    chapters: dict[tuple[int, int], list[str]] = {}
    names: dict[str, int] = {}
    for line in b"".join(inflated).decode("ascii").splitlines():
        verse = re.fullmatch(r"(\d?[A-Za-z]+)(\d+):(\d+) (.*)", line)
        if verse:
            book = names.setdefault(verse[1], len(names))
            chapters.setdefault((book, int(verse[2])), []).append(" ".join(verse[4].split()))
    count = sum(map(len, chapters.values()))
    if (len(names), count) != (len(BOOKS), VERSES):
        raise ValueError(f"bible.data holds {len(names)} books and {count} verses, expected {len(BOOKS)} and {VERSES}")
    return [
        Document("bible", f"{name} {chapter}", "\n".join(verses), name in HELD_OUT_BOOKS)
        for (book, chapter), verses in chapters.items()
        for name in [BOOKS[book]]
    ]


def _devil(text: str) -> list[Document]:
    """Entries such as `HEARSE, n.  Death's baby-carriage.`, verses of poems on lines of their own."""
    entries = re.split(r"\n\n(?=[A-Z][A-Z' -]*, [a-z.]+ )", text.translate(_ASCII))[1:]
    return [
        _entry("devil", f"Define {head.lower()}.", body) for head, body in (entry.split(", ", 1) for entry in entries)
    ]


def _jargon(text: str) -> list[Document]:
    """Entries such as `   :hacker: n.` and, before and after them, chapters of prose."""
    text = unicodedata.normalize("NFC", text).translate(_ASCII).replace("{", "").replace("}", "")
    text = re.sub(r"\nGlossary\n.*?(?=\n   :[^:\n]+:)", "\n", text, count=1, flags=re.DOTALL)  # its table of contents
    parts = re.split(r"\n(?=(?:Chapter \d+\.|Appendix [A-Z]\.) )|\n(?=   :[^:\n]+:)", text)[1:]
    documents = []
    for part in parts:
        head, _, body = part.partition("\n")
        entry = re.match(r"   :([^:]+):\s*(.*)", head)
        if entry:
            documents.append(_entry("jargon", f"What does {entry[1]} mean?", f"   {entry[2]}\n{body}"))
        else:
            documents.append(_entry("jargon", head.strip(), body))
    return documents


def _entry(book: str, title: str, body: str) -> Document:
    paragraphs = [part for part in re.split(r"\n\s*\n", body.rstrip()) if not re.search("[─│]", part)]  # no tables
    text = "\n".join(map(_flow, paragraphs))
    return Document(book, title, text.strip(), xxhash.xxh3_64_intdigest(title.encode()) % HELD_OUT_SHARE == 0)


def _flow(paragraph: str) -> str:
    """Joins the lines of prose; lines that are indented beyond the book's margin are verse or code and stay."""
    lines = [line.removeprefix("   ").rstrip() for line in paragraph.splitlines() if line.strip()]
    if any(line.startswith(" ") for line in lines):
        return "\n".join(line.strip() for line in lines)
    return " ".join(" ".join(lines).split())
