"""How the cells of a benchmark are run: by the verbs, each in a process of its own.

What is finished is not done again, so a benchmark that was killed anywhere goes on with the same
command. Several processes may work on one benchmark: a cell or a training that another one holds
is waited for. The locks lie in a folder of their own, beside the work.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ldm.benchmark.kept_scores import evaluate_once
from ldm.benchmark.plan import GridCell, Training
from ldm.benchmark.tally import tally, to_train
from ldm.benchmark.waiting import POLL
from ldm.claims import folder_lock
from ldm.config import read_saved_config, save_config
from ldm.data.seen import Digests, read_seen, refuse_leaks
from ldm.errors import BusyError, ConfigError, OutputError, PartialError, bad_value, survived
from ldm.evaluation.scores import Evaluation
from ldm.inference.baseline_volumes import write_baseline
from ldm.model_file import told_digest
from ldm.progress import PART_OF, Progress, silent
from ldm.storage import COST_FILE, MODEL_FILE, appending, read_json, remove, write_json
from ldm.study import Study
from ldm.util import how_many, params_of, trusting

GRACE = 10.0  # seconds in which a child ends by itself: SLURM signals it as well
STOPPED = (130, 143)  # exit codes of SIGINT and SIGTERM
ERROR = re.compile(r"dsdiff [a-z ]+: error\b")  # how a verb begins the line that says why it ended
BUSY = re.compile(ERROR.pattern + " RUN-BUSY")


class Stopped(Exception):  # noqa: N818 - no error: the user or the queue ends the work
    """A child was interrupted; ``code`` is the exit code to pass on."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Work:
    """The cells of a benchmark and what they share."""

    output: Path  # folder of the benchmark
    reference: Path  # folder of the real patients
    held_out: Digests  # the patients to test on, with the digests of their files
    train: Sequence[str]  # those that baselines are fitted on
    data: Mapping[str, Any]  # the `data` section that baselines use
    cells: Sequence[GridCell] = ()  # all of the plan, by which it is told how far the work is
    timing: int = 3  # repeats of the measurement of time; 0: none
    layout: str | Mapping[str, Any] | None = None  # of `reference`; None: recognised
    mask: str = "auto"  # what is brain, see ldm.data.brain.subject_brain
    # nobody looks, or several cells run at once, so their output goes to files
    is_quiet: bool = False
    say: Callable[[str], None] | None = None  # told what begins
    progress: Progress = silent  # wraps the patients that are evaluated
    failed: dict[Path, str] = field(default_factory=dict)  # run folder -> reason, in this process
    children: set[subprocess.Popen] = field(default_factory=set)

    def state(self, cell: GridCell) -> tuple[str, str]:
        """Return the state, and the reason of a failure.

        ``done``, ``partial`` (some patients failed), ``failed``, ``running``, ``trained`` (to be
        sampled), ``begun`` or ``missing``.
        """
        found = read_json(cell.folder / "cell.json")
        if found.get("state") == "done" and found["request"] == self.request(cell):
            return "done", ""
        if self._is_held(cell.folder):
            return "running", ""
        if found.get("state") in ("failed", "partial"):
            return found["state"], found["reason"]
        if cell.training is None:
            return "missing", ""
        if is_trained(cell.training):
            return "trained", ""
        return ("begun" if has_begun(cell.training) else "missing"), ""

    def request(self, cell: GridCell) -> dict[str, Any]:
        """Return what a cell must have been run with to be done."""
        described = {"sampling": dict(cell.sampling), "subjects": sorted(self.held_out)}
        if cell.baseline:
            described |= {"baseline": cell.baseline, "train": list(self.train)}
        if cell.training and cell.training.is_given:  # whatever lies in that folder by then
            described |= {"model": told_digest(cell.training.run / MODEL_FILE)}
        return described

    def run(self, cell: GridCell, wait: bool = True, gpu: str | None = None) -> None:
        """Bring one cell to ``done`` or ``failed``.

        Raises:
            BusyError: another process is at it, and ``wait`` is false. Stopped.
        """
        said = False
        while True:
            try:
                if self._run(cell, gpu):
                    self._say_ended(cell)
                return
            except BusyError:
                if not wait:
                    raise
                if not said and self.say:
                    self.say(f"{cell.name}: in progress in another process, waiting")
                said = True
                time.sleep(POLL)

    def rehearse(self, training: Training) -> None:
        """Have classes of one's own tried as ``dsdiff train`` tries them, in a process of its own.

        Raises:
            ConfigError: CONFIG-VALUE, why the training would not begin. Stopped.
        """
        config = training.folder / "rehearsed.yaml"  # it is not begun yet
        save_config(training.config, config)
        if self.say:
            self.say(f"{training.row}: a first step on noise")
        quiet = replace(self, is_quiet=True)
        given = [config, "--dry-run", *trusting(training.targets)]
        code, reason = quiet._dsdiff(training.folder, None, "train", *given)
        remove(config)
        if code == ConfigError.exit_code:
            raise bad_value(f"rows.{training.row} cannot be trained, nothing was begun: {reason}")

    def scores(self, cell: GridCell) -> Evaluation:
        """Return the scores of a sampled cell, evaluated once."""
        return evaluate_once(
            cell.prediction,
            self.reference,
            self.held_out,
            cell.folder / "scores.json",
            self.study,
            mask=self.mask,
            layout=self.layout,
            trust=cell.training.targets if cell.training else (),
            progress=self.patients,
        )

    @property
    def study(self) -> Study:
        """What is synthesised, and from what."""
        return Study.read(params_of(self.data))

    @property
    def patients(self) -> Progress:
        """Shows how many patients are evaluated, unless several cells run at once."""
        return silent if self.is_quiet else self.progress

    def _run(self, cell: GridCell, gpu: str | None) -> bool:
        """Bring one cell to an end; return whether there was anything to do."""
        with self._lock(cell.folder):
            if self.state(cell)[0] == "done":
                return False
            reason = ""
            try:
                if cell.baseline:
                    write_baseline(
                        cell.baseline, cell.prediction, self.data, self.train, sorted(self.held_out)
                    )
                else:
                    reason = self._train(cell, gpu) or self._sample(cell, gpu)
                state = "failed" if reason else "done"
                if not reason:
                    found = self.scores(cell)
                    if found.failures:
                        lost = next(iter(found.failures.values()))
                        state, first = "partial", next(iter(lost.items()))
                        reason = f"{len(lost)} patients failed, first {': '.join(first)}"
            except Exception as error:
                known = survived(error, OutputError, BusyError)
                state, reason = "failed", str(known)
            described = {"state": state, "reason": reason, "request": self.request(cell)}
            write_json(cell.folder / "cell.json", described)
        return True

    def _train(self, cell: GridCell, gpu: str | None) -> str:
        """Train as far as that is not done; return the reason of a failure."""
        training = cell.training
        with self._lock(training.folder):
            if not is_trained(training):
                if training.run in self.failed:
                    return self.failed[training.run]
                config = training.folder / "config.yaml"
                save_config(training.config, config)
                begun = has_begun(training)
                start = ["--resume", training.run] if begun else [config, "--output", training.run]
                every = [t.folder for t in to_train(self.cells)]
                place = f"{every.index(training.folder) + 1} of {len(every)}"
                self._say(cell, f"{'resuming training' if begun else 'training'} {place}")
                trusted = trusting(training.targets)
                code, reason = self._dsdiff(training.folder, gpu, "train", *start, *trusted)
                if code:
                    self.failed[training.run] = reason
                    return reason
        refuse_leaks(self.held_out, read_seen(training.run), cell.name)
        return ""

    def _sample(self, cell: GridCell, gpu: str | None) -> str:
        """Sample the held-out patients and measure the time; return the reason of a failure."""
        options = [part for key, value in cell.sampling.items() for part in _option(key, value)]
        options += trusting(cell.training.targets)
        start = ["sample", cell.training.run, "--input", self.reference]
        start += ["--precision", "32"]  # on every machine, unless the row says otherwise
        if self.layout is not None:
            told = self.layout if isinstance(self.layout, str) else json.dumps(self.layout)
            start += ["--layout", told]
        subjects = ["--subjects", *sorted(self.held_out)]
        self._say(cell, f"sampling {how_many(len(self.held_out), 'patient')}")
        code, reason = self._dsdiff(
            cell.folder, gpu, *start, "--output", cell.prediction, *subjects, *options
        )
        if code == PartialError.exit_code:  # its patients are failures in the table
            code = 0
        timing = cell.folder / "timing"
        if not code and cell.is_timed and self.timing and not (timing / COST_FILE).is_file():
            self._say(cell, "measuring time and memory")
            once = ["--subjects", min(self.held_out), "--timing", self.timing]
            code, reason = self._dsdiff(
                cell.folder, gpu, *start, "--output", timing, *once, *options
            )
        return reason if code else ""

    def _dsdiff(self, folder: Path, gpu: str | None, *arguments: Any) -> tuple[int, str]:
        """Run a verb in a process of its own; return its exit code, and why it ended."""
        # as a console script runs: nothing in the working directory takes the place of a library
        environment = os.environ | {"PYTHONSAFEPATH": "1", PART_OF: "benchmark"}
        environment |= {"PYTHONPATH": os.pathsep.join(_search_path())}
        environment |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        with appending(folder / "log.txt") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "ldm.cli.main", *map(str, arguments)],
                stdout=file if self.is_quiet else None,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=environment,
            )
            self.children.add(process)
            try:
                code, reason = self._follow(process, file)
            finally:
                self.children.discard(process)
        if code == BusyError.exit_code:
            raise BusyError("RUN-BUSY", reason)
        code = 128 - code if code < 0 else code
        if code in STOPPED:
            raise Stopped(code)
        return code, reason

    def _follow(self, process: subprocess.Popen, file: Any) -> tuple[int, str]:
        last = error = ""
        while True:
            try:
                for line in process.stderr:
                    if not BUSY.match(line):  # which is waited for, and told so once
                        (file if self.is_quiet else sys.stderr).write(line)
                    last = line.strip() or last
                    error = last if ERROR.match(last) else error
                code = process.wait()
                if code < 0:
                    return code, _killed(-code, ": see log.txt" if self.is_quiet else "")
                said = f"exit code {code}" + (f", the last line: {last}" if last else "")
                return code, error or said
            except KeyboardInterrupt:  # the child got it too, and saves
                continue
            except SystemExit:
                self.stop_children()
                raise

    def stop_children(self) -> None:
        """Wait for the children, and tell those that go on to end."""
        for process in list(self.children):
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            process.terminate()
            process.wait()

    def _say(self, cell: GridCell, what: str) -> None:
        if self.say:
            self.say(f"{cell.name}: {what}" if self.is_quiet else f"\n{cell.name}: {what}")

    def _say_ended(self, cell: GridCell) -> None:
        if self.say:
            told = ", ".join(filter(None, self.state(cell)))
            self.say(f"{cell.name}: {told} ({tally([self.state(c)[0] for c in self.cells])})")

    def _lock(self, folder: Path) -> Any:
        return folder_lock(self.output / "locks" / folder.relative_to(self.output))

    def _is_held(self, folder: Path) -> bool:
        if not (self.output / "locks" / folder.relative_to(self.output)).is_dir():
            return False
        try:
            with self._lock(folder):
                return False
        except BusyError:
            return True


