"""Measure how often copies of photos find the photos: cropped, smaller, saved again, and so on."""

import argparse
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..checkpoint import model_fingerprint
from ..config import code_settings
from ..data.copies import COPIES
from ..data.image_reader import read_rgb
from ..data.photo_files import find_photos
from ..engine import build_cfg
from ..engine.command import load_trained_model
from ..engine.defaults import config_inputs, dataset_inputs
from ..engine.query_encoder import query_loader
from ..engine.user_code import import_user_code
from ..evaluation.copy_recall import ORDERS, Place, place_of_original, recall
from ..retrieval.code_store import read_codes
from ..retrieval.images import ImageEntry, ImageLoader, UnreadableImage, entries_of_scan
from ..retrieval.photo_state import PhotoCheck, PhotoState
from ..structures.code_checks import check_comparable
from ..structures.codes import CodeSet, check_holds
from ..structures.model_outputs import codes_from_outputs
from ..structures.packed import pack_codes
from ..utils.display import display_name, print_line
from ..utils.errors import RegionDHError
from ..utils.file_io import check_output_file, refuse_inputs, write_json
from ..utils.progress import Progress
from .extract_codes import dataset_entries

UNCHANGED = "as it is"


def log(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)


class CopyEncoder:
    """Encodes photos and their copies, one at a time."""

    def __init__(self, cfg, model: Any, load: ImageLoader):
        """
        Args:
            cfg: config of the model.
            model: a trained network that encodes images.
            load: reads images as the network's inputs.
        """
        if not hasattr(model, "encode_images"):
            raise RegionDHError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} encodes no images; use "
                "RegionDH"
            )
        self._model, self._load = model, load
        self._fields: dict[str, Any] = {
            "model_fingerprint": model_fingerprint(model),
            "settings": code_settings(cfg, activations=True, features=False, instances=False),
        }

    def check(self, database: CodeSet) -> list[str]:
        """Warnings if the database may be of another model.

        Raises:
            CodeFileError: it is.
        """
        ours = codes_from_outputs(
            [self._encode(self._load.load_picture(np.zeros((64, 64, 3), np.uint8)))],
            image_ids=["0"],
            file_names=["0"],
            class_names=database.class_names,
            count_difficult=database.count_difficult,
            **self._fields,
        )
        return check_comparable(ours, database)

    def encode_all(self, entries: list[ImageEntry]) -> CodeSet:
        """The codes of photos; those that can't be read are told and left out.

        Raises:
            RegionDHError: none can be read.
        """
        progress = Progress(log, "photos encoded", len(entries))
        outputs, files = [], []
        for entry in entries:
            try:
                outputs.append(self._encode(self._load(entry.file_name)))
                files.append(entry)
            except UnreadableImage as error:
                print_line(f"unreadable: {error}", sys.stderr)
            progress.step()
        if not files:
            raise RegionDHError(f"none of the {len(entries)} photos can be read")
        return codes_from_outputs(
            outputs,
            image_ids=[entry.image_id for entry in files],
            file_names=[entry.file_name for entry in files],
            **self._fields,
        )

    def encode_copies(self, file_name: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Of each copy its name, its packed code, uint8 (B,), and its activations, float32 (K,).

        Raises:
            UnreadableImage: the photo can't be read.
        """
        photo, _ = read_rgb(file_name, self._load.max_pixels)
        for name, change in COPIES.items():
            output = self._encode(self._load.load_picture(change(photo)))
            code = pack_codes(output["image_code"].cpu().numpy()[None])[0]
            yield name, code, output["image_activation"].float().cpu().numpy()

    @torch.no_grad()
    def _encode(self, inputs: dict) -> dict:
        (output,) = self._model.encode_images([inputs])
        return output


def sample_rows(count: int, sample: int, seed: int) -> np.ndarray:
    """The rows that are searched for: the first ones of a random order, so that a larger sample
    holds a smaller one."""
    return np.random.default_rng(seed).permutation(count)[:sample]


def measure(
    encoder: CopyEncoder, database: CodeSet, rows: np.ndarray
) -> dict[str, list[dict[str, Place]]]:
    """By the name of the copy, the places of each photo's original in :data:`ORDERS`.

    Photos that can't be read, or have changed since they were encoded, are told and left out.

    Raises:
        RegionDHError: none is left.
    """
    check = PhotoCheck(database)
    places: dict[str, list[dict[str, Place]]] = {name: [] for name in (UNCHANGED, *COPIES)}
    progress = Progress(log, "photos searched for", len(rows))
    activations = database.column("activations")
    for row in rows:
        try:
            if check.state(row) is PhotoState.CHANGED:
                shown = display_name(database.file_names[row])
                print_line(f"left out: {shown} has changed since it was encoded", sys.stderr)
                continue
            copies = list(encoder.encode_copies(database.file_names[row]))
        except UnreadableImage as error:
            print_line(f"unreadable: {error}", sys.stderr)
            continue
        finally:
            progress.step()
        itself = (UNCHANGED, database.codes[row], activations[row])
        for name, code, activation in (itself, *copies):
            places[name].append(place_of_original(code, activation, int(row), database))
    if not places[UNCHANGED]:
        raise RegionDHError(f"none of the {len(rows)} photos can be read as it was encoded")
    return places


def metrics_of(
    places: dict[str, list[dict[str, Place]]], topk: list[int]
) -> dict[str, float | int]:
    """Flat names: "crop/search/recall@1" and so on."""
    return {
        f"{name.replace(' ', '_')}/{order}/recall@{k}": recall([one[order] for one in found], k)
        for name, found in places.items()
        for order in ORDERS
        for k in topk
    }


def format_table(metrics: dict[str, float | int], topk: list[int]) -> str:
    """A line a copy, and a column for each order and k."""
    columns = [(order, k) for order in ORDERS for k in topk]
    lines = [f"{'recall at k':12}" + "".join(f"{f'{order} {k}':>16}" for order, k in columns)]
    for name in (UNCHANGED, *COPIES):
        key = name.replace(" ", "_")
        values = (metrics[f"{key}/{order}/recall@{k}"] for order, k in columns)
        lines.append(f"{name:12}" + "".join(f"{value:16.3f}" for value in values))
    return "\n".join(lines)


def run(args: argparse.Namespace) -> None:
    import_user_code(args.imports)
    inputs = [args.database, *config_inputs(args.config_file, args.opts)]
    if args.dataset:
        inputs += dataset_inputs([args.dataset])
    inputs += [path for path in args.input or () if os.path.isfile(path)]
    check_output_file(args.json, inputs=inputs, overwrite=args.overwrite, kind="json")
    cfg = build_cfg(args.config_file, args.opts)
    database: CodeSet | None = None
    entries: list[ImageEntry] = []
    load = ImageLoader(cfg)
    if args.database:
        database = read_codes(args.database)
        check_holds(database, args.database, "activations")
        load = query_loader(database.settings, cfg)
    elif args.dataset:
        entries, _ = dataset_entries(args.dataset, cfg)
    else:
        entries = entries_of_scan(find_photos(args.input), args.input)
    if args.json:
        names = database.file_names if database else [entry.file_name for entry in entries]
        refuse_inputs(args.json, photos=names)
    encoder = CopyEncoder(cfg, load_trained_model(cfg), load)
    if database is None:
        database = encoder.encode_all(entries)
    for note in encoder.check(database):
        print_line(f"warning: {note}", sys.stderr)
    rows = sample_rows(len(database), args.sample, args.seed)
    places = measure(encoder, database, rows)
    topk = list(dict.fromkeys(args.topk))
    metrics = metrics_of(places, topk)
    count = len(places[UNCHANGED])
    print(f"{count} photos, each with {len(COPIES)} copies, searched among {len(database)} photos")
    print(format_table(metrics, topk))
    # Last, so that the numbers are printed even if the file can't be written.
    if args.json:
        write_json(
            args.json,
            {"num_photos": count, "num_database": len(database), "seed": args.seed, **metrics},
            format="regiondh-copies",
        )
