"""Files are complete or absent, and nothing that must stay is replaced."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from regiondh_d2.utils.errors import OutputExistsError, RegionDHError
from regiondh_d2.utils.file_io import (
    check_output_file,
    check_output_folder,
    mark_folder,
    read_json,
    refuse_inputs,
    replace_when_complete,
    write_json,
)
from regiondh_d2.utils.paths import same_file

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory with a photo, and links to it."""
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(b"photo")
    os.link("photo.jpg", "hard.jpg")
    os.symlink("photo.jpg", "soft.jpg")
    os.symlink(tmp_path, "there")
    return tmp_path


def refused(function, *args, **options):
    with pytest.raises(RegionDHError) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_write_json_is_complete_or_absent(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    write_json(path, {"a": 1.5})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n  "a": 1.5\n}\n'
    assert os.listdir(path.parent) == ["metrics.json"]


# --- Outputs that are inputs ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["photo.jpg", "./photo.jpg", "there/photo.jpg", "there/../photo.jpg", "hard.jpg", "soft.jpg"],
)
@pytest.mark.parametrize("overwrite", [False, True, None])
@pytest.mark.parametrize("what", ["inputs", "photos"])
def test_an_input_is_never_replaced(path, overwrite, what, tmp_path):
    path = path.replace("there/../", f"there/../{tmp_path.name}/")
    for given in ("photo.jpg", tmp_path / "photo.jpg", "soft.jpg"):
        options = {what: [given], "overwrite": overwrite}
        assert f"{path}: is " in refused(check_output_file, path, **options)
    assert Path("photo.jpg").read_bytes() == b"photo"


@pytest.mark.parametrize("path", ["photo.jpg/", "photo.jpg//", "photo.jpg/.", "soft.jpg/"])
@pytest.mark.parametrize("what", ["inputs", "photos"])
def test_a_name_of_a_folder_where_a_file_is(path, what):
    """The system finds nothing there; what would be written is the file."""
    for overwrite in (False, True, None):
        options = {what: ["photo.jpg"], "overwrite": overwrite}
        assert refused(check_output_file, path, **options).startswith(f"{path}: is ")
    with pytest.raises(OutputExistsError):
        refuse_inputs(path, **{what: ["photo.jpg"]})
    assert refused(check_output_file, path, overwrite=True) == (
        f"{path}: is a folder; name a file to write"
    )


@pytest.mark.parametrize("path", ["new/", "new/.", "new/.."])
def test_a_new_file_with_the_name_of_a_folder(path):
    refused(check_output_file, path)


