"""``scripts/slurm_train.sbatch`` with stubs for SLURM: stopped, queued again, the same run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from workflow.conftest import SPLIT, TINY

from ldm.checkpoint import newest_checkpoint, read_checkpoint
from ldm.cli.main import main

REPO = Path(__file__).parents[2]
STUBS = {  # of SLURM, what the script calls
    "srun": 'exec "$@"',
    "scontrol": 'echo "$@" >> "$SLURM_STUB/queued"',
    "dsdiff": f'exec {sys.executable} -m ldm.cli.main "$@"',
}


class Job:
    """The script as SLURM runs it: options from its head, an id, a shell that gets the signal."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        (folder / "bin").mkdir(exist_ok=True)
        for name, text in STUBS.items():
            (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / "bin" / name).chmod(0o755)
        slurm = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "dsdiff"}
        slurm |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
        slurm |= {"SLURM_NTASKS_PER_NODE": "1", "SLURM_STUB": str(folder)}
        slurm |= {"OMP_NUM_THREADS": "1"}  # as in the process of the tests: the same sums
        path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, **slurm, "PATH": path, "PYTHONPATH": str(REPO)}
        script = ["bash", str(REPO / "scripts/slurm_train.sbatch"), *arguments]
        self.log, self.queue = folder / "log", folder / "queued"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                script, cwd=REPO, env=environment, stdout=log, stderr=log
            )

    def wait(self) -> int:
        return self.process.wait(timeout=600)

    @property
    def queued(self) -> list[str]:
        return self.queue.read_text().splitlines() if self.queue.exists() else []


def steps_of(run: Path) -> int:
    path = run / "metrics.csv"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="module")
def arguments(patients) -> list[str]:
    steps = ["lightning.trainer.max_steps=40", "lightning.trainer.val_check_interval=40"]
    steps += ["lightning.callbacks.samples=null", "lightning.callbacks.curve=null"]
    return [*TINY, f"data.params.root={patients}", *SPLIT, *steps]


@pytest.fixture
def whole(tmp_path_factory, arguments, weights) -> str:
    """The weights of the training that nothing stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(["train", *arguments, "--output", str(run)]) == 0
    return weights(run)


def stopped(folder: Path, arguments: list[str], number: signal.Signals) -> Job:
    """A job that has got the signal after a few steps, and has ended."""
    job = Job(folder, str(folder / "run"), *arguments)
    while job.process.poll() is None and steps_of(folder / "run") < 4:
        time.sleep(0.05)
    job.process.send_signal(number)  # to the shell alone, as --signal=B: and scancel --batch do
    assert job.wait() == 143, job.log.read_text()
    return job


def test_at_its_time_limit_a_job_is_queued_again_and_goes_on_bitwise(
    tmp_path, arguments, whole, weights
):
    job = stopped(tmp_path, arguments, signal.SIGUSR1)
    assert job.queued == ["requeue 17"]
    assert weights(tmp_path / "run") != whole
    again = Job(tmp_path, str(tmp_path / "run"), *arguments)
    assert again.wait() == 0, again.log.read_text()
    assert weights(tmp_path / "run") == whole
    assert again.queued == ["requeue 17"]  # what has ended is not queued again


def test_a_job_that_is_cancelled_saves_and_is_not_queued_again(tmp_path, arguments):
    assert stopped(tmp_path, arguments, signal.SIGTERM).queued == []
    saved = newest_checkpoint(tmp_path / "run")
    assert 0 < read_checkpoint(saved)["global_step"] < 40


def test_without_arguments_it_says_how_it_is_called(tmp_path):
    job = Job(tmp_path)
    assert job.wait() == 2
    assert "sbatch" in job.log.read_text()
