"""Checkpoints of one method's training (Orbax): atomic, only the newest is kept."""

from pathlib import Path
from typing import Any

PyTree = Any


class Checkpoints:
    """The checkpoints in one folder.

    A checkpoint is written beside the last one and renamed when it is complete, so a
    run killed at any moment finds the last complete one.

    Args:
      folder: where they are; made if missing.
    """

    def __init__(self, folder: Path):
        import orbax.checkpoint as ocp  # a second of imports that --help need not pay

        self._args = ocp.args
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    def save(self, epoch: int, state: PyTree, history: dict[str, Any]) -> None:
        """Saves the state after `epoch` epochs, and what was recorded so far."""
        args = self._args
        self._manager.save(
            epoch,
            args=args.Composite(
                state=args.StandardSave(state), history=args.JsonSave(history)
            ),
        )

    def restore(self, like: PyTree) -> tuple[int, PyTree, dict[str, Any]] | None:
        """Restores the newest checkpoint.

        Args:
          like: a state with the structure, shapes and dtypes of the saved one.

        Returns:
          Epoch, state and history; None if there is no checkpoint.
        """
        epoch = self._manager.latest_step()
        if epoch is None:
            return None
        args = self._args
        saved = self._manager.restore(
            epoch,
            args=args.Composite(
                state=args.StandardRestore(like), history=args.JsonRestore()
            ),
        )
        return epoch, saved["state"], saved["history"]
