"""The parts of an unfinished output: what is left, and done again, after any interruption."""

import fcntl
import functools
import itertools
import multiprocessing
import os
import shutil
import signal

import pytest

from extraction import extract_folder, fail_after, fake_model, save_twelve
from pictures import save
from regiondh_d2.structures.codes import CodeFileError
from regiondh_d2.utils.locks import FileInUseError


@pytest.fixture
def folder(tmp_path):
    return save_twelve(tmp_path / "images")


def kill_at_event(number, run):
    """Runs in a process that kills itself at the ``number``-th event; returns whether it did.

    Events are each model call, and the moments before and after every rename, when files are
    complete but have a temporary name, or have just replaced others.
    """

    def target():
        count = 0

        def event():
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        def replace(*paths, original=os.replace):
            event()
            original(*paths)
            event()

        def model(inputs):
            event()
            return fake_model(inputs)

        os.replace = replace
        run(model=model)

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_killed_at_every_moment(folder, tmp_path):
    """One run, killed again and again, each time a little later, and resumed every time."""
    extract_folder(folder, tmp_path / "undisturbed.h5")
    output = tmp_path / "codes.h5"
    run = functools.partial(extract_folder, folder, output, resume=True)
    kills = 0
    # The third event is past the first rename, so that every run saves something.
    while kill_at_event(3 + kills, run):
        kills += 1
    assert kills >= 4
    assert output.read_bytes() == (tmp_path / "undisturbed.h5").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["codes.h5", "images", "undisturbed.h5"]


def test_killed_once_at_any_moment(folder, tmp_path):
    for path in sorted(folder.iterdir())[6:]:  # every moment takes two extractions
        path.unlink()
    extract_folder(folder, tmp_path / "undisturbed.h5")
    expected = (tmp_path / "undisturbed.h5").read_bytes()
    number = 1
    while True:
        output = tmp_path / f"{number}" / "codes.h5"
        if not kill_at_event(number, functools.partial(extract_folder, folder, output)):
            break
        extract_folder(folder, output, resume=True)
        assert output.read_bytes() == expected
        assert os.listdir(output.parent) == ["codes.h5"]
        number += 1
    assert number > 3 * 3  # three batches, each with a model call and two sides of a rename


def test_an_update_that_is_killed_at_every_moment(folder, tmp_path):
    """An edited, a new, a moved and a pruned photo: the old file or the new one, nothing else."""
    extract_folder(folder, tmp_path / "old.h5")
    (folder / "03.png").unlink()
    (folder / "04.png").rename(folder / "moved.png")
    save(folder / "new.png")
    save(folder / "05.png", quality=1, height=24)
    update = functools.partial(extract_folder, folder, resume=True, prune=True, batch_size=1)
    whole = {(tmp_path / "old.h5").read_bytes()}
    for number in itertools.count(1):
        output = tmp_path / f"{number}" / "codes.h5"
        output.parent.mkdir()
        shutil.copy2(tmp_path / "old.h5", output)
        killed = kill_at_event(number, functools.partial(update, output=output))
        found = output.read_bytes()
        assert len(whole | {found}) <= 2
        if found not in whole:
            whole.add(found)
        assert update(output=output).rows == 12
        whole.add(output.read_bytes())
        assert len(whole) == 2
        assert os.listdir(output.parent) == ["codes.h5"]
        if not killed:
            break
    assert number > 2 * 3


def test_ctrl_c_saves_what_is_coded(folder, tmp_path):
    """Also what no part holds yet."""
    output = tmp_path / "codes.h5"
    with pytest.raises(KeyboardInterrupt):
        extract_folder(folder, output, model=fail_after(3), save_every=1000.0)
    result = extract_folder(folder, output, resume=True)
    assert (result.coded, result.rows) == (6, 12)


def test_batches_are_the_same_after_an_interruption(tmp_path):
    """Also beside an image that broke off, whose batch was saved without it."""
    for name in "acdefg":
        save(tmp_path / "images" / f"{name}.png")
    whole = save(tmp_path / "images" / "b.png").read_bytes()
    (tmp_path / "images" / "b.png").write_bytes(whole[:700])
    batches = []

    def model(inputs):
        batches.append([tuple(given["image"][0, 0, :5].tolist()) for given in inputs])
        return fake_model(inputs)

    run = functools.partial(extract_folder, tmp_path / "images", skip_bad=True)
    run(tmp_path / "undisturbed.h5", model=model)
    undisturbed, batches[:] = list(batches), []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "codes.h5", model=fail_after(2))
    run(tmp_path / "codes.h5", model=model, resume=True)
    assert [len(batch) for batch in undisturbed] == [1, 2, 2, 1]
    assert batches == undisturbed[2:]


