"""The folder of one run, its lock, and files that survive a `kill -9`.

Every file is written under another name and renamed when it is complete. Records and
checkpoints have checksums, so that a damaged file is never read as a result.
"""

import datetime as dt
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import jax

from experiments.lab.errors import UsageError, one_line
from experiments.lab.settings import ShortOptions, deciding, option

PyTree = Any
_LOCK = ".lock"
_KEPT = 2  # checkpoints of a training; the older one is a reserve
_PACKAGES = ("mtlopt", "jax", "jaxlib", "optax", "flax", "orbax-checkpoint", "numpy")


class RunFolder:
    """The folder of a run with these settings, locked while it is open.

    An empty or missing folder is claimed whether or not `resume` is set, so that one
    command line serves for the first start and all later starts. Any other folder must
    hold a run with the same settings that may be continued, and no other process may be
    using it. Otherwise, or if the folder cannot be written, there is a UsageError.
    """

    def __init__(self, settings: ShortOptions):
        self.path = Path(settings.out)
        self._started: float | None = time.perf_counter()
        self.tensorboard = getattr(settings, "tensorboard", False)
        if self.tensorboard and importlib.util.find_spec("tensorboardX") is None:
            raise UsageError(
                "--tensorboard needs the package tensorboardX. Install it: "
                'pip install -e ".[tensorboard]".'
            )
        wanted = json.loads(json.dumps(deciding(settings)))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / _LOCK).open("a")  # does not clear the file
            try:
                self._claim(wanted, getattr(settings, "resume", True))
            except BaseException:
                self._lock.close()
                raise
        except OSError as error:
            raise UsageError(
                f"--out must be a writable folder, but {self.path} is not: "
                f"{error.strerror}."
            ) from error

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.close()

    def _claim(self, wanted: dict[str, Any], resume: bool) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"another run is at work in {self.path}. Wait for it, or choose "
                "another folder with --out."
            ) from error
        path = self.path / "settings.json"
        # An interrupted claim leaves these two files.
        own = (_LOCK, _partial(path).name)
        others = [entry for entry in self.path.iterdir() if entry.name not in own]
        if path.exists():
            if not resume:
                raise UsageError(
                    f"--out already holds a run, in {self.path}. Continue it with "
                    "--resume, choose another folder, or remove this folder."
                )
            self._check_same(path, wanted)
            self._started = None  # in an earlier process
        elif others:
            raise UsageError(
                "--out must be an empty folder or the folder of a run, but "
                f"{self.path} holds other files. Choose another folder."
            )
        write_text(path, json.dumps(wanted, indent=1) + "\n")

    def _check_same(self, path: Path, wanted: dict[str, Any]) -> None:
        try:
            found = dict(json.loads(path.read_text()))
        except (ValueError, TypeError):
            raise UsageError(
                f"{path} is damaged. Choose another folder with --out."
            ) from None
        for name in {**wanted, **found}:
            if found.get(name) != wanted.get(name):
                raise UsageError(
                    f"--out holds a run with other settings, in {self.path}: "
                    f"{option(name)} was {found.get(name)!r} there, got "
                    f"{wanted.get(name)!r}."
                )

    def write_results(
        self, settings: ShortOptions, report: str, **results: Any
    ) -> None:
        """Prints and writes the report; `results.json` records how it was made."""
        record = {"settings": deciding(settings), **provenance(), **results}
        if self._started is not None:
            record["minutes"] = (time.perf_counter() - self._started) / 60
        # JSON has only finite numbers.
        finite = json.loads(json.dumps(record), parse_constant=lambda _: None)
        write_text(self.path / "report.md", report.rstrip() + "\n")
        write_text(self.path / "results.json", json.dumps(finite, indent=1) + "\n")
        print(f"\n{report}\nWritten to {self.path}.")

    def write_record(self, name: str, value: Any) -> None:
        """Writes the numbers of a finished training, preceded by their checksum."""
        path, text = self._record(name), json.dumps(value)
        path.parent.mkdir(exist_ok=True)
        write_text(path, f"{_sum_of(text.encode())}\n{text}\n")

    def read_record(self, name: str) -> Any:
        """Returns the numbers of a finished training; None if there are none."""
        path = self._record(name)
        if not path.exists():
            return None
        found, _, text = path.read_bytes().partition(b"\n")
        if found.decode(errors="replace") != _sum_of(text.removesuffix(b"\n")):
            raise UsageError(
                f"{path} is damaged. Delete it, and the next --resume trains what it "
                "held again."
            )
        return json.loads(text)

    def _record(self, name: str) -> Path:
        return self.path / "runs" / f"{name}.json"

    def checkpoints(self, name: str) -> "Checkpoints":
        """Returns the checkpoints of a training."""
        return Checkpoints(self.path / "checkpoints" / name)


