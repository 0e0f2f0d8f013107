"""The grid of a benchmark: rows x space x seed x sampler x steps, as trainings and cells.

A training is one (row, space, seed), a cell one training sampled in one way. The folder of a
training depends on what it is alone, and a cell goes on in the folder that it has, so that a grid
to which a seed or a value of any option of sampling is added keeps its work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from ldm.benchmark.checks import of_row, request_of, require_met
from ldm.checkpoint import read_run_config
from ldm.config import load_config
from ldm.cost.network import count_flops, training_flops
from ldm.errors import ConfigError, bad_value
from ldm.models.diffusion.samplers import get_sampler
from ldm.storage import CONFIG_FILE, MODEL_FILE, read_json
from ldm.study import BATCH_SIZE, build_model, read_study
from ldm.util import listed, nearest, resolve_target, targets_in, trainer_options, user_path

OWN_KEYS = ("rows", "spaces", "seeds", "regression_of", "baselines")
OWN_KEYS += ("budget", "sampling", "timing", "segmenter")
SHARED_KEYS = ("model", "data", "lightning")
REGRESSION = "configs/regression.yaml"
LATENT = "configs/latent.yaml"
BASELINES = {"copy": "copy", "linear": "linear", "quadratic": "quadratic"}
BASELINES |= {"nearest": "nearest patient"}
BUDGETS = ("steps", "seconds", "flops")
PLAIN_LISTS = ("allow_missing",)  # options of a list that is one value
SEPARATOR = " · "


@dataclass(frozen=True)
class Training:
    """One row in one space with one seed."""

    row: str  # name of the row in the YAML
    space: str  # name of the space
    seed: int  # of weights, noise and order; the patients of each part are the same for all seeds
    config: Mapping[str, Any] = field(repr=False)  # resolved and checked
    folder: Path  # of this training and its cells
    run: Path  # the run folder
    is_given: bool = False  # the run was trained before; it is only sampled

    @property
    def targets(self) -> list[str]:
        """The classes that its configuration names, each once, which the verbs may build.

        They are named by the user's YAML, or have passed the trust gate when the plan was made.
        """
        return sorted(set(targets_in(self.config)))

    def label(self, several_spaces: bool) -> str:
        """Return what a table calls it, whatever the seed."""
        return SEPARATOR.join(filter(None, [self.row, self.space if several_spaces else ""]))


@dataclass(frozen=True)
class GridCell:
    """One training sampled in one way, or a baseline."""

    number: int  # what `--cell` takes
    row: str  # its row in the table; cells of one row differ in the seed
    name: str  # the row, and the seed where there are several
    folder: Path  # of its work
    training: Training | None = None  # None for a baseline
    sampling: Mapping[str, Any] = field(default_factory=dict)  # options of `dsdiff sample`
    baseline: str | None = None  # a key of BASELINES, or None
    is_timed: bool = False  # whether its time and memory stand for the row

    @property
    def prediction(self) -> Path:
        """The folder of synthetic volumes."""
        return self.folder / "prediction"


@dataclass(frozen=True)
class Budget:
    """What every training may use: ``steps``, ``seconds`` or ``flops``."""

    kind: str
    amount: float

    def __str__(self) -> str:
        return f"{self.amount:g} {'FLOPs' if self.kind == 'flops' else self.kind} a training"

    def trainer(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of the trainer that hold a configuration to the budget.

        Raises:
            ConfigError: CONFIG-VALUE when the budget does not pay for one step.
        """
        if self.kind == "seconds":
            minutes, seconds = divmod(round(self.amount), 60)
            hours, minutes = divmod(minutes, 60)
            days, hours = divmod(hours, 24)
            return {"max_steps": -1, "max_time": f"{days:02}:{hours:02}:{minutes:02}:{seconds:02}"}
        steps = self.amount / (step_flops(config) if self.kind == "flops" else 1)
        if steps < 1:
            raise bad_value(f"budget: {self} is {steps:.2g} steps: give enough for one")
        return {"max_steps": int(steps), "max_time": None}


