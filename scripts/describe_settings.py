"""Write docs/settings.md: ``python scripts/describe_settings.py``.

A line a key that ``key=value`` may change: its default is what the YAML gives, else the
constructor; its meaning is what the docstring says of the argument. Here stand only the order of
the page, and what no docstring of this project owns.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from ldm.config import find_config, load_with_bases
from ldm.inference.request import Request
from ldm.report.tables import markdown_table
from ldm.storage import write_file
from ldm.util import accepted_parameters, get_obj_from_str, params_of, resolve_target

PAGE = Path(__file__).parents[1] / "docs/settings.md"
SYNTHESIS, SEGMENTATION = "configs/backbone/unet.yaml", "configs/segmentation/unet.yaml"
FIRST_STAGE, PLAN = "configs/first_stage/autoencoder_kl_f4.yaml", "configs/benchmark.yaml"
# of a model: facts that it is told by the data, or by the class around it
TOLD = {"conditions", "target", "image_size", "neighbours", "covariates", "dims"}
TOLD |= {"in_channels", "out_channels", "seed", "num_classes", "adm_in_channels", "n_embed"}
TOLD |= {"use_fp16", "use_bf16"}  # which published YAML files carry
RATE = "model.params.optimizer_config.params."

# What no docstring of this project says: keys of the top, of Lightning, of torch and of a benchmark
MEANINGS = {
    "name": "of the run, whose folder is `runs/NAME`",
    "seed": "of weights, split, order, augmentation and noise",
    "lightning.trainer.max_steps": "steps of the optimizer; -1 where `max_time` ends the training",
    "lightning.trainer.max_time": "ends the training, `DAYS:HH:MM:SS`",
    "lightning.trainer.devices": "processes that train together, each on a GPU; -1: all GPUs",
    "lightning.trainer.accelerator": "`cpu`, `gpu`, `mps` or `tpu`; auto: the best there is",
    "lightning.trainer.precision": "`32`, `bf16-mixed` or `16-mixed`; auto: bf16-mixed where the "
    "hardware multiplies in it, else 32",
    "lightning.trainer.accumulate_grad_batches": "batches that make one step",
    "lightning.trainer.val_check_interval": "batches between validations",
    "lightning.trainer.log_every_n_steps": "steps between lines of `metrics.csv`",
    "lightning.trainer.num_nodes": "machines that train together",
    "lightning.trainer.strategy": "how processes share a training, as `ddp`",
    "lightning.trainer.deterministic": "refuse what is not bitwise the same each time",
    "lightning.compile": "torch.compile of the network: a minute or more at the start",
    "lightning.logger": "trackers beside `metrics.csv`, see `configs/tracker`; `[]`: none",
    RATE + "lr": "learning rate after the warm-up",
    RATE + "weight_decay": "of AdamW: how strongly weights are drawn to 0",
    RATE + "fused": "one kernel for all weights",
    "rows": "of the table: a backbone's `config` and `overrides`, or a `run` trained before",
    "seeds": "of the trainings; each row is trained with each",
    "spaces": "`{pixel: null, latent: RUN}`, RUN an autoencoder",
    "budget": "of each training: `budget.steps=N`, `budget.seconds=N` or `budget.flops=N`",
    "regression_of": "the row whose network is trained as a one-step regression too; null: none",
    "baselines": "rows without a network; `[]`: none",
    "timing": "repeats of the measurement of time and memory; 0: none",
    "segmenter": "run of `dsdiff segment train`: the Dice of what it finds is a column",
}
TRAINER = [name.rpartition(".")[2] for name in MEANINGS if name.startswith("lightning.trainer.")]

# Heading, a sentence, and what it holds in this order; a key stands under the first that names it.
GROUPS: tuple[tuple[str, str, str], ...] = (
    (
        "What is changed most",
        "",
        "name data.params.root data.params.val data.params.test data.params.image_size "
        "lightning.trainer.max_steps lightning.trainer.max_time data.params.batch_size "
        f"{RATE}lr seed lightning.trainer.devices lightning.trainer.precision",
    ),
    (
        "Which patients, and which files",
        "",
        "data.params.train data.params.fold data.params.folds data.params.patient "
        "data.params.seed data.params.layout data.params.contrasts data.params.labels",
    ),
    (
        "What is made of what",
        "",
        "data.params.target data.params.conditions data.params.neighbours "
        "data.params.condition_dropout data.params.covariates data.params.covariate_dropout",
    ),
    (
        "How volumes become slices",
        "[Preprocessing](preprocessing.md) says more.",
        "data.params.axis data.params.spacing data.params.interpolation data.params.mask "
        "data.params.normaliser_config*",
    ),
    (
        "Which slices a training sees",
        "",
        "data.params.abnormal_share data.params.min_brain data.params.augmentation_config*",
    ),
    (
        "Learning rate and averaging",
        "",
        "model.params.warmup_steps model.params.rate_schedule model.params.decay_* "
        "model.params.optimizer_config* lightning.callbacks.ema* lightning.callbacks.gradients*",
    ),
    (
        "What the network learns",
        "[What helps](what-helps.md) has what each is worth.",
        "model.params.parameterization model.params.mean_share model.params.subtract "
        "model.params.gain model.params.standard_inputs model.params.loss_type "
        "model.params.loss_weight model.params.loss_config model.params.voxel_weight_config "
        "model.params.sparsity model.params.drop_all model.params.schedule_config* "
        "model.params.timesteps_config model.params.variance model.params.objective "
        "model.params.anchor_config",
    ),
    (
        "The prior of enhancement",
        "",
        "model.params.prior_config*",
    ),
    (
        "Sampling, unless the command says otherwise",
        "Of validation, and the defaults of `dsdiff sample`.",
        "model.params.sampler model.params.sampling_steps model.params.temperature "
        "model.params.spread model.params.threshold",
    ),
    (
        "The network",
        "Of `configs/backbone/unet.yaml`; another network has others ([backbones](backbones.md)).",
        "model.params.unet_config model.params.unet_config.params.model_channels "
        "model.params.unet_config.params.channel_mult "
        "model.params.unet_config.params.num_res_blocks "
        "model.params.unet_config.params.attention_resolutions "
        "model.params.unet_config.params.num_head_channels "
        "model.params.unet_config.params.dropout model.params.unet_config.params.use_checkpoint "
        "model.params.unet_config* model.params.condition* model.params.cond_*",
    ),
    (
        "Latents",
        "Behind `configs/latent.yaml`.",
        "model.params.first_stage_config* model.params.cache_latents model.params.scale_factor",
    ),
    (
        "What is saved, logged and drawn",
        "`lightning.callbacks.NAME=null` turns one off.",
        "lightning.callbacks.checkpoint* lightning.trainer.val_check_interval "
        "data.params.val_slices lightning.trainer.log_every_n_steps lightning.logger "
        "lightning.callbacks.*",
    ),
    (
        "Machine",
        "[Several processes](scaling.md).",
        "data.params.num_workers data.params.worker_timeout data.params.cache "
        "lightning.trainer.* lightning.compile",
    ),
)
BENCHMARK = "budget seeds rows spaces regression_of baselines timing segmenter sampling.*"

HEAD = """# Settings

