"""What a training costs before its first step, against the number of patients.

``python scripts/bench_scaling.py [--patients 1000 10000 100000] [--decoded 10000] --output FOLDER``
makes folders of simulated patients (BraTS names; every contrast a link to one of a few tiny files),
and measures, each step in a process of its own, CPU seconds and peak memory of: the index (list the
folder, recognise the layout), the first start (every patient is decoded into the cache), a second
start (all are in the cache), the first batch, and the guard against leaks with 100 patients held
out, and with a tenth. Beyond ``--decoded`` patients the starts are left out. Writes
``scaling.md`` and ``scaling.json``.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from bench_peers import publish

from ldm.data.fingerprint import COMPARED
from ldm.report.environment import environment
from ldm.report.tables import markdown_table

SHAPE = (24, 28, 16)
CONTRASTS = ("t1", "t1ce", "t2", "flair")
MODELS = 8  # different tiny heads that the links point to
GUARDS = {"guard, 100 held out": 100, "guard, a tenth held out": 0.1}  # patients, or their share
STARTS = ("first start", "second start")
FINGERPRINT_BYTES = int(np.ceil(COMPARED.sum() / 8))


@contextmanager
def simulated(patients: int) -> Iterator[Path]:
    """Yield a folder of patients, of links to a few heads; it is gone behind the block."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    inside = (grid**2).sum(0) < 0.8
    with tempfile.TemporaryDirectory() as scratch:
        root, heads = Path(scratch, "patients"), Path(scratch, "heads")
        heads.mkdir()
        for head in range(MODELS):
            draw = np.random.default_rng(head)
            for contrast in CONTRASTS:
                array = np.where(inside, draw.integers(100, 1000, SHAPE), 0).astype(np.int16)
                path = heads / f"{head}_{contrast}.nii.gz"
                nib.save(nib.Nifti1Image(array, np.eye(4)), path)
        for number in range(patients):
            name = f"Sim_{number:06d}"
            folder = root / name
            folder.mkdir(parents=True)
            for contrast in CONTRASTS:
                source = heads / f"{number % MODELS}_{contrast}.nii.gz"
                (folder / f"{name}_{contrast}.nii.gz").symlink_to(source)
        yield root


def data_of(root: Path, cache: Path) -> Any:
    """Return the data module of a training, with nothing found yet."""
    from ldm.config import load_config
    from ldm.util import instantiate_from_config

    told = [f"data.params.root={root}", f"data.params.cache={cache}", "data.params.image_size=32"]
    told += ["data.params.val=0.01"]
    config = load_config(["configs/backbone/unet_tiny.yaml"], told)
    return instantiate_from_config(config["data"], where="data")


def step(name: str, root: Path, cache: Path, patients: int) -> dict[str, float]:
    """Do one step; return its CPU seconds, and the peak memory of the process in bytes."""
    from ldm.data.layouts import detect_layout

    if name == "index":
        began = time.process_time()
        _, found = detect_layout(root)
        assert len(found) == patients
    elif name in STARTS:
        data = data_of(root, cache)
        began = time.process_time()
        data.setup()
    elif name == "first batch":
        data = data_of(root, cache)
        data.setup()
        began = time.process_time()
        next(iter(data.train_dataloader()))
    else:
        told = GUARDS[name]
        began = guard(patients, round(told * patients) if told < 1 else told)
    seconds = time.process_time() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"cpu_seconds": seconds, "peak_memory_bytes": memory}


def guard(patients: int, held_out: int) -> float:
    """Look for held-out patients among those to train on; return when that began."""
    from ldm.data.seen import refuse_split

    draw = np.random.default_rng(0)

    def known(number: int) -> dict[str, str]:
        print_of = base64.b64encode(draw.bytes(FINGERPRINT_BYTES)).decode()
        told = {c: f"{number}-{c}" for c in CONTRASTS}
        return {**told, "anatomy": f"t1:{print_of}", "patient": f"Sim_{number:06d}"}

    every = {f"Sim_{n:06d}": known(n) for n in range(patients)}
    names = list(every)
    train, val = ({n: every[n] for n in part} for part in (names[held_out:], names[:held_out]))
    began = time.process_time()
    refuse_split(train, val)
    return began


def measured(patients: int, decoded: int) -> dict[str, dict[str, float]]:
    """Return what each step costs for a number of patients."""
    names = ["index", *GUARDS]
    names += [*STARTS, "first batch"] if patients <= decoded else []
    found = {}
    with simulated(patients) as root:
        cache = root.parent / "cache"
        for name in names:
            told = [sys.executable, __file__, "--step", name, str(root), str(cache), str(patients)]
            done = subprocess.run(told, stdout=subprocess.PIPE, text=True, check=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
            sys.stderr.write(f"{patients} patients, {name}: {found[name]}\n")
    return found


def exponent(counts: Sequence[int], values: Sequence[float]) -> float:
    """Return p of value ~ count**p, by the first and the last of at least two."""
    if len(values) < 2:
        return math.nan
    return math.log(values[-1] / values[0]) / math.log(counts[-1] / counts[0])


def table(found: dict[int, dict[str, dict[str, float]]]) -> str:
    """Return Markdown: a row a step, a column a number of patients, the exponent last."""
    counts, rows = list(found), []
    for name in dict.fromkeys(name for steps in found.values() for name in steps):
        there = [n for n in counts if name in found[n]]
        for kind, unit, text in (("cpu_seconds", 1, "s"), ("peak_memory_bytes", 2**20, "MiB")):
            values = [found[n][name][kind] / unit for n in there]
            cells = [values[there.index(n)] if n in there else None for n in counts]
            rows.append([f"{name}, {text}", *cells, exponent(there, values)])
    return markdown_table(["step", *(f"{n:,}" for n in counts), "exponent"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--decoded", type=int, default=10_000, help="most patients to decode")
    parser.add_argument("--output", type=Path, default=Path("bench"))
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        name, root, cache, patients = given.step
        sys.stdout.write(json.dumps(step(name, Path(root), Path(cache), int(patients))) + "\n")
        return
    found = {patients: measured(patients, given.decoded) for patients in given.patients}
    page = f"{environment()}\n\n{table(found)}"
    told = {str(patients): steps for patients, steps in found.items()}
    publish(given.output, "scaling", page, told)


if __name__ == "__main__":
    main()
