"""A code for each class, its center, far from those of all others."""

import torch

from ..utils.errors import RegionDHError

__all__ = ["hadamard_matrix", "hash_centers", "majority_centers", "random_signs"]


def hadamard_matrix(order: int) -> torch.Tensor:
    """A Hadamard matrix: float32 (order, order) of +-1 with orthogonal rows.

    By Paley's first construction where order - 1 is a prime, else by Sylvester's doubling of the
    matrix of half the order: the powers of two, and among others 12, 20, 24, 40, 48, 72, 80 and 96.

    Raises:
        ValueError: the two constructions don't reach the order.
    """
    if not _has_hadamard(order):
        raise RegionDHError(f"no Hadamard matrix of order {order} by Paley's and Sylvester's ways")
    if order == 1:
        return torch.ones(1, 1)
    if _is_prime(order - 1) and order % 4 == 0:
        return _paley(order - 1)
    half = hadamard_matrix(order // 2)
    return torch.cat([torch.cat([half, half], dim=1), torch.cat([half, -half], dim=1)])


def _has_hadamard(order: int) -> bool:
    if order in (1, 2):
        return True
    return order > 0 and order % 4 == 0 and (_is_prime(order - 1) or _has_hadamard(order // 2))


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % d for d in range(2, int(number**0.5) + 1))


def _paley(prime: int) -> torch.Tensor:
    """The Hadamard matrix of order prime + 1; the prime is 3 modulo 4."""
    squares = {x * x % prime for x in range(1, prime)}
    character = torch.tensor([0.0] + [1.0 if x in squares else -1.0 for x in range(1, prime)])
    x = torch.arange(prime)
    matrix = torch.eye(prime + 1)
    matrix[0, 1:] = 1.0
    matrix[1:, 0] = -1.0
    matrix[1:, 1:] += character[(x - x[:, None]) % prime]
    return matrix


def hash_centers(num_classes: int, bits: int, *, seed: int = 0) -> torch.Tensor:
    """A code per class, far from those of all others: rows of a Hadamard matrix, as in CSQ.

    Any two differ in half of the bits where there is a matrix of order K and C is at most K; up
    to 2K classes the negatives of rows follow. For other K and C the columns of a larger matrix
    are drawn. CSQ takes the first rows as they are, where one code and one bit are constant; here
    the order and the signs of rows and of columns are random, which keeps the distances.

    Args:
        num_classes: C.
        bits: K.
        seed: seed of the choice.

    Returns:
        float32 (C, K) of +-1, rows distinct.

    Raises:
        ValueError: two classes have the same center.
    """
    generator = torch.Generator().manual_seed(seed)
    order = max(bits, (num_classes + 1) // 2)
    while not _has_hadamard(order):
        order += 1
    rows = torch.randperm(order, generator=generator)
    columns = torch.randperm(order, generator=generator)[:bits]
    signs = random_signs(order, generator)[:, None] * random_signs(bits, generator)
    basis = hadamard_matrix(order)[rows[:, None], columns] * signs
    centers = torch.cat([basis, -basis])[:num_classes]
    if len(centers.unique(dim=0)) < num_classes:
        raise RegionDHError(
            f"{bits} bits with seed {seed} give two of {num_classes} classes the same hash center; "
            "raise MODEL.REGION_DH.BITS"
        )
    return centers


def random_signs(number: int, generator: torch.Generator) -> torch.Tensor:
    """(number,) of +-1, float32, at random."""
    return 2.0 * torch.randint(2, (number,), generator=generator) - 1.0


def majority_centers(
    labels: torch.Tensor, centers: torch.Tensor, tie_code: torch.Tensor
) -> torch.Tensor:
    """The center of each image: bit by bit what most centers of its classes have.

    Args:
        labels: float (B, C) in {0, 1}.
        centers: (C, K) of +-1.
        tie_code: (K,) of +-1, the bits where there is no majority.

    Returns:
        (B, K) of +-1.
    """
    votes = labels @ centers
    return torch.where(votes == 0, tie_code, votes.sign())
