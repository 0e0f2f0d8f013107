"""Enhancement: closed forms, and what it says of the truth, a copy and half of each."""

from math import isnan
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ldm.callbacks.enhancement import ValidationRecovery
from ldm.cli.tables import terminal_tables
from ldm.errors import DataError
from ldm.evaluation.case import Case, Prediction
from ldm.evaluation.metrics.enhancement import auc, enhancement, recovery, rim_to_core, robust_z
from ldm.evaluation.protocol import DEFAULT, ENHANCEMENT, evaluate_case
from ldm.evaluation.scores import Evaluation
from ldm.report.score_tables import enhancement_table, enhances_nothing, main_table
from ldm.report.tables import format_cell
from ldm.study import Study

WHERE = {"recovery": "enhancing", "auc_tumour": "tumour", "auc_brain": "brain"}
WHERE |= {"rim_to_core": "tumour", "false_enhancement": "tumour", "true_enhancement": "enhancing"}


def patient(enhances=True, agent=2.0, seed=0):
    """T1 with texture, and a T1ce in other units whose rim is ``agent`` IQR brighter.

    Labels: core 1 within enhancing rim 4 within oedema 2; without enhancement the rim is oedema.
    """
    rng = np.random.default_rng(seed)
    shape = (24, 24, 16)
    brain = np.zeros(shape, bool)
    brain[2:-2, 2:-2, 1:-1] = True
    labels = np.zeros(shape, np.uint8)
    labels[6:18, 6:18, 4:12], labels[8:14, 8:14, 5:11], labels[10:12, 10:12, 7:9] = 2, 4, 1
    t1 = np.where(brain, rng.normal(500, 80, shape), 0)
    rim = labels == 4
    if not enhances:
        labels[rim] = 2
    first, third = np.percentile(t1[brain], (25, 75))
    added = np.where(rim & enhances, agent * (third - first), 0)
    reference = np.where(brain, 3 * (t1 + added) + 40, 0)
    return Case("P", {"t1": t1}, reference, brain, labels)


def measured(case, volume):
    """What each measure of enhancement says of a volume."""
    scores = evaluate_case(case, Prediction(volume))
    return {name: scores[WHERE[name]][name] for name in ENHANCEMENT}


# --- functions ----------------------------------------------------------------------------------


def test_enhancement_is_the_difference_of_robust_z():
    """Brain values 0 to 4 have median 2 and quartiles 1 and 3; one voxel gains 3 IQR of its own."""
    native = np.array([0.0, 1, 2, 3, 4])
    np.testing.assert_allclose(robust_z(native), [-1, -0.5, 0, 0.5, 1])
    target = np.array([10.0, 20, 30, 40, 110])  # median 30, quartiles 20 and 40
    np.testing.assert_allclose(enhancement(target, native), [0, 0, 0, 0, 3])
    np.testing.assert_array_equal(enhancement(native * -0.0 + native * 7 + 5, native), 0)
    assert np.isnan(robust_z(np.ones(6))).all() and not robust_z(native[:0]).size
    with pytest.raises(DataError, match="DATA-SHAPE"):
        enhancement(target[:4], native)


def test_ratios_by_hand():
    true, found = np.array([4.0, 2, 1, 0]), np.array([1.0, 2, 0, 0])
    rim, core = np.array([1, 1, 0, 0], bool), np.array([0, 0, 1, 0], bool)
    assert recovery(found, true, rim) == 0.5  # 1.5 of 3
    assert rim_to_core(found, true, rim, core) == 0.75  # 1.5 - 0 of 3 - 1
    assert isnan(recovery(found, -true, rim)) and isnan(recovery(found, true, rim & core))
    assert isnan(rim_to_core(found, true, rim, rim & core))


