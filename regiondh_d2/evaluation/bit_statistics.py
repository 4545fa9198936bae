"""How well codes use their bits: balance, entropy, correlation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..structures.packed import unpack_codes
from .ranking_metrics import check_codes

__all__ = ["SATURATED", "BitStatistics", "bit_statistics"]

SATURATED = 0.01
"""A bit is saturated if at most this share of the codes has its rarer value."""


@dataclass(frozen=True)
class BitStatistics:
    """How well N codes use their K bits.

    Attributes:
        ones: float64 (K,), share of the codes in which the bit is set; 0.5 is balanced.
        entropy: float64 (K,), of the bit in bits; 1 is the most.
        correlation: float64 (K, K), Pearson's; NaN where one of the two bits is constant.
        distinct: number of different codes.
    """

    ones: np.ndarray
    entropy: np.ndarray
    correlation: np.ndarray
    distinct: int

    @property
    def constant(self) -> np.ndarray:
        """bool (K,): bits that are the same in all codes."""
        return (self.ones == 0) | (self.ones == 1)

    @property
    def saturated(self) -> np.ndarray:
        """bool (K,): bits that are the same in nearly all codes, constant ones included."""
        return np.minimum(self.ones, 1 - self.ones) <= SATURATED

    @property
    def effective_bits(self) -> float:
        """The effective number of uncorrelated bits: from K (no two correlate) to 1 (all do).

        The participation ratio ``(sum l)^2 / sum l^2`` of the eigenvalues l of the correlation
        matrix of the bits that are not constant; 0 if all are.
        """
        used = ~self.constant
        squares = np.square(self.correlation[np.ix_(used, used)]).sum()
        return float(used.sum() ** 2 / squares) if used.any() else 0.0

    @property
    def most_correlated(self) -> tuple[float, int, int] | None:
        """The largest absolute correlation of two bits, and these bits; None if none correlate."""
        size = np.nan_to_num(np.abs(np.triu(self.correlation, 1)))
        first, second = np.unravel_index(size.argmax(), size.shape)
        if not size[first, second]:
            return None
        return float(size[first, second]), int(first), int(second)


def bit_statistics(codes: np.ndarray, bits: int) -> BitStatistics:
    """Balance, entropy and correlation of the bits of some codes.

    Args:
        codes: uint8 (N, ceil(bits / 8)), packed.
        bits: code length K.

    Raises:
        ValueError: the codes are of the wrong type or shape, or there are none.
    """
    check_codes(codes, codes, bits)
    values = unpack_codes(codes, bits).astype(np.float64)
    ones = values.mean(axis=0)
    varies = (ones > 0) & (ones < 1)
    entropy = np.zeros(bits)
    for share in (ones[varies], 1 - ones[varies]):
        entropy[varies] -= share * np.log2(share)
    deviation = np.where(varies, np.sqrt(ones * (1 - ones)), np.nan)
    covariance = values.T @ values / len(values) - np.outer(ones, ones)
    return BitStatistics(
        ones=ones,
        entropy=entropy,
        correlation=covariance / np.outer(deviation, deviation),
        distinct=len(np.unique(codes, axis=0)),
    )
