import sys
import threading
from pathlib import Path

import xxhash

from zipmoe.store.format.checksum import xxh3, xxh3_of_file


def test_the_checksum_is_xxh3_64() -> None:
    for data in (b"", b"a", bytes(range(256)) * 1000):
        assert xxh3(data) == xxhash.xxh3_64_intdigest(data)
    assert f"{xxh3(b''):016x}" == "2d06800538d394c2"


def test_a_files_checksum_is_that_of_its_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 40_000
    (tmp_path / "file").write_bytes(data)
    pieces: list[int] = []
    assert xxh3_of_file(tmp_path / "file", pieces.append) == xxh3(data)
    assert sum(pieces) == len(data)


def sums_while_another_thread_steps(data: bytearray) -> bool:
    ready, summed = threading.Event(), threading.Event()
    stepped_first: list[bool] = []

    def step() -> None:
        assert ready.wait(30)
        stepped_first.append(not summed.is_set())

    thread = threading.Thread(target=step)
    thread.start()
    ready.set()
    xxh3(data)
    summed.set()
    thread.join()
    return stepped_first[0]


def test_other_threads_run_while_a_large_buffer_is_summed() -> None:
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)  # so that only a released GIL lets the other thread in
    try:
        data = bytearray(32 << 20)
        # Once is enough: a held GIL lets it in never, a busy machine only sometimes too late.
        assert any(sums_while_another_thread_steps(data) for _ in range(200))
    finally:
        sys.setswitchinterval(interval_s)