def run_cells(work: Work, cells: Sequence[GridCell], jobs: int, gpus: Sequence[str]) -> int:
    """Run every cell that is not done, ``jobs`` at a time; return 0, or the code of an interrupt.

    A cell that another process holds is left for last. Failures are left in the cells' folders.
    """
    slots: SimpleQueue[str | None] = SimpleQueue()
    for number in range(jobs):
        slots.put(gpus[number % len(gpus)] if jobs > 1 and gpus else None)
    stopped, busy = threading.Event(), []

    def one(cell: GridCell, wait: bool) -> int:
        if stopped.is_set():
            return 0
        slot = slots.get()
        try:
            work.run(cell, wait, slot)
        except BusyError:
            busy.append(cell)
        except Stopped as stop:
            stopped.set()
            return stop.code
        except BaseException:
            stopped.set()
            raise
        finally:
            slots.put(slot)
        return 0

    for turn, wait in ((list(cells), False), (busy, True)):
        waiting = sorted(turn, key=lambda cell: cell.number)
        codes = (one(cell, wait) for cell in waiting)
        if jobs > 1:
            codes = _in_threads(work, one, waiting, wait, jobs, stopped)
        for code in codes:
            if code:
                return code
    return 0


def _in_threads(
    work: Work, one: Any, cells: Sequence[GridCell], wait: bool, jobs: int, stopped: threading.Event
) -> Iterator[int]:
    with ThreadPoolExecutor(jobs) as pool:
        try:
            codes = list(pool.map(lambda cell: one(cell, wait), cells))
        except KeyboardInterrupt:  # the children got it too
            stopped.set()
            codes = [STOPPED[0]]
        except SystemExit:
            stopped.set()
            work.stop_children()
            raise
    yield max(codes, default=0)


