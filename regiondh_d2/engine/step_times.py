"""How long a network takes on the CPU: steps of training, and images at once.

Seconds are those of the process on the CPU and in the kernel: other processes that are busy disturb
them less than those of a clock, but still do. What is compared takes turns, therefore, and the
fastest turn of each counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from ..checkpoint import RegionDHCheckpointer
from ..config import square_sizes
from ..data.catalog import load_dataset
from ..data.squares import squashed
from ..data.training import StrictMapper
from ..modeling.meta_arch import RegionDH
from ..utils.errors import RegionDHError
from .network import build_network

__all__ = [
    "compare_fusions",
    "idle_seconds",
    "make_images",
    "seconds_an_image",
    "time_numbers_at_once",
    "time_steps",
]

FIXED_SIZE = (288, 384)


def make_images(
    generator: torch.Generator,
    number: int,
    classes: int,
    size: tuple[int, int] | None = None,
    squares: Sequence[int] = (),
) -> list[dict]:
    """A batch for training: noise, with three boxes an image.

    Args:
        generator: makes the choices.
        number: how many images.
        classes: number of classes.
        size: (height, width) of all images; otherwise sizes vary as in the light configs.
        squares: sides of the squares that image encoders read.
    """
    batch = []
    for _ in range(number):
        short = 256 + 32 * int(torch.randint(3, (), generator=generator))
        upright = int(torch.randint(2, (), generator=generator))
        height, width = (short * 4 // 3, short) if upright else (short, short * 4 // 3)
        height, width = size or (height, width)
        corners = torch.rand(3, 2, 2, generator=generator).sort(dim=1).values
        boxes = (corners * torch.tensor([width - 32, height - 32])).flatten(1)
        boxes[:, 2:] += 32
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.randint(classes, (3,), generator=generator)
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
        if squares:
            batch[-1]["squares"] = squashed(image.permute(1, 2, 0).numpy(), squares)
    return batch


def time_steps(cfg: CfgNode, images: int, repeat: int) -> dict[str, float]:
    """Forward and backward of a network with its initial weights.

    Sizes change from step to step, as they do in training: what one step frees seldom fits the
    next.

    Args:
        cfg: of the network.
        images: of a step.
        repeat: steps, after a first one, which asks for memory in any case.

    Returns:
        Means of the steps: ``seconds`` on the CPU, ``clock_seconds`` and ``page_faults``.
    """
    model = build_network(cfg).train()
    generator = torch.Generator().manual_seed(0)
    steps = []
    for _ in range(1 + repeat):
        batch = make_images(
            generator, images, cfg.MODEL.ROI_HEADS.NUM_CLASSES, squares=square_sizes(cfg)
        )
        faults, start, clock = _page_faults(), time.process_time(), time.perf_counter()
        _train(model, batch)
        ends = time.process_time(), time.perf_counter()
        steps.append((ends[0] - start, ends[1] - clock, _page_faults() - faults))
    seconds, clock, faults = np.mean(steps[1:], axis=0).tolist()
    return {"seconds": seconds, "clock_seconds": clock, "page_faults": faults}


@torch.no_grad()
def seconds_an_image(cfg: CfgNode, repeat: int = 2) -> float:
    """Seconds for an image at test, without reading it, by a network with its initial weights.

    Args:
        cfg: of any network.
        repeat: images, one at a time, after a first one.

    Returns:
        See :func:`idle_seconds`.
    """
    model = build_network(cfg).eval()
    generator, classes = torch.Generator().manual_seed(0), cfg.MODEL.ROI_HEADS.NUM_CLASSES
    batch = make_images(generator, 1, classes, FIXED_SIZE, square_sizes(cfg))
    model(batch)
    start, clock = time.process_time(), time.perf_counter()
    for _ in range(repeat):
        model(batch)
    ends = time.process_time(), time.perf_counter()
    return idle_seconds(cfg, ends[0] - start, ends[1] - clock) / repeat


def idle_seconds(cfg: CfgNode, cpu: float, clock: float) -> float:
    """What something takes if nothing else runs, from its seconds on the CPU and of a clock.

    With one thread, other programs lengthen the time of the clock alone; with several, the CPU
    seconds of all threads are the longer time.
    """
    return min(cpu, clock) if cfg.MODEL.DEVICE == "cpu" else clock


def compare_fusions(cfg: CfgNode, images: int, repeat: int, dataset: str = "") -> dict[str, float]:
    """Seconds of a step of Region-DH, with both kinds of fused regions, and of Faster R-CNN.

    All three have the weights of the config, as far as they have them in common: how many regions
    are both sampled and fused depends on the proposals.

    Args:
        cfg: of a Region-DH network.
        images: of a step, all of one size.
        repeat: steps of each.
        dataset: where the images are from; noise without it, which has other proposals.

    Returns:
        By ``plain``, ``sampled`` and ``topk``: the fastest step.

    Raises:
        RegionDHError: the config's network has no fusion, or the dataset too few images.
    """
    models = {}
    for rois in ("sampled", "topk"):
        of_rois = cfg.clone()
        of_rois.MODEL.REGION_DH.FUSION_ROIS = rois
        models[rois] = _trained(of_rois)
    if not hasattr(models["topk"].roi_heads, "fusion_rois"):
        raise RegionDHError(
            f"MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME} has no fusion: name the config of a "
            "network with RegionDHROIHeads"
        )
    of_plain = cfg.clone()
    of_plain.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    of_plain.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    models["plain"] = _with_weights_of(models["topk"], build_network(of_plain))
    batch = _batch(cfg, images, dataset)
    return _in_turns({k: _training(models[k], batch) for k in ("plain", "sampled", "topk")}, repeat)


def time_numbers_at_once(
    cfg: CfgNode, numbers: list[int], repeat: int, dataset: str = ""
) -> list[dict[str, int | float]]:
    """Seconds an image, when several images of one size are computed at once.

    Args:
        cfg: of a Region-DH network or one of whole images.
        numbers: how many images at once.
        repeat: runs of each.
        dataset: as of :func:`compare_fusions`.

    Returns:
        Of each number: ``images``; ``training`` and ``codes``, the fastest step of training and
        coding without detections.

    Raises:
        RegionDHError: the config's network makes no image codes, or the dataset has too few images.
    """
    model = _trained(cfg)
    if not isinstance(model, RegionDH):
        raise RegionDHError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} makes no image codes: name the "
            "config of a RegionDH or ImageHash network"
        )
    batches = {n: _batch(cfg, n, dataset) for n in numbers}
    runs = {("training", n): _training(model, batch) for n, batch in batches.items()}
    runs |= {("codes", n): _coding(model, batch) for n, batch in batches.items()}
    seconds = _in_turns(runs, repeat)
    return [
        {"images": n, **{kind: seconds[kind, n] / n for kind in ("training", "codes")}}
        for n in numbers
    ]


def _trained(cfg: CfgNode) -> nn.Module:
    """The config's network with its weights."""
    model = build_network(cfg)
    RegionDHCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def _with_weights_of(model: nn.Module, other: nn.Module) -> nn.Module:
    """The other network, with the weights that have the same name and shape in both."""
    wanted, state = other.state_dict(), model.state_dict()
    fits = {k: v for k, v in state.items() if k in wanted and v.shape == wanted[k].shape}
    other.load_state_dict(fits, strict=False)
    return other


