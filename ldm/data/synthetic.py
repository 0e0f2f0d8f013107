"""A synthetic volume says so itself, in its header, and is never taken for an acquired one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib

import ldm
from ldm.errors import OutputError

WARNING = "synthetic, not for diagnosis"
DESCRIP = "SYNTHETIC dsdiff"  # begins the field `descrip` of a NIfTI header
COMMENT = 6  # code of a NIfTI header extension of plain text


def statement(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a synthetic volume says of itself.

    There is no date in it: the same request gives the same bytes.

    Args:
        described: its sidecar, or what will be in it.
    """
    request = described.get("request") or {}
    maker = request.get("model_digest") or f"baseline {request.get('baseline')}"
    return {
        "Synthetic": True,
        "Warning": WARNING,
        "GeneratedBy": {"Name": "dsdiff", "Version": ldm.__version__},
        "Contrast": described.get("target"),
        "Model": maker,
    }


def mark(header: nib.Nifti1Header, said: Mapping[str, Any]) -> None:
    """Write a :func:`statement` into a NIfTI header: ``descrip``, and all of it as an extension."""
    maker = said["GeneratedBy"]
    text = f"{DESCRIP} {maker['Version']} {said['Model'][:16]}; not for diagnosis"
    header["descrip"] = text[:79].encode()
    content = json.dumps(said, sort_keys=True).encode("ascii")
    header.extensions.append(nib.nifti1.Nifti1Extension(COMMENT, content))


def is_marked(header: nib.Nifti1Header) -> bool:
    """Return whether a NIfTI header says that its volume is synthetic."""
    return header["descrip"].item().startswith(DESCRIP.encode())


def refuse_acquired(path: Path) -> None:
    """Refuse to write over an image that nothing marks as synthetic.

    Raises:
        OutputError: OUT-INPUT.
    """
    try:
        is_acquired = not is_marked(nib.load(path).header)
    except Exception:  # no image, or no NIfTI, whatever is wrong with it
        return
    if is_acquired:
        raise OutputError(
            "OUT-INPUT",
            f"{path} is an image that does not say that it is synthetic: it is never written over; "
            "choose another folder",
        )
