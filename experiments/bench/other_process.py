"""Another process, which answers each line of input with a line."""

import ctypes
import dataclasses
import re
import subprocess
import time
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Usage:
    """The time and memory that a process has used since it began.

    Attributes:
        cpu_seconds: Of all its threads.
        faults: Pages that it was given.
        resident_mib: The memory that it has now.
        peak_mib: The most that it had.
    """

    cpu_seconds: float
    faults: int
    resident_mib: float
    peak_mib: float


class OtherProcess:
    """Runs a command, such as a script in an interpreter that has PyTorch.

    The command sleeps between requests, inherits this process's cores, and writes its
    errors to this process's standard error.

    Args:
        *command: A program that answers each line of its input with one line, and its
            arguments.
    """

    def __init__(self, *command: str):
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, question: str) -> str:
        """Returns the answer to a line.

        Raises:
            RuntimeError: If the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(question + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # so that there is no answer
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("The other process ended, see its message above.")
        return answer

    def usage(self) -> Usage:
        """Returns what the process has used so far; only on Linux."""
        clock = ctypes.c_int()
        ctypes.CDLL(None).clock_getcpuclockid(self._process.pid, ctypes.byref(clock))
        folder = Path(f"/proc/{self._process.pid}")
        # Skip the name, which may have spaces; what follows starts with field 3 of
        # proc(5).
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        sizes = dict(re.findall(r"(\w+):\s+(\d+) kB", (folder / "status").read_text()))
        return Usage(
            time.clock_gettime(clock.value),
            int(fields[10 - 3]),
            int(sizes["VmRSS"]) / 1024,
            int(sizes["VmHWM"]) / 1024,
        )

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def start_torch(
    python: str, name: str, size: tuple[int, int], memory: str, num_threads: int = 1
) -> OtherProcess:
    """Starts `torch_steps`.

    Args:
        python: A Python interpreter that has PyTorch.
        name: Name of the network.
        size: Number of samples, and of tasks.
        memory: One of `machine.MEMORY`.
        num_threads: Number of threads of PyTorch.
    """
    script = Path(__file__).with_name("torch_steps.py")
    numbers = size[1], size[0], num_threads
    return OtherProcess(python, str(script), name, *map(str, numbers), memory)
