"""A jitted function that reports its compile time, memory and operations."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


class Program:
    """A function that is compiled at its first call, for the shapes of that call."""

    def __init__(self, function: Callable[..., Any], **options: Any):
        self._jitted = jax.jit(function, **options)
        self._compiled: Any = None
        self.compile_seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        """Compiles the function if necessary, and runs it."""
        self.compile(*args)
        return self._compiled(*args)

    def compile(self, *args: Any) -> None:
        """Compiles the function, so that the next call can be timed."""
        if self._compiled is None:
            started = time.perf_counter()
            self._compiled = self._jitted.lower(*args).compile()
            self.compile_seconds = time.perf_counter() - started

    @property
    def temporary_bytes(self) -> int:
        """Bytes that a call needs in addition to its arguments and results."""
        memory = None if self._compiled is None else self._compiled.memory_analysis()
        return getattr(memory, "temp_size_in_bytes", 0)

    @property
    def operations(self) -> float:
        """Floating-point operations of a call, as XLA counts them."""
        return float(self._compiled.cost_analysis().get("flops", 0.0))


def fastest(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Times calls in turns, after a warm-up; returns the minimum seconds of each call.

    A machine is slower at some times than at others. If calls take turns, such a time
    slows all of them, and the fastest of several rounds is disturbed the least.
    """
    seconds = dict.fromkeys(calls, float("inf"))
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            jax.block_until_ready(call())
            if number:
                seconds[name] = min(seconds[name], time.perf_counter() - started)
    return seconds
