"""Makes glibc keep the memory of freed arrays for the next step."""

import ctypes
from typing import Any

# The parameters of mallopt, from glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8


def keep_memory() -> bool:
    """Makes every step of this process reuse the memory of the previous step.

    XLA on a CPU, PyTorch and NumPy allocate large arrays again at every step. The C
    library of Linux, glibc, gets these arrays from the system and gives them back after
    use. The system provides memory page by page, and clears each page when it is first
    touched. Clearing can take a seventh of a training step's time. After `keep_memory`,
    glibc keeps the memory: it places arrays of up to 1 GiB in its own heap, which grows
    by 256 MiB at a time. glibc then returns only free memory beyond 2 GiB to the
    system, and uses one heap for all threads.

    This has a price. The process keeps as much memory as it has ever needed. All
    threads share one heap, which makes some steps slower overall. Measure your own
    steps with and without `keep_memory`.

    Call `keep_memory` once, at the start of a program, before JAX computes. It changes
    the whole process, so importing mtlopt does not call it. Threads that already have
    their own heap keep that heap. A second call does no harm.

    Returns:
      Whether the call took effect. With another C library (macOS, Windows, musl) or
      another allocator (such as jemalloc), it changes nothing and returns False.

    Examples:
      >>> import mtlopt
      >>> took_effect = mtlopt.keep_memory()

    References:
      "Malloc Tunable Parameters", The GNU C Library Reference Manual,
      https://sourceware.org/glibc/manual/latest/html_node/Malloc-Tunable-Parameters.html.
    """
    try:
        process, libc = ctypes.CDLL(None), ctypes.CDLL("libc.so.6")
        libc.gnu_get_libc_version  # noqa: B018, not in musl
        if _address(process.malloc) != _address(libc.malloc):
            return False  # another allocator was loaded first
        mallopt = libc.mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: CDLL(None) on Windows
        return False
    # glibc before 2.35 accepts thresholds of up to 32 MiB only; there, turn mmap off.
    return bool(
        mallopt(_ARENA_MAX, 1)  # other heaps hold 64 MiB at most
        and (mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_MAX, 0))
        and mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        and mallopt(_TOP_PAD, 2**28)
    )


def _address(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value