def test_long_names(tmp_path):
    """The longest possible name is written, and a longer one is told at once."""
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    name = "é" * (longest // 2 - 5) + ".json"
    write_json(name, {"a": 1})
    name = "a" * (longest - 5) + ".json"
    check_output_file(name)
    write_json(name, {"a": 1})
    assert read_json(name) == {"a": 1}
    for path in (f"a{name}", f"a{name}/b.json"):
        for overwrite in (False, True):
            with pytest.raises(OSError, match="too long") as error:
                check_output_file(path, overwrite=overwrite)
            assert f"a{name}" in error.value.filename
    with pytest.raises(OSError, match="too long"):
        check_output_folder(f"a{name}")


def test_not_even_if_it_carries_our_mark():
    write_json("a.json", {"a": 1}, format="regiondh-answers")
    check_output_file("a.json")
    refused(check_output_file, "a.json", inputs=["a.json"])
    refused(check_output_file, "a.json", photos=["b.json", "a.json"])


def test_an_output_in_a_folder_that_is_read(tmp_path):
    os.makedirs("index/deep")
    Path("index/items.h5").write_text("")
    os.symlink("index", "link")
    for path in ("index/new.json", "index/deep/new.json", "link/new.json", "index/items.h5"):
        for overwrite in (False, True):
            message = refused(check_output_file, path, inputs=["index"], overwrite=overwrite)
            assert message.startswith(f"{path}: lies in index, which this command reads")
    os.link("index/items.h5", "hard.h5")
    assert "in index" in refused(check_output_file, "hard.h5", inputs=["index"], overwrite=True)
    check_output_file("beside.json", inputs=["index", None, "absent", ""])
    check_output_file("new.json", inputs=["photo.jpg"], photos=["photo.jpg"])


def test_two_outputs_of_one_name(tmp_path):
    for other in ("out.json", "./out.json", tmp_path / "out.json", "there/out.json", "OUT.json"):
        assert "two outputs" in refused(check_output_file, "out.json", outputs=[None, other])
    check_output_file("out.json", outputs=["out.png"])
    check_output_file("/dev/null", outputs=["/dev/null"])


def test_same_file(tmp_path):
    assert same_file("photo.jpg", tmp_path / "hard.jpg")
    assert same_file("absent/a", "there/absent/a")
    assert not same_file("photo.jpg", "absent")
    assert not same_file("absent", "other")


# --- Outputs that others wrote --------------------------------------------------------------------


def test_a_file_of_others_needs_overwrite():
    message = "photo.jpg: exists, and this program did not write it: name another file"
    assert refused(check_output_file, "photo.jpg") == f"{message}, or replace it with --overwrite"
    assert refused(check_output_file, "photo.jpg", overwrite=None) == message
    check_output_file("photo.jpg", overwrite=True)
    check_output_file(None)


def test_our_file_of_another_kind():
    write_json("a.json", {"a": 1}, format="regiondh-answers")
    assert "something else" in refused(check_output_file, "a.json", kind="codes")
    check_output_file("a.json", kind="json")
    check_output_file("a.json", kind="codes", overwrite=True)


def test_a_protected_file():
    write_json("a.json", {"a": 1}, format="regiondh-answers")
    os.chmod("a.json", 0o444)
    assert "write-protected" in refused(check_output_file, "a.json")
    check_output_file("a.json", overwrite=True)


def test_where_nothing_can_be_written():
    os.symlink("nowhere/file", "broken")
    assert "broken: is a link to" in refused(check_output_file, "broken")
    assert "photo.jpg is no folder" in refused(check_output_file, "photo.jpg/new/a.json")
    assert "is a folder" in refused(check_output_file, "there")
    assert "empty name" in refused(check_output_file, "")
    assert "empty name" in refused(check_output_folder, "")
    name = "a\nb\x1b[31m.json"
    Path(name).write_text("")
    assert refused(check_output_file, name).startswith(r"a\nb\x1b[31m.json: exists")


def test_folders(tmp_path):
    os.makedirs("full/deep")
    Path("full/deep/photo.jpg").write_bytes(b"")
    os.mkdir("empty")
    mark_folder("ours", "demo")
    os.mkdir("litter")
    for name in (".DS_Store", "Thumbs.db", "._a"):
        Path("litter", name).write_text("")
    for path in ("empty", "new/deep", "ours", "litter"):
        check_output_folder(path, kind="demo")
    assert "did not write: name another" in refused(check_output_folder, "full")
    assert "did not write" in refused(check_output_folder, "ours", kind="index")
    check_output_folder("full", overwrite=True)
    assert "is a file" in refused(check_output_folder, "photo.jpg", overwrite=True)
    os.mkdir("litter/.git")
    assert "did not write" in refused(check_output_folder, "litter")
    for given in ("full/deep/photo.jpg", "full/deep", "full", "there/full/deep/photo.jpg"):
        for what in ("inputs", "photos"):
            if what == "photos" and not given.endswith("jpg"):
                continue
            refused(check_output_folder, "full", overwrite=True, **{what: [given]})
    os.symlink("full/deep/photo.jpg", "elsewhere.jpg")
    refused(check_output_folder, "full", inputs=["elsewhere.jpg"], overwrite=True)
    check_output_folder("full", inputs=["photo.jpg"], photos=["hard.jpg"], overwrite=True)


# --- Replacing ------------------------------------------------------------------------------------


def test_what_appears_after_the_check_stays():
    Path("out.1.json").write_text("of an earlier run")
    check_output_file("out.json")
    Path("out.json").write_text("theirs")
    assert "by another program meanwhile" in refused(write_json, "out.json", {"a": 1})
    assert Path("out.json").read_text() == "theirs"
    assert Path("out.1.json").read_text() == "of an earlier run"
    assert json.loads(Path("out.2.json").read_text()) == {"a": 1}


def test_what_changes_after_the_check_stays():
    write_json("out.json", {"a": 1}, format="regiondh-answers")
    check_output_file("out.json")
    Path("out.json").write_text("edited by hand")
    refused(write_json, "out.json", {"a": 2})
    assert Path("out.json").read_text() == "edited by hand"


def test_what_a_run_beside_this_one_wrote_is_replaced():
    check_output_file("out.json")
    write_json("there/out.json", {"a": 1}, format="regiondh-answers")
    write_json("out.json", {"a": 2}, format="regiondh-answers")
    write_json("out.json", {"a": 3})  # without a check, as ever
    assert json.loads(Path("out.json").read_text()) == {"a": 3}


def test_a_link_stays_and_leads_to_the_new_file():
    os.mkdir("disk")
    Path("disk/old.json").write_text("{}")
    os.symlink("disk/old.json", "out.json")
    write_json("out.json", {"a": 1})
    assert os.path.islink("out.json")
    assert json.loads(Path("disk/old.json").read_text()) == {"a": 1}
    assert os.listdir("disk") == ["old.json"]


def test_errors_of_the_system_name_the_output(full_disk):
    with full_disk(8), pytest.raises(OSError) as caught:
        write_json("out.json", {"a": "b" * 100})
    assert caught.value.filename == "out.json"
    with pytest.raises(FileNotFoundError) as caught, replace_when_complete("out.json"):
        os.stat("absent")
    assert caught.value.filename == "absent"
    assert not Path("out.json").exists()


# The package's own __init__ takes seconds to import.
WRITE = """
import sys, types
package = types.ModuleType("regiondh_d2")
package.__path__ = [sys.argv[2]]
sys.modules["regiondh_d2"] = package
from regiondh_d2.utils.file_io import check_output_file, write_json
print("first", flush=True)
check_output_file(sys.argv[1])
write_json(sys.argv[1], {"a": 1})
print("last")
"""


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("to", ["pipe", "file"])
def test_standard_output(name, to):
    """In the order of writing, also where it is a file, and the device is still one."""
    command = [sys.executable, "-c", WRITE, name, str(ROOT / "regiondh_d2")]
    if to == "pipe":
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        found = done.stdout
    else:
        with open("out.txt", "w") as file:
            done = subprocess.run(command, stdout=file)
        found = Path("out.txt").read_text()
    assert done.returncode == 0
    assert found == 'first\n{\n  "a": 1\n}\nlast\n'
    assert os.path.islink("/dev/stdout")


def test_devices_and_pipes():
    for _ in range(2):
        check_output_file("/dev/null")
        write_json("/dev/null", {"a": 1})
    assert not os.path.isfile("/dev/null")
    os.mkfifo("pipe")
    check_output_file("pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE)
    write_json("pipe", {"a": 1})
    assert json.loads(reader.communicate(timeout=20)[0]) == {"a": 1}


def test_the_errors_are_known_by_their_class():
    with pytest.raises(OutputExistsError):
        check_output_file("photo.jpg")
    with pytest.raises(FileExistsError):
        check_output_folder("there")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_what_is_no_json_is_named(tmp_path, content, message):
    path = tmp_path / "a\n.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RegionDHError, match=rf"a\\n\.json: {message}"):
        read_json(path)
    with pytest.raises(RegionDHError, match="Is a directory"):
        read_json(tmp_path)


def test_json_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
