"""Memory that stays: glibc keeps what arrays leave, for the next step."""

import ctypes
from typing import Any

# The parameters of mallopt, from glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8


def keep_memory() -> bool:
    """Makes every step of this process reuse the memory of the step before.

    XLA on a CPU, PyTorch and NumPy allocate large arrays anew at every step. The C
    library of Linux, glibc, takes them from the system and gives them back, and the
    system hands them out page by page, each cleared when it is first touched. A
    training step can spend a seventh of its time so. After this call glibc keeps them:
    it takes arrays of up to 1 GiB from its own heap, grows that by 256 MiB at a time,
    returns only what is free beyond 2 GiB, and has one heap for all threads.

    The price: memory that was once needed stays with the process, and threads share
    one heap, which costs some steps more than they gain. Measure your own with and
    without.

    Call it once, at the start of a program, before JAX computes: it holds for the whole
    process, and threads that have a heap of their own by then keep it. Hence mtlopt
    does not call it when it is imported. A second call does no harm.

    Returns:
      Whether it took effect: false with another C library (macOS, Windows, musl) or
      another allocator (such as jemalloc), where nothing is changed.

    Examples:
      >>> import mtlopt
      >>> took_effect = mtlopt.keep_memory()

    References:
      "Malloc Tunable Parameters", The GNU C Library Reference Manual,
      https://sourceware.org/glibc/manual/latest/html_node/Malloc-Tunable-Parameters.html.
    """
    try:
        process, libc = ctypes.CDLL(None), ctypes.CDLL("libc.so.6")
        libc.gnu_get_libc_version  # noqa: B018, musl has none
        if _address(process.malloc) != _address(libc.malloc):
            return False  # of an allocator that was loaded before
        mallopt = libc.mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: of None on Windows
        return False
    # glibc before 2.35 accepts thresholds of up to 32 MiB. There nothing is mapped.
    return bool(
        mallopt(_ARENA_MAX, 1)  # other heaps hold 64 MiB at most
        and (mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_MAX, 0))
        and mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        and mallopt(_TOP_PAD, 2**28)
    )


def _address(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value
