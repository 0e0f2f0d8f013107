"""``dsdiff sweep``: quality and cost of one trained model against the number of sampling steps.

How a cell is sampled and evaluated is in :mod:`ldm.benchmark.sweep_cells`.
"""

from __future__ import annotations

import argparse

from ldm.cli.arguments import SAMPLERS
from ldm.cli.help import group
from ldm.cli.sample import DRAWN, add_volume_arguments
from ldm.cli.terminal import print_found, reporter, show_progress
from ldm.errors import PartialError

EXAMPLES = (
    "dsdiff sweep runs/mine --input PATIENTS --output sweep",
    "dsdiff sweep runs/mine --input PATIENTS --output sweep --steps 1,2,4",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from ldm.inference.request import SWEPT_SAMPLERS, SWEPT_STEPS

    written = "volumes, table, plot and report"
    add_volume_arguments(parser, written, "unseen", temperature="1")
    drawn = group(parser, DRAWN)
    drawn.add_argument(
        "--steps", type=_numbers, default=SWEPT_STEPS, metavar="N,N,...", help="of the samplers"
    )
    drawn.add_argument(
        "--sampler",
        type=_names,
        default=SWEPT_SAMPLERS,
        metavar="NAME,NAME,...",
        help=f"all, or {SAMPLERS}",
    )


def run(args: argparse.Namespace) -> int:
    """Sample and evaluate what is missing, then write the table, the plot and the page."""
    from rich.console import Console

    from ldm.benchmark.sweep_cells import sweep
    from ldm.cli.tables import print_table
    from ldm.inference.request import OPTIONS

    own = ("sampler", "steps", "eta", *([] if args.temperature is not None else ["temperature"]))
    options = {name: getattr(args, name) for name in OPTIONS if name not in own}
    done = sweep(
        args.model,
        args.input,
        args.output,
        args.sampler,
        args.steps,
        subjects=args.subjects,
        layout=args.layout,
        device=args.device,
        trust=args.trust,
        command=args.typed,
        say=print_found,
        report=reporter("sweep"),
        progress=show_progress,
        **options,
    )
    print_table(Console(), done.summary())
    for cell in done.cells:
        if cell.problem:
            print(f"{cell.sampler} {cell.steps}: {cell.problem}")
    print(f"Report: {args.output}/report.html  Plot: {args.output}/sweep.svg, sweep.png")
    failed = [f"{c.sampler}-{c.steps}" for c in done.cells if c.problem.startswith("FAILED")]
    if failed:
        total = len(done.cells)
        raise PartialError("PARTIAL", f"{len(failed)} of {total} failed: {', '.join(failed)}")
    return 0


def _numbers(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no list of numbers as 1,2,4") from None


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(",")))
