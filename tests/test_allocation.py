"""What commands free is kept or returned: counted in page faults, which are the kernel's part."""

import platform
import subprocess
import sys

import pytest

from regiondh_d2.engine import allocation, command
from regiondh_d2.engine.allocation import keep_freed_memory

# In a process of its own: once kept, memory isn't returned any more.
FAULTS = """
import importlib.util
import resource
import sys
import numpy as np

# The module alone: its package imports PyTorch.
spec = importlib.util.spec_from_file_location("allocation", sys.argv[1])
allocation = importlib.util.module_from_spec(spec)
spec.loader.exec_module(allocation)

def use():  # a large block five times, after a first one
    for i in range(6):
        np.ones(64 << 20, np.uint8)
        if i == 0:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

use()
assert allocation.keep_freed_memory()
use()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's mallopt")
def test_freed_memory_is_kept():
    command = [sys.executable, "-c", FAULTS, allocation.__file__]
    done = subprocess.run(command, check=True, capture_output=True)
    returned, kept = map(int, done.stdout.split())
    assert kept < returned / 10


def test_commands_keep_freed_memory_unless_told_otherwise(monkeypatch):
    calls = []
    monkeypatch.setattr(command, "keep_freed_memory", lambda: calls.append(1))
    for keep, expected in ((False, []), (True, [1])):
        command.run_command(lambda: 0, keep_memory=keep)
        assert calls == expected


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocation.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda name: pytest.fail("called it"))
    assert keep_freed_memory() is False
