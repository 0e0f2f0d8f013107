"""TR of docs/reliability.md: two processes train as one, and end as one. All are real processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from ldm.callbacks import pulse
from ldm.callbacks.pulse import Pulse

REPO = Path(__file__).parents[2]
SGD = [
    "model.params.optimizer_config.target=torch.optim.SGD",
    "model.params.optimizer_config.params.lr=0.2",
    "model.params.warmup_steps=0",
    "lightning.callbacks.checkpoint.params.every_n_steps=1000",
]
TWO = ["lightning.trainer.devices=2", "lightning.trainer.strategy=ddp"]
# From the fault to the end of all. It takes 30 s where there are processors to be had; what hangs
# does so for half an hour.
MOST_SECONDS = 300


def command(patients: Path, run: Path, *overrides: str) -> list[str]:
    from workflow.conftest import SPLIT, TINY

    told = [*TINY, f"data.params.root={patients}", *SPLIT, *overrides, "--output", str(run)]
    return [sys.executable, "-m", "ldm.cli.main", "train", *told]


def trained(patients: Path, run: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """The weights, not averaged, after a training in processes of its own."""
    done = subprocess.run(
        command(patients, run, *overrides), cwd=REPO, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["current_model_state"]


def difference(first: dict, second: dict) -> float:
    """The largest difference of two states, by the largest of the first."""
    size = max(value.abs().max() for value in first.values())
    return float(max((first[n] - second[n]).abs().max() for n in first) / size)


def changes(state: dict, other: dict) -> dict:
    return {name: other[name] - value for name, value in state.items()}


# what is drawn of a batch: a timestep, noise, the items of the mean, dropped conditions, and the
# order, augmentation and weighted choice of the slices
DRAWN = [
    "model.params.mean_share=0.4",
    "model.params.drop_all=0.3",
    "data.params.condition_dropout=0.3",
    "data.params.abnormal_share=0.5",
    "data.params.augmentation_config.target=ldm.data.augmentation.SliceAugmentation",
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [[], DRAWN], ids=["plain", "all that is drawn"])
def test_tr_14_two_processes_train_as_one_at_the_same_global_batch(tmp_path, patients, settings):
    """The gradient is what SGD changes in its first step; weights after 20 steps."""
    states = {}
    for steps in (1, 20):
        told = [*SGD, *settings, f"lightning.trainer.max_steps={steps}"]
        for name, own in (("one", ["data.params.batch_size=4"]), ("two", TWO)):
            states[name, steps] = trained(patients, tmp_path / f"{name}{steps}", *told, *own)
    moved = difference(states["one", 1], states["one", 20])
    assert moved > 1e-2  # it learns: equal weights are no matter of course
    gradients = [changes(states[name, 20], states[name, 1]) for name in ("one", "two")]
    assert difference(states["one", 1], states["two", 1]) <= 1e-5
    assert difference(*gradients) <= 1e-4
    assert difference(states["one", 20], states["two", 20]) <= 1e-4


class Training:
    """A training in two processes, which has done a few steps."""

    def __init__(self, patients: Path, run: Path, *overrides: str) -> None:
        self.run, self.log = run, run.with_suffix(".log")
        steps = ["lightning.trainer.max_steps=100000", *SGD[:-1], *TWO, *overrides]
        steps += ["lightning.callbacks.checkpoint.params.every_n_steps=2"]
        self.process = subprocess.Popen(
            command(patients, run, *steps),
            cwd=REPO,
            env={**os.environ, "PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'tests'}"},
            stdout=self.log.open("a"),
            stderr=self.log.open("a"),
            start_new_session=True,
        )

    def wait_for(self, path: str) -> None:
        deadline = time.monotonic() + 200
        while not (self.run / path).exists():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)

    @property
    def ranks(self) -> list[int]:
        """The two processes: the one that was started, and its child."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [self.process.pid, int(children.split()[0])]

    def end(self, ranks: list[int]) -> int:
        """Wait for the end of both; return the exit code."""
        deadline = time.monotonic() + MOST_SECONDS
        code = self.process.wait(MOST_SECONDS)
        while any(is_alive(pid) for pid in ranks[1:]):
            assert time.monotonic() < deadline, "a process is left"
            time.sleep(0.2)
        return code


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def begin(patients, tmp_path):
    """``begin(*overrides)``: a training in two processes; nothing of it is left at the end."""
    begun = []

    def start(*overrides: str) -> Training:
        begun.append(Training(patients, tmp_path / "run", *overrides))
        return begun[-1]

    yield start
    for training in begun:
        if training.process.poll() is None:
            os.killpg(training.process.pid, signal.SIGKILL)  # the session that the test started
            training.process.wait()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds a child through /proc")
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGSTOP"])
def test_tr_06_a_rank_that_gets_a_signal_ends_all(begin, name, rank):
    training = begin()
    training.wait_for("checkpoints/last.ckpt")
    ranks = training.ranks
    os.kill(ranks[rank], getattr(signal, name))
    code = training.end(ranks)
    log = training.log.read_text()
    if name == "SIGTERM":
        assert code == 143
        assert "SIGTERM: saving after this step" in log
    else:
        assert code == (-signal.SIGKILL if (name, rank) == ("SIGKILL", 0) else 8)
        assert "RANK: " in log
    assert torch.load(training.run / "checkpoints/last.ckpt", weights_only=True)["global_step"] >= 2


