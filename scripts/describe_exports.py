"""Write the table of docs/export.md: ``python scripts/describe_exports.py [FAMILY ...]``.

Each family at its tiny size is exported, by torch.export and to ONNX, and called with batches of 1
and 3; a cell says how far it is from torch, or why it does not export. With names of families, only
their rows are made, and printed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

from ldm.config import load_config
from ldm.errors import DsdiffError
from ldm.exporting.denoiser import (
    TOLERANCE,
    denoiser_of,
    exported_program,
    largest_difference,
    onnx_bytes,
)
from ldm.extras import installed_version
from ldm.inference.onnx_denoiser import OnnxDenoiser
from ldm.modules.diffusionmodules.util import fill_zeros
from ldm.report.tables import markdown_table
from ldm.storage import write_file
from ldm.study import build_model, read_study

REPO = Path(__file__).parents[1]
PAGE = REPO / "docs/export.md"
BEGIN, END = "<!-- begin: made by scripts/describe_exports.py -->", "<!-- end -->"
COLUMNS = ["family", "torch.export", "ONNX", "MB"]
SIDE = 32  # of the images: what exports does not depend on it


def filled_model(family: str) -> Any:
    """Return a tiny network whose layers of zeros are filled: else every output is the same."""
    path = str(REPO / f"configs/backbone/{family}_tiny.yaml")
    config = load_config([path], [f"data.params.image_size={SIDE}"])
    torch.manual_seed(0)
    return fill_zeros(build_model(config, read_study(config)).eval())


def row(family: str) -> list[str]:
    """Return the row of a family."""
    try:
        model = filled_model(family)
        program = exported_program(model)
        exported = told(largest_difference(model, program.module()))
    except DsdiffError as error:
        return [family, reason(error), "no: it needs the program of torch.export", ""]
    try:
        content = onnx_bytes(model, program, family)
        run = OnnxDenoiser(content, family, denoiser_of(model).names)
        return [family, exported, told(largest_difference(model, run)), f"{len(content) / 1e6:.1f}"]
    except DsdiffError as error:
        return [family, exported, reason(error), ""]


def told(difference: float) -> str:
    """Return in words how far an output is from that of torch."""
    return f"{difference:.0e}" if difference <= TOLERANCE else f"no: {difference:.0e} from torch"


def reason(error: DsdiffError) -> str:
    """Return why something does not export, in a cell of a table."""
    inside = re.search(r"\((.*)\)", error.message)
    return "no: " + (inside[1] if inside else error.message).replace("|", "/")


def made_with() -> str:
    """Return when the table was made, of which commit, and with what."""
    commit = subprocess.run(
        ["git", "-C", str(REPO), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    versions = ", ".join(f"{p} {installed_version(p)}" for p in ("torch", "onnxruntime"))
    return f"Measured on {date.today()}, commit {commit}, {versions}."


def main(wanted: list[str]) -> None:
    """Make the rows; print them, or put them into the page."""
    names = sorted(p.stem[:-5] for p in (REPO / "configs/backbone").glob("*_tiny.yaml"))
    rows = []
    for name in wanted or names:
        rows.append(row(name))
        sys.stdout.write(" | ".join(rows[-1]) + "\n")
    if wanted:
        return
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    table = markdown_table(COLUMNS, rows)
    write_file(PAGE, f"{before}{BEGIN}\n{table}\n{made_with()}\n{END}{after}", replace=True)


if __name__ == "__main__":
    main(sys.argv[1:])
