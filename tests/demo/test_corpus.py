"""The texts, from Debian's packages where they can be had."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from demo.corpus import BOOKS, HELD_OUT_BOOKS, PACKAGES, Document, read_corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    fetched = subprocess.run(
        [ROOT / "scripts/fetch_debian.sh", *PACKAGES], capture_output=True, text=True, timeout=100, check=False
    )
    if fetched.returncode:
        pytest.skip(f"the texts' Debian packages are not to be had: {fetched.stderr.strip()}")
    return read_corpus(Path(fetched.stdout.strip()))


def test_the_bible_is_whole_and_in_order(corpus: list[Document]) -> None:
    chapters = [document for document in corpus if document.book == "bible"]
    assert len(chapters) == 1189
    assert chapters[0].text.startswith("In the beginning God created the heaven and the earth.\nAnd the earth was")
    assert chapters[-1].title == "Revelation 22" and chapters[-1].text.endswith("be with you all. Amen.")
    assert list(dict.fromkeys(chapter.title.rpartition(" ")[0] for chapter in chapters)) == list(BOOKS)


def test_dictionary_entries_are_flowing_text_without_markup(corpus: list[Document]) -> None:
    heart = next(document for document in corpus if document.title == "Define heart.")
    assert heart.text.startswith("n. An automatic, muscular blood-pump. Figuratively, this useful organ is said to be")
    hacker = next(document for document in corpus if document.title == "What does hacker mean?")
    assert "A person who enjoys exploring the details of programmable systems" in hacker.text
    assert not any("{" in document.text and "}" in document.text for document in corpus if document.book == "jargon")


def test_documents_are_held_out_whole(corpus: list[Document]) -> None:
    for document in corpus:
        if document.book == "bible":
            assert document.held_out == (document.title.rpartition(" ")[0] in HELD_OUT_BOOKS)
    learnt = {document.text for document in corpus if not document.held_out}
    kept = [document for document in corpus if document.held_out]
    assert not [document.title for document in kept if document.text in learnt and len(document.text) > 100]
    for book in ("bible", "devil", "jargon"):
        sizes = [sum(len(d.plain) for d in corpus if d.book == book and d.held_out == held) for held in (True, False)]
        assert 0.04 < sizes[0] / sum(sizes) < 0.08


def test_the_shipped_held_out_texts_are_those_of_the_corpus(corpus: list[Document], held_out: list[Document]) -> None:
    assert held_out == [document for document in corpus if document.held_out]


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    for path in ("usr/lib/bible.data", "usr/share/dictd/devil.dict.dz", "usr/share/doc/jargon-text/jargon.txt.gz"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(bytes(1000))
    with pytest.raises(ValueError, match=r"bible\.data is not in the format"):
        read_corpus(tmp_path)