@given(st.lists(st.integers(0, 5), min_size=2, max_size=12), st.integers(1, 11))
def test_auc_counts_pairs(values, split):
    """Against the definition: the share of pairs in which ours is above, half for a tie."""
    scores = np.array(values, float)
    ours = np.arange(len(scores)) < min(split, len(scores) - 1)
    pairs = [(a > b) + (a == b) / 2 for a in scores[ours] for b in scores[~ours]]
    assert auc(scores, ours, ~ours) == pytest.approx(np.mean(pairs))
    assert auc(-scores, ours, ~ours) == pytest.approx(1 - np.mean(pairs))
    assert isnan(auc(scores, ours, ours & ~ours))


# --- patients -----------------------------------------------------------------------------------


def test_the_truth_recovers_all_and_a_copy_nothing():
    case = patient()
    truth, copy = measured(case, case.reference), measured(case, 5 * case.inputs["t1"] + 3)
    assert (truth["recovery"], truth["rim_to_core"]) == (1, 1)
    assert truth["auc_tumour"] > 0.95 and truth["auc_brain"] > 0.95
    assert truth["true_enhancement"] == copy["true_enhancement"] == pytest.approx(2, abs=0.3)
    assert (copy["recovery"], copy["auc_tumour"], copy["auc_brain"]) == (0, 0.5, 0.5)
    assert isnan(truth["false_enhancement"])


@pytest.mark.parametrize("part", [0.25, 0.5])
def test_a_part_of_the_agent_recovers_that_part(part):
    """Up to what a few bright voxels move the quartiles by."""
    case, weak = patient(), patient(agent=2 * part)
    found = measured(case, weak.reference)
    assert found["recovery"] == pytest.approx(part, abs=0.03)
    assert found["rim_to_core"] == pytest.approx(part, abs=0.03)


def test_units_of_the_prediction_do_not_matter():
    """Gain and offset are seen by PSNR; whether the tumour enhances is another question."""
    case, weak = patient(), patient(agent=1.0).reference
    assert measured(case, weak) == pytest.approx(measured(case, 0.2 * weak - 70), nan_ok=True)


def test_what_enhances_where_nothing_does_is_false():
    case, bright = patient(enhances=False), patient()
    none, false = measured(case, case.reference), measured(case, bright.reference)
    assert isnan(none["recovery"]) and isnan(none["auc_tumour"]) and isnan(none["auc_brain"])
    assert none["false_enhancement"] == 0
    share = (bright.seg == 4).sum() / (case.seg > 0).sum()
    assert false["false_enhancement"] == pytest.approx(2 * share, abs=0.1)
    case.seg[case.seg > 0] = 1  # a lesion of which nobody says whether it enhances
    lesion = Case("P", case.inputs, case.reference, case.brain, case.seg)
    assert isnan(measured(lesion, bright.reference)["false_enhancement"])


def test_without_labels_native_contrast_or_agent_nothing_is_measured():
    case = patient()
    names = set(ENHANCEMENT)
    without = [
        Case("P", case.inputs, case.reference, case.brain),
        Case("P", {"t2": case.inputs["t1"]}, case.reference, case.brain, case.seg),
        Case(*vars_of(case), study=Study(("t1", "t2"), "flair")),
    ]
    for each in without:
        scores = evaluate_case(each, Prediction(case.reference))
        assert not any(names & set(values) for values in scores.values())


def vars_of(case):
    return case.id, case.inputs, case.reference, case.brain, case.seg


def test_the_shown_slice_is_where_the_truth_enhances():
    """The rim is as large in all its slices, and brightest in slice 9."""
    case = patient()
    case.reference[..., 9] += 3000 * (case.seg[..., 9] == 4)
    assert case.shown_slice() == (9, "enhancement")
    assert patient(enhances=False).shown_slice()[1] == "tumour"
    assert Case("P", {}, case.reference, case.brain).shown_slice()[1] == "brain"


# --- tables and validation ------------------------------------------------------------------------


