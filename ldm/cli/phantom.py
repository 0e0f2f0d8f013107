"""``dsdiff phantom``: synthetic patients with a physical signal model, as BraTS 2021 NIfTI."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from ldm.cli.arguments import add_overwrite_argument
from ldm.cli.terminal import print_next, show_progress

EXAMPLES = (
    "dsdiff phantom PATIENTS",
    "dsdiff phantom PATIENTS --subjects 20 --size 64",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "output", type=Path, metavar="PATIENTS", help="folder for Phantom_0001, Phantom_0002, ..."
    )
    parser.add_argument("--subjects", type=int, default=8, help="how many")
    parser.add_argument("--size", type=int, default=128, help="voxels across, 32 to 240")
    parser.add_argument("--seed", type=int, default=0, help="which patients")
    parser.add_argument(
        "--dwi", action="store_true", help="a diffusion-weighted image (_dwi) of each too"
    )
    add_overwrite_argument(parser, "replace existing subjects")


def run(args: argparse.Namespace) -> int:
    """Write the patients."""
    from ldm.phantom import write_phantoms
    from ldm.util import how_many

    written = write_phantoms(
        args.output,
        args.subjects,
        size=args.size,
        seed=args.seed,
        dwi=args.dwi,
        overwrite=args.overwrite,
        progress=show_progress,
    )
    ids = " to ".join(dict.fromkeys([written[0], written[-1]]))
    print(f"{how_many(len(written), 'patient')} ({ids}): {args.output}")
    print_next(shlex.join(["dsdiff", "diagnose", "data", str(args.output)]))
    return 0
