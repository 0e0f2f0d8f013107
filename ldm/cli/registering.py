"""``dsdiff prepare --register`` and ``--unregister``: to one grid, and back."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.arguments import configured_data
from ldm.cli.terminal import print_found, print_next, report_written, reporter
from ldm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ldm.data.examination import Registered, Wanted
    from ldm.data.layouts import Subject

PICTURE = "registration.png"


def add_register_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what says how contrasts are brought to one grid."""
    group = parser.add_argument_group("registration (needs dsdiff[register])")
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--register",
        action="store_true",
        help="bring the contrasts of each subject to one grid first: write them, registered and "
        "resampled once, with transforms and a checkerboard, to --output",
    )
    group.add_argument("--to", metavar="CONTRAST", help="that the others are laid on (default: t1)")
    group.add_argument(
        "--spacing", type=float, metavar="MM", help="of the grid (default: that of --to)"
    )
    group.add_argument(
        "--brain",
        metavar="PROGRAM",
        help="hd-bet or mri_synthstrip, where it is installed and no file of the subject says "
        "where the brain is",
    )
    either.add_argument(
        "--unregister",
        type=Path,
        metavar="REGISTERED",
        help="bring volumes ID_*.nii.gz of PATIENTS, such as samples, from the grid of what "
        "--register wrote back to the grid of the subject's own file of --to",
    )


def register(args: argparse.Namespace) -> int:
    """Register every subject; one that fails does not stop the others."""
    from ldm.claims import claim
    from ldm.data.examination import is_registered, register_subject, write_registered
    from ldm.data.layouts import detect_layout, summary
    from ldm.data.layouts.base import stored_files
    from ldm.inference.writing import write_each

    data = configured_data(args, args.input)
    wanted = _wanted(args, data)
    layout, found = detect_layout(args.input, data.layout_choice, data.study.contrasts)
    print_found(summary(layout, found))

    def write(subject: Subject, title: str) -> bool:
        if is_registered(subject, args.output, wanted):
            return False
        registered = register_subject(subject, layout, wanted)
        place = write_registered(registered, subject, args.output, wanted)
        _draw(registered, place, wanted.to)
        print(f"{title}: {_moves(registered, wanted.to)}")
        return True

    subjects = list(found.values())
    with claim(args.output, "prepare", inputs=[args.input, *stored_files(subjects)]):
        done = write_each(subjects, write, reporter("prepare"))
    print(f"  look at {args.output}/ID/{PICTURE}")
    print_next(shlex.join(["dsdiff", "diagnose", "data", str(args.output)]))
    return report_written(done, args.output)


def _wanted(args: argparse.Namespace, data: Any) -> Wanted:
    from ldm.data.examination import Wanted
    from ldm.study import BRATS, LABELS

    contrasts = dict.fromkeys([*BRATS, *data.study.needed])
    contrasts.pop(LABELS, None)
    mask = data.preparation.mask
    return Wanted(args.to or "t1", tuple(contrasts), args.spacing, mask, args.brain)


def _draw(registered: Registered, place: Path, to: str) -> None:
    from ldm.plots.checkerboard import checkerboards_figure
    from ldm.storage import write_file

    images = {name: registered.arrays[name] for name in registered.beside(to)}
    notes = {name: f"{registered.distance(name):.1f} mm" for name in registered.alignments}
    volumes = {to: registered.arrays[to], **images}
    write_file(place / PICTURE, checkerboards_figure(volumes, to, notes))


def _moves(registered: Registered, to: str) -> str:
    told = []
    for name in registered.beside(to):
        distance, found = registered.distance(name), registered.alignments.get(name)
        if found is None:
            told.append(f"{name} stays where its header puts it (it shows too little to compare)")
            continue
        moved = f"moved by {distance:.1f} mm" if distance else "stays"
        told.append(f"{name} {moved} (agrees {found.gain:.2f} times as well there)")
    return ", ".join(told) or f"only {to}"


def unregister(args: argparse.Namespace) -> int:
    """Bring volumes back to the grids that their subjects came from."""
    from ldm.claims import claim
    from ldm.data.examination import TRANSFORMS, put_back
    from ldm.data.nifti import encode_volume, read_volume, write_volume
    from ldm.data.synthetic import carried, statement
    from ldm.data.volume_file import VolumeFile
    from ldm.inference.outputs import digests_of
    from ldm.storage import read_json, write_json

    known = {path.parent.name: path.parent for path in args.unregister.glob(f"*/{TRANSFORMS}")}
    paths = {path: _subject_of(path, known) for path in sorted(args.input.glob("*.nii.gz"))}
    paths = {path: subject for path, subject in paths.items() if subject}
    if not paths:
        raise DataError(
            "DATA-LAYOUT",
            f"no volume ID_*.nii.gz of a subject of {args.unregister} in {args.input}: give the "
            f"output of dsdiff sample, and that of dsdiff prepare --register",
        )
    with claim(args.output, "prepare", inputs=[args.input, args.unregister]):
        for path, subject in paths.items():
            are_labels = path.name.endswith("_seg.nii.gz")
            volume = read_volume(path, subject)
            back = put_back(volume, known[subject], args.to, are_labels)
            said = read_json(VolumeFile(path).sidecar)
            own = carried(volume.geometry.header) if volume.geometry.is_synthetic else None
            mark = statement(said) if said.get("Synthetic") else own
            content = encode_volume(back.array, back.geometry, synthetic=mark)
            write_volume(args.output / path.name, content)
        for path in paths:  # when all files that they describe are there
            if said := read_json(VolumeFile(path).sidecar):
                written = args.output / path.name
                write_json(VolumeFile(written).sidecar, {**said, **digests_of(written, said)})
    print(f"written={len(paths)}: {args.output}")
    return 0


def _subject_of(path: Path, known: Mapping[str, Path]) -> str | None:
    fitting = [subject for subject in known if path.name.startswith(f"{subject}_")]
    return max(fitting, key=len, default=None)


def refuse_leftovers(args: argparse.Namespace) -> None:
    """Refuse options of a registration without one.

    Raises:
        ConfigError: USAGE.
    """
    given = [f"--{name}" for name in ("to", "spacing", "brain") if getattr(args, name)]
    if given and not (args.register or args.unregister):
        raise ConfigError("USAGE", f"{given[0]} is for --register: give that too, or leave it out")
