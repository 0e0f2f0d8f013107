"""What a normaliser makes of T1 before and after the agent, and how well the one scores as other.

``python scripts/compare_normalisers.py PICTURE.png NAME=FOLDER [NAME=FOLDER ...]`` prints the table
of docs/preprocessing.md over all patients and draws the histograms of the first two of the first
folder. Landmarks are learned without the patient that is scored.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ldm.data.layouts import detect_layout
from ldm.data.normalise import (
    HistogramNormaliser,
    Normaliser,
    PercentileNormaliser,
    RobustNormaliser,
    WhiteStripeNormaliser,
    ZScoreNormaliser,
)
from ldm.evaluation.case import Case, in_reference_units, load_case
from ldm.evaluation.metrics.similarity import psnr
from ldm.evaluation.protocol import DEFAULT
from ldm.plots.axes import COLOURS
from ldm.report.tables import markdown_table
from ldm.storage import atomic_path
from ldm.study import KNOWN, Study

STUDY = Study()
TARGET = STUDY.target
MAKERS: dict[str, Callable[[], Normaliser]] = {
    "robust (default)": RobustNormaliser,
    "z-score": ZScoreNormaliser,
    "percentile 0.5 to 99.5": PercentileNormaliser,
    "percentile 0.1 to 99.9": lambda: PercentileNormaliser(0.1, 99.9),
    "white stripe": WhiteStripeNormaliser,
    "histogram landmarks": HistogramNormaliser,
}
SHOWN = [name for name in MAKERS if "99.9" not in name]


def learned(make: Callable[[], Normaliser], others: Sequence[Case]) -> Normaliser:
    """Return a normaliser that has learned what it needs from other patients."""
    normaliser = make()
    for contrast in normaliser.to_learn(["t1", TARGET]):
        volumes = [c.reference if contrast == TARGET else c.inputs[contrast] for c in others]
        profiles = [
            normaliser.profile(volume, case.brain, contrast)
            for volume, case in zip(volumes, others, strict=True)
        ]
        normaliser.learn(contrast, profiles)
    return normaliser


def copy_score(case: Case, normaliser: Normaliser) -> tuple[float, float, float]:
    """Return, of T1 copied as target: PSNR in the brain, share clipped, inter-quartile range.

    The share (per mille) and the range are those of the target in the brain, the range of 2 units.
    """
    scale = normaliser.fit(case.inputs["t1"], case.brain, "t1", case.id)
    copied = in_reference_units(case.inputs["t1"], scale, case, normaliser)
    low, high = DEFAULT.bounds(case.reference, case.brain)
    shown = [np.clip(volume, low, high) for volume in (copied, case.reference)]
    own = normaliser.fit(case.reference, case.brain, TARGET, case.id)
    unit = own.normalise(case.reference, case.brain)[case.brain]
    first, third = np.percentile(unit, (25, 75))
    return psnr(*shown, high - low, case.brain), 1e3 * float((unit >= 1).mean()), third - first


def compare(folders: dict[str, Path]) -> tuple[str, list[Case]]:
    """Return the table as Markdown, and the patients of the first folder."""
    groups = {}
    for name, folder in folders.items():
        layout, subjects = detect_layout(folder)
        groups[name] = [load_case(subject, layout, STUDY) for subject in subjects.values()]
    columns = ["normaliser"]
    for name, cases in groups.items():
        columns += [f"{name}: PSNR / dB (n = {len(cases)})", "clipped / ‰", "IQR"]
    rows = []
    for name, make in MAKERS.items():
        row = [name]
        for cases in groups.values():
            scores = [
                copy_score(case, learned(make, [c for c in cases if c is not case]))
                for case in cases
            ]
            quality, clipped, spread = np.mean(scores, axis=0)
            deviation = np.std([s[0] for s in scores], ddof=1)
            row += [f"{quality:.2f} ± {deviation:.2f}", f"{clipped:.1f}", f"{spread:.3f}"]
        rows.append(row)
    return markdown_table(columns, rows), next(iter(groups.values()))


def draw_histograms(cases: Sequence[Case], path: Path) -> None:
    """Draw T1 and target of each patient, as stored and under each normaliser."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(13, 2.2 * len(cases) + 0.5), layout="constrained")
    axes = canvas.subplots(len(cases), len(SHOWN) + 1, squeeze=False)
    for axis, name in zip(axes[0], ["as stored", *SHOWN], strict=True):
        axis.set_title(name, fontsize=9)
    for line, case in zip(axes, cases, strict=True):
        others = [c for c in cases if c is not case]
        volumes = {"T1": case.inputs["t1"], KNOWN.title(TARGET): case.reference}
        for axis, name in zip(line, ["as stored", *SHOWN], strict=True):
            for index, (label, volume) in enumerate(volumes.items()):
                values = volume[case.brain]
                if name in MAKERS:
                    contrast = "t1" if label == "T1" else TARGET
                    scale = learned(MAKERS[name], others).fit(volume, case.brain, contrast)
                    values = scale.normalise(volume, case.brain)[case.brain]
                ends = (-1, 1) if name in MAKERS else (0, np.percentile(values, 99.9))
                colour = COLOURS[index]
                style = {"bins": 120, "range": ends, "histtype": "step", "color": colour}
                axis.hist(values, density=True, label=label, **style)
            axis.set_yticks([])
            axis.tick_params(labelsize=7)
        line[0].set_ylabel(case.id, fontsize=8)
    axes[0, 0].legend(fontsize=7, frameon=False)
    with atomic_path(path) as temporary:
        canvas.savefig(temporary, format="png", dpi=75, metadata={"Software": None})


if __name__ == "__main__":
    table, patients = compare(
        {name: Path(folder) for name, _, folder in (a.partition("=") for a in sys.argv[2:])}
    )
    sys.stdout.write(table)
    draw_histograms(patients[:2], Path(sys.argv[1]))
