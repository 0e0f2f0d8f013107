"""Calls from Python refuse an argument of a wrong type by its name, before they do anything."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ldm
from ldm.errors import ConfigError, on_the_command_line
from ldm.models.segmentation import Segmentation
from ldm.progress import Progress, silent
from ldm.study import Study
from ldm.typed import fits, typed


class Strange:
    """What no call takes."""

    def __repr__(self) -> str:
        return "<strange>"


def public_calls() -> dict[str, Callable]:
    """Every function that ``ldm`` shows, and what a class of it is called with."""
    found = {}
    for name in ldm.__all__:
        shown = getattr(ldm, name)
        if inspect.isfunction(shown):
            found[name] = shown
        elif isinstance(shown, type):
            found[name] = shown
            own = object.__new__(shown)  # refused before it is looked at
            for method in ("load", "volume", "volumes", "__call__", "run", "cell", "run_cell"):
                if callable(getattr(own, method, None)):
                    found[f"{name}.{method}"] = getattr(own, method)
    return found


CALLS = public_calls()
ARGUMENTS = [
    (call, name)
    for call, function in CALLS.items()
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD
    and (call, name) != ("Synthesiser.__call__", "subject")  # of volume, which it calls
]


def test_there_are_calls():
    assert {"train", "evaluate", "Synthesiser.load", "Benchmark", "Segmenter"} <= set(CALLS)
    assert len(ARGUMENTS) > 120


@pytest.mark.parametrize(("call", "name"), ARGUMENTS)
def test_an_argument_of_a_wrong_type_is_named(call, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"{name} is <strange> \(Strange\): give \w") as caught:
        CALLS[call](**{name: Strange()})
    assert caught.value.code == "CONFIG-VALUE"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "given", "said"),
    [
        ("evaluate", {"labels": 5}, "labels is 5 (int): give str | Mapping[str, Any] | None, or"),
        ("evaluate", {"columns": 5}, "columns is 5 (int): give Sequence[str], or leave it out"),
        ("evaluate", {"segmenter": 5}, "segmenter is 5 (int): give Segmenter | str | Path | None"),
        ("evaluate", {"lpips_weights": 5}, "lpips_weights is 5 (int): give str | Path | None"),
        ("evaluate", {"subjects": [1, 2]}, "subjects is [1, 2] (list): give Sequence[str] | None"),
        ("evaluate_segmentations", {"regions": 5}, "regions is 5 (int): give str | Sequence[str]"),
        ("train", {"progress": None}, "progress is None (NoneType): give Progress, or leave it"),
        ("train", {"config": 5}, "config is 5 (int): give str | Path | Sequence[str | Path]"),
        ("prepare", {"layout": 5}, "layout is 5 (int): give str | Mapping[str, Any] | Layout"),
        ("segment", {"devices": "two"}, "devices is 'two' (str): give int, or leave it out"),
        ("export", {"output": None}, "output is None (NoneType): give str | Path"),
        ("Synthesiser", {"trained": "runs/mine"}, "trained is 'runs/mine' (str): give Trained"),
    ],
)
def test_it_is_said_what_was_given_and_what_is_taken(call, given, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        CALLS[call](**given)


def test_a_name_that_a_call_has_not_is_refused_by_python():
    with pytest.raises(TypeError, match=r"export\(\) got an unexpected keyword argument 'licens'"):
        ldm.export("run", "output", licens="MIT")
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'output'"):
        ldm.export("run")


GOOD = [
    (int, np.int64(3)),
    (float, 3),
    (float, np.float32(0.5)),
    (bool, np.True_),
    (str | Path, Path("a")),
    (Sequence[str], ("a", "b")),
    (Sequence[str], "one"),
    (Sequence[str] | None, None),
    (Sequence[str], np.array(["a"])),
    (Sequence[str | Path], iter("ab")),
    (Mapping[str, Any], {}),
    (Callable[[str], None] | None, print),
    (Progress, silent),
    (Any, 5),
]
BAD = [
    (int, True),
    (int, 1.0),
    (float, "1"),
    (bool, 1),
    (str | Path, b"a"),
    (Sequence[str], 5),
    (Sequence[str], ["a", 5]),
    (Sequence[str], b"ab"),
    (int | Sequence[int], "20"),
    (Mapping[str, Any], [("a", 1)]),
    (Callable[[str], None], "print"),
    (Progress, None),
    (int | None, "5"),
]


@pytest.mark.parametrize(("hint", "value"), GOOD)
def test_what_fits(hint, value):
    assert fits(hint, value)


@pytest.mark.parametrize(("hint", "value"), BAD)
def test_what_does_not_fit(hint, value):
    assert not fits(hint, value)


def test_a_typed_function_is_the_function_it_was():
    @typed
    def half(number: float, *, of: "NotKnown | None" = None, **more: int) -> float:  # noqa: F821
        """Return a half."""
        return number / 2

    assert half(3, of=Strange(), other="text") == 1.5  # of what is not known nothing is refused
    assert (half.__name__, half.__doc__) == ("half", "Return a half.")
    assert list(inspect.signature(half).parameters) == ["number", "of", "more"]
    with pytest.raises(ConfigError, match="number is '3'"), on_the_command_line():
        half("3")


def test_a_text_is_handed_on_as_the_list_that_it_stands_for():
    @typed
    def told(several: Sequence[str], *, either: str | Sequence[str] = (), number: int = 0) -> Any:
        return several, either, number

    assert told("psnr", either="a", number=1) == (["psnr"], "a", 1)
    assert told(several=("a", "b")) == (("a", "b"), (), 0)
    with pytest.raises(TypeError, match="several"):
        told(number=1)


def test_no_contrast_is_missing_because_its_name_begins_another(monkeypatch):
    """``allow_missing="t1ce"`` allowed T1 to be absent: "t1" in "t1ce"."""
    asked = []
    module = "ldm.inference.segmentation"
    loaded = SimpleNamespace(model=object.__new__(Segmentation), study=Study())
    monkeypatch.setattr(f"{module}.load_for_inference", lambda *_: loaded)
    monkeypatch.setattr(
        f"{module}.require_missing_allowed", lambda _, missing: asked.append(missing) or stop()
    )

    def stop() -> None:
        raise ConfigError("CONFIG-VALUE", "looked at")

    with pytest.raises(ConfigError, match="looked at"):
        ldm.Segmenter("run", allow_missing="t1ce")
    assert asked == [["t1ce"]]
