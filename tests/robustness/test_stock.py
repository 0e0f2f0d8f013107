"""The same damage done to nibabel, torch and Lightning as they come: what is read as if whole.

The counts stand in docs/reliability.md beside ours, which are 0.
"""

import os
import signal

import nibabel as nib
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from builders import head_image, write_nifti
from robustness.test_checkpoints import places, state
from torch.utils.data import DataLoader

from ldm.checkpoint import read_checkpoint
from ldm.data.nifti import read_volume
from ldm.errors import CheckpointError
from ldm.training.checkpoint_io import AtomicCheckpointIO

TRIES = 300


def silent(read, path, whole: bytes, damages) -> int:
    """Return how often a damaged file is read as something else, without an error or a warning."""
    path.write_bytes(whole)
    known, count = read(path), 0
    for damaged in damages:
        path.write_bytes(damaged)
        try:
            count += not np.array_equal(read(path), known, equal_nan=True)
        except Exception:
            continue
    return count


def flips(whole: bytes, first: int = 0):
    """Yield a file with one bit changed, at seeded places from ``first`` on."""
    rng = np.random.default_rng(3)
    for place in places(len(whole) - first, TRIES):
        damaged = bytearray(whole)
        damaged[first + place] ^= 1 << int(rng.integers(8))
        yield bytes(damaged)


def lost_pages(whole: bytes):
    """Yield a file in which 512 bytes are 0."""
    for place in places(len(whole), TRIES, seed=4):
        yield whole[:place] + bytes(min(512, len(whole) - place)) + whole[place + 512 :]


@pytest.mark.parametrize("kind", ["one bit", "a page of zeros"])
def test_a_compressed_volume(tmp_path, beside, kind):
    path = write_nifti(tmp_path / "a.nii.gz", head_image((24, 24, 16)))
    whole = path.read_bytes()
    damages = list(flips(whole) if kind == "one bit" else lost_pages(whole))
    stock = silent(lambda p: np.asarray(nib.load(p).dataobj), path, whole, damages)
    ours = silent(lambda p: read_volume(p).array, path, whole, damages)
    beside(f"{kind} of a .nii.gz", "nibabel", f"{stock} of {TRIES} read as other voxels", ours)
    assert (ours, stock > 0) == (0, True)


@pytest.mark.parametrize("kind", ["one bit", "a page of zeros"])
def test_a_checkpoint(tmp_path, beside, kind):
    path = tmp_path / "a.ckpt"
    torch.save(state(0), path)
    whole = path.read_bytes()
    damages = list(flips(whole) if kind == "one bit" else lost_pages(whole))

    def weights(loaded):
        return np.concatenate([loaded["state_dict"][name].numpy() for name in "ab"])

    stock = silent(lambda p: weights(torch.load(p, weights_only=True)), path, whole, damages)
    ours = silent(lambda p: weights(read_checkpoint(p)), path, whole, damages)
    beside(
        f"{kind} of a checkpoint", "torch.load", f"{stock} of {TRIES} read as other weights", ours
    )
    assert (ours, stock > 0) == (0, True)


def killed_in_the_middle(save) -> None:
    """Call ``save()`` in a process that is killed when half of the file is written."""
    child = os.fork()
    if not child:
        plain = torch.save

        def half(value, path, *args, **options):
            plain(value, path)
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half
        save()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_kill_while_saving_over_the_only_checkpoint(tmp_path, beside):
    stock, ours = tmp_path / "stock.ckpt", tmp_path / "last.ckpt"
    torch.save(state(1), stock)
    AtomicCheckpointIO().save_checkpoint(state(1), ours)
    killed_in_the_middle(lambda: torch.save(state(2), stock))
    killed_in_the_middle(lambda: AtomicCheckpointIO().save_checkpoint(state(2), ours))
    with pytest.raises(CheckpointError):
        read_checkpoint(stock)
    lost = read_checkpoint(ours)["global_step"] != 1
    beside("SIGKILL in the middle of a save", "torch.save", "the only checkpoint is lost", lost)
    assert not lost


class Diverging(pl.LightningModule):
    """A model whose loss is NaN in its second step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        return loss * float("nan") if batch_idx == 1 else loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_loss_that_is_nan(tmp_path, beside):
    """Ours ends with exit 6 before the step: TR-03."""
    keep = pl.callbacks.ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    trainer = pl.Trainer(
        max_steps=2,
        callbacks=[keep],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Diverging(), DataLoader(torch.ones(4, 2), batch_size=1))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert not all(torch.isfinite(value).all() for value in saved.values())
    beside("a loss that is NaN", "Lightning", "ends as if all were well, last.ckpt holds NaN", 0)
