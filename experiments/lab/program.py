"""A jitted function that knows what it took to compile it, and what it costs."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


class Program:
    """A function, compiled at its first call, for the shapes of that call."""

    def __init__(self, function: Callable[..., Any], **options: Any):
        self._jitted = jax.jit(function, **options)
        self._compiled: Any = None
        self.compile_seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        """Compiles if it must, and runs."""
        self.compile(*args)
        return self._compiled(*args)

    def compile(self, *args: Any) -> None:
        """Compiles, so that the next call can be timed."""
        if self._compiled is None:
            started = time.perf_counter()
            self._compiled = self._jitted.lower(*args).compile()
            self.compile_seconds = time.perf_counter() - started

    @property
    def temporary_bytes(self) -> int:
        """Bytes that a call needs beside its arguments and results."""
        memory = None if self._compiled is None else self._compiled.memory_analysis()
        return getattr(memory, "temp_size_in_bytes", 0)

    @property
    def operations(self) -> float:
        """Floating-point operations of a call, as XLA counts them."""
        return float(self._compiled.cost_analysis().get("flops", 0.0))


def fastest(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Times calls in turns, once to warm up; returns the least seconds of each.

    A machine is slower now and then: in turns, that slows all calls alike, and the
    fastest of several rounds is that with the least of it.
    """
    seconds = dict.fromkeys(calls, float("inf"))
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            jax.block_until_ready(call())
            if number:
                seconds[name] = min(seconds[name], time.perf_counter() - started)
    return seconds