def fault(rank: int, act: str) -> list[str]:
    """Overrides that let one process fail or stand still; see :mod:`robustness.rank_faults`."""
    node = "lightning.callbacks.fault"
    given = {"target": "robustness.rank_faults.Fault", "params.rank": rank, "params.act": act}
    return [f"{node}.{key}={value}" for key, value in given.items()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds a child through /proc")
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("act", ["known", "unknown"])
def test_tr_06_a_rank_that_raises_ends_all(begin, act, rank):
    """The first process answers with its own error; with 8 where another one has failed."""
    training = begin(*fault(rank, act))
    training.wait_for("checkpoints/last.ckpt")
    ranks = training.ranks
    code, log = training.end(ranks), training.log.read_text()
    said = "DATA-IO case=Phantom_0001" if act == "known" else "INTERNAL: KeyError"
    assert f"{said}: " in log and "the fault fires" in log
    own = 3 if act == "known" else 70
    assert code == (8 if rank else own), log
    assert "Traceback" not in log
    assert torch.load(training.run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds a child through /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_tr_06_a_rank_that_stands_still_ends_all_and_says_where(begin, rank):
    training = begin(*fault(rank, "hang"), "data.params.worker_timeout=8")
    training.wait_for("checkpoints/last.ckpt")
    ranks = training.ranks
    code, log = training.end(ranks), training.log.read_text()
    assert "the fault fires" in log
    assert code == 8, log
    assert f"process {rank} stands still in " in log and "rank_faults.py line " in log
    assert "RANK: no process of the training got on for 8 s (data.params.worker_timeout)" in log
    assert torch.load(training.run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


class Trainer(threading.Thread):
    """A thread that trains: it waits at one place of two, by turns, as it is told."""

    def __init__(self, folder: Path, **options: object) -> None:
        super().__init__(daemon=True)
        self.options = {"rank": 0, "processes": 1, "patience": 3, "computes": False, **options}
        self.folder, self.place, self.there = folder, 0, threading.Event()
        self.calls = (self.first, self.second)
        self.gates = (threading.Event(), threading.Event())
        self.start()
        self.there.wait()

    def run(self) -> None:
        self.pulse = Pulse(self.folder, **self.options)
        while True:
            self.calls[self.place]()

    def first(self) -> None:
        self.there.set()
        self.gates[0].wait()

    def second(self) -> None:
        self.there.set()
        self.gates[1].wait()

    def move(self) -> None:
        here = self.place
        self.there.clear()
        self.place = 1 - here
        self.gates[self.place].clear()
        self.gates[here].set()
        self.there.wait()

    def looks(self, count: int) -> list[bool]:
        return [self.pulse.all_stand_still() for _ in range(count)]


def test_tr_06_a_process_that_stands_still_is_found_and_says_where(tmp_path, caplog):
    one = Trainer(tmp_path)
    assert one.looks(3) == [False] * 3
    assert one.looks(3)[-1]
    assert "process 0 stands still in " in caplog.text and "threading.py line " in caplog.text
    one.move()
    assert one.looks(3) == [False] * 3
    assert one.looks(3)[-1]


def test_tr_06_one_that_gets_on_is_never_taken_for_another(tmp_path):
    one = Trainer(tmp_path)
    for _ in range(4):
        assert one.looks(3) == [False] * 3
        one.move()


def test_tr_06_nothing_is_wrong_while_one_of_them_works(tmp_path):
    """The first one samples pictures, say, and the other waits for it."""
    works, waits = (Trainer(tmp_path, rank=rank, processes=2) for rank in (0, 1))
    for _ in range(6):
        works.move()
        assert works.looks(1) == waits.looks(1) == [False]
    found = [(works.looks(1), waits.looks(1)) for _ in range(6)]
    assert found[-1] == ([True], [True])


def test_tr_06_nothing_is_judged_before_all_have_begun(tmp_path):
    one = Trainer(tmp_path, processes=2)
    assert one.looks(9) == [False] * 9
    Trainer(tmp_path, rank=1, processes=2).looks(1)
    assert one.looks(6)[-1]


def test_tr_06_a_save_and_a_computation_may_take_their_time(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    saves = Trainer(tmp_path / "a")
    monkeypatch.setattr(pulse, "HELD_UP", (Trainer.first.__code__,))
    assert saves.looks(9) == [False] * 9
    saves.move()
    assert saves.looks(6)[-1]
    computes, seconds = Trainer(tmp_path / "b", computes=True), iter(range(100))
    computes.move()
    monkeypatch.setattr(pulse.time, "process_time", lambda: next(seconds) / 2)
    assert computes.looks(9) == [False] * 9
    monkeypatch.setattr(pulse.time, "process_time", lambda: 50.0)
    assert computes.looks(7)[-1]


def test_tr_06_a_folder_that_is_gone_judges_nothing(tmp_path):
    (tmp_path / "common").mkdir()
    one = Trainer(tmp_path / "common")
    one.looks(1)
    (tmp_path / "common/0").unlink(), (tmp_path / "common").rmdir()
    one.move()
    assert one.looks(9) == [False] * 9
