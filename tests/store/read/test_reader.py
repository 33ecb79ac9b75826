import errno
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.store.conftest import Packed
from zipmoe.codec.registry import create_codec
from zipmoe.errors import CorruptData, InvalidRequest, NotFound, ResourceExhausted, Unavailable
from zipmoe.store.format.manifest import Manifest, read_manifest
from zipmoe.store.read import record_file
from zipmoe.store.read.aligned_memory import aligned_memory
from zipmoe.store.read.reader import StoreReader
from zipmoe.store.read.recovery import recover_tensor
from zipmoe.types import ExpertKey, Part

KEY = ExpertKey(1, 2)


@pytest.fixture
def manifest(packed: Packed) -> Manifest:
    return read_manifest(packed.store)


@pytest.fixture
def slot(manifest: Manifest) -> memoryview:
    return aligned_memory(manifest.max_record_bytes)


def record_bytes(store: Path, manifest: Manifest, key: ExpertKey) -> bytes:
    record = manifest.record(key)
    content = (store / manifest.files[record.file].name).read_bytes()
    return content[record.offset : record.offset + record.nbytes]


def preadv_that(action: Callable[..., int]) -> Callable[..., int]:
    """Puts `action(descriptor, buffers, offset, direct)` in place of os.preadv."""

    def preadv(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        import fcntl

        direct = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
        return action(descriptor, buffers, offset, direct)

    return preadv


real_preadv = os.preadv


def test_every_expert_comes_back_byte_for_byte(packed: Packed, manifest: Manifest, slot: memoryview) -> None:
    codec = create_codec(manifest.codec_name, manifest.codec_parameters)
    reader = StoreReader(packed.store, manifest)
    for key in manifest.expert_keys():
        assert reader.read(key, Part.ALL, slot) == manifest.record(key).nbytes
        for index, tensor in enumerate(manifest.record(key).tensors):
            out = memoryview(bytearray(tensor.spec.nbytes))
            recover_tensor(codec, tensor, slot, out)
            assert out == packed.source.tensor_bytes(key.layer, key.expert, index)
    reader.close()


def test_parts_fill_exactly_their_span_of_the_slot(packed: Packed, manifest: Manifest) -> None:
    reader = StoreReader(packed.store, manifest)
    record = manifest.record(KEY)
    expected = record_bytes(packed.store, manifest, KEY)
    for parts in (Part.E, Part.SM, Part.ALL):
        slot = aligned_memory(manifest.max_record_bytes)
        slot[:] = b"\xaa" * len(slot)
        begin, end = record.span(parts)
        assert reader.read(KEY, parts, slot) == end - begin
        assert slot[begin:end] == expected[begin:end]
        assert slot[:begin].tobytes() == b"\xaa" * begin
        assert slot[end:].tobytes() == b"\xaa" * (len(slot) - end)
    reader.close()


@pytest.mark.parametrize("max_bytes", [4096, 3 * 4096, 1 << 20])
@pytest.mark.parametrize("parts", [Part.E, Part.SM, Part.ALL])
def test_each_part_comes_into_a_slot_of_its_own_also_where_a_request_spans_both(
    packed: Packed, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, parts: Part, max_bytes: int
) -> None:
    def short(descriptor: int, buffers: Sequence[memoryview], offset: int, direct: bool) -> int:
        return real_preadv(descriptor, [buffers[0][:4096]], offset)

    reader = StoreReader(packed.store, manifest)
    record = manifest.record(KEY)
    expected = record_bytes(packed.store, manifest, KEY)
    begin, end = record.span(parts)
    e_read, sm_read = max(record.e_bytes - begin, 0), max(end - record.e_bytes, 0)
    for preadv in (real_preadv, preadv_that(short)):
        monkeypatch.setattr(record_file.os, "preadv", preadv)
        e_slot, sm_slot = aligned_memory(manifest.max_e_bytes), aligned_memory(manifest.max_sm_bytes)
        for request in reader.requests(KEY, parts, max_bytes):
            reader.read_request(request, e_slot, sm_slot)
        assert e_slot[:e_read] == expected[:e_read]
        assert sm_slot[:sm_read] == expected[record.e_bytes : record.e_bytes + sm_read]
        assert not any(e_slot[e_read:]) and not any(sm_slot[sm_read:])
    reader.close()


def test_sm_read_after_e_completes_the_record(packed: Packed, manifest: Manifest, slot: memoryview) -> None:
    reader = StoreReader(packed.store, manifest)
    reader.read(KEY, Part.E, slot)
    reader.read(KEY, Part.SM, slot)
    reader.check(KEY, Part.ALL, slot)
    assert slot[: manifest.record(KEY).nbytes] == record_bytes(packed.store, manifest, KEY)
    reader.close()


def test_requests_are_aligned_bounded_and_contiguous(packed: Packed, manifest: Manifest) -> None:
    reader = StoreReader(packed.store, manifest)
    record = manifest.record(KEY)
    requests = reader.requests(KEY, Part.ALL, max_bytes=5000)
    assert [request.nbytes for request in requests] == [4096] * (record.nbytes // 4096)
    position = 0
    for request in requests:
        assert request.file == record.file
        assert request.offset == position
        assert request.file_offset == record.offset + position
        position += request.nbytes
    assert position == record.nbytes
    with pytest.raises(InvalidRequest, match="4096"):
        reader.requests(KEY, Part.ALL, max_bytes=4095)
    with pytest.raises(NotFound):
        reader.requests(ExpertKey(9, 9), Part.ALL)
    reader.close()


def test_a_slot_that_is_too_small_is_refused(packed: Packed, manifest: Manifest) -> None:
    reader = StoreReader(packed.store, manifest)
    slot = aligned_memory(4096)
    with pytest.raises(InvalidRequest, match="too small"):
        reader.read_request(reader.requests(KEY, Part.ALL)[-1], slot, aligned_memory(manifest.max_sm_bytes))
    with pytest.raises(InvalidRequest, match="too small"):
        reader.read_request(reader.requests(KEY, Part.ALL)[-1], aligned_memory(manifest.max_e_bytes), slot)
    with pytest.raises(InvalidRequest, match="too small"):
        reader.check(KEY, Part.ALL, slot)
    reader.close()


def test_refused_at_open_direct_reads_become_buffered_ones_and_are_counted(
    packed: Packed, manifest: Manifest, slot: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def refuse_direct(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags, *rest)

    monkeypatch.setattr(record_file.os, "open", refuse_direct)
    reader = StoreReader(packed.store, manifest)
    assert not reader.direct
    reader.read(KEY, Part.ALL, slot)
    assert reader.buffered_reads == 1
    assert slot[: manifest.record(KEY).nbytes] == record_bytes(packed.store, manifest, KEY)
    reader.close()


def test_refused_at_the_first_read_direct_reads_become_buffered_ones(
    packed: Packed, manifest: Manifest, slot: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_direct(descriptor: int, buffers: Sequence[memoryview], offset: int, direct: bool) -> int:
        if direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_preadv(descriptor, buffers, offset)

    reader = StoreReader(packed.store, manifest)
    monkeypatch.setattr(record_file.os, "preadv", preadv_that(refuse_direct))
    assert reader.direct
    reader.read(KEY, Part.ALL, slot)
    assert not reader.direct
    assert reader.buffered_reads == 1
    assert slot[: manifest.record(KEY).nbytes] == record_bytes(packed.store, manifest, KEY)
    reader.close()


def test_an_invalid_argument_that_is_not_about_direct_reads_is_corrupt(
    packed: Packed, manifest: Manifest, slot: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, buffers: Sequence[memoryview], offset: int, direct: bool) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    reader = StoreReader(packed.store, manifest)
    monkeypatch.setattr(record_file.os, "preadv", preadv_that(refuse))
    with pytest.raises(CorruptData, match="invalid argument"):
        reader.read(KEY, Part.ALL, slot)
    reader.close()


def test_memory_that_is_not_aligned_is_the_callers_mistake_and_keeps_direct_reads(
    packed: Packed, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, buffers: Sequence[memoryview], offset: int, direct: bool) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    reader = StoreReader(packed.store, manifest)
    monkeypatch.setattr(record_file.os, "preadv", preadv_that(refuse))
    slot = aligned_memory(manifest.max_record_bytes + 8)[8:]
    with pytest.raises(InvalidRequest, match="aligned"):
        reader.read(KEY, Part.ALL, slot)
    assert reader.direct
    reader.close()


def test_reads_that_return_in_pieces_are_continued(
    packed: Packed, manifest: Manifest, slot: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(descriptor: int, buffers: Sequence[memoryview], offset: int, direct: bool) -> int:
        assert offset % 4096 == 0 or not direct
        return real_preadv(descriptor, [buffers[0][:4096]], offset)

    reader = StoreReader(packed.store, manifest)
    monkeypatch.setattr(record_file.os, "preadv", preadv_that(short))
    reader.read(KEY, Part.ALL, slot)
    assert slot[: manifest.record(KEY).nbytes] == record_bytes(packed.store, manifest, KEY)
    reader.close()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENODATA, errno.ESTALE, errno.EILSEQ])
def test_an_io_error_is_corrupt_data_and_never_a_chunk(
    packed: Packed, manifest: Manifest, slot: memoryview, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(descriptor: int, buffers: Sequence[memoryview], offset: int, direct: bool) -> int:
        raise OSError(code, os.strerror(code))

    reader = StoreReader(packed.store, manifest)
    monkeypatch.setattr(record_file.os, "preadv", preadv_that(fail))
    with pytest.raises(CorruptData, match=r"cannot read .*experts-00001\.bin at \d+"):
        reader.read(KEY, Part.ALL, slot)
    reader.close()


def test_a_kernel_without_memory_is_exhausted_not_corrupt(
    packed: Packed, manifest: Manifest, slot: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int, buffers: Sequence[memoryview], offset: int, direct: bool) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    reader = StoreReader(packed.store, manifest)
    monkeypatch.setattr(record_file.os, "preadv", preadv_that(fail))
    with pytest.raises(ResourceExhausted):
        reader.read(KEY, Part.ALL, slot)
    reader.close()


@pytest.mark.parametrize("kept_bytes", [0, 4096, 5000, 49152 - 1])
def test_a_file_truncated_after_opening_is_noticed(copied: Packed, slot: memoryview, kept_bytes: int) -> None:
    manifest = read_manifest(copied.store)
    reader = StoreReader(copied.store, manifest)
    os.truncate(copied.store / "experts-00001.bin", kept_bytes)
    with pytest.raises(CorruptData, match=rf"ends after .* from 49152 to {kept_bytes} bytes"):
        reader.read(KEY, Part.ALL, slot)
    reader.close()


def test_a_file_overwritten_in_place_is_noticed_and_said_so(copied: Packed, slot: memoryview) -> None:
    manifest = read_manifest(copied.store)
    reader = StoreReader(copied.store, manifest)
    path = copied.store / "experts-00001.bin"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(CorruptData, match="since it was opened the file has been written to"):
        reader.read(KEY, Part.ALL, slot)
    reader.close()


def test_a_file_replaced_by_another_is_still_read_as_it_was_packed(copied: Packed, slot: memoryview) -> None:
    manifest = read_manifest(copied.store)
    reader = StoreReader(copied.store, manifest)
    other = copied.store / "other"
    other.write_bytes(bytes(49152))
    os.replace(other, copied.store / "experts-00001.bin")
    reader.read(KEY, Part.ALL, slot)
    slot[0] ^= 1
    with pytest.raises(CorruptData, match="replaced by another"):
        reader.check(KEY, Part.ALL, slot)
    reader.close()


def test_a_wrong_checksum_names_expert_chunk_file_and_place(
    packed: Packed, manifest: Manifest, slot: memoryview
) -> None:
    reader = StoreReader(packed.store, manifest)
    reader.read(KEY, Part.ALL, slot)
    chunk = manifest.record(KEY).tensors[1].e_chunks[2]
    slot[chunk.offset] ^= 0x10
    place = manifest.record(KEY).offset + chunk.offset
    with pytest.raises(CorruptData) as raised:
        reader.check(KEY, Part.E, slot)
    assert str(raised.value) == (
        f"expert 2 of MoE layer 1: E-chunk 2 of down_proj ({chunk.nbytes} bytes at {place}) "
        f"of {packed.store}/experts-00001.bin has a wrong checksum"
    )
    reader.check(KEY, Part.SM, slot)
    reader.close()


def test_opening_refuses_a_file_that_is_missing_or_of_another_size(copied: Packed) -> None:
    manifest = read_manifest(copied.store)
    path = copied.store / "experts-00001.bin"
    os.truncate(path, 4096)
    with pytest.raises(CorruptData, match="not a file of 49152 bytes but of 4096"):
        StoreReader(copied.store, manifest)
    path.unlink()
    with pytest.raises(CorruptData, match="cannot open"):
        StoreReader(copied.store, manifest)
    os.mkfifo(path)
    with pytest.raises(CorruptData, match="not a file"):
        StoreReader(copied.store, manifest)


def test_opening_that_fails_half_way_leaves_no_descriptor_open(copied: Packed) -> None:
    manifest = read_manifest(copied.store)
    (copied.store / "experts-00001.bin").unlink()
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(CorruptData):
        StoreReader(copied.store, manifest)
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.EMFILE, ResourceExhausted), (errno.EACCES, InvalidRequest), (errno.EIO, CorruptData)],
)
def test_a_file_that_cannot_be_opened_says_whose_fault_it_is(
    packed: Packed, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    def fail(*arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(record_file.os, "open", fail)
    with pytest.raises(kind):
        StoreReader(packed.store, manifest)


def test_many_threads_read_through_one_reader(packed: Packed, manifest: Manifest) -> None:
    reader = StoreReader(packed.store, manifest)
    failures: list[BaseException] = []
    keys = list(manifest.expert_keys())

    def read(begin: int) -> None:
        slot = aligned_memory(manifest.max_record_bytes)
        try:
            for turn in range(30):
                reader.read(keys[(begin + turn) % len(keys)], Part.ALL, slot)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader.close()
    assert failures == []


def test_closing_waits_for_the_read_under_way_and_refuses_the_next(
    packed: Packed, manifest: Manifest, slot: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on, waiting, closed = (threading.Event() for _ in range(4))

    def slow(descriptor: int, buffers: Sequence[memoryview], offset: int, direct: bool) -> int:
        reading.set()
        assert go_on.wait(30)
        assert not closed.is_set()
        return real_preadv(descriptor, buffers, offset)

    def close() -> None:
        reader.close()
        closed.set()

    def wait_for(predicate: Callable[[], bool]) -> bool:
        waiting.set()
        return real_wait_for(predicate)

    reader = StoreReader(packed.store, manifest)
    real_wait_for = reader._state.wait_for
    monkeypatch.setattr(reader._state, "wait_for", wait_for)
    monkeypatch.setattr(record_file.os, "preadv", preadv_that(slow))
    read = threading.Thread(target=reader.read, args=(KEY, Part.ALL, slot))
    read.start()
    assert reading.wait(30)
    closing = threading.Thread(target=close)
    closing.start()
    assert waiting.wait(30)
    with pytest.raises(Unavailable):
        reader.read(KEY, Part.ALL, slot)
    go_on.set()
    read.join()
    closing.join()
    assert closed.is_set()
    assert slot[: manifest.record(KEY).nbytes] == record_bytes(packed.store, manifest, KEY)
    reader.close()
