"""Settings of the C library's allocator, so that it reuses freed memory."""

import ctypes
import sys

# <malloc.h> of glibc
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEEP_BYTES, OWN_PAGES_BYTES = 32 << 20, 32 << 20


def keep_freed_memory() -> None:
    """Keep freed memory up to 32 MiB in each arena instead of giving it back to the system at once.

    Tokenizing allocates arrays of some megabytes over and over. By default glibc gives each of them back, and the
    system zeroes the pages again for the next one: measured, that takes half of the time with one thread, and nearly
    all that a second thread can gain, because threads wait for each other there. Does nothing without glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in musl
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, OWN_PAGES_BYTES)
        mallopt(TRIM_THRESHOLD, KEEP_BYTES)
