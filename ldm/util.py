"""The instantiation layer: ``{target: dotted.Class, params: {...}}`` becomes an object.

The convention is latent-diffusion's. What is added: errors that tell a bad path from a failed
import, from a missing attribute, from a wrong parameter; interface arguments, so that a fact has
one owner; and a trust gate for configurations that come out of a model folder.
"""

from __future__ import annotations

import importlib
import inspect
import reprlib
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from ldm.errors import FAMILIES, ConfigError, UnsafeError, bad_value, calling, nearest

SESSION = "__main__"  # the module of a class that is written in a notebook or script
# Where YAMLs of the research code, and saved runs, look for what stands elsewhere here.
RENAMED = {
    "Disc_diff.guided_diffusion.": "guided_diffusion.",
    "ldm.modules.losses.LPIPSWithDiscriminator": "ldm.losses.autoencoder.AutoencoderLoss",
    "ldm.models.diffusion.ddpm.OneStepRegression": (
        "ldm.models.diffusion.regression.OneStepRegression"
    ),
}


def current_path(path: str) -> str:
    """Return where the class of a dotted path stands today, see :data:`RENAMED`."""
    for old, new in RENAMED.items():
        path = new + path.removeprefix(old) if str(path).startswith(old) else path
    return path


def get_obj_from_str(path: str) -> Any:
    """Import the object at a dotted path such as ``ldm.modules.diffusionmodules.dit.DiT``.

    A module that is not installed may lie in the working directory, as ``my_net.py`` of the user.

    Raises:
        ConfigError: CONFIG-TARGET; the sentence says whether the module does not exist, exists but
            fails to import, or lacks the attribute.
    """
    path = current_path(path)
    module_name, _, attribute = str(path).rpartition(".")
    if not module_name:
        raise ConfigError("CONFIG-TARGET", f"target '{path}' is no dotted path: give module.Class")
    try:
        module = _import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ConfigError(
                "CONFIG-TARGET",
                f"target '{path}': there is no module '{error.name}'; "
                "check the spelling, install the package that holds it, or run in its folder",
            ) from error
        raise ConfigError(
            "CONFIG-TARGET",
            f"target '{path}': module '{module_name}' needs '{error.name}', which is not installed",
        ) from error
    except Exception as error:
        raise ConfigError(
            "CONFIG-TARGET",
            f"target '{path}': importing '{module_name}' failed: {type(error).__name__}: {error}",
        ) from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        if module_name == SESSION:
            raise ConfigError(
                "CONFIG-TARGET",
                f"target '{path}' was written in a notebook or script, and is known there alone: "
                "define it in one again, and read the run from there",
            ) from error
        raise ConfigError(
            "CONFIG-TARGET",
            f"target '{path}': module '{module_name}' has no '{attribute}'"
            f"{nearest(attribute, [n for n in vars(module) if not n.startswith('_')])}",
        ) from error


def _import_module(name: str) -> ModuleType:
    """Import a module of an installed package or, only if there is none, of the working directory.

    A console script, unlike ``python -m``, does not look there. It comes last, and only for a class
    that a configuration names: no stray file beside the data takes the place of a library.
    """
    package, here = name.partition(".")[0], str(Path.cwd())
    known = package in sys.modules or find_spec(package)
    if not known and PathFinder.find_spec(package, [here]):
        sys.path.append(here)
    return importlib.import_module(name)


def params_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``params`` of a ``target``, which may be absent or null."""
    return node.get("params") or {}


def with_params(node: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``target`` / ``params`` mapping with some of its ``params`` changed."""
    return {**node, "params": {**params_of(node), **changed}}


