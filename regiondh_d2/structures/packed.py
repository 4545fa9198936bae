"""Packed binary codes: uint8 (N, ceil(bits / 8)). The first bit is the highest of its byte, and
unused bits are 0."""

from __future__ import annotations

import numpy as np

from ..utils.errors import RegionDHError

__all__ = ["check_packed", "pack_codes", "packed_width", "pad_columns", "to_words", "unpack_codes"]


def packed_width(bits: int) -> int:
    """Bytes of a packed code."""
    return -(-bits // 8)


def pack_codes(codes: np.ndarray) -> np.ndarray:
    """Packs bool (N, K) into uint8 (N, ceil(K / 8))."""
    return np.packbits(np.asarray(codes, dtype=bool), axis=1)


def unpack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of :func:`pack_codes`: uint8 (N, ceil(bits / 8)) to bool (N, bits)."""
    return np.unpackbits(codes, axis=1, count=bits).astype(bool)


def check_packed(name: str, codes: np.ndarray, bits: int) -> np.ndarray:
    """Check packed codes; return them as an array.

    Args:
        name: what they are, for the message.
        codes: uint8 (N, ceil(bits / 8)).
        bits: code length.

    Raises:
        RegionDHError: the length isn't positive, the codes have another type or width, or an unused
            bit is set.
    """
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or bits < 1:
        raise RegionDHError(f"bits of {name} must be a positive integer, not {bits!r}")
    codes = np.asarray(codes)
    width = packed_width(int(bits))
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != width:
        raise RegionDHError(
            f"{name} must be packed uint8 of shape (N, {width}) for {bits} bits, not {codes.dtype} "
            f"of shape {codes.shape}"
        )
    if bits % 8 and np.any(codes[:, -1] & (0xFF >> (bits % 8))):
        raise RegionDHError(f"{name} have bits set beyond the declared {bits}")
    return codes


def pad_columns(codes: np.ndarray, width: int) -> np.ndarray:
    """Pads uint8 (N, B) with zero bytes to a contiguous uint8 (N, width)."""
    if codes.shape[1] == width:
        return np.ascontiguousarray(codes)
    padded = np.zeros((len(codes), width), np.uint8)
    padded[:, : codes.shape[1]] = codes
    return padded


def to_words(codes: np.ndarray) -> np.ndarray:
    """uint8 (N, B) to uint64 (N, ceil(B / 8)), zero padded, to count bits 8 bytes at a time."""
    return pad_columns(codes, -(-codes.shape[1] // 8) * 8).view(np.uint64)