def _killed(number: int, log: str) -> str:
    """Return what is said of a child that a signal ended: it had no time to say why."""
    name = next((s.name for s in signal.Signals if s == number), f"signal {number}")
    cause = ", as where memory runs out" if name == "SIGKILL" else ""
    return f"killed by {name}{cause}{log}; the same command goes on"


def _search_path() -> list[str]:
    """Return ``PYTHONPATH`` as it is, and where else this process finds modules of the user.

    So a class beside a script or a notebook is found by the verbs, which run elsewhere. What lies
    in the working directory is found last, and this Python's libraries without being named.
    """
    given = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    libraries = [Path(sysconfig.get_path(kind)) for kind in kinds]
    more = [place for place in sys.path if isinstance(place, str) and Path(place).is_dir()]
    return given + [
        place
        for place in more
        if place not in given
        and Path(place) != Path.cwd()
        and not any(Path(place).is_relative_to(library) for library in libraries)
    ]


def is_trained(training: Training) -> bool:
    """Return whether a run has had all its steps."""
    return training.is_given or bool(read_json(training.run / COST_FILE).get("finished"))


def has_begun(training: Training) -> bool:
    """Return whether a training has been saved."""
    return any(training.run.glob("checkpoints/*.ckpt"))


def require_same_config(training: Training) -> None:
    """Refuse to mix the work of two configurations in one folder.

    Raises:
        OutputError: OUT-EXISTS.
    """
    path = training.folder / "config.yaml"
    if path.is_file() and read_saved_config(path) != training.config:
        raise OutputError(
            "OUT-EXISTS",
            f"{training.folder} was begun with another configuration: choose another --output, "
            "or remove the folder",
        )


def _option(key: str, value: Any) -> list[Any]:
    if value in (None, []):
        return []
    return [f"--{key.replace('_', '-')}", *(value if isinstance(value, list) else [value])]
