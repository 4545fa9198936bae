"""Keeps memory that a network on the CPU frees, instead of returning it to the kernel."""

import ctypes
import platform

__all__ = ["keep_freed_memory"]

# Parameters of mallopt(3), from malloc.h, and values that turn off two ways of returning memory.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
KEEP = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}


def keep_freed_memory() -> bool:
    """Have glibc keep what this process frees for its next allocations, until it ends.

    By default glibc returns freed blocks of more than 32 MiB, and the free end of its heap, to the
    kernel, which clears the pages before their next use. The feature maps of a training step are
    such blocks (``regiondh benchmark training`` measures the cost). PyTorch keeps the memory of
    CUDA devices itself, but not that of the CPU.

    Returns:
        Whether it took effect; False if the C library isn't glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) for parameter, value in KEEP.items())
