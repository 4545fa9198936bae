"""The record of a training, kept in its checkpoints.

It holds the settings, starting weights and images of the network, so that a resumed training or a
result can be compared with them. The record is part of the checkpoint, so that it can't get lost.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from ..checkpoint import read_weights
from ..config import (
    RENAMED_KEYS,
    RENAMED_VALUES,
    add_regiondh_config,
    changed_settings,
    training_settings,
)
from ..data.catalog import load_dataset
from ..utils.display import display_name
from ..utils.errors import RegionDHError
from ..utils.file_io import file_sha256
from .config_file import merge_config_file

__all__ = [
    "Training",
    "TrainingRecorder",
    "changes_on_resume",
    "checkpoint_to_continue",
    "data_checksum",
    "last_checkpoint",
    "phrase",
    "recorded_training",
    "same_data",
    "weights_sha256",
]

KEY = "training"  # in checkpoints
VERSION = 1


@dataclass(frozen=True)
class Training:
    """Everything that a trained network depends on.

    Attributes:
        settings: see :func:`..config.training_settings`.
        weights: ``MODEL.WEIGHTS``.
        weights_sha256: of that file, as hex digits; "" if it is no local file, since a name with
            ``://`` means the same weights everywhere.
        data_sha256: :func:`data_checksum` of each dataset in ``DATASETS.TRAIN``.
        earlier: the records before a resumed training changed any of this.
    """

    settings: str
    weights: str
    weights_sha256: str
    data_sha256: dict[str, str]
    earlier: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, cfg: CfgNode, checksum: Callable[[str], str] | None = None) -> Training:
        """The record that a training with this config would have now.

        Args:
            cfg: the config.
            checksum: :func:`data_checksum`; None leaves images and weights out.
        """
        names = [name for name in cfg.DATASETS.TRAIN if name in DatasetCatalog.list()]
        return cls(
            settings=training_settings(cfg),
            weights=cfg.MODEL.WEIGHTS,
            weights_sha256=weights_sha256(cfg.MODEL.WEIGHTS) if checksum else "",
            data_sha256={name: checksum(name) for name in names} if checksum else {},
        )

    @property
    def settings_sha256(self) -> str:
        """sha256 over the settings that aren't defaults, so that new keys don't change it."""
        cfg = get_cfg()
        add_regiondh_config(cfg)
        chosen = changed_settings(training_settings(cfg), self.settings, training_settings)
        # Renaming a key or a value doesn't change it either.
        names = {new: old for old, new in RENAMED_KEYS.items()}
        values = {
            (key, repr(new)): repr(old)
            for key, renamed in RENAMED_VALUES.items()
            for old, new in renamed.items()
        }
        lines = sorted(
            f"{names.get(key, key)} {values.get((key, value), value)}"
            for key, (_, value) in chosen.items()
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def sha256(self) -> str:
        """sha256 over everything that is known now, the same for a record of any version."""
        data = {name: checksum.partition(" ")[0] for name, checksum in self.data_sha256.items()}
        facts = (self.settings_sha256, self.weights_sha256 or self.weights, data)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def changes(self, now: Training) -> list[str]:
        """The differences of another training from this one, a phrase each."""
        found = [
            f"{key} {old}, which is now {new}"
            for key, (old, new) in changed_settings(
                self.settings, now.settings, training_settings
            ).items()
        ]
        if self.weights_sha256 and now.weights_sha256:
            if self.weights_sha256 != now.weights_sha256:
                found.append(f"another content of MODEL.WEIGHTS {now.weights}")
        elif self.weights != now.weights:
            found.append(f"MODEL.WEIGHTS {self.weights}, which is now {now.weights}")
        for name in sorted(self.data_sha256.keys() & now.data_sha256.keys()):
            if not same_data(self.data_sha256[name], now.data_sha256[name]):
                found.append(f"other images or objects of {name}")
        return found


class TrainingRecorder:
    """Puts the :class:`Training` into the checkpoints of a trainer, as a checkpointable.

    Checkpoints of version 0.1 have none; a training resumed from one notes that.
    """

    def __init__(self, cfg: CfgNode):
        self._cfg = cfg.clone()
        self._loaded: Training | None = None
        self._training: Training | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self._training)} if self._training else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loaded = _training_of(state)

    def begin(self, resumed: bool) -> None:
        """Record the present training; call it after the checkpoint was loaded.

        Args:
            resumed: whether the network comes from an earlier training.
        """
        if not comm.is_main_process():  # only it saves checkpoints
            return
        now = Training.of(self._cfg, data_checksum)
        if resumed:
            before = self._loaded
            # MODEL.WEIGHTS isn't read again.
            start = before or Training("", "", "", {}, [])
            now = Training(
                now.settings, start.weights, start.weights_sha256, now.data_sha256, start.earlier
            )
            if before is None or before.changes(now):
                part = asdict(start)
                earlier = part.pop("earlier")
                now = Training(**{**asdict(now), "earlier": [*earlier, part]})
        self._training = now


def last_checkpoint(folder: str | os.PathLike) -> Path | None:
    """The checkpoint from which a training in a folder would continue, or None."""
    tag = Path(folder) / "last_checkpoint"
    if not tag.is_file():
        return None
    name = tag.read_text(errors="replace").strip()
    try:
        return tag.with_name(name)
    except ValueError:  # empty after a crash, or a path
        raise RegionDHError(
            f"{tag} holds {display_name(name)!r}, not the name of a checkpoint beside it: write "
            "that of the newest one into it, or delete it to train from the start"
        ) from None


def recorded_training(checkpoint: str | os.PathLike) -> Training | None:
    """The record of a checkpoint; None if it has none (version 0.1).

    Raises:
        OSError: there is no such file.
        WeightsError: it is damaged.
    """
    content = read_weights(checkpoint)
    return _training_of(content.get(KEY)) if isinstance(content, dict) else None


def checkpoint_to_continue(folder: str | os.PathLike, now: Training, fix: str) -> Path | None:
    """The checkpoint from which a training in a folder would go on, if it is of the same training.

    Args:
        folder: ``OUTPUT_DIR``.
        now: the training that is to go on.
        fix: what the user may do otherwise, for messages.

    Returns:
        The file; None if there is none yet.

    Raises:
        RegionDHError: the network in the folder was trained with something else, has no record of
            what it was trained with, or is missing.
        WeightsError: it is damaged.
    """
    checkpoint = last_checkpoint(folder)
    if checkpoint is None:
        return None
    if not checkpoint.is_file():
        raise RegionDHError(f"{checkpoint}, the last checkpoint there, is missing: {fix}")
    before = recorded_training(checkpoint)
    if before is None:
        raise RegionDHError(
            f"{checkpoint} doesn't say what it was trained with, as those of version 0.1 "
            f"don't: {fix}"
        )
    changes = before.changes(now)
    if changes:
        raise RegionDHError(f"{checkpoint} was trained with {phrase(changes)}: {fix}")
    if before.earlier:
        raise RegionDHError(
            f"{checkpoint} was trained in parts of different settings, by --resume: {fix}"
        )
    return checkpoint


def changes_on_resume(cfg: CfgNode) -> list[str]:
    """The differences of a config from the training of the network in its ``OUTPUT_DIR``.

    A checkpoint of version 0.1 has no record. Then the folder's ``config.yaml`` is used, which is
    of the last run there. The starting weights aren't compared, since they aren't read again.

    Raises:
        WeightsError, OSError: the checkpoint can't be read.
    """
    checkpoint = last_checkpoint(cfg.OUTPUT_DIR)
    if checkpoint is None or not checkpoint.is_file():
        return []
    before, settings = recorded_training(checkpoint), ""
    if before is not None:
        settings = before.settings
    elif os.path.isfile(file := os.path.join(cfg.OUTPUT_DIR, "config.yaml")):
        old = get_cfg()
        add_regiondh_config(old)
        try:
            merge_config_file(old, file)
        except RegionDHError:
            return [f"a {file} that can't be compared"]
        settings = training_settings(old)
    if not settings:
        return []
    now = Training.of(cfg)
    return Training(settings, now.weights, "", {}).changes(now)


def data_checksum(dataset: str) -> str:
    """Checksums over names and sizes of the images and over the annotations of a dataset.

    Returns:
        Two sha256 as hex digits, with a space between. The first one is over all but the marks
        "difficult" and "crowd", the second over these alone. Records of earlier versions hold only
        the first one; :func:`same_data` compares either.

    Raises:
        OSError: an image is missing.
    """
    digest, marks = hashlib.sha256(), hashlib.sha256()
    for record in load_dataset(dataset):
        path = str(record.get("file_name", ""))
        size = os.path.getsize(path) if path and "://" not in path else None
        annotations = record.get("annotations", ())
        boxes = [(a.get("category_id"), *a.get("bbox", ())) for a in annotations]
        labels = record.get("image_labels", ())
        line = (os.path.basename(path), size, boxes, list(labels))
        digest.update(repr(line).encode(errors="surrogateescape"))
        objects = [(bool(a.get("difficult")), bool(a.get("iscrowd"))) for a in annotations]
        marks.update(repr((objects, list(record.get("difficult_labels", ())))).encode())
    return f"{digest.hexdigest()} {marks.hexdigest()}"


def same_data(before: str, now: str) -> bool:
    """Whether two results of :func:`data_checksum`, of any version, may be of the same data."""
    checksums = list(zip(str(before).split(), str(now).split(), strict=False))
    return bool(checksums) and all(a == b for a, b in checksums)


def _training_of(state: dict[str, Any] | None) -> Training | None:
    if not state:
        return None
    return Training(**{key: state[key] for key in Training.__dataclass_fields__})


def weights_sha256(path: str) -> str:
    """sha256 of a file of weights, as hex digits; "" if it is no local file."""
    return "" if "://" in path or not os.path.isfile(path) else file_sha256(path).hex()


def phrase(changes: Sequence[str]) -> str:
    """The first of some changes, and the number of the others."""
    more = f" ({len(changes) - 1} more)" if len(changes) > 1 else ""
    return f"{changes[0]}{more}"
