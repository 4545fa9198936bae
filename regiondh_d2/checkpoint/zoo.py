"""Trained networks that come with the package, by their ``regiondh://`` names.

:mod:`.sources` resolves the names.
"""

from pathlib import Path

import torch

from ..utils.errors import RegionDHError
from ..utils.file_io import file_sha256
from ..utils.marks import WEIGHTS_FORMAT
from .conversion import WeightsError
from .weight_files import SCALES, in_bytes, read_weights, save_whole

__all__ = [
    "CONFIGS",
    "DEFAULT",
    "FINGERPRINTS",
    "SHIPPED",
    "halve",
    "network_name",
    "shipped_weights",
]

FOLDER = Path(__file__).parents[1] / "weights"

# sha256 of FOLDER/<name>.pth. MODEL_ZOO.md says how each was trained and what it reaches.
SHIPPED = {
    "effnetlite0_voc07_64": "2c640427df961a261f0929fb797ef83818083936fc1f01677326d0955196b163",
    "effnetlite_voc07_64": "443ced9bb461ee2211be513232403a1a26f5748ef51aefe8d7da4b048585fb47",
}

# What is made new is made by this one.
DEFAULT = "effnetlite_voc07_64"

# The short name of the config of each, which names its weights.
CONFIGS = {
    "effnetlite0_voc07_64": "voc07/regiondh_effnetlite0_64",
    "effnetlite_voc07_64": "voc07/regiondh_effnetlite_64",
}

# Names of networks by their model fingerprints.
FINGERPRINTS = {
    "f5d5003077f28418cd4e689ad5f3e5da2a955e89c2222f58f19e0bfb66e71149": "effnetlite0_voc07_64",
    "a2aca5996b53802932221a235f6b47c848b0b9f8fe6c9cb2ac6555915f6598bb": "effnetlite_voc07_64",
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
    """The name of the shipped network with this model fingerprint; "" for any other."""
    return FINGERPRINTS.get(fingerprint, "")


def halve(checkpoint: str, output: str) -> tuple[int, str]:
    """Write a network's weights for shipping: matrices in half precision, no optimizer.

    Vectors stay in float32, since variances of batch norms may be too small for float16. Image
    encoders, the largest part, have 8 bits for each weight, except their small depthwise
    convolutions, which have half precision.

    Args:
        checkpoint: a checkpoint of a training.
        output: the file to write, complete or not at all.

    Returns:
        How many tensors it holds, and its sha256, for :data:`SHIPPED`.

    Raises:
        WeightsError: ``checkpoint`` is damaged or no checkpoint of a training, a matrix has numbers
            too large for half precision, or ``output`` can't be written.
        OSError: a file can't be opened.
    """
    content = read_weights(checkpoint)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not all(torch.is_tensor(t) for t in model.values()):
        raise WeightsError(f"{checkpoint} is no checkpoint of a training: it holds no model")
    halved = {name: t.half() if t.dim() > 1 else t for name, t in model.items()}
    for name, tensor in halved.items():
        if not tensor.isfinite().all():
            raise WeightsError(
                f"{checkpoint}: {name} holds a number that isn't finite in half precision, so it "
                "can't be halved"
            )
    scales = {}
    for name, tensor in model.items():
        if name.startswith("image_encoders.") and tensor.dim() > 1 and tensor.shape[1] > 1:
            halved[name], scales[name] = in_bytes(tensor)
    more = {SCALES: scales} if scales else {}
    save_whole(output, {"format": WEIGHTS_FORMAT, "model": halved, **more})
    return len(halved), file_sha256(output).hex()
