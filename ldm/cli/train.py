"""``dsdiff train``: from YAML to a run folder that can be resumed and sampled from."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.arguments import add_run_arguments, split_words
from ldm.cli.terminal import print_next, show_progress

if TYPE_CHECKING:
    from ldm.training.run import TrainedRun


def say(text: str) -> None:
    """Print on stderr."""
    print(text, file=sys.stderr)


SHOWN: dict[str, Any] = {"say": say, "progress": show_progress}
SEEN = ("samples/", "loss.svg", "metrics.csv", "tensorboard/")  # in a run, by who looks at it
# peak resident memory of trainings of 1 to 16 slices of 32 to 96 pixels, less their estimates:
# 0.62 to 0.83 GiB
PROGRAM = "0.7 GiB of the program on a CPU"
EXAMPLES = (
    "dsdiff train configs/backbone/unet.yaml data.params.root=PATIENTS name=mine",
    "dsdiff train configs/backbone/unet.yaml data.params.root=PATIENTS --dry-run",
    "dsdiff train --resume runs/mine",
    "dsdiff train --from runs/mine data.params.root=NEW_PATIENTS",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "config",
        nargs="*",
        metavar="CONFIG|KEY=VALUE",
        help="YAML files, merged left to right, then overrides such as data.params.root=PATIENTS "
        "data.params.val=[ID1,ID2] lightning.trainer.max_steps=5000 name=my-run; every key, with "
        "its default: docs/settings.md",
    )
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue this run exactly")
    parser.add_argument(
        "--allow-data-change",
        action="store_true",
        help="with --resume: go on though patients, or their files, are not those of the run",
    )
    parser.add_argument(
        "--from",
        dest="start",
        type=Path,
        metavar="RUN",
        help="start a new run with the weights of this one (fine-tuning); without a YAML with its "
        "configuration too, as runs/RUN-tuned and without ids of patients of another root",
    )
    add_run_arguments(parser, "runs/NAME")


def run(args: argparse.Namespace) -> int:
    """Train; return the exit code."""
    from ldm.checkpoint import read_run_config
    from ldm.config import load_config
    from ldm.training.run import train
    from ldm.training.run_config import run_config

    files, overrides = split_words(args.config)
    if args.dry_run and not (files and args.resume):  # which are refused together
        if args.resume:
            return describe(load_config([read_run_config(args.resume, args.trust)], overrides))
        return describe(run_config(files, overrides, args.start, args.trust), args.start)
    if files and not args.resume:
        _refuse_research_yaml(files)
    given = {
        name: getattr(args, name) for name in ("resume", "start", "trust", "allow_data_change")
    }
    return finish(train(files, overrides, args.output, **given, **SHOWN))


def _refuse_research_yaml(files: Sequence[str]) -> None:
    """Refuse a YAML of latent-diffusion, and say what it is good for here.

    Raises:
        ConfigError: CONFIG-UNKNOWN.
    """
    from ldm.config import find_config, read_yaml
    from ldm.errors import ConfigError
    from ldm.importing.research_yaml import is_research_yaml

    for file in files:
        if is_research_yaml(read_yaml(find_config(file))):
            raise ConfigError(
                "CONFIG-UNKNOWN",
                f"{file} is a YAML of latent-diffusion: for its weights dsdiff import CHECKPOINT "
                f"--config {file}; to train its network, copy its model.params.unet_config into a "
                "YAML with 'base: configs/base.yaml' (docs/add-a-backbone.md)",
            )


def finish(run: TrainedRun) -> int:
    """Say what came of a training and what to do next; return the exit code."""
    from ldm.callbacks.ranks import is_main_process
    from ldm.progress import is_part

    if not is_main_process():
        return 128 + run.stopped_by if run.stopped_by else 0
    if run.stopped_by:
        how = "" if is_part() else f" To continue:\n  {run.resume_command}"
        print(f"\nStopped after step {run.steps}; nothing is lost.{how}")
        return 128 + run.stopped_by
    if run.is_over:
        start = shlex.join(["dsdiff", "train", "--from", str(run.folder)])
        print(f"\nFinished before, after {run.steps} steps; nothing was trained: {run.folder}")
        print(f"  to train it on: {run.resume_command} {run.longer}")
        print(f"  a new run with its weights: {start}")
    else:
        print(f"\nTrained {run.steps} steps: {run.folder}")
    if seen := ", ".join(name for name in SEEN if (run.folder / name).exists()):
        print(f"  to look at: {seen}")
    print_next(run.next_command)
    return 0


def describe(config: Mapping[str, Any], start: Path | None = None) -> int:
    """Print the resolved configuration and what the network costs; refuse a start that cannot be.

    Args:
        start: run whose weights the training would start with.
    """
    import torch
    from omegaconf import OmegaConf

    from ldm.checkpoint import load_start
    from ldm.cost.network import count_flops, count_parameters, training_memory_estimate
    from ldm.environment import resolve_precision
    from ldm.study import build_model
    from ldm.training.rehearsal import rehearse
    from ldm.util import instantiate_from_config, trainer_options

    rehearse(config)
    data = instantiate_from_config(config["data"], where="data")
    model = build_model(config)
    if start is not None:
        load_start(model, start, config)
    network, inputs = model.network, model.network_inputs()
    flops = count_flops(network, *inputs)
    memory = training_memory_estimate(network, *model.network_inputs(data.batch_size))
    print(OmegaConf.to_yaml(OmegaConf.create(dict(config))))
    backbone = getattr(network, "diffusion_model", network)
    print(f"backbone            {type(backbone).__name__}")
    print(f"parameters          {count_parameters(network) / 1e6:.2f} M")
    size = " x ".join(map(str, inputs[0].shape[2:]))
    print(f"FLOPs a forward     {flops / 1e9:.1f} G (batch 1, {size})")
    gib, batch = memory.total / 2**30, data.batch_size
    print(f"memory to train     about {gib:.2f} GiB (batch {batch}, fp32), and {PROGRAM}")
    auto = resolve_precision("auto", trainer_options(config).get("accelerator", "auto"))
    print(f"precision           {auto} if auto; torch {torch.__version__}")
    return 0
