"""What every test file shares: one thread, a cache of its own, and a folder of tiny patients."""

import logging
from pathlib import Path

import hypothesis
import pytest
import torch
from builders import write_subject
from robustness.record import (  # noqa: F401 - hooks of pytest
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_runtest_makereport,
    pytest_sessionfinish,
)

torch.set_num_threads(1)
hypothesis.settings.register_profile("dsdiff", deadline=None)
hypothesis.settings.load_profile("dsdiff")
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def brats_folder(tmp_path: Path) -> Path:
    """Four tiny patients, ``p0`` to ``p3``, in the BraTS 2021 layout, with ``seg``."""
    for number in range(4):
        write_subject(tmp_path / "patients", f"p{number}", seed=number)
    return tmp_path / "patients"
