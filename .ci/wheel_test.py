"""Build the source distribution and the wheel, and use the wheel as a person would.

The wheel is installed into an environment of its own, first without any other package, then with
those of the environment that runs this script, but not with the checkout itself. All commands run
in a folder outside the checkout.
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "voc07/regiondh_effnetlite_64"
MAKE_PHOTOS = """
from pathlib import Path
import numpy as np
from PIL import Image
Path("photos").mkdir()
for number in range(3):
    pixels = np.random.default_rng(number).integers(0, 256, (96, 128, 3), np.uint8)
    Image.fromarray(pixels).save(f"photos/{number}.png")
import regiondh_d2
print(regiondh_d2.__file__)
"""


def run(command, folder, status=0):
    """Run a command in a folder; what it printed.

    Raises:
        SystemExit: its exit status is another than ``status``.
    """
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    environment.pop("PYTHONPATH", None)
    command = list(map(str, command))
    print(f"$ {' '.join(command) if len(' '.join(command)) < 200 else command[0]}", flush=True)
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout, flush=True)
    if done.returncode != status:
        sys.exit(f"wheel-test: exit status {done.returncode} instead of {status}")
    return done.stdout


def require(holds, what):
    """End the test unless a condition holds."""
    if not holds:
        sys.exit(f"wheel-test: {what}")


def build(folder):
    """The wheel, built from the source distribution, which is built from the checkout."""
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    # setuptools leaves its notes in the folder that it builds.
    source = folder / "checkout"
    names = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=True,
    ).stdout.split(b"\0")
    for name in map(os.fsdecode, filter(None, names)):
        if not name.startswith("docs/") and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=source, check=True, stdout=subprocess.DEVNULL
    )
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("configs/Base-RegionDH.yaml", "tests/conftest.py", "tools/setup_env.py"):
        require(name in names, f"{sdist.name} lacks {name}")
    options = ["--no-deps", "--no-build-isolation", "-q", "-w", folder, sdist]
    run([sys.executable, "-m", "pip", "wheel", *options], folder)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = [
        path.relative_to(ROOT).as_posix()
        for package in ("regiondh_cli", "regiondh_d2")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    ]
    sources += [f"regiondh_d2/{p.relative_to(ROOT)}" for p in (ROOT / "configs").rglob("*.yaml")]
    lacking = sorted(set(sources) - names)
    require(not lacking, f"{wheel.name} lacks {', '.join(lacking)}")
    return wheel


def main():
    with tempfile.TemporaryDirectory(prefix="regiondh-wheel-") as temporary:
        folder = Path(temporary)
        wheel = build(folder)
        place = folder / "elsewhere"
        place.mkdir()
        run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], place)
        scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        python = scripts / "python"
        options = ["-q", "--disable-pip-version-check", "--no-deps", wheel]
        run([sys.executable, "-m", "pip", "--python", python, "install", *options], place)
        regiondh = scripts / "regiondh"

        # Alone: everything tells what is missing.
        require("search-photos" in run([regiondh, "--help"], place), "no list of subcommands")
        told = run([regiondh, "doctor"], place, status=1)
        require("regiondh setup-detectron2" in told, "doctor names no fix")
        require("torch>=" in told, "doctor names no PyTorch")
        told = run([regiondh, "search-photos", "photos"], place, status=1)
        require(told.startswith("error: ") and told.count("\n") == 1, "more than one line")

        # With all other packages; a path in a .pth file brings none of the .pth files there.
        (packages,) = (folder / "venv").glob("**/site-packages")
        others = sysconfig.get_path("purelib")
        (packages / "others.pth").write_text(f"{others}\n", encoding="utf-8")
        told = run([regiondh, "doctor"], place)
        require("all that is required is here" in told, "doctor misses something")
        told = run([python, "-c", MAKE_PHOTOS], place)
        require(str(packages.resolve()) in told, "the package isn't that of the wheel")
        network = ["--config-file", CONFIG, "MODEL.DEVICE", "cpu"]
        run([regiondh, "extract-codes", *network, "--input", "photos", "--output", "c.h5"], place)
        run([regiondh, "build-index", "c.h5", "--output", "index"], place)
        query = ["--query", "photos/1.png", "--save", "answers.png"]
        told = run([regiondh, "search", *network, "--index", "index", *query], place)
        first = told.split("rank  distance  image\n")[1].splitlines()[0].split()
        require(first[:2] == ["1", "0"] and first[2].endswith("1.png"), "the query isn't found")
        require((place / "answers.png").is_file(), "no picture of the answers")
    print("wheel-test: passed")


if __name__ == "__main__":
    main()
