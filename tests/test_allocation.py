"""Freed memory is kept or returned as told: counted in page faults, which are the kernel's part."""

import platform
import resource

import numpy as np
import pytest

from regiondh_d2.engine import allocation
from regiondh_d2.engine.allocation import keep_freed_memory
from regiondh_d2.engine.command import run_command

BYTES = 32 << 20
PAGES = BYTES // resource.getpagesize()


def faults() -> int:
    """Page faults of using a large block five times, after a first one."""
    np.ones(BYTES, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.ones(BYTES, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's mallopt")
def test_kept_blocks_need_no_new_pages():
    assert keep_freed_memory()
    assert faults() < PAGES / 10
    assert keep_freed_memory(False)
    returned = faults()
    assert run_command(lambda: None) == 0  # every command keeps it
    assert faults() < min(returned, PAGES) / 10


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocation.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda name: pytest.fail("called it"))
    assert keep_freed_memory() is False
