"""How the C library treats memory that a network on the CPU frees."""

import ctypes
import platform

__all__ = ["keep_freed_memory"]

# Parameters of mallopt(3), from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
DEFAULTS = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 128 << 10, M_TRIM_THRESHOLD: 128 << 10}
KEEP = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}


def keep_freed_memory(keep: bool = True) -> bool:
    """Have glibc hold freed blocks for the next allocation, of this process.

    By default glibc asks the kernel for every large block and returns it when it's freed, and the
    kernel clears the pages each time they are touched anew. The feature maps of a training step are
    such blocks: on a CPU that took half of the step (``tools/benchmark.py training``). PyTorch
    keeps the memory of CUDA devices itself, but not that of the CPU.

    Args:
        keep: False restores glibc's defaults.

    Returns:
        Whether it took effect; False where the C library isn't glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = KEEP if keep else DEFAULTS
    return all(mallopt(parameter, value) for parameter, value in settings.items())
