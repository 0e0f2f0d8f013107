"""The contract of the BraSyn challenge: a folder of cases, each of which lacks one contrast."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from ldm.claims import claim
from ldm.data.layouts import Layout, Subject, detect_layout
from ldm.data.nifti import write_volume
from ldm.errors import DataError, DsdiffError
from ldm.hub import local_folder
from ldm.inference.outputs import SyntheticVolume
from ldm.inference.synthesis import Synthesiser
from ldm.inference.trained import Read
from ldm.inference.writing import FAILURES, Written, write_overlapped
from ldm.progress import Progress, silent, unheard
from ldm.study import Contrasts
from ldm.typed import typed
from ldm.util import user_path

NAMING = "brats2023"  # of the volumes: t1n, t1c, t2w, t2f


@typed
def brasyn(
    input: str | Path,
    output: str | Path,
    model: str | Path,
    *,
    device: str = "auto",
    trust: Collection[str] = (),
    report: Callable[[DsdiffError], None] | None = None,
    progress: Progress = silent,
) -> Written:
    """Make the contrast that each case lacks; a case that cannot be used ends no other.

    Args:
        input: folder of cases, ``INPUT/CASE/``, each with all contrasts of the model but one, named
            as any known layout names them, such as ``CASE-t1n.nii.gz``.
        output: for ``CASE-t1c.nii.gz`` (or ``-t1n``, ``-t2w``, ``-t2f``): on the grid of the inputs
            and in the units of the first of them, marked as synthetic in its header. What this
            verb wrote before is written anew; ``failures.csv`` has a line a case that failed.
        model: run or model folder of a network that was trained with ``configs/any_missing.yaml``;
            one of a single target makes that one.
        device: ``auto``, ``cpu``, ``cuda:1``, ``mps``.
        trust: classes accepted beside those that the shipped configurations name.
        report: told the error of a case as it happens.
        progress: wraps what is worked through.

    Returns:
        what was written, and the failures.

    Raises:
        DataError: DATA-MISSING or DATA-EMPTY where there is no case. OutputError: OUT-EXISTS for a
            stranger's file, OUT-IO. CheckpointError, UnsafeError: see :meth:`Synthesiser.load`.
    """
    source, output = user_path(input), user_path(output)
    cases = case_folders(source)
    synthesiser = Synthesiser.load(model, device=device, trust=trust, progress=progress)
    known = synthesiser.study.contrasts

    def read(case: Subject) -> Read:
        return synthesiser.read(*read_case(cases[case.id], known))

    def keep(made: SyntheticVolume) -> None:
        name = f"{made.id}-{known.expected(made.target, NAMING)}.nii.gz"
        write_volume(output / name, made.content)

    with claim(output, "brasyn", inputs=[source, local_folder(model)], writes=[FAILURES]):
        named = [Subject(name, {}) for name in cases]
        done = write_overlapped(named, read, synthesiser.of, keep, report or unheard)
        done.write_failures(output)
    return done


def case_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each case by its name.

    Raises:
        DataError: DATA-MISSING without the folder, DATA-EMPTY without a case in it.
    """
    if not root.is_dir():
        raise DataError("DATA-MISSING", f"there is no folder {root}: give the folder of cases")
    cases = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not cases:
        raise DataError("DATA-EMPTY", f"{root} holds no folder: give one with a folder a case")
    return {path.name: path for path in cases}


def read_case(folder: Path, contrasts: Contrasts) -> tuple[Subject, Layout]:
    """Return the patient of a folder, by the name of the folder, and how its files are named.

    Raises:
        DataError: DATA-AMBIGUOUS where there are several; see
            :func:`ldm.data.layouts.detect_layout`.
    """
    try:
        layout, found = detect_layout(folder, None, contrasts)
    except DataError as error:
        raise DataError(error.code, error.args[1], folder.name) from error
    if len(found) != 1:
        raise DataError(
            "DATA-AMBIGUOUS",
            f"the folder holds {len(found)} patients ({', '.join(found)}), and a case is one: give "
            "each a folder",
            folder.name,
        )
    return replace(next(iter(found.values())), id=folder.name), layout
