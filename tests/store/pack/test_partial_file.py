import errno
import os
from pathlib import Path

import pytest

from tests.store.conftest import Packed
from zipmoe.errors import CorruptData, InvalidRequest, ResourceExhausted
from zipmoe.store.pack.partial_file import PartialFile, write_error
from zipmoe.store.pack.writer import pack_store


def test_a_file_takes_its_name_only_when_it_is_finished(tmp_path: Path) -> None:
    file = PartialFile(tmp_path / "name")
    file.append([b"one", b"", memoryview(b"two")])
    assert os.listdir(tmp_path) == ["name.partial"]
    file.append([b"3"])
    file.finish()
    assert os.listdir(tmp_path) == ["name"]
    assert (tmp_path / "name").read_bytes() == b"onetwo3"
    assert file.nbytes == 7


def test_a_file_that_is_closed_stays_partial_and_goes_on_where_it_is_cut(tmp_path: Path) -> None:
    file = PartialFile(tmp_path / "name")
    file.append([b"0123456789"])
    file.close()
    file.close()
    again = PartialFile(tmp_path / "name", keep_bytes=4)
    again.append([b"ab"])
    again.finish()
    assert (tmp_path / "name").read_bytes() == b"0123ab"


def test_writes_that_the_kernel_cuts_short_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_pwritev = os.pwritev

    def three_bytes(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return real_pwritev(descriptor, [buffers[0][:3]], offset)

    monkeypatch.setattr(os, "pwritev", three_bytes)
    file = PartialFile(tmp_path / "name")
    pieces = [bytes([index % 256]) * (index % 7) for index in range(2000)]
    file.append(pieces)
    file.finish()
    assert (tmp_path / "name").read_bytes() == b"".join(pieces)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, ResourceExhausted),
        (errno.EDQUOT, ResourceExhausted),
        (errno.EFBIG, ResourceExhausted),
        (errno.EACCES, InvalidRequest),
        (errno.EROFS, InvalidRequest),
        (errno.EIO, CorruptData),
    ],
)
def test_a_failed_write_says_whose_fault_it_is(tmp_path: Path, code: int, kind: type[Exception]) -> None:
    error = write_error(tmp_path / "name", OSError(code, os.strerror(code)))
    assert type(error) is kind
    assert os.strerror(code).lower() in error.message


def test_a_destination_that_may_not_be_written_is_refused(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *arguments: object, **keywords: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InvalidRequest, match="no permission to write"):
        pack_store(packed.source, tmp_path / "store")
