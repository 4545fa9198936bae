"""What image encoders make of the images of a dataset, cached on disk, a file an encoder.

The files are in the folder ``encoders`` of ``MODEL.REGION_DH.FEATURE_CACHE``. They are apart from
the features of regions, so that another choice of encoders leaves those as they are.

A file says which weights made it, and of which files as they were: their names, sizes, times of
modification, and how they were read. Vectors of unchanged images are taken from all files of the
same encoder. While a file is being computed, its vectors are saved in *parts*, and an interrupted
computation goes on after the last one. Several processes share the parts out.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ..checkpoint import model_fingerprint
from ..config import feature_settings, parse_settings
from ..data.catalog import load_dataset
from ..data.training import StrictMapper
from ..modeling.image_encoders import SQUARES, ImageEncoder, ImageEncoders
from ..utils.errors import RegionDHError
from ..utils.progress import Progress
from .cache_files import one_writer, read_arrays, write_arrays

__all__ = ["EncoderCache"]

logger = logging.getLogger(__name__)

PART = 200  # images
BATCH = 8  # images at once
VIEWS = ("plain", "mirrored")


class EncoderCache:
    """A folder of the vectors that the image encoders of a config make of datasets."""

    def __init__(self, cfg):
        """
        Args:
            cfg: the config, with ``MODEL.REGION_DH.FEATURE_CACHE``.
        """
        node = cfg.MODEL.REGION_DH
        self.folder = Path(node.FEATURE_CACHE) / "encoders"
        pairs = zip(node.IMAGE_ENCODERS, node.IMAGE_ENCODER_SIZES, strict=False)
        kind = "averaged" if node.IMAGE_ENCODER_MIRRORED else "plain"
        self._names = [f"{name}.{size}.{kind}" for name, size in pairs]
        # The mirror image of a photo has the same average.
        self._averaged = node.IMAGE_ENCODER_MIRRORED
        self._reading = {"image_format": cfg.INPUT.FORMAT, "max_pixels": node.MAX_PIXELS}
        settings = parse_settings(feature_settings(cfg), feature_settings)
        self._reader = f"{settings['IMAGE_READER']} {node.MAX_PIXELS}"

    def read(self, dataset: str, mirrored: bool) -> list[np.ndarray]:
        """The joined vectors (N, E) float32 of the images of a dataset, and then, with
        ``mirrored``, of their mirror images; nothing where the config has no encoders.

        Raises:
            RegionDHError: a file is damaged.
        """
        if not self._names:
            return []
        views = VIEWS[: 2 if mirrored else 1]
        files = [read_arrays(self._path(dataset, name), self._kept(views)) for name in self._names]
        return [np.concatenate([f[self._kept([v])[0]] for f in files], axis=1) for v in views]

    @torch.no_grad()
    def ensure(self, encoders: ImageEncoders, dataset: str, mirrored: bool) -> None:
        """Compute the files of a dataset unless they are there; call it in all processes.

        Args:
            encoders: those of the config, with their weights.
            dataset: a registered dataset.
            mirrored: whether mirror images are needed, too.

        Raises:
            RegionDHError: a file is damaged or was made by other weights, or an image can't be
                read.
            OSError: an image isn't there, or a file can't be written.
            FileInUseError: another training writes into this folder.
        """
        records = load_dataset(dataset)
        images = np.array([self._digest(record) for record in records])
        views = self._kept(VIEWS[: 2 if mirrored else 1])
        for name, encoder in zip(self._names, encoders, strict=True):
            weights = model_fingerprint(encoder)
            path = self._path(dataset, name)
            # One process decides for all: where the folder is a network's, they may see it
            # differently.
            if comm.all_gather(self._has(path, weights, images, views))[0]:
                continue
            with one_writer(self.folder):
                # Another training may have made it before this one had the lock.
                if not comm.all_gather(self._has(path, weights, images, views))[0]:
                    self._make(path, name, encoder, weights, records, images, views)

    def _path(self, dataset: str, name: str) -> Path:
        return self.folder / f"{dataset}.{name}.npz"

    def _kept(self, views: Sequence[str]) -> list[str]:
        """The arrays that hold some views."""
        return list(dict.fromkeys("plain" if self._averaged else view for view in views))

    def _has(self, path: Path, weights: str, images: np.ndarray, views: list[str]) -> bool:
        if not path.is_file():
            return False
        found = read_arrays(path)
        if str(found["weights"]) != weights:
            raise RegionDHError(
                f"{path} was made by other weights: delete it or name another "
                "MODEL.REGION_DH.FEATURE_CACHE"
            )
        return np.array_equal(found["images"], images) and all(view in found for view in views)

    def _make(self, path, name, encoder, weights, records, images, views) -> None:
        parts = path.with_suffix(".parts")
        jobs = [(view, i) for view in views for i in range(len(records))]
        source = hashlib.sha256(f"{weights} {images.tolist()} {views}".encode()).hexdigest()[:16]
        paths = [parts / f"{source}-{first:07d}.npz" for first in range(0, len(jobs), PART)]
        missing = [
            (part, jobs[PART * i : PART * (i + 1)])
            for i, part in enumerate(paths)
            if i % comm.get_world_size() == comm.get_rank() and not part.is_file()
        ]
        known = self._known(name, weights) if missing else {}
        count = sum(len(some) for _, some in missing)
        what = f"images of {path.stem} encoded"
        progress = Progress(logger.info, what, count, every=30.0)
        for part, some in missing:
            vectors = self._encode(encoder, records, images, some, known, progress)
            write_arrays(part, {"vectors": vectors})
        comm.synchronize()
        if comm.is_main_process():
            vectors = np.concatenate([read_arrays(part)["vectors"] for part in paths])
            tables = dict(zip(views, np.split(vectors, len(views)), strict=True))
            write_arrays(path, {**tables, "weights": weights, "images": images})
            shutil.rmtree(parts)
        comm.synchronize()

    def _known(self, name: str, weights: str) -> dict[tuple[str, str], np.ndarray]:
        """The vectors in the files of an encoder, by view and image."""
        known: dict[tuple[str, str], np.ndarray] = {}
        for path in sorted(self.folder.glob(f"*.{name}.npz")):
            found = read_arrays(path)
            if str(found["weights"]) == weights:
                for view in set(VIEWS) & set(found):
                    pairs = zip(found["images"].tolist(), found[view], strict=True)
                    known |= {(view, image): vector for image, vector in pairs}
        return known

    def _encode(
        self,
        encoder: ImageEncoder,
        records: list[dict],
        images: np.ndarray,
        jobs: list[tuple[str, int]],
        known: dict[tuple[str, str], np.ndarray],
        progress: Progress,
    ) -> np.ndarray:
        vectors = np.zeros((len(jobs), encoder.width), np.float32)
        new: list[int] = []
        for row, (view, i) in enumerate(jobs):
            found = known.get((view, str(images[i])))
            if found is None:
                new.append(row)
            else:
                vectors[row] = found
                progress.step()
        read = StrictMapper(False, augmentations=[], squares=[encoder.size], **self._reading)
        for first in range(0, len(new), BATCH):
            rows = new[first : first + BATCH]
            squares = torch.stack([read(records[jobs[r][1]])[SQUARES][encoder.size] for r in rows])
            turned = torch.tensor([jobs[r][0] == "mirrored" for r in rows])
            squares[turned] = squares[turned].flip(3)
            device = next(encoder.parameters()).device
            vectors[rows] = encoder(squares.to(device)).cpu().numpy()
            progress.step(len(rows))
        return vectors

    def _digest(self, record: dict) -> str:
        """An image's file as it is now, and how it is read, as hex digits.

        Raises:
            OSError: the file isn't there.
        """
        state = os.stat(PathManager.get_local_path(record["file_name"]))
        what = f"{record['file_name']} {state.st_size} {state.st_mtime_ns} {self._reader}"
        return hashlib.sha256(what.encode(errors="surrogateescape")).hexdigest()
