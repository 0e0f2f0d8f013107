"""TR-01, SA-01: killed at random moments, again and again, nothing is lost and nothing differs."""

import random
import signal
import time
from pathlib import Path

import pytest
from robustness.forks import Verb
from workflow.conftest import SPLIT, TINY

from ldm.checkpoint import CHECKPOINTS

COUNTS = [2, pytest.param(30, marks=pytest.mark.slow)]


def killed_again_and_again(begin, finished, kills: int) -> int:
    """Kill processes at random moments; return how many were needed until the last one ended.

    Args:
        begin: starts a process that goes on, or begins anew where the work was complete.
        finished: called when the work is complete; says that it is right.
        kills: that are to hit a process at work.
    """
    moments, done, started = random.Random(0), 0, 0
    began = time.monotonic()
    verb = begin()
    assert verb.wait() == 0, verb.text
    period = time.monotonic() - began  # of the undisturbed work
    finished()
    while done < kills:
        verb = begin()
        started += 1
        time.sleep(moments.uniform(0.1, 1) * period)
        if verb.is_running() and verb.kill() == -signal.SIGKILL:  # else it ended in between
            done += 1
        else:
            assert verb.code == 0, verb.text
            finished()
    verb = begin()
    assert verb.wait() == 0, verb.text
    finished()
    return started


@pytest.mark.parametrize("kills", COUNTS)
def test_tr_01_a_training_that_is_killed_again_and_again(tmp_path, patients, weights, kills):
    steps = ["lightning.trainer.max_steps=6", "lightning.trainer.val_check_interval=3"]
    every = "lightning.callbacks.checkpoint.params.every_n_steps=1"
    options = [f"data.params.root={patients}", *SPLIT, *steps, every]
    runs: list[Path] = [tmp_path / "run-0"]
    digests = []

    def begin() -> Verb:
        run, log = runs[-1], tmp_path / "log"
        if any((run / checkpoint).exists() for checkpoint in CHECKPOINTS):
            return Verb("train", "--resume", run, log=log)
        return Verb("train", *TINY, *options, "--output", run, log=log)

    def finished() -> None:
        digests.append(weights(runs[-1]))
        lines = (runs[-1] / "metrics.csv").read_text().splitlines()
        assert len(set(lines)) == len(lines) > 6  # no step is told twice
        runs.append(tmp_path / f"run-{len(runs)}")

    killed_again_and_again(begin, finished, kills)
    assert len(digests) >= 2 and len(set(digests)) == 1


@pytest.mark.parametrize("kills", COUNTS)
def test_sa_01_a_sampler_that_is_killed_again_and_again(tmp_path, run_folder, patients, kills):
    outs: list[Path] = [tmp_path / "out-0"]
    whole: dict[str, bytes] = {}

    def volumes() -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in outs[-1].glob("*_t1ce.*") if p.name[0] != "."}

    def begin() -> Verb:
        if whole:  # whatever has its final name is complete, at any moment
            found = {n: c for n, c in volumes().items() if n.endswith(".nii.gz")}
            assert found.items() <= whole.items()
        given = ("--input", patients, "--output", outs[-1], "--steps", "2", "--temperature", "1")
        return Verb("sample", run_folder, *given, log=tmp_path / "log")

    def finished() -> None:
        whole.update(whole or volumes())
        assert volumes() == whole and len(whole) == 6
        assert not list(outs[-1].glob(".tmp-*"))
        outs.append(tmp_path / f"out-{len(outs)}")

    killed_again_and_again(begin, finished, kills)
