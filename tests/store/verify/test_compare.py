from hypothesis import given
from hypothesis import strategies as st

from zipmoe.store.verify.compare import first_difference


@given(data=st.binary(max_size=300))
def test_equal_buffers_have_no_difference(data: bytes) -> None:
    assert first_difference(data, bytearray(data)) is None


@given(left=st.binary(min_size=1, max_size=300), changes=st.dictionaries(st.integers(0, 299), st.integers(1, 255)))
def test_the_first_difference_is_found(left: bytes, changes: dict[int, int]) -> None:
    right = bytearray(left)
    for place, mask in changes.items():
        if place < len(right):
            right[place] ^= mask
    expected = min((place for place in changes if place < len(right)), default=None)
    assert first_difference(left, memoryview(right)) == expected
