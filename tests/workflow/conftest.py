"""Three small phantom patients and a run trained on them, shared by the end-to-end tests."""

import socket
from pathlib import Path

import pytest

from ldm.cli.main import main
from ldm.phantom import write_phantoms

TINY = [
    str(Path(__file__).with_name("unet_of_two_levels.yaml")),
    "data.params.image_size=32",
    "data.params.batch_size=2",
    "data.params.val_slices=2",
    "data.params.augmentation_config=null",
    "model.params.sampling_steps=2",
    "model.params.temperature=1",
    "lightning.trainer.precision=32",
    "lightning.trainer.log_every_n_steps=1",
    "lightning.trainer.accelerator=cpu",
]
SPLIT = ["data.params.train=[Phantom_0001,Phantom_0002]", "data.params.val=[Phantom_0003]"]
TINY_SEGMENTER = [
    "configs/segmentation/attention_unet_tiny.yaml",
    "model.params.unet_config.params.channels=[32,32,32]",
    "model.params.warmup_steps=2",
    "data.params.image_size=[24,32]",
    "data.params.batch_size=4",
    "lightning.trainer.precision=32",
    "lightning.trainer.log_every_n_steps=1",
    "lightning.trainer.accelerator=cpu",
]


@pytest.fixture(scope="session", autouse=True)
def offline():
    """No verb opens a connection: weights and data are never fetched."""
    real = socket.socket.connect

    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            raise AssertionError(f"a connection to {address} was opened")
        return real(self, address)  # workers of a data loader talk over files

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        yield


@pytest.fixture(scope="session")
def patients(tmp_path_factory) -> Path:
    """Phantom_0001 to Phantom_0003, 32 voxels across."""
    folder = tmp_path_factory.mktemp("patients")
    write_phantoms(folder, 3, size=32, seed=0)
    return folder


def trainer(patients: Path, *verb: str):
    """``train(folder, *overrides)``: a tiny training on Phantom_0001 and 2, validated on 3.

    Drawing its curve would take longer than its steps.
    """

    def train(folder: Path, *overrides: str, curve: bool = False) -> int:
        data = [f"data.params.root={patients}", *SPLIT]
        more = [] if curve else ["lightning.callbacks.curve=null"]
        return main([*verb, *data, *more, *overrides, "--output", str(folder)])

    return train


@pytest.fixture(scope="session")
def train(patients):
    return trainer(patients, "train", *TINY)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, train) -> Path:
    """A run of four steps."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(folder, "lightning.trainer.max_steps=4") == 0
    return folder


@pytest.fixture(scope="session")
def weights():
    """``weights(run)``: the digest of a run's EMA weights."""

    def digest(run: Path) -> str:
        from ldm.model_file import read_model
        from ldm.storage import MODEL_FILE

        return read_model(run / MODEL_FILE)[1]["sha256"]

    return digest


@pytest.fixture(scope="session")
def train_segmenter(patients):
    return trainer(patients, "segment", "train", *TINY_SEGMENTER)


@pytest.fixture(scope="session")
def segmenter_run(tmp_path_factory, train_segmenter):
    """A run of 20 steps without augmentation, validated in the middle and at the end."""
    folder = tmp_path_factory.mktemp("runs") / "segmenter"
    steps = ["lightning.trainer.max_steps=20", "lightning.trainer.val_check_interval=10"]
    assert train_segmenter(folder, *steps, "data.params.augmentation_config=null") == 0
    return folder
