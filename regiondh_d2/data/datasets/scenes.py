"""Generated scenes: a small multi-label dataset in VOC layout that needs no download.

Every image shows one to five objects of twelve shapes before a cluttered background. Color,
texture, size and rotation are independent of the class. Only the shape shows the class, so a color
histogram is useless. Classes come in groups that tend to occur together, as in photographs.
"""

from __future__ import annotations

import colorsys
import json
import logging
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ...utils.errors import OutputExistsError, RegionDHError
from ...utils.temporaries import temporary_beside
from ..retrieval import register_retrieval_dataset
from ..voc import register_voc
from .scene_shapes import SCENE_CLASSES, object_mask, polar

logger = logging.getLogger(__name__)

# Increase it whenever the same arguments give other images, so that old folders are not reused.
_VERSION = 1
_RECORD = "scenes.json"
_SPLITS = ("database", "queries")

_JPEG_QUALITY = 90
_OBJECT_COUNTS = (0.25, 0.3, 0.22, 0.14, 0.09)  # probability of 1, 2, ... objects
_SIZE_RANGE = (0.28, 0.58)  # longer side of an object, as a share of the image's shorter side
_SAME_GROUP = 0.75  # probability that a further object comes from the scene's group
_MIN_VISIBLE = 0.5  # the least visible share of an object
_DIFFICULT_VISIBLE = 0.75  # below this share it is marked difficult
_PLACEMENT_TRIES = 12

# Classes that tend to occur together, with the share of scenes of each group.
_GROUPS = (
    (0.34, ("star", "crescent", "ring", "heart")),
    (0.28, ("house", "key", "arrow")),
    (0.22, ("gear", "cross", "triangle", "key")),
    (0.16, ("fish", "spiral", "ring")),
)


# --- colors and textures --------------------------------------------------------------------


def _color(rng: np.random.Generator) -> np.ndarray:
    """A random RGB color, float32 (3,) in [0, 255]."""
    hue, saturation, value = rng.random(), rng.uniform(0.15, 1.0), rng.uniform(0.15, 1.0)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32) * 255


def _luma(color: np.ndarray) -> np.ndarray:
    return color @ np.array([0.299, 0.587, 0.114], np.float32)


def _contrasting_color(against: float, rng: np.random.Generator, contrast: float) -> np.ndarray:
    """A random color whose luma differs from `against` by at least `contrast`."""
    for _ in range(50):
        color = _color(rng)
        if abs(_luma(color) - against) >= contrast:
            return color
    return np.full(3, 255 if against < 128 else 0, np.float32)


