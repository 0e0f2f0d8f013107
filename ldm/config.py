"""Configuration: YAML files merged left to right, then ``key=value``; checked before anything runs.

A file may name ``base: other.yaml`` (or a list), merged before it. Top-level keys are ``name``,
``seed``, ``model``, ``data`` and ``lightning``. Every ``params`` mapping is checked against the
constructor of its ``target``, so a misspelt key is refused with the nearest valid name.
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import ldm
from ldm.errors import ConfigError, UnsafeError
from ldm.util import accepted_parameters, check_parameter_names, nearest, resolve_target, targets_in

TOP_LEVEL = ("name", "seed", "model", "data", "lightning")
LIGHTNING = ("trainer", "callbacks")
MAX_BYTES = 1_000_000  # no honest configuration is larger; a YAML bomb is


def config_root() -> Path:
    """Return the folder of the shipped YAML files (in a checkout or in the installed package)."""
    package = Path(ldm.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_config(path: str | Path, relative_to: Path | None = None) -> Path:
    """Return the YAML file that ``path`` means.

    Looked up in the folder of the file that names it (``relative_to``), in the working directory,
    then among the shipped files, so that ``configs/backbone/unet.yaml`` works from anywhere.
    """
    path = Path(path)
    shipped = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
    for folder, name in ((relative_to, path), (Path(), path), (config_root(), shipped)):
        if folder is not None and (folder / name).is_file():
            return folder / name
    known = [f"configs/{p.relative_to(config_root())}" for p in config_root().rglob("*.yaml")]
    raise ConfigError("CONFIG-MISSING", f"no file '{path}'{nearest(str(path), known)}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        ConfigError: CONFIG-PARSE with the line, for anything that is not a plain mapping.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError("CONFIG-PARSE", f"{path.name} is larger than {MAX_BYTES} bytes")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "${oc." in text:
            raise UnsafeError(
                "CONFIG-RESOLVER",
                f"{path.name} uses an OmegaConf resolver '${{oc....}}', which would copy your "
                "environment into run folders: write the value, or give it as key=value",
            )
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ConfigError(
                "CONFIG-PARSE",
                f"{path.name} uses YAML aliases (*name): use 'base:' or ${{interpolation}}",
            )
        loaded = OmegaConf.create(text) if text.strip() else None
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ConfigError("CONFIG-PARSE", f"{path.name}{line}: {problem}") from error
    if not isinstance(loaded, DictConfig) or not loaded:
        raise ConfigError("CONFIG-PARSE", f"{path.name} holds no mapping of keys to values")
    return loaded


def load_with_bases(path: Path, seen: tuple[Path, ...] = ()) -> DictConfig:
    """Read ``path`` after the files that its ``base`` names."""
    path = path.resolve()
    if path in seen:
        raise ConfigError("CONFIG-PARSE", f"{path.name}: 'base' leads back to the file itself")
    own = read_yaml(path)
    bases = own.pop("base", None) or []
    bases = [bases] if isinstance(bases, str) else list(bases)
    merged = [load_with_bases(find_config(b, path.parent), (*seen, path)) for b in bases]
    return OmegaConf.merge(*merged, own)


def merge_config(
    files: Sequence[str | Path],
    overrides: Iterable[str] = (),
    top_level: Sequence[str] = TOP_LEVEL,
) -> dict[str, Any]:
    """Merge files left to right, then ``key=value``; resolve; return plain containers.

    Raises:
        ConfigError: CONFIG-MISSING, CONFIG-PARSE or CONFIG-UNKNOWN (a top-level key).
    """
    merged = OmegaConf.merge(*(load_with_bases(find_config(f)) for f in files))
    return _resolve(_override(merged, overrides), top_level)


def merge_overrides(config: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a resolved configuration changed by ``key=value``, checked again."""
    changed = _resolve(_override(OmegaConf.create(dict(config)), overrides), TOP_LEVEL)
    validate(changed)
    return changed


