"""The objectives for image codes by name: what other hashing methods ask of codes, given labels.

:func:`build_loss` makes the module of an entry of :data:`HASH_LOSS_REGISTRY`, called as
``objective(activations, labels)`` with activations (B, K) in (0, 1) and labels (B, C) in {0, 1}. It
returns a float32 scalar. The formulas are in :mod:`.pairwise_losses` and :mod:`.center_losses`.
"""

import logging

from fvcore.common.registry import Registry
from torch import Generator, nn

from ..config import current_value
from ..utils.errors import RegionDHError
from .center_losses import CSQLoss, OrthoHashLoss
from .hash_centers import hash_centers, random_signs
from .hashing import label_similarity_loss
from .pairwise_losses import (
    PairwiseLoss,
    dmssph_loss,
    dpsh_loss,
    idhn_loss,
    isdh_soft_loss,
    triplet_loss,
)

__all__ = ["HASH_LOSS_REGISTRY", "build_loss"]

logger = logging.getLogger(__name__)

OBJECTIVE = "MODEL.REGION_DH.OBJECTIVE"

HASH_LOSS_REGISTRY = Registry("HASH_OBJECTIVE")
HASH_LOSS_REGISTRY.__doc__ = """
Builders of objectives for image codes, by the value of ``MODEL.REGION_DH.OBJECTIVE``: called as
``builder(bits=K, num_classes=C, seed=seed)``, they return a module without parameters that maps
activations (B, K) and labels (B, C) to a scalar.
"""


def build_loss(name: str, *, bits: int, num_classes: int, seed: int = 0) -> nn.Module:
    """Build an objective of :data:`HASH_LOSS_REGISTRY`.

    Args:
        name: "cosine" (:func:`.hashing.label_similarity_loss`), "idhn", "isdh_soft", "dmssph",
            "dpsh", "triplet", "csq" or "orthohash", or the name of a builder that was registered
            elsewhere. The former name "isdh" of "idhn" is taken with a warning.
        bits: code length K.
        num_classes: C.
        seed: what is random in an objective follows from it, whatever else draws random numbers.

    Raises:
        ValueError: there is no objective of that name, or the code is too short for its centers.
    """
    if name not in HASH_LOSS_REGISTRY and current_value(OBJECTIVE, name) != name:
        logger.warning(f"{OBJECTIVE} {name} is called {current_value(OBJECTIVE, name)} now")
        name = current_value(OBJECTIVE, name)
    if name not in HASH_LOSS_REGISTRY:
        known = ", ".join(known for known, _ in HASH_LOSS_REGISTRY)
        raise RegionDHError(f"{OBJECTIVE}: {name!r} isn't one of {known}")
    return HASH_LOSS_REGISTRY.get(name)(bits=bits, num_classes=num_classes, seed=seed)


@HASH_LOSS_REGISTRY.register()
def cosine(**_) -> nn.Module:
    return PairwiseLoss(label_similarity_loss)


@HASH_LOSS_REGISTRY.register()
def idhn(**_) -> nn.Module:
    return PairwiseLoss(idhn_loss)


@HASH_LOSS_REGISTRY.register()
def isdh_soft(**_) -> nn.Module:
    return PairwiseLoss(isdh_soft_loss)


@HASH_LOSS_REGISTRY.register()
def dmssph(**_) -> nn.Module:
    return PairwiseLoss(dmssph_loss)


@HASH_LOSS_REGISTRY.register()
def dpsh(**_) -> nn.Module:
    return PairwiseLoss(dpsh_loss)


@HASH_LOSS_REGISTRY.register()
def triplet(**_) -> nn.Module:
    return PairwiseLoss(triplet_loss)


@HASH_LOSS_REGISTRY.register()
def csq(*, bits: int, num_classes: int, seed: int) -> nn.Module:
    tie_code = random_signs(bits, Generator().manual_seed(seed))
    return CSQLoss(hash_centers(num_classes, bits, seed=seed), tie_code)


@HASH_LOSS_REGISTRY.register()
def orthohash(*, bits: int, num_classes: int, seed: int) -> nn.Module:
    return OrthoHashLoss(hash_centers(num_classes, bits, seed=seed))
