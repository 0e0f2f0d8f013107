"""What data, model and judge agree on: which contrast is made from which, and how each is written.

The names of the contrasts stand in one table, :data:`FIELD`, from which every layout reads. Inside
they are ``t1``, ``t1ce``, ``t2``, ``flair`` and ``dwi``; beside them lie ``seg`` (labels) and
``brain`` (a mask). A configuration adds its own: ``data.params.contrasts: {swi: [swi, susc]}``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ldm.errors import ConfigError, DataError, bad_value
from ldm.label_scheme import LabelScheme, read_scheme
from ldm.util import image_sides, instantiate_from_config, own_channels, taken

LABELS = "seg"
MASK_FILE = "brain"  # a mask of the brain that someone else made
MASKS = (LABELS, MASK_FILE)  # beside the images
ANY = "any"  # as a target: each of the contrasts in turn, made from the others
MAPS = "maps"  # of a batch: what the prior of a model finds in whole volumes
ASKED = "asked"  # of a batch: which contrast is to be made, and which are there
BATCH_SIZE = 4  # images a step, where nothing else is told
BRATS = ("t1", "t1ce", "t2", "flair")  # also the order in which HDF5 files of BraTS store them
T1_WEIGHTED = ("t1", "t1ce")  # white matter is the brightest large tissue
DECATHLON = ("flair", "t1", "t1ce", "t2")  # the order in Task01_BrainTumour


@dataclass(frozen=True)
class Contrast:
    """One kind of volume of a subject, and how people and files name it.

    Args:
        name: here, in file names of results and in CSV columns.
        title: in captions.
        words: further names, in lower case and without ``-``, ``_`` and spaces.
        endings: naming (``brats2023``, ``bids``, ...) -> what ends a file name there, the usual one
            first; where a naming is not listed, the name.
        own: what ends a file name, or heads a CSV column, by the word of the user.
        native: the contrast that this one is after an agent was given.
    """

    name: str
    title: str
    words: tuple[str, ...] = ()
    endings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    native: str | None = None

    def written(self, naming: str) -> tuple[str, ...]:
        """Return what ends a file name in a naming, the expected one first."""
        return (*self.own, *self.endings.get(naming, (self.name,)))


FIELD = (
    Contrast(
        "t1",
        "T1",
        ("t1w", "t1n", "t1pre", "t1weighted", "t1precontrast", "t1noncontrast", "t1native"),
        {"brats2023": ("t1n",), "bids": ("T1w",)},
    ),
    Contrast(
        "t1ce",
        "T1ce",
        (
            *("t1c", "ct1", "t1gd", "t1gad", "t1gado", "t1wgd", "t1wce", "t1wc", "t1post", "ce"),
            *("t1postcontrast", "t1postgd", "t1contrast", "t1contrastenhanced", "t1enhanced"),
            *("t1+c", "t1c+", "t1km", "t1wks", "cet1", "cet1w", "t1wpost", "t1wcontrast"),
        ),
        {"brats2023": ("t1c",), "bids": ("ce-gad_T1w",), "flat": ("ce", "t1ce")},
        native="t1",
    ),
    Contrast("t2", "T2", ("t2w", "t2weighted"), {"brats2023": ("t2w",), "bids": ("T2w",)}),
    Contrast(
        "flair",
        "FLAIR",
        ("t2f", "t2flair", "fla"),
        {"brats2023": ("t2f",), "bids": ("FLAIR",)},
    ),
    Contrast("dwi", "DWI", ("trace", "b1000"), {"bids": ("dwi", "trace")}),
    Contrast(
        LABELS,
        "labels",
        (
            *("segmentation", "segm", "label", "labels", "truth", "groundtruth", "gtv"),
            *("gt", "roi", "tumor", "tumour", "lesion", "lesions", "segmanual", "manualseg"),
            *("tumorsegmentation", "tumoursegmentation", "tumorseg", "tumormask", "lesionmask"),
            *("glistrboost", "glistrboostmanuallycorrected", "consensusgt"),
        ),
        {"bids": ("label-lesion_mask",), "flat": ("seg", "mask")},
    ),
    Contrast(
        MASK_FILE, "brain mask", ("brainmask", "brainsegmentation"), {"bids": ("desc-brain_mask",)}
    ),
)


@dataclass(frozen=True)
class Contrasts:
    """The contrasts that are known, and their spellings.

    Args:
        table: of the contrasts.
        scheme: what labels mean, by the word of the user; None: as the data set says.
    """

    table: tuple[Contrast, ...] = FIELD
    scheme: LabelScheme | None = None

    @cached_property
    def known(self) -> dict[str, Contrast]:
        """The table by name, labels and mask included."""
        return {contrast.name: contrast for contrast in self.table}

    @property
    def names(self) -> tuple[str, ...]:
        """The images: every contrast but labels and mask."""
        return tuple(name for name in self.known if name not in MASKS)

    @property
    def own(self) -> dict[str, list[str]]:
        """The spellings that were added, as ``data.params.contrasts`` has them."""
        return {contrast.name: list(contrast.own) for contrast in self.table if contrast.own}

    def title(self, name: str | None) -> str:
        """Return the name for captions, such as ``T1ce``; empty for none."""
        return self.known[name].title if name in self.known else name or ""

    def named(self, text: str) -> str | None:
        """Return the contrast that a name of the field means, such as ``T1-Gd``, or None."""
        return self._words.get(_folded(text))

    def endings(self, naming: str) -> dict[str, str]:
        """Return {what ends a file name in a naming: contrast}."""
        return {text: c.name for c in self.table for text in c.written(naming)}

    def expected(self, name: str, naming: str) -> str:
        """Return what usually ends the file name of a contrast in a naming, for messages."""
        return self.known[name].written(naming)[0] if name in self.known else name

    def with_own(
        self, spellings: Mapping[str, Sequence[str]] | None = None, names: Iterable[str] = ()
    ) -> Contrasts:
        """Return these contrasts and further ones.

        Args:
            spellings: {contrast, known or not: how it is written}, beside the name itself.
            names: contrasts that are written as they are called.

        Raises:
            ConfigError: CONFIG-VALUE for a name that no file can have, or a spelling that means
                another contrast.
        """
        table = dict(self.known)
        wanted = {**{n: () for n in names if n not in self.known}, **(spellings or {})}
        for name, written in wanted.items():
            written = (written,) if isinstance(written, str) else tuple(written)
            for text in (name, *written):
                self._require_free(name, text)
            before = table.get(name) or Contrast(name, name)
            words = (*before.words, *map(_folded, written))
            table[name] = replace(before, words=words, own=(*written, *before.own))
        return replace(self, table=tuple(table.values()))

    def with_labels(
        self, told: str | Mapping[str, Any] | None, source: str = "data.params.labels"
    ) -> Contrasts:
        """Return these contrasts with what labels mean, by the word of the user in ``source``.

        Raises:
            ConfigError: CONFIG-VALUE.
        """
        return replace(self, scheme=read_scheme(told, source)) if told else self

    def _require_free(self, name: str, text: Any) -> None:
        where = "data.params.contrasts"
        if not re.fullmatch(r"\w[\w+.-]*", str(text)):
            raise bad_value(
                f"{where}: '{text}' is no part of a file name: give letters, digits, - and _"
            )
        meant = self.named(str(text))
        if meant not in (None, name):
            raise bad_value(
                f"{where}.{name} is written '{text}', which means {meant}: leave it out, or add it "
                f"to {meant}"
            )

    @cached_property
    def _words(self) -> dict[str, str]:
        return {_folded(word): c.name for c in self.table for word in (c.name, *c.words)}


def _folded(text: str) -> str:
    """Return a name without what separates its words; a - beside no letter is a minus: T1 C-."""
    return re.sub(r"(?<=[^\W_])-(?=[^\W_])|[_ ]", "", text.lower())


KNOWN = Contrasts()


def native_of(target: str | None, conditions: Sequence[str]) -> str | None:
    """Return the condition that an agent turns into the target; None: there is none."""
    known = KNOWN.known.get(target or "")
    return known.native if known and known.native in conditions else None


def akin_of(target: str, conditions: Sequence[str]) -> str | None:
    """Return the condition that shows healthy tissue as the target does, before or after an agent;
    None: there is none.
    """
    enhanced = (c for c in conditions if native_of(c, [target]))
    return native_of(target, conditions) or next(enhanced, None)


CONDITIONS, TARGET, SIDE = ("t1", "t2", "flair"), "t1ce", 192  # of a study that does not say


@dataclass(frozen=True)
class Study:
    """Which contrast is made from which, in images of which size: one owner of these facts.

    The data module makes it from ``data.params``; a model gets :meth:`facts`, and repeats none.

    Args:
        conditions: input contrasts, in channel order.
        target: contrast to synthesise; ``any``: each of the conditions in turn, from the others;
            None where ``seg`` is what is learned.
        image_size: (H, W) of slices or (D, H, W) of patches.
        neighbours: slices on each side that are further conditions (2.5-D); 0 for patches.
        covariates: columns of a table that are numbers of a patient, such as ``age``.
        contrasts: all that are known; those of the study are among them.
        data: ``data.params``, from which the data side reads what is its own affair.

    Raises:
        ConfigError: CONFIG-VALUE.
    """

    conditions: tuple[str, ...] = CONDITIONS
    target: str | None = TARGET
    image_size: tuple[int, ...] = (SIDE, SIDE)
    neighbours: int = 0
    covariates: tuple[str, ...] = ()
    contrasts: Contrasts = KNOWN
    data: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        conditions = self.conditions
        own = (*conditions, *([self.target] if self.target and not self.varies else []))
        twice = next((c for c in own if own.count(c) > 1), None)
        if twice is not None and conditions.count(twice) < 2:
            raise _bad(f"target is '{twice}', which is a condition too: leave it out of one")
        if twice is not None or not conditions:
            listed = ", ".join(conditions)
            raise _bad(f"conditions is [{listed}]: name each contrast once, and one at least")
        if self.varies and len(conditions) < 2:
            raise _bad(f"target is any of {conditions[0]} alone: name two conditions or more")
        object.__setattr__(self, "contrasts", self.contrasts.with_own(names=own))
        if self.neighbours < 0:
            raise _bad(f"neighbours is {self.neighbours}: give 0 or more")
        if self.dims == 3 and self.neighbours:
            raise _bad(
                f"neighbours is {self.neighbours}, but patches of volumes "
                f"(image_size {list(self.image_size)}) hold their neighbours: give neighbours=0"
            )

    @classmethod
    def of(
        cls,
        conditions: Sequence[str] = CONDITIONS,
        target: str | None = TARGET,
        image_size: int | list[int] = SIDE,
        neighbours: int = 0,
        covariates: Sequence[str] = (),
        contrasts: Mapping[str, str | list[str]] | None = None,
        labels: str | Mapping[str, int | list[int]] | None = None,
    ) -> Study:
        """Return the study of these parameters of ``data.params``.

        Args:
            conditions, target, neighbours, covariates: see the class.
            image_size: side, or [H, W], that slices are cropped or padded to; of three numbers,
                [D, H, W], the size of patches of the volumes, D along ``axis``.
            contrasts: {contrast: its names in files and CSV columns}, beside those that are known.
            labels: what the labels of ``seg`` mean, as ``{necrosis: 1, oedema: 2, enhancing: 4}``,
                or a name of :data:`ldm.label_scheme.SCHEMES`; None: as the data set says.
        """
        sides, known = image_sides(image_size), KNOWN.with_own(contrasts).with_labels(labels)
        return cls(tuple(conditions), target, sides, neighbours, tuple(covariates), known)

    @classmethod
    def read(cls, params: Mapping[str, Any]) -> Study:
        """Return the study of ``data.params``; what is not told has its default."""
        return replace(cls.of(**taken(dict(params), cls.of)), data=params)

    @property
    def dims(self) -> int:
        """Spatial axes of an image."""
        return len(self.image_size)

    @property
    def channels(self) -> int:
        """Images that are given as conditions: contrasts times slices."""
        return len(self.conditions) * (2 * self.neighbours + 1)

    @property
    def free(self) -> list[int]:
        """The conditions that no target is compared with: another scanner may change one alone."""
        told = {akin_of(target, self.conditions) for target in self.targets}
        return [place for place, name in enumerate(self.conditions) if name not in told]

    @property
    def varies(self) -> bool:
        """Whether each of the conditions is a target, made from the others."""
        return self.target == ANY

    @property
    def targets(self) -> tuple[str, ...]:
        """The contrasts that may be made, none of which a synthetic one can teach."""
        if self.varies:
            return self.conditions
        return (self.target,) if self.target else ()

    @property
    def appended(self) -> str | None:
        """The target where it is no condition: the last channel of what is prepared to learn."""
        return None if self.varies else self.target

    def making(self, target: str | None) -> Study:
        """Return the study of one of the targets: made from the other conditions.

        Raises:
            ConfigError: CONFIG-VALUE where the target varies and none is told.
        """
        if not self.varies:
            return self
        if target is None:
            raise _bad(
                f"target is {ANY}, and a table is of one contrast: give --target, or name it"
            )
        others = tuple(c for c in self.conditions if c != target)
        return replace(self, conditions=others, target=target)

    def to_make(self, there: Collection[str], told: str | None = None, case: str = "") -> str:
        """Return which contrast is to be made for a patient.

        Args:
            there: the contrasts of the patient.
            told: what was asked for; None: the only one that is not there.

        Raises:
            DataError: DATA-MISSING where nothing is asked for and not exactly one is missing.
        """
        if told or not self.varies:
            return told or str(self.target)
        missing = [c for c in self.conditions if c not in there]
        if len(missing) != 1:
            lacks = f"{', '.join(missing)} are missing" if missing else "no contrast is missing"
            cure = "add the others" if missing else "leave that one out"
            made = f"{lacks} of {', '.join(self.conditions)}, and one is made"
            told = f"{made}: {cure}, or say which with --target CONTRAST"
            raise DataError("DATA-MISSING", told, case)
        return missing[0]

    @property
    def native(self) -> str | None:
        """The condition that an agent turns into the target, as T1 into T1ce; None: there is none.

        Healthy tissue is alike in both, so their difference is what a network has to learn.
        """
        return native_of(self.target, self.conditions)

    @property
    def enhanced(self) -> str | None:
        """The target that an agent makes of a condition; None: there is none."""
        return next((t for t in self.targets if native_of(t, self.conditions)), None)

    @property
    def source(self) -> str:
        """The condition that a copy takes for the target: the native one, or the first."""
        return self.native or self.conditions[0]

    @property
    def copied(self) -> str:
        """What a row of results is called that takes the source for the target."""
        return "copy" if self.varies else f"copy {self.contrasts.title(self.source)}"

    @property
    def needed(self) -> tuple[str, ...]:
        """What a subject to train on must have; without a target, a segmentation."""
        return self.conditions if self.varies else (*self.conditions, self.target or LABELS)

    def sidecar(self) -> dict[str, Any]:
        """Return what a synthetic volume says of its origin, from which it is judged."""
        own = self.contrasts.own
        return {"conditions": list(self.conditions)} | ({"contrasts": own} if own else {})

    def channel(self, contrast: str) -> int:
        """Return the channel of a condition of the slice itself."""
        first = own_channels(len(self.conditions), self.neighbours).start
        return first + self.conditions.index(contrast)

    def facts(self) -> dict[str, Any]:
        """Return what a model is told, see :func:`ldm.util.instantiate_from_config`."""
        return {
            "conditions": list(self.conditions),
            "target": self.target,
            "image_size": list(self.image_size),
            "neighbours": self.neighbours,
            "covariates": list(self.covariates),
        }


def read_study(config: Mapping[str, Any]) -> Study:
    """Return the study of a resolved configuration.

    Raises:
        ConfigError: CONFIG-MISSING without a data section, CONFIG-VALUE.
    """
    data = config.get("data")
    if not isinstance(data, Mapping):
        raise ConfigError("CONFIG-MISSING", "there is no 'data' section: give its YAML")
    return Study.read(data.get("params") or {})


def build_model(config: Mapping[str, Any], study: Study | None = None) -> Any:
    """Return the model of a resolved configuration, told the facts of its study.

    Configurations of older runs repeat them under ``model.params``, with the same values.

    Raises:
        ConfigError: see :func:`ldm.util.instantiate_from_config`; CONFIG-SHAPE for another value.
    """
    facts = (study or read_study(config)).facts()
    node = dict(config["model"])
    given = dict(node.get("params") or {})
    read: dict[str, Callable[[Any], Any]] = {"conditions": list, "covariates": list}
    read["image_size"] = lambda size: list(image_sides(size))
    told = {name: read[name](value) if name in read else value for name, value in given.items()}
    repeated = [name for name in facts if name in told and told[name] == facts[name]]
    node["params"] = {name: value for name, value in given.items() if name not in repeated}
    return instantiate_from_config(node, where="model", interface=facts)


def _bad(message: str) -> ConfigError:
    return bad_value(f"data.params.{message}")
