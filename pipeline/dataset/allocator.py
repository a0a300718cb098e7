"""The C library's allocator, told to keep what is freed for the next array of that size."""

import ctypes
import sys

# <malloc.h> of glibc
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEEP_BYTES, OWN_PAGES_BYTES = 32 << 20, 32 << 20


def keep_freed_memory() -> None:
    """Keep freed memory up to 32 MiB in each arena instead of giving it back to the system at once.

    Tokenizing makes arrays of some megabytes over and over. glibc gives each of them back, and the system zeroes
    the pages anew for the next: measured, that took half of the time with one thread and, because threads wait
    for each other there, nearly all that a second one could gain. Does nothing where the library is another one.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in musl
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, OWN_PAGES_BYTES)
        mallopt(TRIM_THRESHOLD, KEEP_BYTES)