<!-- Written by scripts/describe_settings.py: change a docstring, a YAML or the script, then run \
it. -->

What `KEY=VALUE` may change behind the YAML of a training, as in \
`dsdiff train configs/backbone/unet.yaml data.params.batch_size=8`; a YAML of your own says the \
same with a level for each dot. A default is that of `configs/backbone/unet.yaml`. A wrong key is \
answered with the nearest; `--dry-run` shows what a command means.

Where a default is a class, `KEY.target=CLASS` names another, with `KEY.params.NAME=VALUE` for its \
arguments; `null` takes one away. `${KEY}` is the value of another key. In a shell quote \
lists: `"data.params.val=[A,B]"`.
"""
FILES = """## Files to put behind a backbone's

Settings that belong together, as in \
`dsdiff train configs/backbone/unet.yaml configs/volume.yaml`; more in the [recipes](recipes.md).
"""


class Setting(NamedTuple):
    """A key of a configuration, its default as YAML writes it, and what it means."""

    key: str
    default: str
    meaning: str


def arguments(owner: Callable) -> dict[str, str]:
    """Return {argument: what is said of it} of the docstring of a class or function."""
    text = inspect.cleandoc(owner.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", "\n" + text):
        names, _, said = " ".join(entry.split()).partition(": ")
        found |= dict.fromkeys(names.split(", "), said)
    return found


def owners(cls: type) -> Iterator[Callable]:
    """Yield all whose docstrings say what the arguments of a class mean, nearest first."""
    for base in cls.__mro__[:-1]:
        yield base
        for function in re.findall(r"the arguments of :func:`(\w+)`", base.__doc__ or ""):
            yield vars(sys.modules[base.__module__])[function]
        for owner in getattr(base.__init__, "shown", ()):
            yield owner
            yield from owners(getattr(owner, "__self__", owner))


def meaning(cls: type, name: str) -> str:
    """Return what an argument of a class means, in a line of Markdown."""
    told = [said for owner in owners(cls) if (said := arguments(owner).get(name))]
    return in_markdown(next((said for said in told if not said.startswith("see ")), ""))


def in_markdown(said: str) -> str:
    """Return the first sentence of a docstring, without what it points at."""
    said = " ".join(said.split())
    said = re.sub(r"[,;]? ?(see :\w+:`[^`]*`(?=[,;:.]|$)|\((see )?:\w+:`[^`]*`\))", "", said)
    said = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", said).replace("``", "`")
    said = re.sub(r"\bNone\b", "null", said)
    return re.split(r"\. (?=[A-Z`])", said)[0].rstrip(".")


def as_yaml(value: Any) -> str:
    """Return a default as one would type it; of a class its name."""
    if isinstance(value, Mapping):
        if "target" in value:
            return value["target"].rpartition(".")[2]
        return "{" + ", ".join(f"{k}: {as_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, str):
        return value
    return json.dumps(value)


def node_settings(node: Mapping[str, Any], path: str, model: bool = False) -> Iterator[Setting]:
    """Yield what the ``params`` of a ``target`` may be, and those of the classes in them."""
    cls, given = resolve_target(node, path), params_of(node)
    for name, parameter in accepted_parameters(cls)[0].items():
        key = f"{path}.params.{name}"
        said = MEANINGS.get(key) or meaning(cls, name)
        value = given.get(name, parameter.default)
        is_told = said.endswith(("; passed in", "without effect")) or (model and name in TOLD)
        if is_told or value is parameter.empty:
            continue
        if not cls.__module__.startswith("torch.") or key in MEANINGS:
            yield Setting(key, as_yaml(value), said)
        if isinstance(value, Mapping) and "target" in value:
            yield from node_settings(value, key, model)


def settings(file: str) -> list[Setting]:
    """Return what may be changed behind a YAML of a training."""
    config = load_with_bases(find_config(file))
    lightning = config["lightning"]
    known, _ = accepted_parameters(get_obj_from_str("pytorch_lightning.Trainer"))
    found = [Setting(k, as_yaml(config[k]), MEANINGS[k]) for k in ("name", "seed")]
    found += node_settings(config["data"], "data")
    found += node_settings(config["model"], "model", model=True)
    for name in TRAINER:
        key, value = f"lightning.trainer.{name}", known[name].default
        found.append(Setting(key, as_yaml(lightning["trainer"].get(name, value)), MEANINGS[key]))
    for name in ("compile", "logger"):
        key = f"lightning.{name}"
        found.append(Setting(key, as_yaml(lightning[name]), MEANINGS[key]))
    for name, node in lightning["callbacks"].items():
        if node:
            key, cls = f"lightning.callbacks.{name}", resolve_target(node)
            found.append(Setting(key, as_yaml(node), in_markdown(inspect.getdoc(cls) or "")))
            found += node_settings(node, key)
    return found


def benchmark_settings() -> list[Setting]:
    """Return what may be changed behind a plan of a benchmark, beside what all its rows share."""
    plan = load_with_bases(find_config(PLAN))
    found = [Setting(k, as_yaml(v), MEANINGS[k]) for k, v in plan.items() if k in MEANINGS]
    found = [setting for setting in found if setting.key != "name"]
    for name, parameter in accepted_parameters(Request)[0].items():
        value = plan["sampling"].get(name, parameter.default)
        found.append(Setting(f"sampling.{name}", as_yaml(value), meaning(Request, name)))
    return found


def of_group(found: list[Setting], patterns: str) -> list[Setting]:
    """Take out of ``found`` what a group holds, in its order."""
    taken = [s for pattern in patterns.split() for s in found if fnmatchcase(s.key, pattern)]
    taken = list(dict.fromkeys(taken))
    found[:] = [setting for setting in found if setting not in taken]
    return taken


def section(title: str, sentence: str, held: list[Setting]) -> str:
    """Return a heading, a sentence and a table."""
    rows = [[f"`{s.key}`", f"`{s.default}`", s.meaning] for s in held]
    table = markdown_table(["key", "default", "meaning"], rows)
    return "\n\n".join(filter(None, [f"## {title}", sentence, table]))


def files() -> Iterator[tuple[str, str]]:
    """Yield the YAMLs that stand behind a backbone's, and what they say of themselves."""
    root = find_config(PLAN).parent
    for path in sorted(root.glob("*.yaml")) + sorted(root.glob("*/*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = " ".join(line[2:] for line in lines if line.startswith("# "))
        behind = re.match(r"Put behind a [\w-]+'s YAML[:,] (.*?)\.(?: [A-Z]|$)", comment)
        if behind and path.parent.name != "segmentation":
            said = re.sub(r",? as in `.*?`", "", behind[1])
            yield f"`configs/{path.relative_to(root).as_posix()}`", said


def page() -> str:
    """Return the page."""
    common, parts = settings(SYNTHESIS), [HEAD]
    shown = set(common)
    parts += [section(title, said, of_group(common, held)) for title, said, held in GROUPS]
    if common:
        parts.append(section("All others", "", common))
    parts.append(FILES + "\n" + markdown_table(["file", "what it does"], [*map(list, files())]))
    for title, file, verb in (
        ("Segmentation", SEGMENTATION, "dsdiff segment train"),
        ("Autoencoder", FIRST_STAGE, "dsdiff train"),
    ):
        own = [setting for setting in settings(file) if setting not in shown]
        said = f"Of `{verb} {file}`: what is not above, or has another default."
        parts.append(section(title, said, own))
    plan = benchmark_settings()
    said = f"Of `dsdiff benchmark {PLAN}`, beside those above, which hold for all rows."
    parts.append(section("Benchmark", said, of_group(plan, BENCHMARK)))
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    write_file(PAGE, page(), replace=True)
