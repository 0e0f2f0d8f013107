"""Room on the disk for a whole job, asked before hours are spent on its first half."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ldm.data.layouts import Layout, Subject
from ldm.data.prepare import PreparedSubject
from ldm.errors import DataError, OutputError, survived
from ldm.inference.forms import Image, form_named
from ldm.inference.outputs import volume_paths
from ldm.inference.synthesis import Synthesiser
from ldm.storage import free_space
from ldm.util import evenly_spread

AMPLE = 1 << 30  # bytes free for each subject: nothing is asked; 512 x 512 x 512 takes half of it
LOOKED_AT = 3  # subjects that an estimate is made of
CERTAIN = 0.75  # of the estimate: with less there is no room, whatever the other subjects are like


def volume_bytes(prepared: PreparedSubject, target: str, form: str = "nifti") -> int:
    """Return about how many bytes the synthetic volume of a subject takes.

    Its brain is filled with noise, which a compressor can do as little with as with the digits of
    a network; outside it there is 0.
    """
    noise = np.random.default_rng(0).standard_normal(prepared.brain.shape, np.float32)
    image = Image("subject", target, prepared.to_volume(noise), prepared.geometry, {})
    return sum(map(len, form_named(form).files(image).values()))


def require_room(
    synthesiser: Synthesiser,
    subjects: Sequence[Subject],
    layout: Layout,
    folder: Path,
    form: str = "nifti",
) -> None:
    """Refuse to begin volumes of subjects for which there is no room in ``folder``.

    Those that are there already need none. Where there is ample room, nothing is read.

    Args:
        form: see :data:`ldm.inference.forms.FORMS`.

    Raises:
        OutputError: OUT-SPACE with the bytes that are needed, about, and free.
    """
    free = free_space(folder)
    to_make = [s for s in subjects if not _is_there(synthesiser, s, folder, form)]
    if free >= AMPLE * len(to_make):
        return
    looked_at = [to_make[i] for i in evenly_spread(LOOKED_AT, len(to_make))]
    sizes = [size for s in looked_at if (size := _bytes_of(synthesiser, s, layout, form))]
    each = 2 if synthesiser.request.samples > 1 else 1  # the deviation too
    needed = each * len(to_make) * sum(sizes) // max(1, len(sizes))
    if free < CERTAIN * needed:
        raise OutputError(
            "OUT-SPACE",
            f"about {needed} bytes are needed for {len(to_make)} subjects, {free} are free in "
            f"{folder.name}: free space, choose another --output, or fewer --subjects",
        )


def _is_there(synthesiser: Synthesiser, subject: Subject, folder: Path, form: str) -> bool:
    """Return whether a subject needs no room; one that lacks its inputs needs none."""
    try:
        target = synthesiser.inputs_of(subject)[1]
    except DataError:
        return True
    return volume_paths(folder, subject.id, target, form)[0].exists()


def _bytes_of(synthesiser: Synthesiser, subject: Subject, layout: Layout, form: str) -> int:
    """Return the estimate of a subject; 0 of one that cannot be used, which its turn will tell."""
    try:
        target = synthesiser.inputs_of(subject)[1]
        return volume_bytes(synthesiser.prepare(subject, layout), target, form)
    except Exception as error:
        survived(error)
        return 0