def _batch(cfg: CfgNode, images: int, dataset: str) -> list[dict]:
    """Images of :data:`FIXED_SIZE`, the first wide ones of a dataset, or noise."""
    if not dataset:
        generator = torch.Generator().manual_seed(0)
        classes, squares = cfg.MODEL.ROI_HEADS.NUM_CLASSES, square_sizes(cfg)
        return make_images(generator, images, classes, FIXED_SIZE, squares)
    wide = [record for record in load_dataset(dataset) if record["width"] > record["height"]]
    if len(wide) < images:
        raise RegionDHError(f"{dataset} has {len(wide)} wide images, but {images} are asked for")
    mapper = StrictMapper(
        True,
        augmentations=[T.Resize(FIXED_SIZE)],
        image_format=cfg.INPUT.FORMAT,
        max_pixels=cfg.MODEL.REGION_DH.MAX_PIXELS,
        squares=square_sizes(cfg),
    )
    return [mapper(record) for record in wide[:images]]


def _training(model: nn.Module, batch: list[dict]) -> Callable[[], None]:
    return lambda: _train(model.train(), batch)


def _train(model: nn.Module, batch: list[dict]) -> None:
    with EventStorage():
        sum(model(batch).values()).backward()
    model.zero_grad()


def _coding(model: RegionDH, batch: list[dict]) -> Callable[[], None]:
    @torch.no_grad()
    def code() -> None:
        model.eval().encode_images(batch)

    return code


def _in_turns(runs: dict, repeat: int) -> dict:
    """The CPU seconds of the fastest of some turns of each, after a first one."""
    best = dict.fromkeys(runs, math.inf)
    for turn in range(1 + repeat):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if turn:
                best[name] = min(best[name], time.process_time() - start)
    return best


def _page_faults() -> int:
    """Page faults of this process without reading a disk; 0 where the system doesn't tell."""
    try:
        import resource  # here, because Windows has no such module
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
