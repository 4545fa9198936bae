"""Codes to compare a hashing method with: true classes, predicted classes, unsupervised, random.

Each function returns a query and a database code set with the labels of the given sets, for
:func:`.retrieval_evaluator.rank_code_sets`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ..retrieval import class_decoder
from ..structures.codes import CodeFileError, CodeSet, check_holds
from ..structures.packed import pack_codes
from ..utils.errors import MissingPackageError

__all__ = [
    "REFERENCES",
    "class_probabilities",
    "class_simhash_codes",
    "feature_codes",
    "image_class_codes",
    "label_codes",
    "predicted_codes",
    "random_codes",
    "spectral_codes",
]

Pair = tuple[CodeSet, CodeSet]


def label_codes(query: CodeSet, database: CodeSet) -> Pair:
    """The true labels, a bit for each class.

    This is no upper bound: the distance of two such codes counts the labels that two images don't
    share, not the shared ones.

    Raises:
        CodeFileError: a set has no labels.
    """
    _check(query, database, "labels")
    return _pair(query, database, lambda codes: codes.column("labels").astype(bool))


def predicted_codes(query: CodeSet, database: CodeSet, min_score: float = 0.3) -> Pair:
    """The classes of the stored detections, a bit for each.

    Args:
        query, database: with ``instances``.
        min_score: detections below it are ignored. Code files hold those above
            ``TEST.RETRIEVAL.INSTANCE_MIN_SCORE``.

    Raises:
        CodeFileError: a set has no labels, or no instances.
    """
    _check(query, database, "labels", "instances")

    def bits(codes: CodeSet) -> np.ndarray:
        found = np.zeros(codes.column("labels").shape, bool)
        objects = codes.objects()
        sure = objects.scores >= min_score
        found[objects.image_index[sure], objects.classes[sure]] = True
        return found

    return _pair(query, database, bits)


def image_class_codes(
    query: CodeSet, database: CodeSet, weight: np.ndarray, bias: np.ndarray
) -> Pair:
    """The classes that the network's image classifier sees, a bit for each.

    Args:
        query, database: with ``activations``, which the classifier reads.
        weight: (C, K), bias: (C,): the classifier on H2.

    Raises:
        CodeFileError: a set has no activations.
    """
    _check(query, database, "activations")

    def bits(codes: CodeSet) -> np.ndarray:
        return codes.column("activations").astype(np.float32) @ weight.T + bias > 0

    return _pair(query, database, bits)


def class_probabilities(codes: CodeSet, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Float (N, C): each class's probability, by the image classifier on the stored activations.

    Args:
        codes: with ``activations``.
        weight, bias: see :func:`image_class_codes`.

    Raises:
        CodeFileError: there are no activations.
    """
    check_holds(codes, "the codes", "activations")
    scores = codes.column("activations").astype(np.float64) @ weight.T + bias
    return class_decoder.class_probabilities(scores, codes.settings)