def test_a_damaged_part_is_coded_again(folder, tmp_path):
    output = tmp_path / "codes.h5"
    with pytest.raises(KeyboardInterrupt):
        extract_folder(folder, output, model=fail_after(3))
    part = sorted((tmp_path / "codes.h5.parts").glob("part-*"))[0]
    part.write_bytes(part.read_bytes()[:100])
    lines = []
    result = extract_folder(folder, output, resume=True, log=lines.append)
    assert result.coded == 8
    assert f"{part} is damaged: its images are encoded again" in lines
    extract_folder(folder, tmp_path / "undisturbed.h5")
    assert output.read_bytes() == (tmp_path / "undisturbed.h5").read_bytes()


def test_earlier_work_is_not_replaced_unasked(folder, tmp_path):
    output = tmp_path / "codes.h5"
    with pytest.raises(KeyboardInterrupt):
        extract_folder(folder, output, model=fail_after(1))
    with pytest.raises(FileExistsError, match="unfinished extraction: go on with --resume"):
        extract_folder(folder, output)
    extract_folder(folder, output, resume=True)
    with pytest.raises(FileExistsError, match="add to it with --resume"):
        extract_folder(folder, output)
    with pytest.raises(FileExistsError, match="is a folder"):
        extract_folder(folder, folder, resume=True)


@pytest.mark.parametrize("how", ["complete", "refused", "killed"])
def test_files_of_others_in_the_parts_folder_stay(folder, tmp_path, how):
    """Its name is made of the output's, and anything may be there already."""
    parts = tmp_path / "codes.h5.parts"
    parts.mkdir()
    (parts / "mine.txt").write_text("mine")
    if how == "refused":
        with pytest.raises(RuntimeError, match="no more"):
            extract_folder(folder, tmp_path / "codes.h5", model=refuse)
        assert os.listdir(parts) == ["mine.txt"]
    if how == "killed":
        with pytest.raises(KeyboardInterrupt):
            extract_folder(folder, tmp_path / "codes.h5", model=fail_after(1))
        (parts / ".part-of-a-killed-run.h5.1.tmp").touch()
    assert extract_folder(folder, tmp_path / "codes.h5", resume=True).rows == 12
    assert os.listdir(parts) == ["mine.txt"]


def test_a_parts_folder_that_is_a_link(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "codes.h5.parts").symlink_to(tmp_path / "elsewhere")
    assert extract_folder(folder, tmp_path / "codes.h5").rows == 12
    assert not os.listdir(tmp_path / "elsewhere")


def refuse(inputs):
    raise RuntimeError("no more")


def test_one_run_at_a_time(folder, tmp_path):
    (tmp_path / "codes.h5.parts").mkdir()
    with open(tmp_path / "codes.h5.parts" / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FileInUseError, match="in use by another program"):
            extract_folder(folder, tmp_path / "codes.h5", resume=True)
    assert extract_folder(folder, tmp_path / "codes.h5", resume=True).rows == 12


def test_a_lost_part_is_not_a_lost_row(folder, tmp_path):
    """If files vanish under a running extraction, it says so."""
    output = tmp_path / "codes.h5"

    def model(inputs):
        for part in (tmp_path / "codes.h5.parts").glob("part-*"):
            part.unlink()
        return fake_model(inputs)

    with pytest.raises(CodeFileError, match="10 images .* lost their codes"):
        extract_folder(folder, output, model=model)
    assert extract_folder(folder, output, resume=True).rows == 12


def test_a_full_disk_costs_only_what_is_not_saved(folder, tmp_path, full_disk):
    """It is full when the parts are written, and at last when they become the output."""
    output, parts = tmp_path / "codes.h5", tmp_path / "codes.h5.parts"
    with full_disk(1 << 10), pytest.raises(OSError, match=r"codes\.h5\.parts/part-\w+\.h5"):
        extract_folder(folder, output)
    assert sorted(os.listdir(tmp_path)) == ["images"]

    extract_folder(folder, tmp_path / "undisturbed.h5", features=True)
    size = (tmp_path / "undisturbed.h5").stat().st_size
    with full_disk(size - 1), pytest.raises(OSError, match=r"codes\.h5\.parts/merged\.h5"):
        extract_folder(folder, output, features=True)
    assert {name[:5] for name in os.listdir(parts)} == {"lock", "part-"}
    assert extract_folder(folder, output, features=True, resume=True).coded == 0
    assert output.read_bytes() == (tmp_path / "undisturbed.h5").read_bytes()
