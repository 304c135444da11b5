"""A process of another Python interpreter, which answers lines with lines."""

import subprocess


class TorchProcess:
    """Runs a script in an interpreter that has PyTorch.

    It sleeps between questions, inherits this process's cores, and prints its errors
    on ours.

    Args:
        python: The interpreter.
        script: The script, which answers each line of its input with one line.
        arguments: Its command line.
    """

    def __init__(self, python: str, script: str, *arguments: str):
        self._process = subprocess.Popen(
            [python, script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
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
            pass  # and so there is no answer
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("The PyTorch process ended, see its message above.")
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()
