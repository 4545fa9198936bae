"""Packed codes: bit by bit against Python's own integers, and what isn't packed is refused."""

import numpy as np
import pytest

from regiondh_d2.structures.packed import check_packed, pack_codes, to_words, unpack_codes


@pytest.mark.parametrize("bits", [1, 8, 12, 48, 64, 65])
def test_the_first_bit_is_the_highest_and_spare_bits_are_zero(bits):
    codes = np.random.default_rng(bits).random((6, bits)) < 0.5
    packed = pack_codes(codes)
    width = -(-bits // 8)
    for row, code in zip(packed, codes, strict=True):
        number = int("".join(str(int(bit)) for bit in code).ljust(8 * width, "0"), 2)
        assert row.tobytes() == number.to_bytes(width, "big")
    assert check_packed("codes", packed, bits) is packed
    np.testing.assert_array_equal(unpack_codes(packed, bits), codes)


@pytest.mark.parametrize("width", [1, 8, 9])
def test_words_are_the_bytes_and_zeros_behind(width):
    packed = np.random.default_rng(width).integers(1, 256, (5, width), dtype=np.uint8)
    words = to_words(packed)
    assert words.dtype == np.uint64
    for row, code in zip(words, packed, strict=True):
        assert row.tobytes() == code.tobytes() + bytes(-width % 8)


@pytest.mark.parametrize(
    ("codes", "bits", "message"),
    [
        (np.zeros((2, 4), np.uint8), 20, r"some codes must be .* \(N, 3\) for 20 bits, not uint8"),
        (np.zeros((2, 3), bool), 20, r"not bool of shape \(2, 3\)"),
        (np.zeros(3, np.uint8), 20, r"not uint8 of shape \(3,\)"),
        (np.full((2, 3), 1, np.uint8), 20, "some codes have bits set beyond the declared 20"),
        (np.zeros((2, 1), np.uint8), 0, "bits of some codes must be a positive integer, not 0"),
        (np.zeros((2, 1), np.uint8), True, "positive integer, not True"),
        (np.zeros((2, 1), np.uint8), 8.0, r"positive integer, not 8\.0"),
    ],
)
def test_what_is_not_packed_is_refused(codes, bits, message):
    with pytest.raises(ValueError, match=message):
        check_packed("some codes", codes, bits)
