"""A synthetic volume says so itself, in its header, and is never taken for an acquired one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

import ldm
from ldm.errors import OutputError

WARNING = "synthetic, not for diagnosis"
DESCRIP = "SYNTHETIC dsdiff"  # begins the field `descrip` of a NIfTI header
UNKNOWN = "not known"  # who made a volume
COMMENT = 6  # code of a NIfTI header extension of plain text
CARRIED = {  # of a statement, with what it may be: no other text of a header is ever copied
    "Contrast": re.compile(r"\w{1,32}"),
    "Model": re.compile(r"[0-9a-f]{64}|baseline [\w .-]{1,40}"),
}


def statement(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a synthetic volume says of itself.

    There is no date in it: the same request gives the same bytes.

    Args:
        described: its sidecar, or what will be in it.
    """
    request = described.get("request") or {}
    baseline = request.get("baseline")
    maker = request.get("model_digest") or (f"baseline {baseline}" if baseline else UNKNOWN)
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


def read_statement(header: nib.Nifti1Header, content: bytes) -> None:
    """Take in what lies behind a header that :func:`mark` wrote: its extension, the only one."""
    whole = np.dtype("i4").newbyteorder(header.endianness)
    size, code = np.frombuffer(content[4:12].ljust(8, b"\0"), whole)
    if code == COMMENT:
        text = content[12 : 4 + int(size)].rstrip(b"\0")  # to a multiple of 16 bytes
        header.extensions.append(nib.nifti1.Nifti1Extension(COMMENT, text))


def carried(header: nib.Nifti1Header, contrast: str | None = None) -> dict[str, Any]:
    """Return the :func:`statement` of what is made of a synthetic volume: who made that one.

    Args:
        header: of that volume.
        contrast: that it shows, where its header does not say so.
    """
    said = statement({"target": contrast})
    with suppress(ValueError, TypeError, LookupError, RecursionError):  # of somebody else
        (told,) = (extension.get_content() for extension in header.extensions)
        own = json.loads(told)
        known = {
            name: own[name] for name, form in CARRIED.items() if form.fullmatch(own[name] or "")
        }
        said |= known
    return said


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