def read_budget(plan: Mapping[str, Any]) -> Budget | None:
    """Return the budget of a plan, None where the trainer's own settings hold.

    Raises:
        ConfigError: CONFIG-VALUE; also where the plan sets the length of training twice.
    """
    described = plan.get("budget")
    given = described if isinstance(described, Mapping) else {"budget": described}
    given = {kind: amount for kind, amount in given.items() if amount is not None}
    if not given:
        return None
    ((kind, amount), *more) = given.items()
    if more or kind not in BUDGETS or not isinstance(amount, int | float) or not amount > 0:
        raise bad_value(
            f"budget is {described}: give one of {{steps: 2000}}, {{seconds: 600}}, "
            "{flops: 1.0e15}; another is turned off as budget.steps=null"
        )
    trainer = trainer_options(plan)
    for key in ("max_steps", "max_time"):
        if trainer.get(key) is not None:
            raise bad_value(
                f"budget.{kind} and lightning.trainer.{key} both set the length of training: "
                f"change budget.{kind}, or turn it off with budget.{kind}=null"
            )
    return Budget(kind, amount)


def step_flops(config: Mapping[str, Any]) -> int:
    """Return the FLOPs of one optimizer step of a configuration, on all its devices."""
    study = read_study(config)
    model = build_model(config, study)
    trainer = trainer_options(config)
    forward = count_flops(model.network, *model.network_inputs())
    devices, accumulated = trainer.get("devices"), trainer.get("accumulate_grad_batches") or 1
    processes = max(1, devices) if isinstance(devices, int) else 1
    batch_size = study.data.get("batch_size", BATCH_SIZE)
    return training_flops(forward, batch_size * accumulated * processes, 1)


def plan_cells(
    plan: Mapping[str, Any], output: Path, trusted: Sequence[str] = ()
) -> list[GridCell]:
    """Return the cells of a benchmark in the order of the table, every configuration checked.

    The numbers first go once through all trainings, then through their further samplings, then
    through the baselines: the first part of a job array trains, the second only samples.

    Args:
        plan: the YAML.
        output: folder of the benchmark.
        trusted: classes accepted in a run folder beside those that the shipped YAMLs name.

    Raises:
        ConfigError: what is wrong in a row, before anything runs.
        UnsafeError: UNSAFE-TARGET, in a run folder; nothing that it names was imported.
    """
    trainings = plan_trainings(plan, output, trusted)
    settings, shown = sampling_settings(plan.get("sampling") or {})
    several_seeds = len({t.seed for t in trainings}) > 1
    cells, places, asked_of = [], [], set()
    for index, training in enumerate(trainings):
        label = training.label(len(plan.get("spaces") or {}) > 1)
        one_call = not getattr(resolve_target(training.config["model"]), "has_reverse_steps", True)
        asked = settings[:1] if one_call else settings
        if label not in asked_of:  # seeds do not differ in it
            require_met(training, asked)
            asked_of.add(label)
        for turn, options in enumerate(asked):
            described = "" if one_call else describe_sampling(options, shown)
            row = SEPARATOR.join([label, *([described] if described else [])])
            name = f"{row}{SEPARATOR}seed {training.seed}" if several_seeds else row
            folder = cell_folder(training.folder, options, shown)
            is_first = row not in {cell.row for cell in cells}
            cells.append(GridCell(0, row, name, folder, training, options, is_timed=is_first))
            places.append((turn, index))
    for index, key in enumerate(read_baselines(plan)):
        name = read_study(trainings[0].config).copied if key == "copy" else BASELINES[key]
        cells.append(GridCell(0, name, name, output / "baselines" / key, baseline=key))
        places.append((len(settings), index))
    order = sorted(range(len(cells)), key=places.__getitem__)
    numbered = {cell: number for number, cell in enumerate(order)}
    return _in_rows([replace(cell, number=numbered[i]) for i, cell in enumerate(cells)])


