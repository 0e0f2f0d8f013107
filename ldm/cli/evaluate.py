"""``dsdiff evaluate``: quality and calibration of synthetic volumes against the real ones."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.cli.arguments import (
    MASKS,
    OUTPUT,
    PATIENTS,
    SUBJECTS,
    add_layout_argument,
    add_output_argument,
    add_trust_argument,
)
from ldm.cli.help import group
from ldm.errors import bad_value
from ldm.util import user_path

EXAMPLES = (
    "dsdiff evaluate --prediction predictions --reference PATIENTS --output report",
    "dsdiff evaluate --prediction a=one b=two --reference PATIENTS --output both",
)
SHOWS = "every region, the patients worst first, a viewer of their slices"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    patients, output = group(parser, PATIENTS), group(parser, OUTPUT)
    patients.add_argument(
        "--prediction",
        nargs="+",
        action="extend",
        required=True,
        metavar="[NAME=]FOLDER",
        help="holds ID_TARGET.nii.gz or ID.nii.gz, and ID_TARGET_std.nii.gz where its spread is "
        "judged; several NAMEs are compared, folders of one NAME are its training seeds",
    )
    patients.add_argument(
        "--reference", type=Path, required=True, metavar="PATIENTS", help=f"real {SUBJECTS}"
    )
    add_layout_argument(patients)
    patients.add_argument("--subjects", nargs="+", metavar="ID", help="only these (default: all)")
    add_seen_argument(patients)
    _add_judged_arguments(group(parser, "what is judged"))
    add_segmenter_arguments(group(parser, "a segmenter as the judge"))
    compared = group(parser, "paired comparison")
    compared.add_argument("--metric", help="default: the first of the protocol, psnr")
    compared.add_argument("--region", help="default: that of the protocol, brain")
    compared.add_argument(
        "--against", metavar="NAME", help="compare with this row only (default: every pair)"
    )
    said = "for report.html, table.tex, .md and .csv, figures and metrics"
    add_output_argument(output, said, required=False)
    add_columns_argument(output)
    output.add_argument(
        "--verbose",
        action="store_true",
        help="print every table: all regions, enhancement, detail, intervals",
    )
    add_trust_argument(parser)


def _add_judged_arguments(judged: Any) -> None:
    """Declare what is compared with what."""
    judged.add_argument(
        "--target",
        metavar="CONTRAST",
        help="that was synthesised (default: as the sidecars state, else as in configs/base.yaml)",
    )
    judged.add_argument(
        "--mask",
        choices=MASKS.split(", "),
        default="auto",
        help="what is brain (default: auto, which decides as in sampling)",
    )
    add_label_argument(judged, "--labels", "those of the reference")
    judged.add_argument(
        "--protocol",
        nargs="+",
        default=["default"],
        metavar="NAME",
        help="default, region, slices, brasyn, legacy: what is compared with what, see "
        "docs/metrics.md (default: default)",
    )
    judged.add_argument(
        "--lpips-weights",
        type=Path,
        metavar="FILE",
        help="torchvision's vgg16, for LPIPS (default: LPIPS is left out)",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the tables, write the files."""
    from ldm.cli.terminal import print_found
    from ldm.data.layouts import detect_layout, summary
    from ldm.evaluation.case import judged_study
    from ldm.evaluation.folder import listed_folders
    from ldm.evaluation.protocol import find_protocol
    from ldm.report.evaluation import Compared, check_columns, claim_report

    protocols = [find_protocol(name) for name in dict.fromkeys(args.protocol)]
    rows = listed_folders(named_folders(args.prediction))
    folders = [folder for found in rows.values() for folder in found]
    study = judged_study(folders, args.target)
    compared = Compared(args.region, args.metric, args.against)
    compared.check(protocols[0], [*rows, study.copied])
    check_columns(protocols[0], args.columns)
    with claim_report(args.output, [args.reference, *folders]):
        segmenter = _segmenter(args)
        found = detect_layout(args.reference, args.layout, study.contrasts)
        print_found(summary(*found))
        told = {"study": study, "protocols": protocols, "segmenter": segmenter}
        result = _evaluate(args, rows, compared, told)
    for judged in (result, *result.others.values()):
        judged.require_complete()
    return 0