def test_the_table_has_a_line_a_row_and_names_what_enhances_nothing():
    """Two patients that enhance and one that does not: medians, and what is false over the true."""
    cases = [patient(), patient(seed=1), patient(enhances=False, seed=2)]
    result = Evaluation(DEFAULT, ["real", "mine", "copy T1"], [str(number) for number in range(3)])
    for number, case in enumerate(cases):
        for row in result.rows:
            volume = case.reference if row == "real" else case.inputs["t1"]
            result.add(row, str(number), evaluate_case(case, Prediction(volume)))
    table = enhancement_table(result)
    real, mine, copy = (
        dict(zip(table.columns, map(format_cell, row), strict=True)) for row in table.rows
    )
    assert (real["Recovery"], copy["Recovery"], copy["AUC tumour"]) == (
        "1.000",
        "0.000",
        "0.5000 ± 0.0000",
    )
    assert mine["Recovery"] == copy["Recovery"]  # of a copy there is nothing to say
    assert (real["False / true"], real["n"]) == ("0.000", "2/3")
    assert "1 tumours of which no part enhances" in table.note
    assert table.note.endswith("mine enhances nothing: recovery below 0.1.")
    assert enhances_nothing(Evaluation(DEFAULT, ["a"])) == ""
    # what is looked at first has both beside the PSNR, and room for them in 80 columns
    first = main_table(result)
    assert first.columns == ["", "PSNR dB", "Recovery", "AUC tumour", "SSIM", "MS-SSIM", "n"]
    assert [format_cell(row[2]) for row in first.rows] == ["1.000", "0.000", "0.000"]
    assert [format_cell(row[-1]) for row in first.rows] == ["3/3"] * 3
    assert first.note.endswith("Of 2/3 patients.")
    console = Console(width=80)
    (drawn,) = terminal_tables(console, first)  # in one part
    lines = console.render_lines(drawn)
    assert "3/3" in "".join(segment.text for line in lines for segment in line)  # the last column


def test_without_a_tumour_nothing_is_said_of_enhancement():
    case = patient(seed=1)
    case = Case("P", case.inputs, case.reference, case.brain)
    result = Evaluation(DEFAULT, ["mine"], ["P"])
    result.add("mine", "P", evaluate_case(case, Prediction(case.reference)))
    table = main_table(result)
    assert (table.columns, table.note) == (["", "PSNR dB", "SSIM", "MS-SSIM", "n"], "")


def test_validation_logs_the_recovery_of_all_batches_together():
    """Sums: (1 + 0) of (2 + 2). Batches without tumour do not count; without labels no value."""
    module = SimpleNamespace(
        device="cpu", all_gather=lambda x: x, log=lambda *a, **k: logged.append(a)
    )
    data = SimpleNamespace(data=SimpleNamespace(study=Study()))
    trainer = SimpleNamespace(datamodule=data, sanity_checking=False)
    callback, logged = ValidationRecovery(), []
    native = torch.full((1, 3, 2, 2), 0.1)
    native[:, 1:] = 9  # T2 and FLAIR are not looked at
    rim = torch.tensor([[[[4, 2], [0, 0]]]])
    batches = [
        {"seg": rim, "condition": native, "target": torch.full((1, 1, 2, 2), 0.3)},
        {"seg": rim, "condition": native, "target": torch.full((1, 1, 2, 2), 0.3)},
        {"seg": rim * 0, "condition": native, "target": torch.ones(1, 1, 2, 2)},
    ]
    callback.on_validation_epoch_start(trainer, module)
    for batch, value in zip(batches, (0.2, 0.1, 5.0), strict=True):
        outputs = {"synthetic": torch.full((1, 1, 2, 2), value)}
        callback.on_validation_batch_end(trainer, module, outputs, batch, 0)
    callback.on_validation_epoch_end(trainer, module)
    ((name, value),) = logged
    assert name == "val/recovery" and float(value) == pytest.approx(0.25)
    callback.on_validation_epoch_start(trainer, module)
    del batches[0]["seg"]
    callback.on_validation_batch_end(trainer, module, outputs, batches[0], 0)
    callback.on_validation_epoch_end(trainer, module)
    assert len(logged) == 1