def load_config(files: Sequence[str | Path], overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Return the resolved, checked configuration of a run as plain dicts and lists.

    Raises:
        ConfigError: what is wrong, with its key path and the nearest valid name.
    """
    config = merge_config(files, overrides)
    validate(config)
    return config


def validate(config: Mapping[str, Any]) -> None:
    """Check every key and value type of a resolved configuration; build nothing."""
    for section in ("model", "data"):
        if section not in config:
            raise ConfigError("CONFIG-MISSING", f"there is no '{section}' section: give its YAML")
        _validate_node(config[section], section)
    lightning = config.get("lightning") or {}
    for key in lightning:
        if key not in LIGHTNING:
            raise ConfigError(
                "CONFIG-UNKNOWN", f"lightning.{key} is not known{nearest(key, LIGHTNING)}"
            )
    from pytorch_lightning import Trainer

    trainer = lightning.get("trainer") or {}
    named, _ = accepted_parameters(Trainer)
    for key in trainer:
        if key not in named:
            raise ConfigError(
                "CONFIG-UNKNOWN", f"lightning.trainer.{key} is not known{nearest(key, named)}"
            )
    for key in ("max_steps", "max_epochs", "accumulate_grad_batches"):
        value = trainer.get(key)
        if value is not None and (not _is_int(value) or value == 0 or value < -1):
            raise ConfigError(
                "CONFIG-VALUE", f"lightning.trainer.{key} is {value!r}: give a whole number >= 1"
            )
    for name, callback in (lightning.get("callbacks") or {}).items():
        _validate_node(callback, f"lightning.callbacks.{name}")


def trusted_targets() -> frozenset[str]:
    """Return the exact set of classes that the shipped YAML files name."""
    files = config_root().rglob("*.yaml")
    return frozenset(t for f in files for t in targets_in(OmegaConf.to_container(read_yaml(f))))


def save_config(config: Mapping[str, Any], path: Path) -> None:
    """Write a resolved configuration as YAML."""
    from ldm.storage import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(dict(config))), encoding="utf-8")


def _override(config: DictConfig, overrides: Iterable[str]) -> DictConfig:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError("CONFIG-PARSE", f"'{override}' is neither a YAML file nor key=value")
        if "${oc." in value:
            raise UnsafeError("CONFIG-RESOLVER", f"{key}: '${{oc....}}' is not resolved here")
        try:
            _drop_params_of_replaced_target(config, key, value)
            config = OmegaConf.merge(config, OmegaConf.from_dotlist([override]))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError("CONFIG-PARSE", f"{override}: {error}") from error
    return config


def _resolve(config: DictConfig, top_level: Sequence[str]) -> dict[str, Any]:
    for key in config:
        if key not in top_level:
            suggestion = nearest(key, _all_keys(config)) or f": known are {', '.join(top_level)}"
            raise ConfigError("CONFIG-UNKNOWN", f"top-level key '{key}' is not known{suggestion}")
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError("CONFIG-PARSE", f"{error.full_key or 'config'}: {reason}") from error


def _drop_params_of_replaced_target(config: DictConfig, key: str, value: str) -> None:
    """Forget the arguments of the old class when ``key=value`` names another one."""
    if key.endswith(".target"):
        owner = key.removesuffix(".target")
        node = OmegaConf.select(config, owner)
        if isinstance(node, DictConfig) and node.get("target") != value:
            node.pop("params", None)


def _validate_node(node: Any, where: str) -> None:
    """Check a ``target`` / ``params`` mapping and those nested in it."""
    cls = resolve_target(node, where)
    params = node.get("params") or {}
    if not isinstance(params, Mapping):
        raise ConfigError("CONFIG-VALUE", f"{where}.params is {params!r}: give a mapping")
    check_parameter_names(cls, params, where)
    try:
        hints = typing.get_type_hints(cls.__init__)
    except Exception:  # a foreign class may annotate with names that are not importable
        hints = {}
    for name, value in params.items():
        path = f"{where}.params.{name}"
        _check_value(value, hints.get(name), path)
        for nested_path, nested in _nested_targets(value, path):
            _validate_node(nested, nested_path)


def _nested_targets(value: Any, path: str) -> list[tuple[str, Mapping]]:
    if isinstance(value, Mapping):
        if "target" in value:
            return [(path, value)]
        return [n for key, v in value.items() for n in _nested_targets(v, f"{path}.{key}")]
    if isinstance(value, list):
        return [n for i, v in enumerate(value) for n in _nested_targets(v, f"{path}[{i}]")]
    return []


def _check_value(value: Any, hint: Any, path: str) -> None:
    """Refuse a value whose plain type contradicts the annotation of the parameter."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError("CONFIG-VALUE", f"{path} is {value}: give a finite number")
    allowed = _plain_types(hint)
    if allowed and not any(_fits(value, t) for t in allowed):
        names = " or ".join(sorted("null" if t is type(None) else t.__name__ for t in allowed))
        raise ConfigError(
            "CONFIG-VALUE", f"{path} is {value!r} ({type(value).__name__}): expected {names}"
        )


def _plain_types(hint: Any) -> set[type]:
    """Return the YAML types that an annotation admits; an empty set means anything."""
    if hint is None or hint is inspect.Parameter.empty:
        return set()
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        parts = [_plain_types(a) for a in typing.get_args(hint)]
        return set().union(*parts) if all(parts) else set()
    origin = typing.get_origin(hint) or hint
    if origin is typing.Literal:
        return {type(a) for a in typing.get_args(hint)}
    if isinstance(origin, type):
        if origin in (int, float, bool, str, type(None)):
            return {origin}
        if issubclass(origin, Path):
            return {str}
        if issubclass(origin, Mapping):
            return {dict}
        if issubclass(origin, Sequence):
            return {list}
    return set()


def _fits(value: Any, expected: type) -> bool:
    if expected is float:
        return _is_int(value) or isinstance(value, float)
    return _is_int(value) if expected is int else isinstance(value, expected)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _all_keys(config: DictConfig) -> list[str]:
    """Return the dotted path of every key of a configuration."""
    keys: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, DictConfig) and not node._is_interpolation():
            for key in node:
                keys.append(f"{prefix}{key}")
                walk(node._get_node(key), f"{prefix}{key}.")

    walk(config, "")
    return keys
