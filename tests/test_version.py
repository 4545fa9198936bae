"""The version has one place, in the package, and documents that name it agree."""

import re
import subprocess
import sys
from pathlib import Path

import regiondh_d2

ROOT = Path(__file__).resolve().parents[1]


def test_setup_takes_the_version_of_the_package():
    command = [sys.executable, str(ROOT / "setup.py"), "--version"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == regiondh_d2.__version__


def test_documents_name_the_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {regiondh_d2.__version__}\n" in citation
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [heading.split()[0] for heading in headings if heading != "Unreleased"]
    assert released[0] == regiondh_d2.__version__