def _texture(h: int, w: int, base: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A patch around the color `base`, float32 (h, w, 3) in [0, 255]."""
    second = np.clip(base + rng.choice([-1, 1]) * rng.uniform(25, 60), 0, 255)
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    angle = rng.uniform(0, math.pi)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    period = rng.uniform(6, 12)
    kind = rng.integers(6)
    if kind == 0:  # plain
        weight = np.zeros((h, w))
    elif kind == 1:  # stripes
        weight = (along % period < period / 2).astype(np.float32)
    elif kind == 2:  # checks
        weight = ((along // period + across // period) % 2).astype(np.float32)
    elif kind == 3:  # gradient
        weight = (along - along.min()) / max(float(np.ptp(along)), 1.0)
    elif kind == 4:  # dots
        u, v = along % period - period / 2, across % period - period / 2
        weight = (np.hypot(u, v) < period * 0.28).astype(np.float32)
    else:  # speckle
        weight = rng.random((h, w))
    return base + weight[..., None] * (second - base)


def _smooth_noise(h: int, w: int, cell: int, rng: np.random.Generator) -> np.ndarray:
    """Blurred noise, float32 (h, w) in [0, 1], with blobs of about `cell` pixels."""
    small = rng.integers(0, 256, (max(2, h // cell), max(2, w // cell)), dtype=np.uint8)
    image = Image.fromarray(small).resize((w, h), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32) / 255


def _background(w: int, h: int, rng: np.random.Generator) -> np.ndarray:
    """Gradient, noise and clutter that belongs to no class; float32 (h, w, 3) in [0, 255]."""
    first, second = _color(rng), _color(rng)
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    ramp = x / w * math.cos(angle) + y / h * math.sin(angle)
    ramp = (ramp - ramp.min()) / np.ptp(ramp)
    canvas = first + ramp[..., None] * (second - first)
    cell = int(rng.integers(8, 40))
    canvas = canvas + (_smooth_noise(h, w, cell, rng)[..., None] - 0.5) * rng.uniform(20, 90)

    big = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).resize((2 * w, 2 * h))
    draw = ImageDraw.Draw(big)
    for _ in range(rng.integers(4, 14)):
        at = np.clip(canvas[rng.integers(h), rng.integers(w)], 0, 255)
        color = tuple(int(v) for v in at + rng.uniform(0.25, 0.8) * (_color(rng) - at))
        cx, cy = rng.uniform(0, 2 * w), rng.uniform(0, 2 * h)
        reach = rng.uniform(10, 0.8 * min(w, h))
        kind = rng.integers(4)
        if kind == 0:  # line
            dx, dy = polar(2 * reach, rng.uniform(0, math.pi))
            draw.line([cx - dx, cy - dy, cx + dx, cy + dy], color, int(rng.integers(2, 9)))
        elif kind == 1:  # blob
            ry = reach * rng.uniform(0.3, 0.7)
            draw.ellipse([cx - reach / 2, cy - ry / 2, cx + reach / 2, cy + ry / 2], fill=color)
        elif kind == 2:  # dots
            for _ in range(rng.integers(5, 25)):
                px, py = rng.normal(cx, reach / 2), rng.normal(cy, reach / 2)
                r = rng.uniform(1.5, 5)
                draw.ellipse([px - r, py - r, px + r, py + r], fill=color)
        else:  # arc
            start = rng.uniform(0, 360)
            box = [cx - reach, cy - reach, cx + reach, cy + reach]
            draw.arc(box, start, start + rng.uniform(40, 150), color, int(rng.integers(2, 8)))
    return np.asarray(big.resize((w, h), Image.Resampling.BOX), dtype=np.float32)


# --- scenes ----------------------------------------------------------------------------------


def _scene_classes(rng: np.random.Generator) -> list[str]:
    """The classes of one scene's objects, with repetitions."""
    shares = np.array([share for share, _ in _GROUPS])
    group = _GROUPS[rng.choice(len(_GROUPS), p=shares / shares.sum())][1]
    count = 1 + int(rng.choice(len(_OBJECT_COUNTS), p=_OBJECT_COUNTS))
    return [
        str(rng.choice(group if index == 0 or rng.random() < _SAME_GROUP else SCENE_CLASSES))
        for index in range(count)
    ]


def _paint(canvas: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> None:
    """Lay a textured object of opacity `mask` (h, w) over `canvas` (h, w, 3), in place."""
    around = float(_luma(canvas).mean())
    base = _contrasting_color(around, rng, contrast=55)
    height, width = mask.shape
    paint = _texture(height, width, base, rng)
    if rng.random() < 0.5:
        opaque = Image.fromarray((mask > 0.5).astype(np.uint8) * 255)
        inner = np.asarray(opaque.filter(ImageFilter.MinFilter(3))) > 0
        paint[~inner] = _contrasting_color(float(_luma(base)), rng, contrast=40)
    canvas += mask[..., None] * (paint - canvas)


def _draw_scene(
    w: int, h: int, rng: np.random.Generator
) -> tuple[Image.Image, list[tuple[str, tuple[int, int, int, int], bool]]]:
    """Draw one scene of w x h pixels.

    Returns:
        The image, and for each object its class, its box (VOC's 1-based inclusive corners of the
        visible part) and whether it is difficult.
    """
    canvas = _background(w, h, rng)
    names: list[str] = []
    areas: list[int] = []
    visible: list[np.ndarray] = []
    for name in _scene_classes(rng):
        for _ in range(_PLACEMENT_TRIES):
            length = round(rng.uniform(*_SIZE_RANGE) * min(w, h))
            mask = object_mask(name, length, rng)
            mh, mw = mask.shape
            if mh > h or mw > w:
                continue
            top, left = int(rng.integers(h - mh + 1)), int(rng.integers(w - mw + 1))
            place = np.s_[top : top + mh, left : left + mw]
            covered = np.zeros((h, w), dtype=bool)
            covered[place] = mask > 0.5
            if any(
                (seen & ~covered).sum() < _MIN_VISIBLE * area
                for seen, area in zip(visible, areas, strict=True)
            ):
                continue
            visible = [seen & ~covered for seen in visible] + [covered]
            areas.append(int(covered.sum()))
            names.append(name)
            _paint(canvas[place], mask, rng)
            break

    canvas += rng.normal(0, rng.uniform(1, 7), canvas.shape)
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    objects = []
    for name, seen, area in zip(names, visible, areas, strict=True):
        rows, columns = np.nonzero(seen)
        left, top = int(columns.min()) + 1, int(rows.min()) + 1
        right, bottom = int(columns.max()) + 1, int(rows.max()) + 1
        difficult = bool(seen.sum() < _DIFFICULT_VISIBLE * area)
        objects.append((name, (left, top, right, bottom), difficult))
    return image, objects


def _annotation(
    image_id: str,
    size: tuple[int, int],
    objects: Sequence[tuple[str, tuple[int, int, int, int], bool]],
) -> str:
    """The scene's XML, with every tag that Detectron2's VOC evaluator insists on."""
    lines = [
        "<annotation>",
        f"\t<filename>{image_id}.jpg</filename>",
        f"\t<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>",
    ]
    for name, box, difficult in objects:
        corners = "".join(
            f"<{key}>{value}</{key}>"
            for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        lines.append(
            f"\t<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated>"
            f"<difficult>{int(difficult)}</difficult><bndbox>{corners}</bndbox></object>"
        )
    return "\n".join([*lines, "</annotation>", ""])


def generate_scenes(
    root: str | os.PathLike,
    *,
    num_database: int = 400,
    num_queries: int = 100,
    image_size: tuple[int, int] = (192, 144),
    seed: int = 0,
) -> Path:
    """Write a dataset of generated scenes in VOC layout.

    The lists are `database` and `queries`. Every image depends only on the seed, its list and its
    number, so a larger dataset begins with the images of a smaller one. The folder gets its name
    when it is complete. An existing folder with the same parameters is reused.

    Args:
        root: the folder to write.
        num_database: images to search in.
        num_queries: images to search with.
        image_size: width and height in pixels; one scene in five is upright, with the two swapped.
        seed: chooses the scenes.

    Returns:
        `root`.

    Raises:
        ValueError: a parameter is out of range.
        FileExistsError: `root` holds something else.
    """
    root = Path(root).expanduser()
    if num_database < 1 or num_queries < 1:
        raise RegionDHError(
            f"scenes need at least one image a list, got num_database={num_database},"
            f" num_queries={num_queries}"
        )
    if len(image_size) != 2 or not all(64 <= side <= 4096 for side in image_size):
        raise RegionDHError(f"image_size must be two sides of 64 to 4096 pixels, got {image_size}")
    if seed < 0:
        raise RegionDHError(f"seed must not be negative, got {seed}")
    counts = (num_database, num_queries)
    record = {
        "version": _VERSION,
        "num_database": num_database,
        "num_queries": num_queries,
        "image_size": list(image_size),
        "seed": seed,
    }
    if _is_complete(root, record):
        return root

    root.parent.mkdir(parents=True, exist_ok=True)
    work = temporary_beside(root)
    try:
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (work / folder).mkdir(parents=True)
        for stream, (split, count) in enumerate(zip(_SPLITS, counts, strict=True)):
            image_ids = [f"{split}_{index:06d}" for index in range(count)]
            for index, image_id in enumerate(image_ids):
                rng = np.random.default_rng([seed, stream, index])
                size = image_size if rng.random() < 0.8 else image_size[::-1]
                image, objects = _draw_scene(*size, rng)
                image.save(work / "JPEGImages" / f"{image_id}.jpg", quality=_JPEG_QUALITY)
                xml = _annotation(image_id, size, objects)
                (work / "Annotations" / f"{image_id}.xml").write_text(xml, encoding="utf-8")
                if (index + 1) % 100 == 0:
                    logger.info("%s: %d of %d scenes", split, index + 1, count)
            (work / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(image_ids) + "\n")
        (work / _RECORD).write_text(json.dumps(record, indent=2) + "\n")
        try:
            os.replace(work, root)
        except OSError:
            # Another process may have finished the same folder meanwhile.
            if not _is_complete(root, record):
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return root


def _is_complete(root: Path, record: dict) -> bool:
    """Whether `root` holds exactly these scenes; FileExistsError if it holds anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / _RECORD).read_text())
    except (OSError, ValueError):
        raise OutputExistsError(
            f"{root}: exists and holds no generated scenes: choose another folder"
        ) from None
    if found != record:
        raise OutputExistsError(
            f"{root}: holds scenes of other parameters ({found}): delete it or choose another"
            " folder"
        )
    return True


def register_scenes(root: str | os.PathLike, prefix: str = "") -> str:
    """Register the scenes below `root`; they may be generated later.

    Args:
        root: the folder of `generate_scenes`.
        prefix: put before the names, for scenes beside the shipped ones.

    Returns:
        Name of the retrieval dataset, `<prefix>scenes_retrieval`; its detection datasets are
        `<prefix>regiondh_scenes_database` and `<prefix>regiondh_scenes_queries`.

    Raises:
        ValueError: these names are taken by scenes in another folder.
    """
    root = os.path.expanduser(os.fspath(root))
    database, queries = (f"{prefix}regiondh_scenes_{split}" for split in _SPLITS)
    for name, split in ((database, "database"), (queries, "queries")):
        register_voc(name, root, split, SCENE_CLASSES)
    name = f"{prefix}scenes_retrieval"
    register_retrieval_dataset(name, database=database, queries=queries)
    return name
