"""An index that is moved to another network."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from code_sets import assert_same
from pictures import save
from regiondh_d2.checkpoint import model_fingerprint
from regiondh_d2.data.photo_files import find_photos
from regiondh_d2.engine import reencoding
from regiondh_d2.engine.extraction import code_extractor
from regiondh_d2.engine.reencoding import IndexReencoder
from regiondh_d2.retrieval.code_store import read_codes, write_codes
from regiondh_d2.retrieval.images import entries_of_scan
from regiondh_d2.retrieval.index_folder import read_index_folder, write_index_folder
from regiondh_d2.retrieval.queries import Query
from regiondh_d2.retrieval.service import SnapshotHolder
from regiondh_d2.utils.errors import RegionDHError


class Place:
    """Photos, a code file and an index by an old network, and the new network."""

    def __init__(self, folder, cfg, old, new):
        self.folder, self.cfg, self.old, self.new = folder, cfg, old, new
        self.photos, self.codes = folder / "photos", folder / "codes.h5"
        self.index = folder / "index"

    def extract(self, model, output, **options):
        scan = find_photos([self.photos])
        extractor = code_extractor(
            model, self.cfg, config="some.yaml", class_names=[], activations=True, log=print
        )
        extractor.extract(entries_of_scan(scan, [self.photos]), output, scan=scan, **options)
        return read_codes(output)

    def build(self, codes=None):
        codes = codes or self.codes
        write_index_folder(self.index, read_codes(codes), engine="numpy", source=str(codes))

    def reencode(self, **options):
        moves = options.pop("moves", ())
        options = {"save_every": 0.0, "batch_size": 2, "log": print, **options}
        return IndexReencoder(self.new, self.cfg, "some.yaml", **options).run(self.index, moves)

    def items(self):
        return read_index_folder(self.index).items

    def names(self):
        return [os.path.basename(name) for name in self.items().file_names]

    def is_old(self):
        return self.items().model_fingerprint == model_fingerprint(self.old)


@pytest.fixture
def networks(make_model, tiny_cfg):
    options = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    tiny_cfg.TEST.RETRIEVAL.INSTANCE_MIN_SCORE = 0.0
    tiny_cfg.INPUT.MIN_SIZE_TEST = 32
    tiny_cfg.DATALOADER.NUM_WORKERS = 0
    return tiny_cfg, *(make_model(*options, seed=seed).eval() for seed in (0, 1))


@pytest.fixture
def place(tmp_path, networks):
    place = Place(tmp_path, *networks)
    for i in range(6):
        save(place.photos / f"{i}.png", height=20 if i % 3 else 40)
    place.extract(place.old, place.codes)
    place.build()
    return place


@pytest.fixture
def during(monkeypatch):
    """A function that sets what is called before each batch of a network, with its number."""

    def set_up(network, action):
        inference, calls = network.inference, []

        def encode(inputs, *rest, **options):
            calls.append(len(inputs))
            action(len(calls))
            return inference(inputs, *rest, **options)

        monkeypatch.setattr(network, "inference", encode)
        return calls

    return set_up


def assert_is_as_new(place, tmp_path):
    """Index and code file are those that the new network makes of the photos, bit for bit."""
    fresh = place.extract(place.new, tmp_path / "fresh.h5", skip_bad=True)
    assert_same(place.items(), fresh)
    return fresh


def test_the_moved_index_is_that_of_a_new_start(place, tmp_path):
    done = place.reencode()
    assert (done.photos, done.gone, done.unreadable) == (6, (), ())
    fresh = assert_is_as_new(place, tmp_path)
    assert len(fresh.instances.codes) > 0
    assert_same(read_codes(place.codes), fresh)
    assert sorted(os.listdir(place.folder)) == ["codes.h5", "fresh.h5", "index", "photos"]
    before = (place.index / "index.json").stat().st_mtime_ns
    assert place.reencode() is None
    assert (place.index / "index.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("step", [1, 3, "write_codes", "write_index_folder"])
def test_killed_anywhere_the_old_index_answers_and_the_next_run_goes_on(
    place, tmp_path, during, monkeypatch, step
):
    def kill(call=None, *rest, **options):
        if step in (call, "write_codes", "write_index_folder"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if isinstance(step, int):
            inference = place.new.inference
            during(place.new, kill)
        else:
            patch.setattr(reencoding, step, kill)
        with pytest.raises(KeyboardInterrupt):
            place.reencode()
        if isinstance(step, int):
            patch.setattr(place.new, "inference", inference)
    assert place.is_old()
    assert len(place.items()) == 6
    calls = during(place.new, lambda call: None)
    assert place.reencode().photos == 6
    assert sum(calls) == (6 - 2 * (step - 1) if isinstance(step, int) else 0)
    fresh = assert_is_as_new(place, tmp_path)
    assert_same(read_codes(place.codes), fresh)
    assert not list(place.folder.glob("*.reencode*"))


def test_a_service_answers_with_the_old_index_until_the_end(place, during):
    holder = SnapshotHolder(place.index)
    old = holder.current()
    query = Query("q.png", place.items().codes[:1])

    def look(call):
        service = holder.current()
        assert service is old
        assert service.search(query).answers[0].distance == 0

    assert len(during(place.new, look)) == 0
    place.reencode()
    new = holder.current()
    assert new.folder.items.model_fingerprint == model_fingerprint(place.new)
    assert len(new.search(Query("q.png", new.folder.items.codes[:1])).answers) == 6
    assert len(old.search(query).answers) == 6  # its snapshot is whole


def test_photos_that_are_added_meanwhile_are_not_lost(place, tmp_path, during):
    def add(call):
        if call == 2:
            save(place.photos / "new.png")
            place.extract(place.old, place.codes, resume=True)
            place.build()

    during(place.new, add)
    assert place.reencode().photos == 7
    assert_same(place.items(), read_codes(place.codes))
    assert sorted(place.names()) == sorted(os.listdir(place.photos))


def test_an_index_that_is_built_at_the_last_moment_stays(place, monkeypatch):
    write = reencoding.write_index_folder

    def build_first(*arguments, **options):
        monkeypatch.setattr(reencoding, "write_index_folder", write)
        save(place.photos / "new.png")
        place.extract(place.old, tmp := place.folder / "other.h5")
        place.build(tmp)
        return write(*arguments, **options)

    monkeypatch.setattr(reencoding, "write_index_folder", build_first)
    assert place.reencode().photos == 7
    assert "new.png" in place.names()


def test_deleted_changed_and_unreadable_photos(place, tmp_path):
    (place.photos / "1.png").unlink()
    save(place.photos / "3.png", height=25)
    (place.photos / "4.png").write_bytes(b"no image")
    with pytest.raises(RegionDHError, match="1 of 5 photos can't be read, first .*4.png.*--skip"):
        place.reencode()
    assert place.is_old()
    (place.folder / "index.reencode.h5").write_bytes(b"of another program")
    with pytest.raises(RegionDHError, match="index.reencode.h5: exists"):
        place.reencode()
    (place.folder / "index.reencode.h5").unlink()
    done = place.reencode(skip_bad=True)
    assert [os.path.basename(name) for name in done.gone] == ["1.png"]
    assert [os.path.basename(error.file_name) for error in done.unreadable] == ["4.png"]
    assert place.names() == ["0.png", "2.png", "3.png", "5.png"]
    assert_is_as_new(place, tmp_path)


def test_photos_that_are_away_or_have_all_gone(place):
    hidden = place.folder / "hidden"
    place.photos.rename(hidden)
    before = {path: path.read_bytes() for path in place.index.iterdir()}
    with pytest.raises(RegionDHError, match="6 photos can't be encoded now: .*photos is not there"):
        place.reencode()
    place.photos.mkdir()
    save(place.photos / "other.png")
    with pytest.raises(RegionDHError, match="all 6 photos have gone"):
        place.reencode()
    assert before == {path: path.read_bytes() for path in place.index.iterdir()}
    shutil.rmtree(place.photos)
    done = place.reencode(moves=[f"{place.photos}={hidden}"])
    assert done.photos == 6
    assert {Path(name).parent for name in place.items().file_names} == {hidden}


def test_without_its_code_file_the_new_one_stands_beside_the_index(place, tmp_path):
    items = replace(place.items(), labels=None)
    place.codes.unlink()
    write_index_folder(place.index, items, engine="numpy", granularities=["image"], source="gone")
    done = place.reencode()
    assert done.codes == str(place.folder / "index.h5")
    folder = read_index_folder(place.index)
    assert folder.record["source"] == done.codes
    assert list(folder.record["levels"]) == ["image"]
    assert_is_as_new(place, tmp_path)


def test_the_code_file_is_found_beside_the_index(place):
    """It was named from another folder, as ``search-photos`` does it."""
    write_index_folder(place.index, place.items(), engine="numpy", source="output/codes.h5")
    assert place.reencode().codes == str(place.codes)
    assert_same(place.items(), read_codes(place.codes))


def test_what_is_refused(place):
    parts = place.folder / "codes.h5.parts"
    parts.mkdir()
    write_codes(parts / "part-1.h5", read_codes(place.codes))
    with pytest.raises(RegionDHError, match=r"codes.h5: its extraction is unfinished"):
        place.reencode()
    shutil.rmtree(parts)
    labels = {"labels": np.ones((6, 2), np.uint8), "class_names": ["a", "b"]}
    labeled = replace(place.items(), **labels, instances=None, class_weights=None)
    write_codes(place.codes, labeled)
    place.build()
    with pytest.raises(RegionDHError, match="labels of 2 classes, which aren't those of the netw"):
        place.reencode()
    assert place.is_old()
