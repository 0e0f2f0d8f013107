"""How Lightning writes and reads the checkpoints of a run: whole, verified, one generation back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from ldm.binding import Decisive, require_bound
from ldm.checkpoint import (
    BOUND,
    EMA_WEIGHTS,
    LAST,
    OWN,
    RESTORED,
    WEIGHTS,
    processes,
    read_checkpoint,
    verify_archive,
)
from ldm.errors import CheckpointError, ConfigError, OutputError
from ldm.model_file import FORMAT_VERSION, require_finite
from ldm.storable import require_storable
from ldm.storage import atomic_path, refused_write, remove, rename


class AtomicCheckpointIO(CheckpointIO):
    """Saves through a verified temporary file and keeps the generation before as ``previous``.

    Args:
        bound: what the weights depend on, see :func:`ldm.binding.decisive`.

    Attributes:
        failure: why the last save failed. It is kept, not raised: Lightning makes all processes
            wait for each other after a save, and the one that raised would not come.
    """

    def __init__(self, bound: Decisive | None = None) -> None:
        self.bound, self.failure = bound, None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write ``checkpoint``; on failure the old generations stay, and ``failure`` says why."""
        try:
            own = {"format": FORMAT_VERSION, "keys": sorted(checkpoint), "processes": processes()}
            own[WEIGHTS] = EMA_WEIGHTS if "current_model_state" in checkpoint else LAST
            self._save({**checkpoint, OWN: {**own, BOUND: self.bound}}, Path(path))
        except (OutputError, ConfigError) as error:
            self.failure = error

    def _save(self, checkpoint: dict[str, Any], path: Path) -> None:
        require_storable(checkpoint)
        try:
            with atomic_path(path, replace=True) as temporary:
                torch.save(checkpoint, temporary)
                verify_archive(temporary)
                if path.exists():
                    rename(path, path.with_name("previous.ckpt"))
        except RuntimeError as error:  # how torch reports a full disk
            raise refused_write(path, error) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return a verified checkpoint; never unpickles anything but tensors and plain values.

        Raises:
            CheckpointError: see :func:`read_checkpoint`; CKPT-MISMATCH, CKPT-NONFINITE.
        """
        path = Path(path)
        checkpoint = read_checkpoint(path)
        own = checkpoint.get(OWN, {})
        if missing := {*RESTORED, *own.get("keys", ())} - checkpoint.keys():
            raise CheckpointError("CKPT-MISMATCH", f"{path.name} holds no {', '.join(missing)}")
        if own.get("processes", processes()) != processes():
            raise CheckpointError(
                "CKPT-MISMATCH",
                f"{path.name} is of {own['processes']} processes, and these are {processes()}: "
                f"give lightning.trainer.devices={own['processes']}",
            )
        if self.bound:
            require_bound(own.get(BOUND), self.bound, path.name)
        for key in ("state_dict", "current_model_state"):
            require_finite(checkpoint.get(key, {}), path.name)
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        remove(Path(path), replace=True)