def class_simhash_codes(
    query: CodeSet,
    database: CodeSet,
    weight: np.ndarray,
    bias: np.ndarray,
    bits: int,
    seed: int = 0,
) -> Pair:
    """SimHash of class probabilities: what a classifier gives without any hash layer.

    A bit says on which side of a random hyperplane through the origin the C probabilities lie. Two
    images differ in a bit with a probability that grows with the angle between theirs (Charikar,
    "Similarity Estimation Techniques from Rounding Algorithms", STOC 2002). Groups of C hyperplanes
    are orthogonal, so that few bits say the same (Ji et al., "Super-Bit Locality-Sensitive
    Hashing", NIPS 2012).

    Args:
        query, database, weight, bias: see :func:`image_class_codes`.
        bits: code length.
        seed: of the hyperplanes.

    Raises:
        CodeFileError: a set has no activations.
    """
    classes, rng = len(weight), np.random.default_rng(seed)
    groups = rng.standard_normal((-(-bits // classes), classes, classes))
    # The signs make the rotations uniform, as those of plain normal draws are.
    rotations = [q * np.sign(np.diag(r)) for q, r in map(np.linalg.qr, groups)]
    planes = np.concatenate(rotations, axis=1)[:, :bits]
    return _pair(
        query, database, lambda codes: class_probabilities(codes, weight, bias) @ planes >= 0
    )


def random_codes(query: CodeSet, database: CodeSet, bits: int, seed: int = 0) -> Pair:
    """Random bits, balanced and independent: the level of chance."""
    rng = np.random.default_rng(seed)
    return _pair(query, database, lambda codes: rng.random((len(codes), bits)) < 0.5)


def feature_codes(query: CodeSet, database: CodeSet, bits: int, method: str) -> Pair:
    """Unsupervised codes of the stored features, learned on the database, by FAISS.

    Args:
        query, database: with ``features`` (N, D).
        bits: code length, at most D.
        method: "lsh" (random hyperplanes through the mean), "pca" (signs of the principal
            components) or "itq" (these after a learned rotation).

    Raises:
        CodeFileError: a set has no features, or fewer dimensions or images than bits, or the two
            sets' features differ in length.
        ImportError: FAISS isn't installed.
    """
    try:
        import faiss
    except ImportError:
        raise MissingPackageError(
            f"{method} codes need FAISS, which isn't installed: pip install faiss-cpu"
        ) from None

    train = _training_features(query, database)
    if min(train.shape) < bits:
        raise CodeFileError(
            f"{bits} bits need as many features and images to learn from, not {train.shape[1]} "
            f"and {train.shape[0]}"
        )
    mean = train.mean(axis=0)
    transforms: dict[str, Callable[[int, int], Any]] = {
        "lsh": faiss.RandomRotationMatrix,
        "pca": faiss.PCAMatrix,
        "itq": lambda d, k: faiss.ITQTransform(d, k, True),
    }
    transform = transforms[method](train.shape[1], bits)
    transform.train(train - mean)
    return _pair(query, database, lambda codes: transform.apply(_features(codes) - mean) >= 0)


def spectral_codes(query: CodeSet, database: CodeSet, bits: int) -> Pair:
    """Spectral hashing of the stored features (Weiss, Torralba & Fergus, NIPS 2008).

    Along a principal direction with range [a, b] in the database, a bit is the sign of sin(pi/2 + j
    pi (x - a) / (b - a)), an eigenfunction for uniform data. Its eigenvalue grows with j / (b - a).
    The code takes the lowest eigenvalues over the first K directions, those of the largest
    variance, and all j >= 1, so that a long direction gets several bits. For queries outside [a, b]
    the wave continues.

    Args:
        query, database: with ``features`` (N, D).
        bits: code length; may exceed D.

    Raises:
        CodeFileError: a set has no features, their lengths differ, or the database's features are
            all equal.
    """
    train = _training_features(query, database).astype(np.float64)
    if (train == train[:1]).all():
        raise CodeFileError("spectral codes need a database of images whose features differ")
    mean = train.mean(axis=0)
    train -= mean
    axes = np.linalg.eigh(train.T @ train)[1][:, ::-1][:, :bits]  # the greatest variance first
    projected = train @ axes
    low, extent = projected.min(axis=0), np.ptp(projected, axis=0)
    # A direction without extent has no wave.
    axes, low, extent = axes[:, extent > 0], low[extent > 0], extent[extent > 0]
    frequencies = np.arange(1, bits + 1) / extent[:, None]  # (directions, j)
    lowest = np.argsort(frequencies, axis=None, kind="stable")[:bits]
    axes, low, frequency = axes[:, lowest // bits], low[lowest // bits], frequencies.flat[lowest]

    def bits_of(codes: CodeSet) -> np.ndarray:
        position = (_features(codes) - mean) @ axes - low
        return np.sin(np.pi / 2 + np.pi * frequency * position) >= 0

    return _pair(query, database, bits_of)


REFERENCES: dict[str, Callable[[CodeSet, CodeSet, int], Pair]] = {
    "true_labels": lambda q, d, bits: label_codes(q, d),
    "detected_classes": lambda q, d, bits: predicted_codes(q, d),
    "random": random_codes,
    **{name: functools.partial(feature_codes, method=name) for name in ("lsh", "pca", "itq")},
    "spectral": spectral_codes,
}
"""By name; called with a query set, a database set and, where it can be chosen, a code length."""


def _pair(query: CodeSet, database: CodeSet, bits_of: Callable[[CodeSet], np.ndarray]) -> Pair:
    return _with_bits(query, bits_of(query)), _with_bits(database, bits_of(database))


def _with_bits(codes: CodeSet, bits: np.ndarray) -> CodeSet:
    return dataclasses.replace(
        codes,
        codes=pack_codes(bits),
        bits=bits.shape[1],
        activations=None,
        class_weights=None,
        model_fingerprint="no model",
    )


def _check(query: CodeSet, database: CodeSet, *attributes: str) -> None:
    check_holds(query, "the query codes", *attributes)
    check_holds(database, "the database codes", *attributes)


def _training_features(query: CodeSet, database: CodeSet) -> np.ndarray:
    """The length of the features, which must be the same in both sets."""
    _check(query, database, "features")
    lengths = [codes.column("features").shape[1] for codes in (query, database)]
    if lengths[0] != lengths[1]:
        raise CodeFileError(
            f"the queries have {lengths[0]} features and the database {lengths[1]}: extract both "
            "with the same model"
        )
    return _features(database)


def _features(codes: CodeSet) -> np.ndarray:
    return np.ascontiguousarray(codes.features, np.float32)
