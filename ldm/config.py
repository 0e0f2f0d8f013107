"""Configuration: YAML files merged left to right, then ``key=value``; checked before anything runs.

A file may name ``base: other.yaml`` (or a list), merged before it. Top-level keys are ``name``,
``seed``, ``model``, ``data`` and ``lightning``. Every ``params`` mapping is checked against the
constructor of its ``target``, so a misspelt key is refused with the nearest valid name.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import ldm
from ldm.config_arguments import admits, validate_arguments, validate_node
from ldm.errors import ConfigError, UnsafeError, bad_value
from ldm.ranges import check_ranges, check_trainer
from ldm.storage import atomic_path, read_json, write_file
from ldm.util import (
    accepted_parameters,
    current_path,
    get_obj_from_str,
    nearest,
    plain_value,
    resolve_target,
    targets_in,
    user_path,
)

Overrides = str | Iterable[str] | Mapping[str, Any]  # see merge_config
PLACE_FILE = "place.json"  # beside a saved configuration: where its patients are
TOP_LEVEL = ("name", "seed", "model", "data", "lightning")
LIGHTNING = ("trainer", "callbacks", "logger", "compile")
MAX_BYTES = 256_000  # a thousand subjects by name take 30 kB; a YAML bomb takes more
MAX_DEPTH = 50
UNREADABLE = (yaml.YAMLError, OmegaConfBaseException, ValueError)  # 0b_ is a ValueError to PyYAML
MODELS, RENAMED_PARAMS = "ldm.models.", {"bound": "objective"}  # of runs before there was another
MISREAD = re.compile(r"[-+]?(\d+(:[0-5]?\d)+(\.\d*)?|0\d+)")
# of torch.optim: they take parameters and numbers, and do nothing but arithmetic
OPTIMIZERS = tuple(
    f"torch.optim.{name}"
    for name in (
        *("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS", "Muon"),
        *("NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
    )
)
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, where libyaml is there
ENSEMBLE = "ldm.models.diffusion.ensemble.Ensemble"  # of networks that are trusted one by one
PLAIN_REFERENCE = re.compile(r"\$\{[\w.\[\]-]+\}")


def config_root() -> Path:
    """Return the folder of the shipped YAML files (in a checkout or in the installed package)."""
    package = Path(ldm.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_config(path: str | Path, relative_to: Path | None = None) -> Path:
    """Return the YAML file that ``path`` means.

    Looked up in ``relative_to``, where it is named, in the working directory, then as shipped.
    """
    path = user_path(path)
    shipped = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
    for folder, name in ((relative_to, path), (Path(), path), (config_root(), shipped)):
        if folder is not None and (folder / name).is_file():
            return folder / name
    known = [f"configs/{p.relative_to(config_root())}" for p in config_root().rglob("*.yaml")]
    raise ConfigError("CONFIG-MISSING", f"no file '{path}'{nearest(str(path), known)}")


def read_yaml(path: Path) -> DictConfig:
    """Read one YAML mapping.

    Raises:
        ConfigError: CONFIG-PARSE with the line, for anything that is not a plain mapping.
        UnsafeError: UNSAFE-YAML (a tag, an alias, a bomb), CONFIG-RESOLVER.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UnsafeError("UNSAFE-YAML", f"{path.name} is larger than {MAX_BYTES} bytes")
        text = path.read_text(encoding="utf-8-sig")
        _require_plain_mapping(text, path.name)
        loaded = OmegaConf.create(text)
    except (*UNREADABLE, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ConfigError("CONFIG-PARSE", f"{path.name}{line}: {problem}") from error
    _refuse_resolvers(_plain(loaded), path.name)
    return loaded


def _read(path: Path) -> dict[str, Any]:
    """Return a YAML file as it is written; a saved one with the place that is kept beside it."""
    config, kept = _plain(read_yaml(path)), path.with_name(PLACE_FILE)
    params = _data_params(config)
    if "root" in params and params["root"] is None and os.access(kept, os.R_OK):
        root = read_json(kept, torn=True).get("root")
        params["root"] = root if isinstance(root, str) else None
        _refuse_resolvers(config, PLACE_FILE)
    return config


def _data_params(config: Mapping[str, Any]) -> dict[str, Any]:
    data = config.get("data")
    params = data.get("params") if isinstance(data, dict) else None
    return params if isinstance(params, dict) else {}


def _require_plain_mapping(text: str, name: str) -> None:
    """Refuse, before anything is built, what no configuration needs."""
    root, depth = None, 0
    for event in yaml.parse(text):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise UnsafeError(
                "UNSAFE-YAML",
                f"{name} line {event.start_mark.line + 1}: tags (!!name) and aliases (*name) are "
                "not read; write the value, or use 'base:' or ${key.path}",
            )
        _refuse_misread(event, f"{name} line {event.start_mark.line + 1}")
        if isinstance(event, yaml.NodeEvent):
            root = root or event
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UnsafeError("UNSAFE-YAML", f"{name} is nested deeper than {MAX_DEPTH} levels")
    if not isinstance(root, yaml.MappingStartEvent):
        raise ConfigError("CONFIG-PARSE", f"{name} holds no mapping: write 'key: value' lines")


def _refuse_misread(event: yaml.Event, where: str) -> None:
    """Refuse what YAML 1.1 reads as another number: 12:30 as 750, 0123 as 83."""
    if not (isinstance(event, yaml.ScalarEvent) and event.implicit[0]):
        return
    read = yaml.safe_load(event.value) if MISREAD.fullmatch(event.value) else ""
    if not isinstance(read, str):
        raise bad_value(
            f"{where}: {event.value} is read as {read}: write the number meant, or the text in "
            "quotes"
        )


def load_with_bases(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read ``path`` after the files that its ``base`` names; nothing is resolved yet."""
    path = path.resolve()
    if path in seen:
        raise ConfigError("CONFIG-PARSE", f"{path.name}: 'base' leads back to the file itself")
    own = _read(path)
    bases = own.pop("base", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(b, str) for b in bases):
        raise ConfigError("CONFIG-PARSE", f"{path.name}: 'base' is {bases}: give file names")
    merged: dict[str, Any] = {}
    for base in bases:
        merged = _merged(merged, load_with_bases(find_config(base, path.parent), (*seen, path)))
    return _merged(merged, own)


def merge_config(
    files: Sequence[str | Path | Mapping[str, Any]],
    overrides: Overrides = (),
    top_level: Sequence[str] = TOP_LEVEL,
) -> dict[str, Any]:
    """Merge files (or mappings) left to right, then overrides; resolve; return plain dicts.

    Overrides are ``key=value``, one or several, or a mapping ``{"data.params.root": PATH}``.

    Where a later file or override names another ``target``, those ``params`` of the old class that
    the new one does not take are forgotten.

    Raises:
        ConfigError: CONFIG-MISSING, CONFIG-PARSE or CONFIG-UNKNOWN (a top-level key).
        UnsafeError: UNSAFE-YAML or CONFIG-RESOLVER.
    """
    config: dict[str, Any] = {}
    for file in files:
        part = dict(file) if isinstance(file, Mapping) else load_with_bases(find_config(file))
        config = _merged(config, part)
    return _resolve(_override(config, overrides), top_level)


def read_saved_config(path: Path) -> dict[str, Any]:
    """Return the configuration that :func:`save_config` wrote; nothing that it names is imported.

    It names no ``base``: merging another ``target`` over one imports it, before the trust gate.
    """
    return _with_current_names(merge_config([_read(path)]))


def _with_current_names(node: Any) -> Any:
    """Return a saved configuration with the parameters of models by the names of today."""
    if isinstance(node, list):
        return [_with_current_names(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    node = {key: _with_current_names(value) for key, value in node.items()}
    params = node.get("params")
    if str(node.get("target")).startswith(MODELS) and isinstance(params, dict):
        node["params"] = {RENAMED_PARAMS.get(key, key): value for key, value in params.items()}
    return node


def load_config(
    files: Sequence[str | Path | Mapping[str, Any]], overrides: Overrides = ()
) -> dict[str, Any]:
    """Return the resolved, checked configuration of a run; see :func:`merge_config`.

    Raises:
        ConfigError: what is wrong, with its key path and the nearest valid name.
    """
    config = merge_config(files, overrides)
    validate(config)
    return config


def validate(config: Mapping[str, Any], for_training: bool = True) -> None:
    """Check every key and value type of a resolved configuration; build nothing.

    Args:
        for_training: look at its ``lightning`` section too, of which only a training makes use.

    Raises:
        ConfigError: CONFIG-MISSING, CONFIG-UNKNOWN, CONFIG-TARGET or CONFIG-VALUE.
    """
    from ldm.data.datamodule import ContrastDataModule
    from ldm.models.base import RunModule

    for path, value in _leaves(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise bad_value(f"{path} is {value}: give a finite number")
    for key, expected in (("name", str), ("seed", int)):
        value = config.get(key)
        if value is not None and not admits(expected, value):
            raise bad_value(
                f"{key} is {value!r} ({type(value).__name__}): give {expected.__name__}, quoted if "
                "YAML takes it for something else"
            )
    place = PurePath(config.get("name") or "run")
    if place.is_absolute() or ".." in place.parts:
        raise bad_value(f"name is {place}: give a name, of a folder below runs/")
    check_ranges({"seed": config.get("seed")}, "config")
    if for_training:  # before the model, to which it gives steps
        _validate_lightning(config.get("lightning") or {})
    for section, kind in (("model", RunModule), ("data", ContrastDataModule)):
        if section not in config:
            raise ConfigError("CONFIG-MISSING", f"there is no '{section}' section: give its YAML")
        _require_kind(config[section], section, kind)
        validate_node(config[section], section)


def _require_kind(node: Any, where: str, kind: type) -> None:
    """Refuse a class that has no business in this place of a configuration."""
    cls = resolve_target(node, where)
    if not issubclass(cls, kind):
        raise ConfigError(
            "CONFIG-TARGET", f"{where} names {cls.__name__}, which is no {kind.__name__}"
        )


def _validate_lightning(lightning: Any) -> None:
    from pytorch_lightning import Callback, Trainer

    for key in _mapping(lightning, "lightning"):
        if key not in LIGHTNING:
            raise ConfigError(
                "CONFIG-UNKNOWN", f"lightning.{key} is not known{nearest(key, LIGHTNING)}"
            )
    if not isinstance(compiled := lightning.get("compile") or False, bool):
        raise bad_value(f"lightning.compile is {compiled!r}: give true or false")
    trainer = _mapping(lightning.get("trainer") or {}, "lightning.trainer")
    validate_arguments(Trainer, trainer, "lightning.trainer")
    check_trainer(trainer)
    for key in ("max_steps", "accumulate_grad_batches"):
        value = trainer.get(key)
        if value is not None and value < 1 and (value != -1 or key == "accumulate_grad_batches"):
            raise bad_value(f"lightning.trainer.{key} is {value}: give a whole number >= 1")
    callbacks = _mapping(lightning.get("callbacks") or {}, "lightning.callbacks")
    for name, callback in callbacks.items():
        if callback is not None:  # null turns a callback of the base off
            _require_kind(callback, f"lightning.callbacks.{name}", Callback)
            validate_node(callback, f"lightning.callbacks.{name}")
    _validate_trackers(lightning.get("logger") or [])


def _validate_trackers(trackers: Any) -> None:
    from ldm.callbacks.trackers import Tracker

    if not isinstance(trackers, list):
        raise bad_value("lightning.logger is no list: give [{target: ...}], or [] for none")
    for place, tracker in enumerate(trackers):
        _require_kind(tracker, f"lightning.logger[{place}]", Tracker)
        validate_node(tracker, f"lightning.logger[{place}]")


@cache
def trusted_targets() -> frozenset[str]:
    """Return the exact set of classes that the shipped YAML files name, and what needs no YAML."""
    named: list[str] = []
    for file in config_root().rglob("*.yaml"):  # its own, so not looked through as a stranger's
        named += targets_in(SAFE_LOADER(file.read_text(encoding="utf-8")).get_single_data())
    return frozenset((*named, *OPTIMIZERS, ENSEMBLE))


def foreign_targets(config: Mapping[str, Any]) -> list[str]:
    """Return the classes of a configuration that a run folder may name only if they are trusted."""
    return sorted({t for t in targets_in(config) if current_path(t) not in trusted_targets()})


def save_config(config: Mapping[str, Any], path: Path) -> None:
    """Write a resolved configuration as YAML, which may be given away.

    Where the patients are, ``data.params.root``, stands beside it in ``place.json``, which only its
    owner can read: folders are called after people.
    """
    config = copy.deepcopy(dict(config))
    params = _data_params(config)
    if params.get("root") is not None:
        with atomic_path(path.with_name(PLACE_FILE), private=True) as temporary:
            temporary.write_text(json.dumps({"root": params["root"]}) + "\n", encoding="utf-8")
        params["root"] = None
    write_file(path, OmegaConf.to_yaml(OmegaConf.create(config)))


def _plain(config: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(config, resolve=False)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` changed by ``over``: mappings key by key, everything else replaced."""
    result = dict(base)
    renamed = over.get("target", base.get("target")) != base.get("target")
    if renamed and isinstance(base.get("params"), dict):
        result["params"] = _accepted_by(over["target"], base["params"])
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def _accepted_by(target: Any, params: dict[str, Any]) -> dict[str, Any]:
    """Return those arguments of another class that the class of ``target`` takes too."""
    try:
        named, takes_any = accepted_parameters(get_obj_from_str(target))
    except (ConfigError, TypeError, ValueError):  # validation says what is wrong with the target
        return {}
    return {name: value for name, value in params.items() if name in named or takes_any}


def _override(config: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    for override in _words(overrides):
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError("CONFIG-PARSE", f"'{override}' is neither a YAML file nor key=value")
        try:
            for event in yaml.parse(value):
                _refuse_misread(event, override)
            change = _plain(OmegaConf.from_dotlist([override]))
        except (*UNREADABLE, RecursionError, LookupError) as error:
            problem = getattr(error, "problem", None) or error
            raise ConfigError("CONFIG-PARSE", f"'{override}' cannot be read: {problem}") from error
        _refuse_resolvers(change, "the command line")
        config = _merged(config, change)
    return config


def _words(overrides: Overrides) -> Iterable[str]:
    """Return overrides as ``key=value``, one or several; of a mapping the values are JSON."""
    if isinstance(overrides, str) or overrides is None:
        return [overrides] if overrides else []
    if isinstance(overrides, Mapping):
        return [
            f"{key}={json.dumps(value, default=plain_value)}" for key, value in overrides.items()
        ]
    words = list(overrides) if isinstance(overrides, Iterable) else [overrides]
    for word in words:
        if not isinstance(word, str):
            raise ConfigError(
                "CONFIG-PARSE", f"an override is {word!r}: give 'key=value', or {{key: value}}"
            )
    return words


def _refuse_resolvers(config: Mapping[str, Any], source: str) -> None:
    """Refuse all of OmegaConf's ``${...}`` but ``${key.path}``: the others read the environment."""
    for path, value in _leaves(config):
        if isinstance(value, str) and "${" in PLAIN_REFERENCE.sub("", value):
            raise UnsafeError(
                "CONFIG-RESOLVER",
                f"{path} in {source} is {reprlib.repr(value)}: only ${{key.path}} is resolved, "
                "so that no run folder copies your environment; write the value",
            )


def _resolve(config: dict[str, Any], top_level: Sequence[str]) -> dict[str, Any]:
    for key in config:
        if key not in top_level:
            raise ConfigError(
                "CONFIG-UNKNOWN",
                f"top-level key '{key}' is not known{_nearest_path(key, config, top_level)}; "
                f"known are {', '.join(top_level)}",
            )
    try:
        return OmegaConf.to_container(OmegaConf.create(config), resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, RecursionError) as error:
        where = getattr(error, "full_key", None) or "config"
        raise ConfigError("CONFIG-PARSE", f"{where}: {str(error).splitlines()[0]}") from error


def _nearest_path(key: Any, config: Mapping[str, Any], top_level: Sequence[str]) -> str:
    """Return `` (nearest: 'path')`` of the known key, at any depth, whose name is most like it."""
    known = {k: v for k, v in config.items() if k in top_level}
    paths = {str(k): str(k) for k in top_level}
    for path, _ in _leaves(known):
        path = path.partition("[")[0]
        paths.setdefault(path.rpartition(".")[2], path)
    match = difflib.get_close_matches(str(key), paths, n=1, cutoff=0.5)
    return f" (nearest: '{paths[match[0]]}')" if match else ""


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (key path, value) of everything in nested containers that is no container."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _leaves(value, f"{path}[{index}]")
    else:
        yield path, node


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise bad_value(f"{path} is {reprlib.repr(value)}: give a mapping")
    return value
