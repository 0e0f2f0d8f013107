"""TR-05: a process that loads slices is killed, fails or stops; the training ends with exit 8."""

import os
import signal

import pytest
from robustness.forks import Verb
from workflow.conftest import TINY

from ldm.data.datamodule import ContrastDataModule
from ldm.data.slices import SliceDataset
from ldm.errors import as_known_error

SAID = {
    "SIGKILL": "exited unexpectedly",
    "SIGSTOP": "DataLoader timed out after 5 seconds",
    "raise": "DataError: DATA-IO case=Phantom_0001: cache entry",
}


@pytest.mark.parametrize("act", SAID)
def test_tr_05_a_worker_that_is_gone_ends_the_training(tmp_path, patients, act):
    def arrange() -> None:
        plain, parent = SliceDataset.__getitem__, os.getpid()

        def item(self, key):
            if os.getpid() != parent and isinstance(key, tuple):  # of training, in a worker
                print("the fault fires", flush=True)
                if act == "raise":
                    folder = self.subjects[0].folder
                    folder.rename(folder.with_name("gone"))
                    self._opened.clear()  # what was read before the worker was started
                else:
                    os.kill(os.getpid(), getattr(signal, act))
            return plain(self, key)

        SliceDataset.__getitem__ = item

    split = ["data.params.train=[Phantom_0001]", "data.params.val=[Phantom_0003]"]
    options = [f"data.params.root={patients}", "data.params.num_workers=1", *split]
    options += ["data.params.worker_timeout=5", f"data.params.cache={tmp_path / 'cache'}"]
    options += ["lightning.trainer.max_steps=4", "--output", tmp_path / "run"]
    verb = Verb("train", *TINY, *options, log=tmp_path / "log", before=arrange)
    code, line = verb.wait(60), verb.error
    assert "the fault fires" in verb.text
    assert (code, "error WORKER" in line, SAID[act] in line) == (8, True, True), verb.text
    assert "Traceback" not in verb.text
    assert not verb.has_processes()


def test_tr_05_an_oserror_of_a_worker_is_no_error_of_the_output():
    """As the loader of torch raises it anew: with the traceback as its text."""
    from torch._utils import ExceptionWrapper

    try:
        raise OSError(5, os.strerror(5), "slices.npy")
    except OSError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(OSError) as raised:
        wrapped.reraise()
    known = as_known_error(raised.value)
    assert (known.exit_code, known.code) == (8, "WORKER")
    assert "Input/output error" in known.message and "Traceback" not in known.message


def test_tr_05_the_limit_is_half_a_minute_where_processes_are_forked(monkeypatch):
    for way, seconds in {"fork": 30, "spawn": 120}.items():
        monkeypatch.setattr("multiprocessing.get_start_method", lambda way=way: way)
        assert ContrastDataModule().worker_timeout == seconds
