"""How synthetic volumes are stored: NIfTI (the usual form), a BIDS derivative, or DICOM series."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import ldm
from ldm.data.dicom_series import SeriesFacts, dicom_library, encode_series
from ldm.data.layouts.bids import SPREAD, SYNTHETIC
from ldm.data.nifti import Geometry, encode_volume, volume_stem, write_volume
from ldm.data.synthetic import WARNING, statement
from ldm.errors import DataError, one_of
from ldm.storage import remove, sha256, write_files
from ldm.study import KNOWN

BIDS_VERSION = "1.10.0"
LABEL = re.compile("[^0-9A-Za-z+]")  # what no label of BIDS may have
README = f"""# Synthetic MRI contrasts

Every image below was made by `dsdiff` from the other contrasts of the same examination; none was
acquired. They are {WARNING}, and no truth to train on or to compare with: the NIfTI headers and the
JSON files beside them say so too.

- `desc-{SYNTHETIC}`: the synthetic contrast, in the units of the input that its JSON file names.
  The entity `ce-gad` of a name says which contrast it stands for; no agent was given.
- `desc-{SPREAD}`: the standard deviation over the samples that were averaged.
- `failures.csv`: subjects that could not be sampled, where there are any, and why.

The JSON files hold the digests of inputs, model and outputs, and all settings that decide the
voxels: the same command makes the same bytes again.
"""
IGNORED = "failures.csv\ncost.json\n"


@dataclass(frozen=True)
class Image:
    """A synthetic volume, or its spread, to be stored."""

    id: str  # subject
    target: str  # the contrast that was synthesised
    volume: np.ndarray = field(repr=False)  # (X, Y, Z) float32 in RAS+
    geometry: Geometry = field(repr=False)  # where its voxels lie
    described: Mapping[str, Any] = field(repr=False)  # what decides the voxels
    sources: tuple[Path, ...] = field(default=(), repr=False)  # files of the inputs
    is_spread: bool = False  # it is the standard deviation over samples

    @property
    def said(self) -> dict[str, Any]:
        """What the file says of its origin."""
        return statement({**self.described, "target": self.target})

    @property
    def title(self) -> str:
        """What it is, in words."""
        inputs = ", ".join(KNOWN.title(name) for name in self.described.get("inputs", {}))
        kind = "Standard deviation of a synthetic" if self.is_spread else "Synthetic"
        maker = self.said["GeneratedBy"]
        made = f"made from {inputs} by {maker['Name']} {maker['Version']}"
        return f"{kind} {KNOWN.title(self.target)} {made}; {WARNING}."


class Form:
    """NIfTI: ``ID_TARGET.nii.gz``, ``ID_TARGET.json`` and ``ID_TARGET_std.nii.gz``."""

    has_spread_sidecar = False  # a deviation has one of its own

    def paths(self, folder: Path, subject: str, target: str) -> tuple[Path, Path]:
        """Return where a volume and its sidecar lie."""
        return folder / f"{subject}_{target}.nii.gz", folder / f"{subject}_{target}.json"

    def check(self, subjects: Iterable[str], targets: Iterable[str]) -> None:
        """Refuse, before any work, what cannot be stored in this form.

        Raises:
            ConfigError: a target has no name there. DataError: DATA-ID, DATA-EXTRA.
        """

    def about(self) -> dict[str, str]:
        """Return the files that describe the folder as a whole, name -> text."""
        return {}

    def beside(self, image: Image) -> dict[str, Any]:
        """Return what the sidecar says in this form beside what it always says."""
        return {}

    def files(self, image: Image) -> dict[str, bytes]:
        """Return the content of an image, by name within its folder; ``""`` is a single file."""
        return {"": encode_volume(image.volume, image.geometry, synthetic=image.said)}

    def write(self, path: Path, files: Mapping[str, bytes]) -> None:
        """Write what :meth:`files` returned in the place of what is at ``path``.

        Raises:
            OutputError: OUT-IO; OUT-EXISTS for a stranger's file.
        """
        write_volume(path, files[""])


class BidsForm(Form):
    """BIDS derivative: ``sub-X[/ses-Y]/anat/sub-X[_ses-Y]_ce-gad_desc-synth_T1w.nii.gz``."""

    has_spread_sidecar = True

    def paths(self, folder: Path, subject: str, target: str) -> tuple[Path, Path]:  # noqa: D102
        entities = bids_entities(subject)
        words = KNOWN.known[target].endings["bids"][0].split("_")
        stem = "_".join([*entities, *words[:-1], f"desc-{SYNTHETIC}", words[-1]])
        place = folder.joinpath(*entities, "anat")
        return place / f"{stem}.nii.gz", place / f"{stem}.json"

    def check(self, subjects: Iterable[str], targets: Iterable[str]) -> None:  # noqa: D102
        named = [name for name in KNOWN.names if "bids" in KNOWN.known[name].endings]
        for target in targets:
            one_of("target of --bids", target, [name for name in named if name != "dwi"])
        taken: dict[str, str] = {}
        for subject in subjects:
            label = "_".join(bids_entities(subject))
            other = taken.setdefault(label.casefold(), subject)
            if other != subject:
                raise DataError(
                    "DATA-ID",
                    f"{other} and {subject} are both {label} in BIDS, whose labels are letters and "
                    "digits: rename one, or choose with --subjects",
                    subject,
                )

    def about(self) -> dict[str, str]:  # noqa: D102
        maker = {"Name": "dsdiff", "Version": ldm.__version__, "Description": WARNING}
        described = {
            "Name": "Synthetic MRI contrasts",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [maker],
        }
        text = json.dumps(described, indent=1) + "\n"
        return {"dataset_description.json": text, "README.md": README, ".bidsignore": IGNORED}

    def beside(self, image: Image) -> dict[str, Any]:  # noqa: D102
        mask = (image.described.get("preparation") or {}).get("mask")
        is_stripped = mask != "head"  # outside the brain, or else the head, every voxel is 0
        return {"Description": image.title, "SkullStripped": is_stripped, "subject": image.id}


class DicomForm(Form):
    """DICOM: ``ID/TARGET/0001.dcm``, ... and ``ID/TARGET.json``; ``ID/TARGET_std`` of samples."""

    def paths(self, folder: Path, subject: str, target: str) -> tuple[Path, Path]:  # noqa: D102
        return folder / subject / target, folder / subject / f"{target}.json"

    def check(self, subjects: Iterable[str], targets: Iterable[str]) -> None:  # noqa: D102
        dicom_library()

    def files(self, image: Image) -> dict[str, bytes]:  # noqa: D102
        decisive = json.dumps(
            {key: image.described.get(key) for key in ("inputs", "request", "covariates")},
            sort_keys=True,
        )
        kind = f"{KNOWN.title(image.target)}{' std' if image.is_spread else ''}"
        study = json.dumps(image.described.get("inputs"), sort_keys=True)
        facts = SeriesFacts(
            image.id,
            f"SYNTHETIC {kind}, not for diagnosis",
            image.title,
            (f"{image.id} {study}", decisive, kind),
            9002 if image.is_spread else 9001,
            image.sources,
        )
        return encode_series(image.volume, image.geometry, facts)

    def write(self, path: Path, files: Mapping[str, bytes]) -> None:  # noqa: D102
        for old in stored(path):
            if old.name not in files:
                remove(old)
        write_files(path, files)


FORMS = {"nifti": Form(), "bids": BidsForm(), "dicom": DicomForm()}


def form_named(name: str) -> Form:
    """Return a form by its name.

    Raises:
        ConfigError: CONFIG-VALUE.
    """
    return FORMS[one_of("form", name, FORMS)]


def bids_entities(subject: str) -> list[str]:
    """Return ``sub-X`` and, of ``sub-X_ses-Y``, ``ses-Y``; other characters are left out.

    Raises:
        DataError: DATA-ID, nothing is left.
    """
    patient, _, session = subject.removeprefix("sub-").partition("_ses-")
    labels = {"sub": LABEL.sub("", patient), "ses": LABEL.sub("", session)}
    if not labels["sub"] or bool(session) != bool(labels["ses"]):
        raise DataError(
            "DATA-ID", "the id has no letter or digit for a label of BIDS: rename it", subject
        )
    return [f"{key}-{label}" for key, label in labels.items() if label]


def spread_path(path: Path) -> Path:
    """Return where the standard deviation of the volume at ``path`` lies."""
    if f"_desc-{SYNTHETIC}_" in path.name:
        return path.with_name(path.name.replace(f"_desc-{SYNTHETIC}_", f"_desc-{SPREAD}_"))
    stem = volume_stem(path.name)
    return path.with_name(f"{stem}_std.nii.gz" if stem else f"{path.name}_std")


def stored(path: Path) -> list[Path]:
    """Return the files at ``path``: itself, or those of a series."""
    return sorted(path.iterdir()) if path.is_dir() else [path]


def digest_of(files: Mapping[str, bytes]) -> str:
    """Return the digest that a sidecar states of what :meth:`Form.files` returned."""
    return _joined({name: hashlib.sha256(content).hexdigest() for name, content in files.items()})


def digest_at(path: Path) -> str | None:
    """Return the same of what lies at ``path``; None where nothing does."""
    if path.is_dir():
        return _joined({file.name: sha256(file) for file in stored(path) if file.is_file()})
    return sha256(path) if path.is_file() else None


def _joined(digests: Mapping[str, str]) -> str:
    if set(digests) == {""}:
        return digests[""]
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
