"""How this process uses its machine: threads that wait for one another, and memory it keeps.

Neither changes a result. Both matter most to small networks, whose steps are short.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

__all__ = ["choose_waiting", "keep_memory"]


def choose_waiting() -> None:
    """Say how OpenMP's threads wait; must come before torch loads OpenMP, which reads it once.

    On a machine where nothing else runs they spin for half a millisecond before they sleep: one
    pass forwards and back through a small VAE takes 4.5 ms, 7.5 ms if they sleep at once. But where
    another process wants one of the cores, spinning makes it 17 ms against 7 ms, spinning for as
    long as OpenMP does unasked 138 ms (two cores, means of 60 to 200). What the user has set stays.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    if _idle():
        os.environ["GOMP_SPINCOUNT"] = "10000"
    else:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _idle() -> bool:
    """Return whether at most a quarter of the cores has work at this moment (Linux only)."""
    try:
        running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0]) - 1
    except (OSError, ValueError, IndexError):
        return False
    return running <= (os.cpu_count() or 1) // 4


@functools.cache
def keep_memory() -> None:
    """Let glibc keep freed memory for the next step instead of giving it back to the kernel.

    A training step frees and takes the same blocks again, and the kernel clears their pages anew:
    in a loop of nothing else a third of a small VAE's time, in its whole training between a fifth
    and nothing, by how its memory happens to lie. Blocks of 32 MiB and more still go back.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in every C library
    if mallopt is None:
        return
    trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
    mallopt(trim_threshold, 1 << 30)
    mallopt(mmap_threshold, 32 << 20)
