"""``dsdiff sweep``: quality and cost of one trained model against the number of sampling steps.

How a cell is sampled and evaluated is in :mod:`ldm.benchmark.sweep_cells`.
"""

from __future__ import annotations

import argparse
import sys

from ldm.cli.arguments import SAMPLERS, subjects_of
from ldm.cli.sample import add_volume_arguments, load_synthesiser
from ldm.cli.terminal import reporter
from ldm.errors import PartialError

STEPS = (1, 2, 4, 8, 16, 32)
USUAL = ("ddim", "dpmpp_2m", "unipc_3", "heun")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_volume_arguments(parser)
    parser.add_argument(
        "--steps",
        type=_numbers,
        default=STEPS,
        metavar="N,N,...",
        help=f"of the samplers (default: {','.join(map(str, STEPS))})",
    )
    parser.add_argument(
        "--sampler",
        type=_names,
        default=USUAL,
        metavar="NAME,NAME,...",
        help=f"all, or {SAMPLERS} (default: {','.join(USUAL)})",
    )


def run(args: argparse.Namespace) -> int:
    """Sample and evaluate what is missing, then write the table, the plot and the page."""
    from rich.console import Console

    from ldm.benchmark.sweep import Sweep
    from ldm.benchmark.sweep_cells import SweepCells, held_out
    from ldm.checkpoint import study_of
    from ldm.claims import claim
    from ldm.cli.evaluate import terminal_table
    from ldm.data.layouts import select_subjects
    from ldm.data.layouts.base import stored_files
    from ldm.evaluation.protocol import DEFAULT
    from ldm.models.diffusion import samplers

    names = list(samplers.SAMPLERS) if args.sampler == ["all"] else args.sampler
    for name in names:
        samplers.get_sampler(name)
    wanted = [(name, steps) for name in names for steps in args.steps]
    contrasts = study_of(args.model, args.trust).contrasts
    layout, found = subjects_of(args, contrasts)
    ids = args.subjects or held_out(args.model, sorted(found))
    if not ids:
        print(
            "No subject is known to be held out: sweeping on all, the training's too; "
            "name others with --subjects",
            file=sys.stderr,
        )
    subjects = select_subjects(found, ids or None)
    inputs = [args.input, args.model, *stored_files(found.values())]
    with claim(args.output, "sweep", inputs=inputs, writes=["sweep.json", "report.html"]):
        own = {"sampler": None, "steps": None, "eta": None}  # of the cells, not of the model
        if args.temperature is None:  # the posterior mean has no steps to count
            own["temperature"] = 1.0
        synthesiser = load_synthesiser(argparse.Namespace(**{**vars(args), **own}))
        files = {s.id: {c: s.sha256(c) for c in s.files} for s in subjects}
        folders = (args.input, layout, subjects, args.output, files)
        work = SweepCells(synthesiser, *folders, reporter("sweep"))
        work.refuse_models_without_steps()
        cells = [work.cell(*pair, f"{n}/{len(wanted)}") for n, pair in enumerate(wanted, 1)]
        sweep = Sweep(
            title=synthesiser.trained.folder.resolve().name,
            cells=cells,
            baseline=work.baseline(),
            subjects=[subject.id for subject in subjects],
            protocol=DEFAULT.to_dict(),
            command=args.typed,
            settings=work.settings(),
        )
        page = sweep.write(args.output)
    Console().print(terminal_table(sweep.summary()))
    for cell in cells:
        if cell.problem:
            print(f"{cell.sampler} {cell.steps}: {cell.problem}")
    print(f"Report: {page}  Plot: {args.output}/sweep.svg, sweep.png")
    failed = [f"{c.sampler}-{c.steps}" for c in cells if c.problem.startswith("FAILED")]
    if failed:
        raise PartialError("PARTIAL", f"{len(failed)} of {len(cells)} failed: {', '.join(failed)}")
    return 0


def _numbers(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no list of numbers as 1,2,4") from None


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(",")))
