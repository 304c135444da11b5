"""The report of a timing script, printed as it grows and written to a folder."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.lab.folder import provenance


def add_out(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--out`, the folder of a `Report`."""
    parser.add_argument("--out", type=Path, help="folder for report.md, results.json")


class Report:
    """Text and dataclass instances of one run of `experiments.bench.NAME`.

    Args:
      name: name of the script.
      argv: its options; None for the options on the command line.
      folder: for `report.md` and `results.json`; None keeps nothing.

    Examples:
      >>> report = Report("steps", ["lenet", "--rounds", "0"], None)
      >>> report.print("| step |")
      | step |
    """

    def __init__(self, name: str, argv: Sequence[str] | None, folder: Path | None):
        self._command = _command_line(name, sys.argv[1:] if argv is None else argv)
        self._folder = folder
        self._text = f"# bench.{name}\n"

    def print(self, text: str) -> None:
        """Prints some lines of the report."""
        print(text, flush=True)
        self._text += f"\n{text}\n"

    def write(self, results: Sequence[Any]) -> None:
        """Writes the report so far, with command, versions and device."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        record = {"command": self._command, **provenance()}
        del record["cores"]  # cores of the machine; most scripts use only one
        record["results"] = [asdict(result) for result in results]
        (self._folder / "report.md").write_text(self._text)
        (self._folder / "results.json").write_text(json.dumps(record, indent=2) + "\n")


def _command_line(name: str, argv: Sequence[str]) -> str:
    """Returns the command as typed, without the path of PyTorch on this machine."""
    words = ["python", "-m", f"experiments.bench.{name}", *argv]
    for position, word in enumerate(words[:-1]):
        if word == "--torch-python":
            words[position + 1] = "PATH"
    return shlex.join(words)
