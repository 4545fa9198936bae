"""Trained networks that come with the package, by their ``regiondh://`` names.

:mod:`.checkpoint` resolves the names.
"""

from pathlib import Path

import torch

from ..utils.errors import RegionDHError
from ..utils.file_io import file_sha256, replace_when_complete

__all__ = ["FINGERPRINTS", "SHIPPED", "halve", "network_name", "shipped_weights"]

FOLDER = Path(__file__).parents[1] / "weights"

# sha256 of FOLDER/<name>.pth. MODEL_ZOO.md says how each was trained and what it reaches.
SHIPPED = {
    "effnetlite0_voc07_64": "2c640427df961a261f0929fb797ef83818083936fc1f01677326d0955196b163",
}

# By the model fingerprint that codes of a network carry, its name.
FINGERPRINTS = {
    "f5d5003077f28418cd4e689ad5f3e5da2a955e89c2222f58f19e0bfb66e71149": "effnetlite0_voc07_64",
}


def shipped_weights(name: str) -> str:
    """Path of a file of :data:`SHIPPED`.

    Raises:
        ValueError: the file is missing or isn't the one that was shipped.
    """
    path = FOLDER / f"{name}.pth"
    if not path.is_file():
        raise RegionDHError(
            f"{path} is missing: install the package again, or clone it with its data"
        )
    found = file_sha256(path).hex()
    if found != SHIPPED[name]:
        raise RegionDHError(
            f"{path} is damaged: its sha256 is {found}, not {SHIPPED[name]}; get it again"
        )
    return str(path)


def network_name(fingerprint: str) -> str:
    """The name of the shipped network that a model fingerprint is of; "" for any other."""
    return FINGERPRINTS.get(fingerprint, "")


def halve(checkpoint: str, output: str) -> str:
    """Write a network's weights for shipping: matrices in half precision, no optimizer.

    Vectors stay in float32: the variances of batch norms reach below what float16 can hold.

    Args:
        checkpoint: a checkpoint of a training.
        output: the file to write.

    Returns:
        Its sha256, for :data:`SHIPPED`.
    """
    model = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    model = {name: t.half() if t.dim() > 1 else t for name, t in model.items()}
    with replace_when_complete(output) as partial:
        torch.save({"model": model}, partial)
    return file_sha256(output).hex()