def plan_trainings(
    plan: Mapping[str, Any], output: Path, trusted: Sequence[str] = ()
) -> list[Training]:
    """Return every training of a benchmark.

    Raises:
        ConfigError, UnsafeError: see :func:`plan_cells`.
    """
    described = plan.get("rows")
    if not isinstance(described, Mapping) or not described:
        raise ConfigError("CONFIG-MISSING", "rows: name at least one, as {name: {config: YAML}}")
    budget, seeds, spaces = read_budget(plan), read_seeds(plan), read_spaces(plan)
    found = []
    for name, row in described.items():
        if row is None:  # turned off, as rows.NAME=null does
            continue
        with of_row(name):
            _check_row(name, row)
            if "run" in row:
                found.append(_given(name, user_path(row["run"]), output, trusted))
            else:
                found += _trainings_of(name, row, plan, output, budget, seeds, spaces)
    if not found:
        raise ConfigError("CONFIG-MISSING", "rows: all are null: leave at least one")
    twice = [f for f, n in Counter(t.folder for t in found).items() if n > 1]
    if twice:
        raise bad_value(f"two rows would share {twice[0]}: rename one")
    return found


def _trainings_of(
    name: str,
    row: Mapping[str, Any],
    plan: Mapping[str, Any],
    output: Path,
    budget: Budget | None,
    seeds: Sequence[int],
    spaces: Mapping[str, str | None],
) -> list[Training]:
    """Return the trainings of a row that has a YAML: of each space and seed, one-step ones too."""
    found, variants = [], {name: []}
    if plan.get("regression_of") == name:
        variants[f"{name}-one-step"] = [REGRESSION]
    for (own, extra), (space, first_stage) in product(variants.items(), spaces.items()):
        parts = listed(row["config"])
        if first_stage is not None:
            path = {"first_stage_config": {"params": {"path": str(first_stage)}}}
            parts += [LATENT, {"model": {"params": path}}]
        parts += [*extra, {key: plan[key] for key in SHARED_KEYS if key in plan}]
        overrides = row.get("overrides") or []
        if budget:
            config = load_config([*parts, {"seed": seeds[0]}], overrides)
            held = budget.trainer(config)
            parts.append({"lightning": {"trainer": held}})
            _require_held(name, held, load_config([*parts, {"seed": seeds[0]}], overrides))
        for seed in seeds:
            config = load_config([*parts, {"seed": seed}], overrides)
            place = own if first_stage is None else f"{own}-{space}"
            folder = output / "rows" / place / f"seed-{seed}"
            found.append(Training(own, space, seed, config, folder, folder / "run"))
    return found