def _evaluate(
    args: argparse.Namespace, rows: Mapping[str, Sequence[Path]], compared: Any, told: Any
) -> Any:
    """Evaluate, print, write; return the result."""
    from ldm.cli.terminal import show_progress
    from ldm.evaluation.folder import evaluate_folders
    from ldm.report.evaluation import write_evaluation
    from ldm.report.gallery import Gallery

    gallery = Gallery() if args.output else None
    result = evaluate_folders(
        rows,
        args.reference,
        subjects=args.subjects,
        lpips_weights=args.lpips_weights,
        layout=args.layout,
        labels=args.labels,
        mask=args.mask,
        allow_seen=args.allow_seen,
        trust=args.trust,
        watch=gallery.add if gallery else None,
        progress=show_progress,
        **told,
    )
    _show(result, compared, args.verbose)
    if gallery:
        write_evaluation(result, gallery, args.output, args.columns, compared, args.typed)
        report_paths(args.output, SHOWS)
    else:
        print("Every table: --verbose; report, LaTeX and figures: --output FOLDER")
    return result


def _show(result: Any, compared: Any, is_verbose: bool) -> None:
    """Print the tables, and what there is to say about them."""
    from rich.console import Console

    from ldm.cli.tables import print_table
    from ldm.report.evaluation import all_tables, main_tables, remarks
    from ldm.report.score_tables import enhances_nothing

    console, shown = Console(), all_tables if is_verbose else main_tables
    for table in shown(result, compared):
        print_table(console, table)
    if is_verbose:
        judged = (o for name, o in result.others.items() if name != "downstream")
        for protocol in (r.protocol for r in (result, *judged)):
            console.print(f"Protocol {protocol.name}: {protocol.summary}.", style="dim")
        console.print("Definitions: docs/metrics.md", style="dim")
    elif nothing := enhances_nothing(result):
        console.print(nothing, markup=False)
    console.print(*remarks(result), style="dim", markup=False)


def named_folders(given: Sequence[str]) -> dict[str, list[Path]]:
    """Return row -> folders from ``NAME=FOLDER`` arguments; ``prediction`` where there is no name.

    Raises:
        ConfigError: CONFIG-VALUE for a name or a folder that is empty, or several without a name.
    """
    from ldm.evaluation.scores import ROW

    rows: dict[str, list[Path]] = {}
    unnamed = 0
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or Path(text).is_dir():  # a folder may have `=` in its name
            name, folder, unnamed = ROW, text, unnamed + 1
        if not name or not folder:
            raise bad_value(f"--prediction '{text}': expected NAME=FOLDER")
        rows.setdefault(name, []).append(user_path(folder))
    if unnamed > 1:
        raise bad_value(
            f"--prediction has {unnamed} folders without a name: give each a NAME to compare them, "
            "as a=FOLDER b=FOLDER, or all the same one if they are training seeds of one row"
        )
    return rows


def add_columns_argument(parser: Any) -> None:
    """Declare ``--columns``."""
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="[REGION:]MEASURE",
        help="of table.tex, .md and .csv, as psnr tumour:psnr recovery (default: what a paper "
        "shows: psnr ssim ms_ssim nrmse recovery auc_tumour)",
    )


def add_label_argument(parser: Any, option: str, whose: str) -> None:
    """Declare what labels mean."""
    parser.add_argument(
        option,
        metavar="SCHEME",
        help=f"what labels mean, {whose}: brats2017, brats2023, ... or 'necrosis 1, oedema 2, "
        "enhancing 4' (default: as the data set says, see docs/data.md)",
    )


def add_seen_argument(parser: Any) -> None:
    """Declare whether patients of the training are judged."""
    parser.add_argument(
        "--allow-seen",
        action="store_true",
        help="judge patients that a model was trained on too (default: they are failed cases)",
    )


def add_segmenter_arguments(parser: Any) -> None:
    """Declare what judges synthetic volumes by what is found on them."""
    judge = parser.add_mutually_exclusive_group()
    judge.add_argument(
        "--segmenter",
        type=Path,
        metavar="MODEL",
        help="run of dsdiff segment train, or hub:owner/name: what does it find on synthetic and "
        "on real volumes?",
    )
    judge.add_argument(
        "--segmenter-command",
        metavar="COMMAND",
        help="any program instead, as 'my-segmenter {input} {output}', called for each patient",
    )


def _segmenter(args: argparse.Namespace) -> Any:
    """Return the segmenter that judges, or None where none is named."""
    if not (args.segmenter or args.segmenter_command):
        return None
    from ldm.inference.segmentation import CommandSegmenter, NetworkSegmenter

    if args.segmenter:
        return NetworkSegmenter(args.segmenter, args.trust)
    return CommandSegmenter(args.segmenter_command)


def report_paths(output: Path, shows: str) -> None:
    """Print where the report is and what there is to look at, and the files for a paper."""
    print(f"Report: {output}/report.html ({shows})")
    print("For a paper, beside it: table.tex, .md and .csv; all of it: tables/, figures/")
