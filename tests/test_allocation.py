"""What commands free is kept or returned: counted in page faults, which are the kernel's part."""

import platform
import subprocess
import sys

import pytest

from regiondh_d2.engine import allocation
from regiondh_d2.engine.allocation import keep_freed_memory

# In a process of its own: once kept, memory isn't returned any more.
FAULTS = """
import resource
import numpy as np
from regiondh_d2.engine.command import run_command

def use():  # a large block five times, after a first one
    for i in range(6):
        np.ones(64 << 20, np.uint8)
        if i == 0:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

run_command(use, keep_memory=False)
run_command(use)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's mallopt")
def test_commands_keep_freed_memory():
    done = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True)
    returned, kept = map(int, done.stdout.split())
    assert kept < returned / 10


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocation.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda name: pytest.fail("called it"))
    assert keep_freed_memory() is False
