"""How the C library treats memory that a network on the CPU frees."""

import ctypes
import platform

__all__ = ["keep_freed_memory"]

# Parameters of mallopt(3), from malloc.h, and values that stop two ways of returning memory.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
KEEP = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}


def keep_freed_memory() -> bool:
    """Have glibc keep what this process frees for its next allocations, until it ends.

    By default glibc returns blocks of more than 32 MiB to the kernel when they are freed, and the
    free end of its heap; the kernel clears the pages when they are touched anew. The feature maps
    of a training step are such blocks (``regiondh benchmark training`` shows what it costs).
    PyTorch keeps the memory of CUDA devices itself, but not that of the CPU.

    Returns:
        Whether it took effect; False where the C library isn't glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) for parameter, value in KEEP.items())
