"""``dsdiff train``: from YAML to a run folder that can be resumed and sampled from."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ldm.cli.arguments import add_run_arguments
from ldm.errors import ConfigError, OutputError

RUNS = Path("runs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "config",
        nargs="*",
        metavar="CONFIG|KEY=VALUE",
        help="YAML files, merged left to right, then overrides such as data.params.root=FOLDER "
        "data.params.val=[ID1,ID2] lightning.trainer.max_steps=5000 name=my-run",
    )
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue this run exactly")
    add_run_arguments(parser, "runs/NAME")


def run(args: argparse.Namespace) -> int:
    """Train; return the exit code."""
    from ldm.checkpoint import newest_checkpoint, read_run_config
    from ldm.config import load_config, merge_overrides

    files = [a for a in args.config if "=" not in a]
    overrides = [a for a in args.config if "=" in a]
    if args.resume:
        if files:
            raise ConfigError("USAGE", f"--resume takes no YAML ({files[0]}): the run has its own")
        checkpoint = newest_checkpoint(args.resume)
        config = merge_overrides(read_run_config(args.resume, args.trust), overrides)
        return train(config, args.resume, checkpoint)
    if not files:
        raise ConfigError(
            "USAGE", "give a YAML such as configs/backbone/unet.yaml, or --resume RUN"
        )
    config = load_config(files, overrides)
    if args.dry_run:
        return describe(config)
    return train(config, args.output or RUNS / str(config.get("name", "run")))


def train(config: Mapping[str, Any], folder: Path, checkpoint: Path | None = None) -> int:
    """Run one training in ``folder``, from ``checkpoint`` if given.

    Returns:
        0, or 128 + the number of the signal that ended it early.

    Raises:
        OutputError: OUT-EXISTS when the folder holds a run already.
    """
    import torch

    from ldm.checkpoint import CHECKPOINTS, CONFIG_FILE
    from ldm.config import save_config
    from ldm.cost.energy import EnergyMeter
    from ldm.environment import prefers_channels_last
    from ldm.modules.diffusionmodules.util import to_channels_last
    from ldm.storage import folder_lock
    from ldm.util import instantiate_from_config

    is_main = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if checkpoint is None and is_main and any((folder / c).exists() for c in CHECKPOINTS):
        raise OutputError(
            "OUT-EXISTS",
            f"{folder} holds a run: continue it with --resume {folder}, or choose another name=",
        )
    _quiet_lightning()
    data = instantiate_from_config(config["data"], where="data")
    data.setup("fit")
    if is_main:
        print(data.found, file=sys.stderr)
    torch.manual_seed(config.get("seed", 0))  # the first weights
    model = instantiate_from_config(config["model"], where="model")
    if checkpoint is None:
        model.check_start(data)
    with folder_lock(folder) if is_main else nullcontext():
        if is_main:
            portable = dict(config)
            for section, part in (("model", model), ("data", data)):
                params = {**config[section].get("params", {}), **part.portable_params()}
                portable[section] = {**config[section], "params": params}
            save_config(portable, folder / CONFIG_FILE)
        trainer, stop = build_trainer(config, folder, data)
        if prefers_channels_last(trainer.precision):
            to_channels_last(model)
        if is_main:
            _write_seen(folder, data, config["model"])
        meter = EnergyMeter(trainer.strategy.root_device)
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if is_main:
            _write_cost(folder, trainer, data, meter, checkpoint is not None, not stop.received)
            _say_what_next(folder, trainer, stop.received, model.next_command)
    return 128 + stop.received if stop.received else 0


def build_trainer(config: Mapping[str, Any], folder: Path, data: Any) -> tuple[Any, Any]:
    """Return the Lightning trainer of a run and the callback that knows why it stopped."""
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import RichProgressBar, Timer, TQDMProgressBar
    from pytorch_lightning.loggers import TensorBoardLogger

    from ldm.callbacks.metrics_file import MetricsFile
    from ldm.callbacks.run import StopOnSignal
    from ldm.checkpoint import AtomicCheckpointIO
    from ldm.environment import resolve_precision
    from ldm.util import instantiate_from_config

    lightning = config.get("lightning") or {}
    options = dict(lightning.get("trainer") or {})
    options["precision"] = resolve_precision(options.get("precision", "auto"))
    _count_in_steps(options, data)
    stop = StopOnSignal()
    callbacks = [stop, RichProgressBar() if sys.stdout.isatty() else TQDMProgressBar(50)]
    for name, node in (lightning.get("callbacks") or {}).items():
        if node:
            callbacks.append(instantiate_from_config(node, where=f"lightning.callbacks.{name}"))
    callbacks.append(Timer(options.pop("max_time", None), verbose=False))
    tensorboard = TensorBoardLogger(folder, name="", version="tensorboard")
    trainer = pl.Trainer(
        **{
            "default_root_dir": folder,
            "logger": [MetricsFile(folder), tensorboard],
            "callbacks": callbacks,
            "plugins": [AtomicCheckpointIO()],
            "check_val_every_n_epoch": None,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            **options,
        }
    )
    return trainer, stop


def _count_in_steps(options: dict[str, Any], data: Any) -> None:
    """Translate epochs to steps (training runs in one endless pass) and validation to batches."""
    epochs = options.pop("max_epochs", None)
    batches = -(-len(data.train_slices) // data.batch_size)
    accumulate = options.get("accumulate_grad_batches") or 1
    if epochs is not None and epochs > 0:
        options["max_steps"] = max(1, epochs * batches // accumulate)
    if options.get("max_steps", -1) == -1 and not options.get("max_time"):
        raise ConfigError(
            "CONFIG-VALUE", "training has no end: give lightning.trainer.max_steps or max_time"
        )
    options["max_epochs"] = -1
    if not len(data.val_dataset):
        options["limit_val_batches"] = 0
    options.setdefault("val_check_interval", 1000)


def describe(config: Mapping[str, Any]) -> int:
    """Print the resolved configuration and what the network costs."""
    import torch
    from omegaconf import OmegaConf

    from ldm.cost.network import count_flops, count_parameters, training_memory_estimate
    from ldm.environment import resolve_precision
    from ldm.util import instantiate_from_config

    data = instantiate_from_config(config["data"], where="data")
    model = instantiate_from_config(config["model"], where="model")
    network, inputs = model.network, model.network_inputs(data)
    flops = count_flops(network, *inputs)
    memory = training_memory_estimate(network, *model.network_inputs(data, data.batch_size))
    print(OmegaConf.to_yaml(OmegaConf.create(dict(config))))
    backbone = getattr(network, "diffusion_model", network)
    print(f"backbone            {type(backbone).__name__}")
    print(f"parameters          {count_parameters(network) / 1e6:.2f} M")
    size = " x ".join(map(str, inputs[0].shape[2:]))
    print(f"FLOPs a forward     {flops / 1e9:.1f} G (batch 1, {size})")
    print(
        f"memory to train     about {memory.total / 2**30:.2f} GiB (batch {data.batch_size}, fp32)"
    )
    print(f"precision           {resolve_precision('auto')} if auto; torch {torch.__version__}")
    return 0


def _write_seen(folder: Path, data: Any, model: Mapping[str, Any]) -> None:
    from ldm.data.seen import inherited, read_seen, subject_digests, write_seen

    subjects = data.find_subjects()
    before = {**inherited(model), **read_seen(folder)}  # a resumed run has no teacher any more
    train, val = (
        subject_digests((subjects[i] for i in data.split[part]), data.cache)
        for part in ("train", "val")
    )
    write_seen(folder, {"train": {**before, **train}, "val": val})


def _write_cost(
    folder: Path, trainer: Any, data: Any, meter: Any, is_resumed: bool, finished: bool
) -> None:
    from pytorch_lightning.callbacks import Timer

    from ldm.cost.network import peak_memory
    from ldm.storage import write_json

    device = trainer.strategy.root_device
    timer = next(c for c in trainer.callbacks if isinstance(c, Timer))
    lost = "resumed: what the processes before used is not known" if is_resumed else ""
    write_json(
        folder / "cost.json",
        {
            "finished": finished,
            "steps": trainer.global_step,
            "seconds": round(timer.time_elapsed(), 3),  # of all processes of a resumed run
            "energy_joules": None if is_resumed else meter.joules(),
            "energy_reason": lost or meter.reason,
            "batch_size": data.batch_size,
            "precision": trainer.precision,
            "device": device.type,
            "peak_memory_bytes": peak_memory(device),
            "train_subjects": data.split["train"],
            "val_subjects": data.split["val"],
        },
    )


def _say_what_next(folder: Path, trainer: Any, received: int | None, following: str) -> None:
    if received:
        print(f"\nStopped after step {trainer.global_step}; nothing is lost. To continue:")
        print(f"  dsdiff train --resume {folder}")
    else:
        print(f"\nTrained {trainer.global_step} steps: {folder}")
        print("  pictures: samples/  curves: loss.svg, metrics.csv, tensorboard/")
        print(f"  next: {following.format(run=folder)}")


def _quiet_lightning() -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for text in (".*num_workers.*", ".*No device id.*", ".*treespec.*", ".*litlogger.*"):
        warnings.filterwarnings("ignore", text)
    warnings.filterwarnings("ignore", category=UserWarning, module="pytorch_lightning")
