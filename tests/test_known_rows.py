"""Which rows stay, move, are copied or are encoded again when photos change between two runs."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from extraction import BITS, extract_folder, fake_model, make_extractor
from pictures import pixels_of, save
from regiondh_d2.data import photo_files
from regiondh_d2.retrieval.code_store import read_codes
from regiondh_d2.retrieval.images import ImageEntry, ImageLoader
from regiondh_d2.structures.packed import unpack_codes
from regiondh_d2.utils.errors import InputNotFoundError, RegionDHError

OLD = 1_600_000_000_000_000_000  # a time of modification, in nanoseconds


class Album:
    """A folder of photos, its code file, and a look at what a run codes."""

    def __init__(self, folder):
        self.photos = folder / "photos"
        self.output = folder / "codes.h5"
        for name in ("a.png", "b.png", "c.png", "sub/d.png"):
            self.save(name)

    def save(self, name, content="", time=OLD, folder=None):
        """A photo at a name, of the content that belongs to another name, of a fixed time."""
        path = (folder or self.photos) / name
        made = save(self.photos.parent / "made" / Path(content or name).name)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made, path)
        os.utime(path, ns=(time, time))
        return path

    def run(self, *folders, resume=True, **options):
        """Names of the files encoded now, and what :meth:`CodeExtractor.extract` says."""
        seen = []

        def model(inputs):
            seen.extend(tuple(given["image"][0, 0].tolist()) for given in inputs)
            return fake_model(inputs)

        inputs = [str(folder) for folder in folders] or [self.photos]
        result = extract_folder(inputs, self.output, model=model, resume=resume, **options)
        made = [p.name for p in sorted((self.photos.parent / "made").iterdir())]
        rows = {tuple(pixels_of(name)[0, :, 0].tolist()): name for name in made}
        return sorted(rows.get(pixels, "?") for pixels in seen), result

    def codes(self):
        return read_codes(self.output)

    def contents(self):
        """Which content each file name has a code of, by the code."""
        made = [p.name for p in (self.photos.parent / "made").iterdir()]
        codes = self.codes()
        known = {bytes(pixels_of(name)[0, :BITS, 0] > 127): name for name in made}
        return {
            name: known[bytes(code)]
            for name, code in zip(
                codes.relative_paths, unpack_codes(codes.codes, BITS), strict=True
            )
        }


@pytest.fixture
def album(tmp_path):
    album = Album(tmp_path)
    coded, _ = album.run(resume=False)
    assert coded == ["a.png", "b.png", "c.png", "d.png"]
    return album


ALL = {"a.png": "a.png", "b.png": "b.png", "c.png": "c.png", "sub/d.png": "d.png"}


def test_what_is_known_of_a_file_is_stored(album):
    codes = album.codes()
    assert codes.roots == [str(album.photos)]
    assert album.contents() == ALL
    assert set(codes.mtime_ns) == {OLD}
    for row, name in enumerate(codes.file_names):
        assert codes.size[row] == os.path.getsize(name)
        assert (
            codes.content_sha256[row].tobytes() == hashlib.sha256(Path(name).read_bytes()).digest()
        )


def test_unchanged_photos_are_not_read(album, monkeypatch):
    before = album.output.stat()

    def refuse(*_):
        raise AssertionError("read")

    monkeypatch.setattr("regiondh_d2.retrieval.known_rows.file_sha256", refuse)
    assert album.run()[0] == []
    assert album.output.stat() == before


def test_a_photo_edited_in_place(album):
    album.save("b.png", "new.png", time=OLD + 1)
    coded, result = album.run()
    assert (coded, result.coded, result.rows) == (["new.png"], 1, 4)
    assert album.contents() == ALL | {"b.png": "new.png"}
    assert album.run()[0] == []


def test_an_edit_of_the_same_size(album):
    path = album.photos / "b.png"
    data = path.read_bytes()
    for number, end in enumerate((b"1", b"2")):
        path.write_bytes(data + end)
        os.utime(path, ns=(OLD + number, OLD + number))
        assert album.run()[0] == ["b.png"]
    row = album.codes().relative_paths.index("b.png")
    assert album.codes().mtime_ns[row] == OLD + 1


def test_a_time_that_was_restored(album):
    path = album.photos / "b.png"
    album.save("b.png", "new.png")
    path.write_bytes(path.read_bytes() + b"x")
    os.utime(path, ns=(OLD, OLD))
    assert album.run()[0] == ["new.png"]


def test_a_touched_photo_is_not_coded(album):
    os.utime(album.photos / "b.png", ns=(OLD + 9, OLD + 9))
    coded, result = album.run()
    assert (coded, result.rows) == ([], 4)
    assert sorted(set(album.codes().mtime_ns)) == [OLD, OLD + 9]


def test_a_time_in_the_future(album):
    future = 4_000_000_000_000_000_000
    album.save("b.png", "new.png", time=future)
    assert album.run()[0] == ["new.png"]
    assert album.run()[0] == []


def test_two_photos_that_swapped_their_names(album):
    a, b, other = (album.photos / name for name in ("a.png", "b.png", "x"))
    os.utime(b, ns=(OLD + 1, OLD + 1))
    album.run()
    a.rename(other)
    b.rename(a)
    other.rename(b)
    assert album.run()[0] == []
    assert album.contents() == ALL | {"a.png": "b.png", "b.png": "a.png"}


def test_a_moved_photo(album):
    (album.photos / "new").mkdir()
    (album.photos / "a.png").rename(album.photos / "new" / "z.png")
    coded, result = album.run()
    assert (coded, result.rows, result.gone) == ([], 4, 0)
    assert album.contents() == {
        "b.png": "b.png",
        "c.png": "c.png",
        "new/z.png": "a.png",
        "sub/d.png": "d.png",
    }


def test_a_copied_photo(album):
    album.save("copy.png", "a.png", time=OLD + 3)
    coded, result = album.run()
    assert (coded, result.rows) == ([], 5)
    assert album.contents() == ALL | {"copy.png": "a.png"}
    codes = album.codes()
    np.testing.assert_array_equal(codes.instances.image_index, range(5))


def test_a_name_that_changes_in_case_alone(album):
    (album.photos / "a.png").rename(album.photos / "A.png")
    assert album.run()[0] == []
    assert set(album.contents()) == {"A.png", "b.png", "c.png", "sub/d.png"}


def test_case_on_a_file_system_that_ignores_it(album, monkeypatch):
    (album.photos / "a.png").rename(album.photos / "A.png")
    old, new = str(album.photos / "a.png"), str(album.photos / "A.png")

    def ignoring(function):
        return lambda path, *rest, **more: function(new if path == old else path, *rest, **more)

    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, ignoring(getattr(os, name)))
    assert album.run()[0] == []
    assert set(album.contents()) == {"A.png", "b.png", "c.png", "sub/d.png"}


def test_a_renamed_folder(album, tmp_path):
    album.photos.rename(tmp_path / "renamed")
    coded, result = album.run(tmp_path / "renamed")
    assert (coded, result.rows, result.gone) == ([], 4, 0)
    assert album.contents() == ALL
    assert album.codes().roots == [str(tmp_path / "renamed")]
    assert album.codes().image_ids == album.codes().file_names


def test_a_renamed_subfolder(album):
    (album.photos / "sub").rename(album.photos / "other")
    coded, result = album.run()
    assert (coded, result.rows) == ([], 4)
    assert set(album.contents()) == {"a.png", "b.png", "c.png", "other/d.png"}


def test_a_root_that_is_told(album, tmp_path):
    """Also where times were lost, which is told by the content."""
    album.photos.rename(tmp_path / "new = place")
    os.utime(tmp_path / "new = place" / "a.png", ns=(OLD + 7, OLD + 7))
    move = f"{album.photos}={tmp_path / 'new = place'}"
    for number_of_lines in (0, 1):  # a command that is repeated
        log = []
        coded, result = album.run(tmp_path / "new = place", moves=[move], log=log.append)
        assert (coded, result.rows) == ([], 4)
        assert sum("nothing is moved" in line for line in log) == number_of_lines
    assert album.codes().roots == [str(tmp_path / "new = place")]


def test_a_mistyped_root_is_told_where_photos_are_in_the_new_one_already(album):
    wrong, log = album.photos.with_name("phots"), []
    album.run(moves=[f"{wrong}={album.photos}"], log=log.append)
    (line,) = [line for line in log if "--root" in line]
    assert line == (
        f"--root {wrong}={album.photos}: no photo was in {wrong}, and some are in the new folder "
        "already: nothing is moved"
    )
    assert album.contents() == ALL


def test_a_root_that_no_photo_is_in(album, tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(RegionDHError, match="no image is in"):
        album.run(moves=[f"{tmp_path / 'wrong'}={tmp_path / 'x'}"])


def test_another_spelling_and_a_link_to_the_folder(album, tmp_path):
    (tmp_path / "link").symlink_to(album.photos)
    for folder in (tmp_path / "link", tmp_path / "photos" / "sub" / ".."):
        coded, result = album.run(folder)
        assert (coded, result.rows) == ([], 4)
    assert album.codes().roots == [str(album.photos)]


def test_a_root_that_became_a_link(album, tmp_path):
    album.photos.rename(tmp_path / "disk")
    album.photos.symlink_to(tmp_path / "disk")
    coded, result = album.run()
    assert (coded, result.rows) == ([], 4)


def test_a_root_in_another(album):
    coded, result = album.run(album.photos / "sub", album.photos)
    assert (coded, result.rows) == ([], 4)
    coded, result = album.run(album.photos / "sub")
    assert (coded, result.rows) == ([], 4)
    assert set(album.contents()) == set(ALL)
    assert album.codes().roots == [str(album.photos)]


def test_a_photo_that_has_gone_stays_until_it_is_pruned(album):
    (album.photos / "a.png").unlink()
    (album.photos / "b.png").unlink()
    coded, result = album.run()
    assert (coded, result.rows, result.gone, result.pruned) == ([], 4, 2, 0)
    assert album.contents() == ALL
    coded, result = album.run(prune=True)
    assert (coded, result.rows, result.gone, result.pruned) == ([], 2, 0, 2)
    assert set(album.contents()) == {"c.png", "sub/d.png"}


def test_a_file_replaced_by_a_folder(album):
    (album.photos / "a.png").unlink()
    album.save("a.png/e.png")
    coded, result = album.run()
    assert (coded, result.rows, result.gone) == (["e.png"], 5, 1)
    assert album.run(prune=True)[1].pruned == 1


def test_photos_of_other_folders_are_never_pruned(album, tmp_path):
    other = album.save("x.png", folder=tmp_path / "other").parent
    album.run(other)
    (other / "x.png").unlink()
    assert album.run(prune=True)[1].rows == 5


@pytest.mark.parametrize("problem", ["missing", "empty", "system files", "no photos"])
def test_a_root_that_is_not_there(album, tmp_path, problem):
    """One line, and nothing changes; with another input the run goes on, and prunes none of it."""
    other = album.save("x.png", folder=tmp_path / "other").parent
    shutil.move(album.photos, tmp_path / "away")
    if problem != "missing":
        album.photos.mkdir()
    if problem == "system files":
        (album.photos / ".DS_Store").touch()
    if problem == "no photos":
        (album.photos / "README.txt").touch()
    before = album.output.read_bytes()
    with pytest.raises(RegionDHError, match="nothing is changed of its 4 rows") as error:
        album.run(prune=True)
    assert str(album.photos) in str(error.value)
    assert album.output.read_bytes() == before

    coded, result = album.run(album.photos, other, prune=True)
    assert (coded, result.rows, result.pruned) == (["x.png"], 5, 0)
    shutil.rmtree(album.photos, ignore_errors=True)
    shutil.move(tmp_path / "away", album.photos)
    coded, result = album.run(album.photos, other, prune=True)
    assert (coded, result.rows, result.gone) == ([], 5, 0)


def test_copies_of_an_absent_disk_do_not_take_its_rows(album, tmp_path):
    shutil.copytree(album.photos, tmp_path / "backup")
    shutil.move(album.photos, tmp_path / "away")
    coded, result = album.run(album.photos, tmp_path / "backup")
    assert (coded, result.rows) == ([], 8)


def test_an_input_that_is_neither_there_nor_known(album, tmp_path):
    before = album.output.read_bytes()
    with pytest.raises(InputNotFoundError, match="no such file or folder"):
        album.run(album.photos, tmp_path / "typo")
    assert album.output.read_bytes() == before


def test_a_folder_that_cannot_be_read(album, monkeypatch):
    (album.photos / "sub" / "d.png").unlink()
    real = os.scandir

    def scandir(path):
        if str(path) == str(album.photos / "sub"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(photo_files.os, "scandir", scandir)
    coded, result = album.run(prune=True)
    assert (coded, result.rows, result.pruned, result.gone) == ([], 4, 0, 0)


def test_a_folder_behind_a_dead_link(album, tmp_path):
    (album.photos / "sub").rename(tmp_path / "disk")
    (album.photos / "sub").symlink_to(tmp_path / "disk")
    assert album.run()[1].rows == 4
    (tmp_path / "disk").rename(tmp_path / "away")
    assert album.run(prune=True)[1].rows == 4


def test_excluded_photos_keep_their_rows(album):
    coded, result = album.run(exclude=["sub"], prune=True)
    assert (coded, result.rows, result.gone) == ([], 4, 0)


def test_a_second_name_is_no_double(album):
    os.link(album.photos / "c.png", album.photos / "0.png")
    coded, result = album.run()
    assert (coded, result.rows) == ([], 4)
    assert set(album.contents()) == {"0.png", "a.png", "b.png", "sub/d.png"}


def test_a_photo_that_is_damaged_now_keeps_the_row_of_what_it_was(album):
    path = album.photos / "b.png"
    path.write_bytes(path.read_bytes()[:300])
    row = album.codes().relative_paths.index("b.png")
    size = album.codes().size[row]
    coded, result = album.run()
    assert (coded, result.complete, len(result.unreadable)) == ([], False, 1)
    coded, result = album.run(skip_bad=True)
    assert (coded, result.rows, len(result.unreadable)) == ([], 4, 1)
    row = album.codes().relative_paths.index("b.png")
    assert album.codes().size[row] == size != path.stat().st_size
    album.save("b.png", time=OLD + 4)
    assert album.run()[0] == []
    assert album.contents() == ALL


def test_a_photo_that_goes_during_the_run(album):
    for name in ("e.png", "f.png"):
        album.save(name)

    def model(inputs):
        (album.photos / "f.png").unlink(missing_ok=True)
        return fake_model(inputs)

    result = extract_folder(album.photos, album.output, model=model, resume=True, batch_size=1)
    assert result.complete
    assert result.vanished == (str(album.photos / "f.png"),)
    assert set(album.contents()) == set(ALL) | {"e.png"}


def test_a_photo_that_changes_while_it_is_read(album):
    """The row tells of the content that was encoded."""
    path = album.save("e.png")

    class Loader(ImageLoader):
        def with_thumbnail(self, file_name):
            found = super().with_thumbnail(file_name)
            if file_name == str(path) and path.stat().st_mtime_ns == OLD:
                album.save("e.png", "later.png", time=OLD + 1)
            return found

    loader = Loader(min_size=0, max_size=0, image_format="RGB")
    assert album.run(loader=loader)[0] == ["later.png"]
    assert album.run()[0] == []


def test_verify_reads_everything(album):
    """Also what differs from its code in nothing that can be seen without reading."""
    path = album.photos / "b.png"
    data = path.read_bytes()
    for end, known in ((b"1", ["b.png"]), (b"2", [])):
        path.write_bytes(data + end)
        os.utime(path, ns=(OLD, OLD))
        assert album.run()[0] == known
    assert album.run(verify=True)[0] == ["b.png"]
    assert album.run(verify=True)[0] == []


def test_an_edit_between_an_interruption_and_the_next_run(album):
    """The part of the first run holds the former content."""
    calls = 0

    def model(inputs):
        nonlocal calls
        calls += 1
        if calls > 1:
            raise KeyboardInterrupt
        return fake_model(inputs)

    for name in ("e.png", "f.png"):
        album.save(name)
    with pytest.raises(KeyboardInterrupt):
        extract_folder(album.photos, album.output, model=model, resume=True, batch_size=1)
    album.save("e.png", "new.png", time=OLD + 1)
    coded, result = album.run()
    assert (coded, result.rows) == (["f.png", "new.png"], 6)
    assert album.contents() == ALL | {"e.png": "new.png", "f.png": "f.png"}


def test_a_folder_renamed_after_an_interruption(tmp_path):
    album = Album(tmp_path)
    calls = 0

    def model(inputs):
        nonlocal calls
        calls += 1
        if calls > 2:
            raise KeyboardInterrupt
        return fake_model(inputs)

    with pytest.raises(KeyboardInterrupt):
        extract_folder(album.photos, album.output, model=model, batch_size=1)
    album.photos.rename(tmp_path / "renamed")
    coded, result = album.run(tmp_path / "renamed")
    assert (coded, result.rows) == (["c.png", "d.png"], 4)
    assert album.contents() == ALL


# Data sets


def entries(album, *names, **labels):
    return [
        ImageEntry(
            image_id=str(number),
            file_name=str(album.photos / name),
            labels=labels.get(f"of_{number}", (0,)),
            root=str(album.photos),
            relative_path=name,
            size=(album.photos / name).stat().st_size,
            mtime_ns=(album.photos / name).stat().st_mtime_ns,
        )
        for number, name in enumerate(names)
    ]


def test_a_replaced_image_of_a_dataset(tmp_path):
    album = Album(tmp_path)
    run = make_extractor(dataset="some").extract
    run(entries(album, "a.png", "b.png"), album.output)
    assert album.codes().image_ids == ["0", "1"]
    assert run(entries(album, "a.png", "b.png"), album.output, resume=True).coded == 0
    album.save("b.png", "new.png", time=OLD + 1)
    assert run(entries(album, "a.png", "b.png"), album.output, resume=True).coded == 1
    assert album.contents() == {"a.png": "a.png", "b.png": "new.png"}


def test_a_dataset_that_stands_elsewhere_keeps_its_rows(tmp_path):
    album = Album(tmp_path)
    run = make_extractor(dataset="some").extract
    run(entries(album, "a.png", "b.png"), album.output)
    album.photos.rename(tmp_path / "moved")
    album.photos = tmp_path / "moved"
    assert run(entries(album, "a.png", "b.png"), album.output, resume=True).coded == 0
    assert album.codes().roots == [str(tmp_path / "moved")]


def test_labels_that_were_corrected(tmp_path):
    album = Album(tmp_path)
    run = make_extractor(dataset="some").extract
    run(entries(album, "a.png", "b.png"), album.output)
    assert run(entries(album, "a.png", "b.png", of_1=(1, 2)), album.output, resume=True).coded == 0
    np.testing.assert_array_equal(album.codes().labels, [[1, 0, 0], [0, 1, 1]])


def test_images_of_a_dataset_never_take_the_row_of_another(tmp_path):
    album = Album(tmp_path)
    album.save("b.png", "a.png")
    make_extractor(dataset="some").extract(entries(album, "a.png"), album.output)
    both = entries(album, "a.png", "b.png")
    result = make_extractor(dataset="some").extract(both, album.output, resume=True)
    assert result.coded == 1
