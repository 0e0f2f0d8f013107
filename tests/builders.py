"""Writers of tiny patients, by nibabel: an independent hand on the other side of the border."""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ldm.benchmark import cells
from ldm.benchmark.cells import Stopped
from ldm.cli.main import main
from ldm.errors import BusyError
from ldm.evaluation.case import Case, Prediction
from ldm.evaluation.protocol import DEFAULT, MetricProtocol, Scores, evaluate_case

INPUTS = ("t1", "t2", "flair")
SHAPE = (12, 14, 10)
RAS = np.array([[1.0, 0, 0, -5], [0, 1.2, 0, -7], [0, 0, 1.5, -4], [0, 0, 0, 1]])


def write_nifti(
    path: Path, array: np.ndarray, affine: np.ndarray | None = RAS, **header: Any
) -> Path:
    """Write ``array`` as it is, then set raw header fields behind nibabel's back."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)
    if header:
        edit_header(path, **header)
    return path


def edit_header(path: Path, **fields: Any) -> None:
    """Change raw fields of the NIfTI-1 header of an uncompressed file."""
    content = path.read_bytes()
    header = nib.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + content[348:])


def head_image(shape: Sequence[int] = SHAPE, seed: int = 0) -> np.ndarray:
    """Return (X, Y, Z) int16 intensities in an ellipsoid that leaves a border of zeros."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    inside = (grid**2).sum(0) < 0.8
    return np.where(inside, rng.integers(100, 1000, shape), 0).astype(np.int16)


def write_subject(
    root: Path,
    subject: str = "p0",
    contrasts: Sequence[str] = (*INPUTS, "t1ce", "seg"),
    seed: int = 0,
    shape: Sequence[int] = SHAPE,
    affine: np.ndarray = RAS,
    images: Mapping[str, np.ndarray] | None = None,
    name: str = "{subject}_{contrast}.nii.gz",
) -> Path:
    """Write one patient in the BraTS 2021 layout; return its folder."""
    folder = root / subject
    folder.mkdir(parents=True, exist_ok=True)
    for index, contrast in enumerate(contrasts):
        image = head_image(shape, seed=10 * seed + index)
        if contrast == "seg":
            image = (image > 800).astype(np.uint8)
        image = (images or {}).get(contrast, image)
        write_nifti(folder / name.format(subject=subject, contrast=contrast), image, affine)
    return folder


def signed_permutations() -> list[np.ndarray]:
    """Return the 48 rotations and reflections of a cube as (3, 3) matrices."""
    return [
        np.diag(signs)[list(order)]
        for order in permutations(range(3))
        for signs in product((1, -1), repeat=3)
    ]


def reoriented(array: np.ndarray, affine: np.ndarray, turn: np.ndarray) -> tuple:
    """Store the same voxels at the same places of the world along other axes: (array, affine)."""
    source = np.abs(turn).argmax(0)  # stored axis i runs along old axis source[i]
    signs = turn.sum(0)
    stored = np.transpose(array, source)
    index_map = np.zeros((4, 4))
    index_map[3, 3] = 1
    for new, (old, sign) in enumerate(zip(source, signs, strict=True)):
        index_map[old, new] = sign
        if sign < 0:
            index_map[old, 3] = array.shape[old] - 1
            stored = np.flip(stored, new)
    return np.ascontiguousarray(stored), affine @ index_map


def rotation(degrees: float, first: int, second: int) -> np.ndarray:
    """Return the (4, 4) rotation that turns one axis towards another."""
    angle, matrix = np.deg2rad(degrees), np.eye(4)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[second, first], matrix[first, second] = np.sin(angle), -np.sin(angle)
    return matrix


def oblique(degrees: float = 30) -> np.ndarray:
    """Return RAS turned about two axes."""
    return rotation(degrees, 0, 1) @ rotation(degrees / 3, 1, 2) @ RAS


def evaluate_volume(
    prediction: np.ndarray,
    reference: np.ndarray,
    brain: np.ndarray,
    labels: np.ndarray | None = None,
    protocol: MetricProtocol = DEFAULT,
    spread: np.ndarray | None = None,
    samples: int | None = None,
    perceptual: Any = None,
) -> Scores:
    """Judge a volume against a patient that is only arrays."""
    case = Case("P", {}, reference, brain, labels)
    return evaluate_case(case, Prediction(prediction, spread, samples), protocol, perceptual)


def read_scores(path: Path) -> dict[tuple[str, str, str, str], float | str | None]:
    """Return (row, subject, region, measure) -> value of a JSON file of scores, of one seed."""
    table = json.loads(path.read_text(encoding="utf-8"))["scores"]
    return {(s["row"], s["subject"], s["region"], s["measure"]): s["value"] for s in table}


def run_inside(work, folder, gpu, *arguments):
    """A verb in this process, which is quicker than in one of its own."""
    text = io.StringIO()
    with contextlib.redirect_stderr(text):
        code = main([str(a) for a in arguments])
    if code == BusyError.exit_code:
        raise BusyError("RUN-BUSY", "busy")
    if code in cells.STOPPED:
        raise Stopped(code)
    return code, (text.getvalue().strip().splitlines() or [""])[-1]


START = """
import json, sys
from ldm.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert stop.code == 0, stop.code
print(json.dumps(sorted(n for n, m in sys.modules.items() if m)), file=sys.stderr)
"""


def started(*command: Any) -> tuple[str, set[str]]:
    """Return what a command prints, and the modules that it imported, in a process of its own."""
    process = subprocess.run(
        [sys.executable, "-c", START, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.returncode == 0, process.stderr
    return process.stdout + process.stderr, set(json.loads(process.stderr.splitlines()[-1]))