def _require_held(name: str, held: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse a row whose own overrides set the length of its training beside the budget."""
    trainer = trainer_options(config)
    if own := [key for key, value in held.items() if trainer.get(key) != value]:
        raise bad_value(
            f"rows.{name}.overrides set lightning.trainer.{own[0]}, and the budget the length of "
            "every training: leave out the one or the other"
        )


def _check_row(name: Any, row: Any) -> None:
    name = str(name)
    if not isinstance(row, Mapping) or not (set(row) == {"run"} or _is_config_row(row)):
        raise ConfigError(
            "CONFIG-UNKNOWN",
            f"rows.{name} is {row}: give config and overrides, or run (a folder trained before)",
        )
    parts = [row["run"]] if "run" in row else listed(row["config"])
    if not all(isinstance(part, str) for part in parts):
        raise bad_value(f"rows.{name} is {row}: give the path of a YAML, or of a run")
    if not name or "/" in name or name.startswith("."):
        raise bad_value(f"rows.{name}: the name becomes a folder: leave out '/'")


def _is_config_row(row: Mapping[str, Any]) -> bool:
    return "config" in row and not set(row) - {"config", "overrides"}


def _given(name: str, run: Path, output: Path, trusted: Sequence[str]) -> Training:
    """Return a run folder that was trained before as a training, after the trust gate."""
    if not (run / CONFIG_FILE).is_file():
        raise ConfigError("CONFIG-MISSING", f"rows.{name}.run: {run} is no run folder")
    if not (run / MODEL_FILE).is_file():
        raise ConfigError(
            "CONFIG-MISSING", f"rows.{name}.run: {run} holds no {MODEL_FILE}: it is not trained yet"
        )
    config = read_run_config(run, trusted)
    seed = config.get("seed", 0)
    return Training(name, "", seed, config, output / "rows" / name / f"seed-{seed}", run, True)


def read_seeds(plan: Mapping[str, Any]) -> list[int]:
    """Return the training seeds: ``seeds``, else ``seed``, else 0.

    Raises:
        ConfigError: CONFIG-VALUE.
    """
    seeds = plan.get("seeds")
    seeds = [plan.get("seed", 0)] if seeds is None else seeds
    if not isinstance(seeds, list) or not seeds or not all(type(s) is int for s in seeds):
        raise bad_value(f"seeds is {seeds}: give whole numbers, as [0, 1, 2]")
    return list(dict.fromkeys(seeds))


def read_spaces(plan: Mapping[str, Any]) -> dict[str, str | None]:
    """Return name -> run folder of a first stage; None: the space that the row's YAML names.

    Raises:
        ConfigError: CONFIG-VALUE.
    """
    spaces = plan.get("spaces") or {"pixel": None}
    if not isinstance(spaces, Mapping) or not all(
        value is None or isinstance(value, str) for value in spaces.values()
    ):
        raise bad_value(f"spaces is {spaces}: give {{pixel: null, latent: RUN_OF_AUTOENCODER}}")
    return dict(spaces)


def read_baselines(plan: Mapping[str, Any]) -> list[str]:
    """Return the baselines of a plan, by default all.

    Raises:
        ConfigError: CONFIG-UNKNOWN.
    """
    names = plan.get("baselines")
    names = list(BASELINES) if names is None else names
    if not isinstance(names, list):
        raise bad_value(f"baselines is {names}: give a list, [] for none")
    names = ["copy" if name == "copy_t1" else name for name in names]  # as older plans call it
    for name in names:
        if name not in BASELINES:
            raise ConfigError(
                "CONFIG-UNKNOWN",
                f"baselines: '{name}' is not known{nearest(name, BASELINES)}; known are "
                f"{', '.join(BASELINES)}",
            )
    return list(dict.fromkeys(names))


def sampling_settings(described: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return each combination of the options whose value is a list, and the names of these.

    Raises:
        ConfigError: CONFIG-UNKNOWN, CONFIG-VALUE.
    """
    if not isinstance(described, Mapping):
        raise bad_value(f"sampling is {described!r}: give options, as {{steps: 2}}")
    ordered = dict(sorted(described.items(), key=lambda i: (i[0] != "sampler", i[0] != "steps")))
    axes = {
        name: value if isinstance(value, list) and name not in PLAIN_LISTS else [value]
        for name, value in ordered.items()
    }
    settings = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    if not settings:
        raise bad_value("sampling: a list is empty: give one value at least")
    for setting in settings:
        if name := request_of(setting).sampler:
            get_sampler(str(name))
    return settings, [name for name, values in axes.items() if len(values) > 1]


def describe_sampling(options: Mapping[str, Any], shown: Sequence[str]) -> str:
    """Return what tells a setting from the others, as ``ddim 5``."""
    words = []
    for name in shown:
        value = str(options[name])
        alone = name == "steps" and "sampler" not in shown
        words.append(value if name in ("sampler", "steps") and not alone else f"{name} {value}")
    return " ".join(words)


def cell_folder(place: Path, options: Mapping[str, Any], shown: Sequence[str]) -> Path:
    """Return the folder of a cell: of this setting already, else named by what varies now.

    Args:
        place: of the training; the cells that were run before lie in it.
    """
    own = place / sampling_folder(options, shown)
    found = (own, *sorted(path.parent for path in place.glob("*/cell.json")))
    return next((folder for folder in found if _sampled_with(folder) == options), own)


def _sampled_with(folder: Path) -> Any:
    return read_json(folder / "cell.json", torn=True).get("request", {}).get("sampling")


def sampling_folder(options: Mapping[str, Any], shown: Sequence[str]) -> str:
    """Return the name of the folder of a setting, as ``ddim-5``."""
    parts = [str(options.get(name) or "default") for name in ("sampler", "steps")]
    others = [f"{n}-{options[n]}" for n in shown if n not in ("sampler", "steps")]
    return "-".join([*parts, *others])


def _in_rows(cells: Sequence[GridCell]) -> list[GridCell]:
    """Return the cells with those of one row together, rows in order of first appearance."""
    rows = list(dict.fromkeys(cell.row for cell in cells))
    return sorted(cells, key=lambda cell: rows.index(cell.row))