class Checkpoints:
    """Checkpoints of one training (Orbax), each with a checksum in another file."""

    def __init__(self, folder: Path):
        self._folder = folder.absolute()
        self._manager: Any = None

    def _open(self) -> Any:
        import orbax.checkpoint as ocp  # takes a second, which --help avoids

        if self._manager is None:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=_KEPT, enable_async_checkpointing=False
            )
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        return self._manager, ocp.args

    def save(self, epoch: int, state: PyTree, history: Any) -> None:
        """Saves the state after `epoch` epochs, and the records so far."""
        manager, args = self._open()
        try:
            manager.save(
                epoch,
                args=args.Composite(
                    state=args.StandardSave({"state": state}),
                    history=args.JsonSave({"history": history}),
                ),
            )
            write_text(self._folder / f"{epoch}.sha256", self._sum(epoch))
            self._tidy()
        except (OSError, ValueError) as error:  # the second from TensorStore
            raise UsageError(
                f"cannot write a checkpoint in {self._folder}: "
                f"{one_line(error)[:200]} The run may go on with --resume."
            ) from error

    def restore(self, like: PyTree) -> tuple[int, PyTree, Any] | None:
        """Returns epoch, state and history of the newest checkpoint that is intact.

        Returns None if there is no checkpoint, and raises a UsageError if all are
        damaged. `like` has the structure, shapes and dtypes of the saved state.
        """
        if not self._folder.exists():
            return None
        manager, args = self._open()
        steps, sums = manager.all_steps(), self._sums()
        # Without a checksum the run was killed between the two writes, so do not use
        # it.
        known = [epoch for epoch in steps if epoch in sums]
        intact = [epoch for epoch in known if sums[epoch] == self._sum(epoch).encode()]
        if steps and known == steps and not intact:
            raise UsageError(
                f"the checkpoints in {self._folder} are damaged. Delete this folder, "
                f"and the next --resume trains its {max(steps)} epochs again."
            )
        newest = max(intact, default=0)
        for epoch in steps:
            if epoch > newest:
                manager.delete(epoch)
        self._tidy()
        if not newest:
            return None
        parts = {
            "state": args.StandardRestore({"state": like}),
            "history": args.JsonRestore(),
        }
        saved = manager.restore(newest, args=args.Composite(**parts))
        return newest, saved["state"]["state"], saved["history"]["history"]

    def remove(self) -> None:
        """Removes the folder."""
        if self._manager is not None:
            self._manager.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _tidy(self) -> None:
        """Removes the checksums of checkpoints that are gone."""
        for epoch in self._sums().keys() - set(self._manager.all_steps()):
            (self._folder / f"{epoch}.sha256").unlink()

    def _sums(self) -> dict[int, bytes]:
        files = self._folder.glob("*.sha256")
        return {int(path.stem): path.read_bytes() for path in files}

    def _sum(self, epoch: int) -> str:
        """Returns the checksum of all files of a checkpoint, and their names."""
        digest = hashlib.sha256()
        folder = self._folder / str(epoch)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                digest.update(str(path.relative_to(folder)).encode())
                digest.update(path.read_bytes())
        return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replaces a file atomically, so that a reader sees the old or the new file."""
    with _partial(path).open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(_partial(path), path)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def provenance() -> dict[str, Any]:
    """Returns date, device and versions, for a results file."""
    # The cores that this process may use; only Linux knows them.
    allowed = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "cores": len(allowed(0)),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _sum_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
