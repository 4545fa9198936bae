"""From nothing to answers in a few lines of Python: a trained network that searches photos."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from ..checkpoint.zoo import CONFIGS, DEFAULT, network_name
from ..data.photo_files import find_photos
from ..retrieval.code_store import read_codes
from ..retrieval.earlier_codes import keeps_activations, known_files
from ..retrieval.extraction_plan import images_to_code
from ..retrieval.images import ImageLoader
from ..retrieval.index_folder import write_index_folder
from ..retrieval.index_record import check_index_output
from ..retrieval.queries import Query, QueryObject, SearchResult
from ..retrieval.service import SearchService, SnapshotHolder
from ..utils.display import display_name
from ..utils.errors import InputNotFoundError, RegionDHError
from ..utils.file_io import check_output_file
from .command import load_trained_model
from .config_names import find_config
from .defaults import build_cfg
from .extraction import classes_of_model, code_extractor
from .network_choice import earlier_network, moving_note
from .photo_output import check_photo_output, marked_output
from .query_encoder import QueryEncoder, QueryImage
from .searcher import RegionDHSearcher

__all__ = ["PhotoNetwork", "load"]


def load(
    name: str | os.PathLike | None = None,
    weights: str | os.PathLike | None = None,
    opts: Sequence[str] = (),
    device: str | None = None,
) -> PhotoNetwork:
    """A trained network, ready to search photos.

    Example:

    .. code-block:: python

        import regiondh_d2

        network = regiondh_d2.load()
        network.index("photos")
        for answer in network.search("query.jpg").answers:
            print(answer.distance, answer.file_name)

    Args:
        name: a network that comes with the package; or a config, its file or short name. By default
            the better one of the package; indexes that another one of the package made are searched
            and grown with that one, then.
        weights: the trained weights, a file or one of the names that ``MODEL.WEIGHTS`` takes; by
            default those that the config names.
        opts: further overrides KEY, VALUE of the config.
        device: such as "cpu" or "cuda"; by default that of the config.

    Raises:
        InputNotFoundError: there is neither such a network nor such a config.
        WeightsError: there are no trained weights.
        RegionDHError: a wrong config, or a network that encodes no images.
    """
    given = os.fspath(DEFAULT if name is None else name)
    config = find_config(CONFIGS.get(given, given))
    overrides = list(opts)
    if weights is not None:
        overrides += ["MODEL.WEIGHTS", os.fspath(weights)]
    if device is not None:
        overrides += ["MODEL.DEVICE", device]
    cfg = build_cfg(config, overrides)
    is_default = name is None and weights is None and not opts
    model = load_trained_model(cfg)
    return PhotoNetwork(model, cfg, os.path.basename(config), follows_indexes=is_default)


class PhotoNetwork:
    """A trained network that encodes images, detects objects, and searches folders of photos.

    An image is a path, a file open for reading bytes, the bytes of a file, an image of Pillow's,
    or an array: RGB, uint8 (H, W, 3). Several images are a list or tuple of them.

    Attributes:
        model: the network, in evaluation mode.
        cfg: its config.
        class_names: of the classes that it detects; empty where unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: CfgNode,
        config: str = "",
        follows_indexes: bool = False,
    ):
        """
        Args:
            model: a :class:`~regiondh_d2.modeling.meta_arch.RegionDH` with trained weights.
            cfg: its config.
            config: name of the config's file, for the record of code files.
            follows_indexes: whether indexes that another network of the package made are searched
                and grown with that one; otherwise they are refused.
        """
        self.model = model
        self.cfg = cfg
        self.class_names = classes_of_model(cfg)
        self._config = config
        self._encoder = QueryEncoder(model, ImageLoader(cfg), self.class_names)
        self._holders: dict[str, SnapshotHolder] = {}
        self._searchers: dict[str, RegionDHSearcher] = {}
        self._current: str | None = None  # the index of the last call of index()
        self._folder: str | None = None  # the photos of that call
        self._follows_indexes = follows_indexes
        self._others: dict[str, PhotoNetwork] = {}  # by name, for such indexes

    def encode(
        self, images: QueryImage | list[QueryImage] | tuple[QueryImage, ...]
    ) -> Query | list[Query]:
        """The codes of one image, or of several.

        Returns:
            A query, whose ``codes`` are packed uint8 (1, ceil(bits / 8)); for several images a list
            of them.

        Raises:
            UnreadableImage: an image can't be read.
            RegionDHError: something is no image.
        """
        if isinstance(images, list | tuple):
            return self._encoder.encode_all(images)
        return self._encoder.encode(images)

    def detect(self, image: QueryImage, min_score: float = 0.3) -> list[QueryObject]:
        """The objects in an image, by descending score: boxes in pixels, class names, scores.

        The N-th one is that of ``search(image, instance=N)``.

        Args:
            image: one image.
            min_score: the least score, in [0, 1].

        Raises:
            UnreadableImage, RegionDHError: as :meth:`encode`.
        """
        return self._encoder.detect(image, min_score)

    def index(
        self,
        folder: str | os.PathLike,
        output: str | os.PathLike = "output/photos",
        *,
        exclude: Sequence[str] = (),
        log: Callable[[str], None] = print,
    ) -> RegionDHSearcher:
        """Makes a folder of photos searchable, as ``regiondh search-photos`` does.

        Called again, it encodes new and changed photos only. Photos that can't be read are told and
        left out. :meth:`search` then answers with photos of this folder.

        Args:
            folder: searched with its subfolders.
            output: a folder for the codes and the index. Several folders of photos may share it.
            exclude: patterns of names that are left out, as of
                :func:`~regiondh_d2.data.photo_files.find_photos`.
            log: takes the lines about progress.

        Returns:
            A searcher of all photos in the index.

        Raises:
            InputNotFoundError: there is no such folder.
            OutputExistsError: ``output`` holds something else, or the photos.
            RegionDHError: there is no photo that can be read, or the codes that are there are of
                another network.
        """
        photos, place = Path(folder), Path(output)
        if not os.fspath(folder) or not photos.is_dir():  # "" would be the working directory
            raise InputNotFoundError(f"{display_name(folder)}: no such folder of photos")
        check_photo_output(place, photos)
        codes, index = place / "photos.h5", place / "index"
        check_index_output(index)
        earlier = earlier_network(codes) if self._follows_indexes else ""
        if earlier:
            log(moving_note(earlier, codes, index))
            searcher = self._other(earlier).index(photos, place, exclude=exclude, log=log)
            self._current, self._folder = os.path.abspath(index), os.path.abspath(photos)
            return searcher
        known = known_files(codes)
        check_output_file(codes, overwrite=None, kind="codes")
        inputs = [str(photos)]
        with marked_output(place):
            scan = find_photos(
                inputs, exclude, lambda photo: known.get(photo.path) == (photo.size, photo.mtime_ns)
            )
            images, notes = images_to_code(scan, inputs, known)
            for line in notes:
                log(line)
            extractor = code_extractor(
                self.model,
                self.cfg,
                config=self._config,
                class_names=self.class_names,
                activations=keeps_activations(codes),
                log=log,
            )
            result = extractor.extract(images, codes, resume=True, skip_bad=True, scan=scan)
            assert result is not None  # it is, on the main process
            for error in result.unreadable:
                log(f"unreadable: {error}")
            if not result.complete or not result.rows:
                raise RegionDHError(f"{display_name(photos)}: no photo in it can be read")
        items = read_codes(codes)
        has_faiss = importlib.util.find_spec("faiss") is not None
        write_index_folder(
            index,
            items,
            engine="faiss" if has_faiss else "numpy",
            source=str(codes),
            network=network_name(items.model_fingerprint),
        )
        self._current, self._folder = os.path.abspath(index), os.path.abspath(photos)
        return self.searcher(index)

    def search(
        self,
        images: QueryImage | list[QueryImage] | tuple[QueryImage, ...],
        index: str | os.PathLike | None = None,
        **options: Any,
    ) -> SearchResult | list[SearchResult]:
        """The photos of an index that are most like an image, or like each of several.

        Args:
            images: one image or several.
            index: an index folder; by default that of the last :meth:`index`, where answers are
                photos of its folder unless ``within`` says otherwise.
            options: ``topk``, ``box`` and others, as of :meth:`.RegionDHSearcher.search`.

        Returns:
            The answers to one image, or a list of answers to each of several.

        Raises:
            IndexFileError: no index, or one of another network.
            UnreadableImage, RegionDHError: as :meth:`.RegionDHSearcher.search`.
        """
        if index is None:
            if self._current is None:
                raise RegionDHError("there is no index to search: call index(folder) first")
            index = self._current
            options.setdefault("within", [self._folder])
        return self.searcher(index).search(images, **options)

    def searcher(self, index: str | os.PathLike) -> RegionDHSearcher:
        """A searcher of an index folder as it is now, with this network; or with that of the index,
        if ``follows_indexes``.

        Raises:
            IndexFileError: no index folder, or one of another network.
        """
        path = os.path.abspath(index)
        if path not in self._holders:
            self._holders[path] = SnapshotHolder(path)
        service: SearchService = self._holders[path].current()
        name = network_name(service.folder.items.model_fingerprint)
        if self._follows_indexes and name not in ("", DEFAULT):
            return self._other(name).searcher(index)
        known = self._searchers.get(path)
        if known is None or known.service is not service:
            known = RegionDHSearcher.from_model(service, self.cfg, self.model)
            self._searchers[path] = known
        return known

    def _other(self, name: str) -> PhotoNetwork:
        """Another network of the package, loaded at the first call."""
        if name not in self._others:
            self._others[name] = load(name, device=self.cfg.MODEL.DEVICE)
        return self._others[name]
