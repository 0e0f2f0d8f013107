"""Synthetic volumes of a folder of patients, as files: ``dsdiff sample``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.claims import claim
from ldm.data.layouts import Choice, Layout, Subject
from ldm.errors import DsdiffError
from ldm.hub import local_folder
from ldm.inference.forms import form_named
from ldm.inference.outputs import write_about
from ldm.inference.parallel import shared_among
from ldm.inference.request import Request
from ldm.inference.space import require_room
from ldm.inference.synthesis import Synthesiser
from ldm.inference.trained import chosen_subjects, load_for_inference
from ldm.inference.volume_writer import VolumeWriter
from ldm.inference.writing import FAILURES, Written
from ldm.progress import Progress, silent, unheard
from ldm.storage import COST_FILE, write_json
from ldm.typed import typed
from ldm.util import user_path


@typed
def sample(
    model: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    subjects: str | Sequence[str] | None = None,
    layout: Choice = None,
    overwrite: bool = False,
    form: str = "nifti",
    devices: int = 1,
    device: str = "auto",
    trust: Collection[str] = (),
    timing: int | None = None,
    watch: Callable[[Layout, Mapping[str, Subject]], None] | None = None,
    report: Callable[[DsdiffError], None] | None = None,
    say: Callable[[str], None] = unheard,
    progress: Progress = silent,
    **options: Any,
) -> Written:
    """Write the synthetic volume of each subject of a folder, as ``dsdiff sample`` does.

    What is there already, of this model, input and request, is not made again; a subject that
    fails does not stop the others.

    Args:
        model, device, trust: see :meth:`Synthesiser.load`.
        source: folder of subjects in any layout, or a CSV.
        output: folder for ``ID_TARGET.nii.gz``, its sidecar and ``cost.json``.
        subjects, layout, overwrite, devices, watch, report: see
            :func:`ldm.inference.label_maps.segment`.
        form: ``nifti``, ``bids`` or ``dicom``.
        timing: write no volume, but what one costs, sampled so often: ``cost.json``.
        say: told how far the first call of a network in another precision was from 32 bit.
        progress: wraps what is worked through.
        **options: what is asked of the model, see :class:`Request`.

    Returns:
        what was written, was there already, or failed.

    Raises:
        DataError: there is no such subject. OutputError: OUT-EXISTS, OUT-INPUT, OUT-OWNER, OUT-IO.
        CheckpointError, UnsafeError, ConfigError: see :meth:`Synthesiser.load`.
    """
    request = Request().changed(**options)  # a wrong one is refused before the folder is listed
    model, output, own_form = local_folder(model), user_path(output), form_named(form)
    whom = (user_path(source), subjects, layout, watch)
    study, own_layout, chosen, inputs = chosen_subjects(model, trust, *whom)
    own_form.check([s.id for s in chosen], [request.target] if request.target else study.targets)
    writes = [COST_FILE, FAILURES, *own_form.about()]
    with claim(output, "sample", inputs=inputs, writes=writes, replace=overwrite):
        synthesiser = Synthesiser(load_for_inference(model, trust, device), request, progress)
        if timing is not None:
            write_json(output / COST_FILE, synthesiser.timing(chosen[0], own_layout, timing))
            return Written()
        require_room(synthesiser, chosen, own_layout, output, form)
        writer = VolumeWriter(synthesiser, output, overwrite, form)
        done = _write_all(writer, (devices, device), chosen, own_layout, report or unheard)
    if writer.timings and synthesiser.first_call:
        say(str(synthesiser.first_call))
    return done


def _write_all(
    writer: VolumeWriter,
    among: tuple[int, str],
    subjects: Sequence[Subject],
    layout: Layout,
    report: Callable[[DsdiffError], None],
) -> Written:
    """Write what is of the folder, then the volumes, then what failed and what it cost."""
    write_about(writer.output, writer.form)
    with shared_among(writer, *among) as shared:
        done = shared.write_all(subjects, layout, report)
    done.write_failures(writer.output)
    writer.write_cost()
    return done
