"""``dsdiff demo``: the whole path on synthetic patients, in a few minutes, without any data."""

from __future__ import annotations

import argparse
from pathlib import Path

HELD_OUT = ("Phantom_0002", "Phantom_0006")
EXAMPLES = ("dsdiff demo", "dsdiff demo --output demo budget.steps=100")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("dsdiff-demo"),
        metavar="FOLDER",
        help="for patients, runs and the report",
    )
    parser.add_argument("--subjects", type=int, default=30, help="patients")
    parser.add_argument("--size", type=int, default=96, help="voxels across")
    parser.add_argument(
        "config", nargs="*", metavar="KEY=VALUE", help="overrides of configs/demo.yaml"
    )


def run(args: argparse.Namespace) -> int:
    """Make patients, then benchmark a small diffusion model against the baselines on them."""

    from ldm.benchmark.run import Benchmark
    from ldm.cli.benchmark import SHOWN, run_all
    from ldm.cli.terminal import HOLD_OUT, training_command
    from ldm.errors import bad_value
    from ldm.folders import atomic_folder
    from ldm.phantom import write_phantoms

    fewest = int(HELD_OUT[-1][-4:]) + 1
    if args.subjects < fewest:
        raise bad_value(f"--subjects is {args.subjects}: give {fewest} or more")
    patients = args.output / "patients"
    if patients.is_dir() and len(there := list(patients.iterdir())) != args.subjects:
        raise bad_value(
            f"--subjects is {args.subjects}, and {patients} holds {len(there)}: give another "
            "--output, or as many"
        )
    if not patients.is_dir():
        print(f"1. {args.subjects} synthetic patients: {patients}")
        with atomic_folder(patients) as unfinished:
            write_phantoms(unfinished, args.subjects, size=args.size)
    print("2. A small diffusion model, its mean and a sample, and one-step regression")
    overrides = [f"data.params.root={patients}", f"data.params.test=[{','.join(HELD_OUT)}]"]
    told = ("configs/demo.yaml", [*overrides, *args.config], args.output / "benchmark")
    code = run_all(Benchmark(*told, command=f"dsdiff demo --output {args.output}", **SHOWN))
    if code == 0:
        print("\nThe same on your own patients (a folder, of which a fifth is kept to test on):")
        print(f"  {training_command('PATIENTS', [HOLD_OUT])}")
        print("  dsdiff sample runs/mine --input PATIENTS --subjects unseen --output predictions")
        print("  dsdiff evaluate --prediction predictions --reference PATIENTS")
    return code
