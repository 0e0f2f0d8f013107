"""``dsdiff import``: the checkpoint of a public implementation becomes a model to sample from."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.arguments import add_output_argument, add_overwrite_argument, split_words
from ldm.cli.terminal import print_next, sampling_command

if TYPE_CHECKING:
    from ldm.importing.model import Imported

SHOWN = 10  # keys of a kind on the terminal; --report has them all
EXAMPLES = (
    "dsdiff import CHECKPOINT --config configs/backbone/unet.yaml --output made",
    "dsdiff import CHECKPOINT --config THEIRS.yaml --output made",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "checkpoint", type=Path, help=".ckpt, .pt, .pth or .safetensors of a public implementation"
    )
    parser.add_argument(
        "--config",
        nargs="+",
        required=True,
        metavar="YAML|KEY=VALUE",
        help="a run, such as configs/backbone/unet.yaml, whose unet_config describes the network "
        "of the checkpoint, or the YAML of a latent-diffusion code; then overrides",
    )
    add_output_argument(parser, "for the model")
    parser.add_argument(
        "--weights",
        choices=("auto", "ema", "raw"),
        default="auto",
        help="moving average or not; auto: the average where there is one",
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write what was loaded or does not fit as JSON"
    )
    add_overwrite_argument(parser, "replace an existing model")


def run(args: argparse.Namespace) -> int:
    """Import, write the model folder, say what was done."""
    from rich.console import Console

    from ldm.config import foreign_targets
    from ldm.errors import ConfigError, OutputError
    from ldm.importing.model import ImportMismatch, import_model
    from ldm.storage import write_json

    files, overrides = split_words(args.config)
    if not files:
        raise ConfigError("USAGE", "give a YAML such as configs/backbone/unet.yaml after --config")
    if args.report and args.report.exists() and not args.overwrite:
        raise OutputError("OUT-EXISTS", f"{args.report} exists: choose another, or --overwrite")
    told = {"weights": args.weights, "overwrite": args.overwrite}
    try:
        done = import_model(args.checkpoint, files, args.output, overrides, **told)
    except ImportMismatch as error:
        show_mismatch(error.report, Console(stderr=True, highlight=False))
        if args.report:
            write_json(args.report, error.report.to_dict(), replace=args.overwrite)
        raise
    if args.report:
        more = {"sha256": done.sha256, "ignored_yaml": done.ignored_yaml}
        write_json(args.report, {**done.report.to_dict(), **more}, replace=args.overwrite)
    console = Console(highlight=False)
    console.print(summary(done))
    console.print(f"Written: {args.output}", markup=False)
    print_next(sampling_command(args.output, foreign_targets(done.config)))
    return 0


def summary(done: Imported) -> Any:
    """Return the table of an import for the terminal."""
    from rich.table import Table

    from ldm.importing.model import describe_schedule

    model, report, unused = done.model, done.report, done.ignored_yaml
    confirmed = "as in the checkpoint" if report.schedule_confirmed else "from the YAML"
    rows = {
        "weights": {"ema": "moving average (EMA)", "raw": "as trained (raw)"}[report.weights],
        "tensors": f"{report.tensors} loaded",
        "parameters": f"{report.parameters / 1e6:.2f} M",
        "not averaged": f"{len(report.not_averaged)} tensors, from the raw weights",
        "reshaped": f"{len(report.reshaped)} tensors (1x1 convolution as linear layer)",
        "left out": "the learned variance of the last layer: sampling uses a fixed one",
        "ignored keys": ", ".join(f"{group} {len(k)}" for group, k in report.ignored.items()),
        "ignored YAML": ", ".join(unused),
        "schedule": f"{describe_schedule(model.schedule)} ({confirmed})",
        "prediction": prediction(model, done.config),
        "sha256": done.sha256,
    }
    optional = {
        "not averaged": report.not_averaged,
        "reshaped": report.reshaped,
        "left out": report.trimmed,
        "ignored keys": report.ignored,
        "ignored YAML": unused,
    }
    table = Table(box=None, show_header=False, title=f"Imported {report.checkpoint}")
    table.title_justify, table.title_style = "left", "bold"
    for name, text in rows.items():
        if optional.get(name, True):
            table.add_row(name, text)
    return table


def prediction(model: Any, config: Mapping[str, Any]) -> str:
    """Return, in words, what no weight says and the YAML decides."""
    from ldm.study import read_study

    study = read_study(config)
    target = study.target
    if model.anchor is not None:
        target = f"{model.space.gain:g} x ({target} - {model.anchor.extra_repr()})"
    conditions = ", ".join(study.conditions)
    return (
        f"{model.process.parameterization} of {target} given {conditions} (from the YAML: check it)"
    )


def show_mismatch(report: Any, console: Any) -> None:
    """Print the keys that do not fit, and what is likely behind it."""
    shapes = [
        f"{name}: checkpoint {tuple(s['checkpoint'])}, model {tuple(s['model'])}"
        for name, s in report.other_shape.items()
    ]
    kinds = {
        "missing in the checkpoint": report.missing,
        "unexpected in the checkpoint": report.unexpected,
        "of other shape": shapes,
    }
    for title, lines in kinds.items():
        if lines:
            console.print(f"{len(lines)} {title}:", style="bold")
            more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
            for line in [*lines[:SHOWN], *more]:
                console.print(f"  {line}", markup=False, soft_wrap=True)
    for hint in report.hints:
        console.print(f"Hint: {hint}", markup=False, soft_wrap=True)