def without_params(node: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return a ``target`` / ``params`` mapping without some of its ``params``."""
    return {**node, "params": {n: v for n, v in params_of(node).items() if n not in names}}


def accepted_parameters(cls: Callable) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return the named parameters of a constructor, and whether it takes any other keyword too."""
    try:
        parameters = inspect.signature(cls).parameters
    except ValueError:  # a class written in C may not tell
        return {}, True
    named = {
        name: p
        for name, p in parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return named, takes_any


def shows(*owners: Callable) -> Callable[[Callable], Callable]:
    """Show in the signature of a constructor the keywords that its ``**settings`` stands for.

    They are the parameters of ``owners``, which it hands them to (see :func:`taken`), so that a
    misspelt key of a YAML is refused with its nearest name and a wrong type with the right one.
    """

    def decorate(init: Callable) -> Callable:
        own = [p for p in inspect.signature(init).parameters.values() if p.kind != p.VAR_KEYWORD]
        shown = {p.name: p for p in own}
        for owner in owners:
            hints = typing.get_type_hints(owner.__init__ if isinstance(owner, type) else owner)
            for name, p in inspect.signature(owner).parameters.items():
                hint = hints.get(name, p.annotation)
                shown.setdefault(name, p.replace(kind=p.KEYWORD_ONLY, annotation=hint))
        init.__signature__ = inspect.Signature(list(shown.values()))
        init.shown = owners  # whose docstrings say what they mean
        return init

    return decorate


def taken(settings: dict[str, Any], owner: Callable) -> dict[str, Any]:
    """Take out of ``settings`` what the parameters of ``owner`` are called."""
    names = inspect.signature(owner).parameters
    return {name: settings.pop(name) for name in names if name in settings}


def resolve_target(config: Mapping[str, Any], where: str = "config") -> type:
    """Return the class that ``config['target']`` names, after checking the shape of ``config``.

    Raises:
        ConfigError: CONFIG-TARGET when there is no target, or it is not a class; CONFIG-UNKNOWN
            for another key; CONFIG-VALUE when the params are no mapping.
    """
    if not isinstance(config, Mapping) or "target" not in config:
        raise ConfigError(
            "CONFIG-TARGET",
            f"{where} is {reprlib.repr(config)}: give a mapping with 'target' and 'params'",
        )
    unknown = set(config) - {"target", "params"}
    if unknown:
        key = sorted(map(str, unknown))[0]
        raise ConfigError(
            "CONFIG-UNKNOWN",
            f"{where}.{key} is not known beside 'target' and 'params'"
            f"{nearest(key, ['target', 'params'])}: constructor arguments belong under 'params'",
        )
    if not isinstance(params := config.get("params") or {}, Mapping):
        raise bad_value(f"{where}.params is {reprlib.repr(params)}: give a mapping")
    cls = get_obj_from_str(config["target"])
    if not isinstance(cls, type):
        raise ConfigError(
            "CONFIG-TARGET", f"{where}: target '{config['target']}' is not a class: name a class"
        )
    return cls


def instantiate_from_config(
    config: Mapping[str, Any],
    *,
    where: str = "config",
    interface: Mapping[str, Any] | None = None,
    needs: Sequence[str] = (),
    **overrides: Any,
) -> Any:
    """Build the object that ``config`` describes.

    Args:
        config: ``{"target": "dotted.Class", "params": {...}}``; ``params`` may be absent.
        where: key path of ``config``, for error messages.
        interface: facts owned by the caller (number of channels, image size, ...). Each is passed
            if the constructor knows the name; a different value in ``params`` is refused, because
            a fact has one owner.
        needs: attributes without which the object is not for this place.
        **overrides: further constructor arguments.

    Raises:
        ConfigError: CONFIG-TARGET (also for ``needs``, and for a constructor that fails),
            CONFIG-UNKNOWN (a parameter that the class does not have), CONFIG-SHAPE (a contradicted
            interface fact) or CONFIG-VALUE (the constructor refused).
    """
    cls = resolve_target(config, where)
    params = {**params_of(config), **overrides}
    check_parameter_names(cls, params, f"{where}.params")
    named, takes_any = accepted_parameters(cls)
    for name, value in (interface or {}).items():
        if name in params and params[name] != value:
            raise ConfigError(
                "CONFIG-SHAPE",
                f"{where}.params.{name} is {params[name]}, but data and model need {value}: "
                "delete the line, the value is passed in",
            )
        if name in named:
            params[name] = value
    missing = [n for n, p in named.items() if p.default is p.empty and n not in params]
    if missing and not takes_any:
        raise bad_value(f"{where}.params.{missing[0]} is required by {cls.__name__}: give it")
    with calling(cls):
        try:
            made = cls(**params)
        except (TypeError, ValueError, LookupError, AssertionError) as error:
            unnamed = "; of **kwargs none is passed in: name in_channels, ... in its __init__"
            hint = unnamed if takes_any and interface else ""
            raise bad_value(f"{where}: {cls.__name__} refused: {error}{hint}") from error
    if lacks := [need for need in needs if not hasattr(made, need)]:
        raise ConfigError(
            "CONFIG-TARGET",
            f"{where} names {cls.__name__}, which has no '{lacks[0]}' and is not for this place",
        )
    return made


def check_parameter_names(cls: Callable, params: Mapping[str, Any], path: str) -> None:
    """Refuse a parameter that the constructor of ``cls`` does not have, naming the nearest one."""
    named, takes_any = accepted_parameters(cls)
    for name in params:
        if name not in named and not takes_any:
            raise ConfigError(
                "CONFIG-UNKNOWN",
                f"{path}.{name} is not a parameter of {cls.__name__}{nearest(name, named)}",
            )


def require_dims(cls: type, dims: int, names: Collection[str], where: str) -> None:
    """Refuse a class that does not know the number of axes by one of ``names`` for volumes.

    Raises:
        ConfigError: CONFIG-SHAPE.
    """
    if dims != 2 and not set(names) & set(accepted_parameters(cls)[0]):
        raise ConfigError(
            "CONFIG-SHAPE",
            f"{where}: {cls.__name__} has no argument {' or '.join(names)}, so it takes slices "
            f"only, but data.params.image_size has {dims} numbers: give two, or, if it is of "
            "volumes, let its __init__ have the argument",
        )


def targets_in(config: Any) -> list[str]:
    """Return every ``target`` in a nested configuration, in order of appearance.

    Beside a target, ``params`` holds constructor arguments: one that is called ``target`` (the
    contrast to synthesise, or none) names no class; one that is called ``layout`` names one by its
    dots.
    """
    if isinstance(config, Mapping):
        found, values = [], dict(config)
        if "target" in config:
            found, params = [str(values.pop("target"))], config.get("params")
            if isinstance(params, Mapping) and not isinstance(params.get("target", {}), Mapping):
                values["params"] = {k: v for k, v in params.items() if k != "target"}
            layout = params.get("layout") if isinstance(params, Mapping) else None
            found += [layout] if isinstance(layout, str) and "." in layout else []
        return found + [t for value in values.values() for t in targets_in(value)]
    if isinstance(config, list | tuple):
        return [t for value in config for t in targets_in(value)]
    return []


def refuse_untrusted_targets(
    config: Any, trusted: Collection[str], source: str, named: Collection[str] = ()
) -> None:
    """Refuse a configuration from a model folder that names a class outside ``trusted``.

    A target is code that runs, so one that was not named by the user is accepted only if it is one
    of an exact set, and its package is installed: a folder of that name in the working directory,
    which may be the model folder itself, is not imported. Nothing has been when this refuses.

    Args:
        named: classes that the user named, which may lie anywhere.

    Raises:
        UnsafeError: UNSAFE-TARGET, UNSAFE-IMPORT.
        ConfigError: CONFIG-TARGET, a package is not installed.
    """
    named = listed(named)  # one class, too, is no part of a name
    targets = [target for target in targets_in(config) if target not in named]
    foreign = list(dict.fromkeys(t for t in targets if current_path(t) not in trusted))
    if foreign:
        told = ", ".join(f"'{target}'" for target in foreign)
        kind, them = ("class", "it") if len(foreign) == 1 else ("classes", "them")
        raise UnsafeError(
            "UNSAFE-TARGET",
            f"{source} names the {kind} {told}, not of this project; if you trust {them}, add "
            f"{' '.join(trusting(foreign))}",
        )
    for target in targets:
        _require_installed(target, source)


def _require_installed(target: str, source: str) -> None:
    """Refuse a class whose package is missing, or would be imported from the working directory."""
    package = current_path(target).partition(".")[0]
    spec = find_spec(package)
    if spec is None:
        raise ConfigError(
            "CONFIG-TARGET",
            f"{source} names '{target}', but '{package}' is not installed: install it; nothing is "
            "imported from the working directory for a model",
        )
    files = spec.submodule_search_locations or [spec.origin or ""]
    places = {Path(file).resolve().parent for file in files}
    own = Path(__file__).resolve().parents[1]
    if package in FAMILIES and own not in places:  # guided_diffusion is also a package of OpenAI
        raise UnsafeError(
            "UNSAFE-IMPORT",
            f"{source} names '{target}' of this project, but '{package}' is found in "
            f"{min(map(str, places))}: take that folder off PYTHONPATH",
        )
    if Path.cwd().resolve() in places - {own}:
        raise UnsafeError(
            "UNSAFE-IMPORT",
            f"{source} names '{target}', and '{package}' lies in the working directory: run the "
            f"command elsewhere, or if you trust that folder, add --trust {target}",
        )


def image_sides(size: int | Sequence[int]) -> tuple[int, ...]:
    """Return (H, W) of a side or a pair, (D, H, W) of three numbers."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) not in (2, 3) or not all(isinstance(n, int) and n >= 1 for n in sides):
        raise bad_value(
            f"image_size is {size}: give a side, [height, width], or for patches of volumes "
            "[slices, height, width]"
        )
    return sides


def trainer_options(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``lightning.trainer`` of a configuration; empty where it says nothing."""
    return (config.get("lightning") or {}).get("trainer") or {}


def own_channels(contrasts: int, neighbours: int) -> slice:
    """Return which channels of a 2.5-D input are the slice itself; its neighbours stand around it.

    Args:
        contrasts: of each slice.
        neighbours: slices on each side.
    """
    first = neighbours * contrasts
    return slice(first, first + contrasts)


def evenly_spread(most: int, total: int) -> list[int]:
    """Return at most so many indices below ``total``, each in the middle of an equal share."""
    count = min(most, total)
    return [int((place + 0.5) * total / count) for place in range(count)]


def trusting(targets: Iterable[str]) -> list[str]:
    """Return the words of a command by which classes of a run folder are trusted."""
    return [word for target in listed(targets) for word in ("--trust", target)]


def user_path(path: str | Path) -> Path:
    """Return the path that a user gives, with ``~`` for a home.

    Raises:
        ConfigError: CONFIG-VALUE for what is no path.
    """
    try:
        return Path(path).expanduser()
    except (TypeError, RuntimeError) as error:  # nobody of that name has a home
        given = str(path) if isinstance(path, Path) else path
        raise bad_value(f"{given!r} is no path: give that of a file or folder") from error


def how_many(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 subject``, ``2 subjects``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def plain_value(value: Any) -> Any:
    """Return numbers of numpy and torch as JSON has them, a class as a ``target`` names it, all
    else, such as a path, as text.
    """
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return value.tolist() if hasattr(value, "tolist") else str(value)


def listed(given: Any) -> list[Any]:
    """Return one thing, such as a path or a name, or several of them, as a list."""
    return list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
