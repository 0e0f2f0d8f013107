"""The truth scores perfectly, units come from sidecars, and all files say the same."""

import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from builders import read_scores
from scipy.ndimage import binary_dilation

from ldm import evaluate
from ldm.benchmark.kept_scores import evaluate_once
from ldm.cli.main import main
from ldm.data.normalise import RobustNormaliser
from ldm.data.synthetic import mark, statement
from ldm.errors import ConfigError, DataError, PartialError
from ldm.evaluation.folder import evaluate_folders
from ldm.evaluation.protocol import DEFAULT
from ldm.evaluation.scores import Evaluation
from ldm.report.charts import charts
from ldm.report.score_tables import evaluation_tables
from ldm.study import Study

COPY_T1 = "copy T1"


@pytest.fixture
def truth(tmp_path, patients):
    """A prediction folder that holds the real T1ce of Phantom_0001 and 2, without sidecars."""
    folder = tmp_path / "truth"
    folder.mkdir()
    for subject in ("Phantom_0001", "Phantom_0002"):
        shutil.copy(patients / subject / f"{subject}_t1ce.nii.gz", folder)
    return folder


def test_the_truth_scores_perfectly(truth, patients):
    result = evaluate({"truth": truth}, patients)
    for region in ("full", "brain", "tumour", "healthy"):
        for measure, perfect in (("psnr", np.inf), ("mae", 0), ("ssim", pytest.approx(1))):
            values = result.values("truth", region, measure)
            assert values == dict.fromkeys(("Phantom_0001", "Phantom_0002"), perfect)
    assert result.mean(COPY_T1, "tumour", "psnr") < result.mean(COPY_T1, "healthy", "psnr")


def test_the_reference_as_its_own_prediction_is_named(truth, patients):
    """A folder that was mistaken for that of the predictions must not look like a perfect model."""
    result = evaluate({"ours": patients, "truth": truth}, patients, subjects=["Phantom_0001"])
    assert [said for said in result.remarks() if "real images themselves" in said] == [
        "The real images themselves, or rescaled copies, so nothing is predicted: ours, truth."
    ]


@pytest.mark.parametrize(("gain", "offset", "noise"), [(3, 0, 0), (0.01, 7, 0), (1, 0, 0.03)])
def test_a_rescaled_reference_is_named_and_a_very_good_prediction_is_not(
    gain, offset, noise, truth, patients
):
    path = truth / "Phantom_0001_t1ce.nii.gz"
    image = nib.load(path)
    real = image.get_fdata(dtype=np.float32)
    error = noise * real.std() * np.random.default_rng(0).normal(size=real.shape)
    made = np.where(real, gain * real + offset + error, 0).astype(np.float32)
    nib.save(nib.Nifti1Image(made, image.affine), path)
    result = evaluate({"ours": truth}, patients, subjects=["Phantom_0001"])
    assert result.same == ([] if noise else ["ours"])


def test_what_is_unclear_of_names_is_said_once(truth, patients, tmp_path, caplog):
    reference = tmp_path / "reference"
    for subject in ("Phantom_0001", "Phantom_0002"):
        shutil.copytree(patients / subject, reference / subject)
        seg = reference / subject / f"{subject}_seg.nii.gz"
        seg.rename(seg.with_name(f"{subject}_mask.nii.gz"))
    given = ["--prediction", str(truth), "--reference", str(reference)]
    assert main(["evaluate", *given]) == 0
    assert caplog.text.count("may be of tumour, brain or tissue") == 1


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        (("truht", "brain", "psnr"), "truth"),
        (("truth", "brian", "psnr"), "brain"),
        (("truth", "brain", "pnsr"), "psnr"),
    ],
)
def test_the_mean_of_a_mistyped_name_is_refused(truth, patients, asked, nearest):
    result = evaluate({"truth": truth}, patients, subjects=["Phantom_0001"])
    with pytest.raises(ConfigError, match=f"nearest: '?{nearest}"):
        result.mean(*asked)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({}, {}, "predictions is empty"),
        ({"a": []}, {}, "a is no folder"),
        ({"a": ["truth", "./truth"]}, {}, "a is truth, truth: give each a folder"),
        ({COPY_T1: "truth"}, {}, "two rows are called copy T1"),
        (["truth"], {}, r"predictions is \['truth'\] \(list\): give str \| Path \| Mapping"),
        ({"a": object()}, {}, "a prediction is a object"),
        ({"a": "truth"}, {"mask": "banana"}, "mask is 'banana': give one of auto, nonzero, head"),
        ({"a": "truth"}, {"columns": "brian:psnr"}, "brian"),
    ],
)
def test_rows_and_options_that_say_nothing_are_refused(
    truth, patients, monkeypatch, rows, options, message
):
    monkeypatch.chdir(truth.parent)
    with pytest.raises(ConfigError, match=message):
        evaluate(rows, patients, **options)


def test_a_prediction_of_another_contrast_is_a_failure_of_the_patient(truth, patients):
    result = evaluate({"a": truth}, patients, target="t2", subjects=["Phantom_0001"])
    assert "DATA-MISSING: no t2" in result.failures["a"]["Phantom_0001"]


def test_a_page_is_of_one_evaluation(tmp_path, truth, patients):
    """What an evaluation under more protocols left beside is gone with the next."""
    told = {"output": tmp_path / "out", "subjects": ["Phantom_0001"]}
    evaluate({"a": truth}, patients, protocols=["default", "region"], **told)
    assert (tmp_path / "out/metrics-region.csv").is_file()
    result = evaluate({"b": truth}, patients, columns=["tumour:psnr"], **told)
    assert not list((tmp_path / "out").glob("metrics-*"))
    assert "Synthetic against real T1ce" in (tmp_path / "out/report.html").read_text()
    assert (
        f"{result.mean(COPY_T1, 'tumour', 'psnr'):.2f}" in (tmp_path / "out/table.md").read_text()
    )


def test_units_of_the_sidecar_make_gain_and_offset_irrelevant(tmp_path, truth, patients):
    """The truth in other units, which the sidecar states, scores (nearly) perfectly.

    Without the sidecar the same file is taken at its word and scores badly.
    """
    for path in truth.glob("*.nii.gz"):
        image = nib.load(path)
        array = image.get_fdata()
        scale = RobustNormaliser().fit(array * 3, array != 0, "t1ce")
        scaled = np.where(array != 0, array * 3 + 50, 0).astype(np.float32)
        nib.save(nib.Nifti1Image(scaled, image.affine), path)
        numbers = scale.to_dict()
        numbers["centre"] += 50
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(
            json.dumps({"intensity": {"contrast": "t1", **numbers}})
        )
    with_units = evaluate({"scaled": truth}, patients)
    assert with_units.mean("scaled", "brain", "psnr") > 80
    for path in truth.glob("*.json"):
        path.unlink()
    without = evaluate({"scaled": truth}, patients)
    assert without.mean("scaled", "brain", "psnr") < 20


@pytest.fixture
def spread_out(tmp_path, patients):
    """Phantom_0001 with an error of known size, in other units, which the sidecar states."""
    folder = tmp_path / "spread"
    folder.mkdir()
    image = nib.load(patients / "Phantom_0001/Phantom_0001_t1ce.nii.gz")
    truth = np.asarray(image.dataobj).astype(float)
    brain = truth != 0
    rng = np.random.default_rng(0)
    spread = np.where(brain, rng.uniform(10, 40, truth.shape), 0)
    error = spread * rng.normal(size=truth.shape)
    scale = RobustNormaliser().fit(truth * 3, brain, "t1ce").to_dict()
    sidecar = {"intensity": {"contrast": "t1", **scale}, "request": {"samples": 9}}
    for stem, volume in (("t1ce", truth + error), ("t1ce_std", spread * np.sqrt(9 / 10))):
        stored = nib.Nifti1Image((volume * 3).astype(np.float32), image.affine)
        nib.save(stored, folder / f"Phantom_0001_{stem}.nii.gz")
    (folder / "Phantom_0001_t1ce.json").write_text(json.dumps(sidecar))
    return folder


def test_spread_is_judged_in_the_units_of_the_reference(tmp_path, spread_out, patients, capsys):
    arguments = ["--prediction", str(spread_out), "--reference", str(patients)]
    assert main(["evaluate", *arguments, "--output", str(tmp_path / "out"), "--verbose"]) == 0
    assert "Predicted spread" in capsys.readouterr().out
    scores = read_scores(tmp_path / "out/metrics.json")
    brain = {key[3]: value for key, value in scores.items() if key[::2] == ("prediction", "brain")}
    assert brain["error_to_spread"] == pytest.approx(1, abs=0.05)  # of 9 samples: times 10/9
    (groups,) = json.loads((tmp_path / "out/metrics.json").read_text())["reliability"]
    np.testing.assert_allclose(groups["error"], groups["spread"], rtol=0.25)
    root_mean_square = np.sqrt(np.mean(np.square(groups["error"])))
    assert 20 * np.log10(1 / root_mean_square) == pytest.approx(brain["psnr"], abs=0.5)
    with (tmp_path / "out/metrics.csv").open() as file:
        lines = [r for r in csv.DictReader(file) if r["measure"] == "coverage_1sd"]
    shares = {(r["row"], r["region"]): float(r["value"]) for r in lines}
    assert shares["prediction", "brain"] == brain["coverage_1sd"]
    assert ("prediction", "full") not in shares and ("copy T1", "brain") not in shares
    page = (tmp_path / "out/report.html").read_text()
    assert "Error / spread" in page
    assert page.count("data:image/svg+xml") == 2  # with enhancement against PSNR


def test_spread_of_another_run_is_left_out(spread_out, patients):
    """One sample has no spread: the file beside it is of an earlier request."""
    path = spread_out / "Phantom_0001_t1ce.json"
    path.write_text(path.read_text().replace('"samples": 9', '"samples": 1'))
    assert evaluate({"one": spread_out}, patients).reliability == {}


def test_files_agree_with_each_other(tmp_path, truth, patients, capsys):
    output = tmp_path / "out"
    arguments = ["--prediction", str(truth), "--reference", str(patients), "--output", str(output)]
    assert main(["evaluate", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "copy T1" in shown and "different patients" not in shown
    with (output / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    written, stored = (
        read(output / "metrics.json")
        for read in (lambda path: json.loads(path.read_text()), read_scores)
    )
    assert written["protocol"]["percentiles"] == [0.1, 99.9]
    assert len(rows) == len(stored)
    for row in rows:
        value = stored[row["row"], row["subject"], row["region"], row["measure"]]
        assert row["value"] == ("n/a" if value is None else str(value))
    page = (output / "report.html").read_text()
    assert "data:image/png" in page
    assert "://" not in page
    assert 'id="viewer-data"' in page


def test_equal_input_gives_equal_bytes(tmp_path, truth, spread_out, patients):
    pictures = set()
    for name in ("a", "b"):
        result = evaluate({"truth": truth, "spread": spread_out}, patients)
        result.write(tmp_path / name)
        pictures |= {figure.image for figure in charts(result)}
    assert len(pictures) == 2
    for file in ("metrics.csv", "metrics.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def move(path, millimetres=1):
    """Write a volume again, beside its place."""
    image = nib.load(path)
    shifted = image.affine.copy()
    shifted[0, 3] += millimetres
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), shifted), path)


def test_failed_cases_are_shown_and_counted(tmp_path, truth, patients, capsys):
    """One patient lies elsewhere, one file is cut off, one is missing: the last one is scored."""
    shutil.copy(patients / "Phantom_0003/Phantom_0003_t1ce.nii.gz", truth)
    move(truth / "Phantom_0001_t1ce.nii.gz")
    (truth / "Phantom_0002_t1ce.nii.gz").write_bytes(b"not an image")
    others = tmp_path / "others"
    others.mkdir()
    shutil.copy(patients / "Phantom_0001/Phantom_0001_t1ce.nii.gz", others)
    output = tmp_path / "out"
    arguments = ["--prediction", f"a={truth}", f"b={others}", "--reference", str(patients)]
    assert main(["evaluate", *arguments, "--output", str(output)]) == 9
    shown = capsys.readouterr().out
    assert "Failed cases" in shown
    assert "1/3" in shown
    assert "Rows are of different patients (n)" in shown
    written = json.loads((output / "metrics.json").read_text())
    assert written["subjects"] == ["Phantom_0001", "Phantom_0002", "Phantom_0003"]
    reasons = written["failures"]
    assert reasons["a"]["Phantom_0001"].startswith("DATA-AFFINE: ")
    assert reasons["a"]["Phantom_0002"].startswith("DATA-")
    assert set(reasons["a"]) == {"Phantom_0001", "Phantom_0002"}
    assert reasons["b"] == dict.fromkeys(
        ("Phantom_0002", "Phantom_0003"), "DATA-MISSING: there is no prediction"
    )
    scored = {(score["row"], score["subject"]) for score in written["scores"]}
    assert {subject for row, subject in scored if row == "a"} == {"Phantom_0003"}
    with (output / "metrics.csv").open() as file:
        failed = {(r["row"], r["subject"]): r for r in csv.DictReader(file) if r["failure"]}
    assert len(failed) == 4
    assert failed["a", "Phantom_0001"]["failure"] == reasons["a"]["Phantom_0001"]
    assert failed["a", "Phantom_0001"]["value"] == "n/a"
    page = (output / "report.html").read_text()
    assert "Failed cases" in page
    assert "Phantom_0002" in page


def test_a_real_patient_that_cannot_be_read_fails_in_every_row(tmp_path, truth, patients):
    copied = tmp_path / "patients"
    shutil.copytree(patients, copied)
    (copied / "Phantom_0001/Phantom_0001_t2.nii.gz").write_bytes(b"not an image")
    result = evaluate({"a": truth, "b": truth}, copied)
    assert set(result.failures) == {"a", "b"}
    assert result.failures["b"]["Phantom_0001"].startswith("the real patient: DATA-")
    assert list(result.values("a", "brain", "psnr")) == ["Phantom_0002"]
    with pytest.raises(PartialError, match="EVAL-FAILED.*2 could not be evaluated"):
        result.require_complete()


def test_rows_are_compared_patient_by_patient(tmp_path, truth, patients, capsys):
    arguments = ["--prediction", f"real={truth}", "--reference", str(patients)]
    arguments += ["--metric", "mae", "--region", "tumour", "--against", COPY_T1]
    assert main(["evaluate", *arguments, "--output", str(tmp_path / "out")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "MAE in tumour" in shown
    assert "with 2 of them and 1 comparison no corrected p below 0.5 is possible" in shown
    written = json.loads((tmp_path / "out/metrics.json").read_text())["comparisons"]
    assert (written["measure"], written["region"]) == ("psnr", "brain")
    assert {(pair["row"], pair["other"]) for pair in written["pairs"]} == {(COPY_T1, "real")}


def test_folders_of_one_name_are_training_seeds(tmp_path, truth, patients):
    """The scores of a patient are averaged; a seed that failed is named."""
    copied = tmp_path / "t1"
    copied.mkdir()
    for i in ("Phantom_0001", "Phantom_0002"):
        shutil.copy(patients / i / f"{i}_t1.nii.gz", copied / f"{i}_t1ce.nii.gz")
    seeds = {"model": [truth, copied]}
    result = evaluate(seeds, patients)
    alone = evaluate({"model": copied}, patients)
    mae = ("model", "brain", "mae")
    for subject, value in result.values(*mae).items():
        expected = alone.values(*mae)[subject] / 2  # that of the truth is 0
        assert value == pytest.approx(expected)
    spread = result.over_seeds(*mae)
    assert spread.sd == pytest.approx(alone.mean("model", "brain", "mae") / np.sqrt(2))
    assert "Training seeds" in [table.title for table in evaluation_tables(result)]
    move(copied / "Phantom_0002_t1ce.nii.gz")
    partly = evaluate(seeds, patients)
    assert partly.failures["model"]["Phantom_0002"].startswith("seed 1: DATA-AFFINE")
    assert partly.values(*mae)["Phantom_0002"] == 0


def test_protocols_beside_each_other(tmp_path, truth, patients, capsys):
    output = tmp_path / "out"
    arguments = ["--prediction", str(truth), "--reference", str(patients), "--output", str(output)]
    words = [*arguments, "--protocol", "default", "region", "brasyn", "--verbose"]
    assert main(["evaluate", *words]) == 0
    shown = capsys.readouterr().out
    assert "Ring · protocol region" in shown
    lines = [line for line in shown.splitlines() if not line.startswith("Report: ")]
    assert max(map(len, lines)) <= 80
    scores = read_scores(output / "metrics-brasyn.json")
    own = {key[2:]: value for key, value in scores.items() if key[0] == "prediction"}
    assert own == {(r, "brasyn_ssim"): pytest.approx(1) for r in ("tumour", "rest")}
    assert {row for row, *_ in read_scores(output / "metrics.json")} == {"prediction", COPY_T1}
    page = (output / "report.html").read_text()
    assert "protocol brasyn" in page
    command = f"evaluate --prediction …/{truth.name} --reference …/{patients.name} --output …/out"
    assert f"dsdiff {command} --protocol default region brasyn --verbose" in page


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--protocol", "other"),
        ("--metric", "fid"),
        ("--against", "x"),
        ("--prediction", "="),
        ("--prediction", "other"),
    ],
)
def test_wrong_names_are_refused_before_the_work(truth, patients, capsys, option, value):
    arguments = ["--prediction", str(truth), "--reference", str(patients), option, value]
    assert main(["evaluate", *arguments]) == 2
    assert "CONFIG-VALUE" in capsys.readouterr().err


def test_bytes_do_not_depend_on_the_order_of_rows_and_subjects(tmp_path, truth, patients):
    rows = {"truth": truth, "again": truth}
    ids = ["Phantom_0002", "Phantom_0001"]
    evaluate(rows, patients, subjects=ids).write(tmp_path / "a")
    turned = dict(reversed(rows.items()))
    evaluate(turned, patients, subjects=ids[::-1]).write(tmp_path / "b")
    for file in ("metrics.csv", "metrics.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.fixture
def of_two_inputs(tmp_path, truth, patients):
    """Rows of models of other inputs, one of which shows more brain, both with sidecars."""
    real = tmp_path / "real"
    shutil.copytree(patients / "Phantom_0001", real / "Phantom_0001")
    path = real / "Phantom_0001/Phantom_0001_t2.nii.gz"
    image = nib.load(path)
    voxels = image.get_fdata(dtype=np.float32)
    around = binary_dilation(voxels != 0, iterations=2) & (voxels == 0)
    voxels[around] = np.median(voxels[voxels != 0])
    nib.save(nib.Nifti1Image(voxels, image.affine), path)
    t1ce = nib.load(truth / "Phantom_0001_t1ce.nii.gz").get_fdata()
    units = {"contrast": "t1", **RobustNormaliser().fit(t1ce, t1ce != 0, "t1ce").to_dict()}
    rows = {}
    for name, inputs in (("one", ["t1"]), ("two", ["t1", "t2"])):
        rows[name] = tmp_path / name
        rows[name].mkdir()
        shutil.copy(truth / "Phantom_0001_t1ce.nii.gz", rows[name])
        told = {"Synthetic": True, "target": "t1ce", "conditions": inputs, "intensity": units}
        (rows[name] / "Phantom_0001_t1ce.json").write_text(json.dumps(told))
    return rows, real


def test_what_is_brain_does_not_depend_on_the_order_of_rows_or_on_a_named_target(of_two_inputs):
    rows, real = of_two_inputs
    several = [evaluate(r, real) for r in (rows, dict(reversed(rows.items())))]
    found = [r.mean(COPY_T1, "brain", "mae") for r in several]
    assert found[0] == found[1]
    one = {"one": rows["one"]}
    plain, named = (evaluate(one, real, target=target) for target in (None, "t1ce"))
    assert repr(plain.scores) == repr(named.scores)
    assert plain.mean(COPY_T1, "brain", "mae") != found[0]  # T2 shows more


def test_inputs_are_read_as_they_were_sampled_from(of_two_inputs):
    """NaN around the head, which sampling was told to take for 0."""
    rows, real = of_two_inputs
    path = real / "Phantom_0001/Phantom_0001_t2.nii.gz"
    image = nib.load(path)
    voxels = image.get_fdata(dtype=np.float32)
    nib.save(nib.Nifti1Image(np.where(voxels == voxels.min(), np.nan, voxels), image.affine), path)
    two = {"two": rows["two"]}
    assert "DATA-NONFINITE" in evaluate(two, real).failures["two"]["Phantom_0001"]
    sidecar = rows["two"] / "Phantom_0001_t1ce.json"
    told = json.loads(sidecar.read_text()) | {"request": {"nonfinite": "zero"}}
    sidecar.write_text(json.dumps(told))
    result = evaluate(two, real)
    assert not result.failures.get("two")
    assert result.mean("two", "brain", "mae") >= 0


@pytest.mark.parametrize("verb", [["evaluate"], ["segment", "evaluate"]])
def test_of_two_folders_the_one_that_is_not_there_is_named(verb, tmp_path, patients, capsys):
    """Before the other is read; in Python too."""
    no = tmp_path / "no"
    cures = ("give the folder of the predictions", "--reference takes the folder")
    for cure, given in zip(cures, [(no, patients), (patients, no)], strict=True):
        folders = ["--prediction", str(given[0]), "--reference", str(given[1])]
        assert main([*verb, *folders]) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert f"DATA-MISSING: there is no folder {no}: {cure}" in line
    for predictions in (no, {"a": patients, "b": [no]}):
        with pytest.raises(DataError, match=f"no folder {no}: give the folder of the predictions"):
            evaluate(predictions, patients)


def test_unknown_subject_is_named(truth, patients, capsys):
    path = truth / "Phantom_0001_t1ce.nii.gz"
    path.rename(truth / "Phantom_0009_t1ce.nii.gz")
    arguments = ["--prediction", str(truth), "--reference", str(patients)]
    assert main(["evaluate", *arguments]) == 3
    assert "case=Phantom_0009" in capsys.readouterr().err


@pytest.mark.parametrize("with_weights", [False, True])
def test_a_benchmark_keeps_what_evaluate_says_to_the_last_bit(
    tmp_path, truth, spread_out, patients, monkeypatch, with_weights
):
    """Every level: regions, spread, all slices of a row (Fréchet), failures, and why one is n/a."""
    from torchvision.models import squeezenet1_1

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    if with_weights:
        torch.manual_seed(0)
        (tmp_path / "hub/checkpoints").mkdir(parents=True)
        weights = squeezenet1_1(weights=None).state_dict()
        torch.save(weights, tmp_path / "hub/checkpoints/squeezenet1_1-b8a52dc0.pth")
    for path in spread_out.iterdir():  # Phantom_0001 has a spread, 2 is as it is, 3 is damaged
        shutil.copy(path, truth)
    (truth / "Phantom_0003_t1ce.nii.gz").write_bytes(b"not an image")
    study, ids = Study(), [f"Phantom_000{number}" for number in (1, 2, 3)]
    digests = {i: {"t1": "not looked at"} for i in ids}
    shown = evaluate({"unet": truth}, patients, baseline=False)
    shown.write(tmp_path / "shown")
    for turn in ("made", "read"):
        result = Evaluation(DEFAULT, subjects=ids)
        kept = evaluate_once(truth, patients, digests, tmp_path / "scores.json", study)
        result.take("unet", 0, kept)
        result.write(tmp_path / turn)
        for file in ("metrics.csv", "metrics.json"):
            assert (tmp_path / turn / file).read_bytes() == (tmp_path / "shown" / file).read_bytes()
    assert np.isfinite(shown.mean("unet", "brain", "frechet")) == with_weights
    assert bool(shown.notes) != with_weights and result.notes == shown.notes
    titles = [table.title for table in evaluation_tables(result)]
    assert titles == [table.title for table in evaluation_tables(shown)]
    assert "Structure and detail" in titles and "Failed cases" in titles


def test_kept_scores_of_another_format_target_or_prediction_are_made_again(
    tmp_path, truth, patients, monkeypatch
):
    path, digests, made = tmp_path / "scores.json", {"Phantom_0001": {}}, []

    def counted(*arguments, **options):
        made.append(arguments)
        return evaluate_folders(*arguments, **options)

    monkeypatch.setattr("ldm.benchmark.kept_scores.evaluate_folders", counted)
    for _ in range(2):
        evaluate_once(truth, patients, digests, path, Study())
    assert len(made) == 1
    path.write_text(path.read_text().replace('"format": 3', '"format": 1'))
    evaluate_once(truth, patients, digests, path, Study())
    assert len(made) == 2 and json.loads(path.read_text())["format"] == 3
    evaluate_once(truth, patients, digests, path, Study(conditions=("t1", "t2")))
    assert len(made) == 3


@pytest.mark.parametrize("stated", ["by the sidecar", "by the option"])
def test_another_target_is_judged_and_named(tmp_path, patients, stated):
    """FLAIR from T1, T1ce and T2: the truth scores perfectly, a copied T1 does not."""
    folder, output = tmp_path / "predictions", tmp_path / "out"
    folder.mkdir()
    options = ["--target", "flair"]
    name = "Phantom_0001_flair"
    shutil.copy(patients / f"Phantom_0001/{name}.nii.gz", folder)
    if stated == "by the sidecar":
        truth = nib.load(folder / f"{name}.nii.gz").get_fdata()
        units = RobustNormaliser().fit(truth, truth != 0, "flair").to_dict()
        sidecar = {"Synthetic": True, "target": "flair", "conditions": ["t1", "t1ce", "t2"]}
        sidecar |= {"intensity": units}
        (folder / f"{name}.json").write_text(json.dumps(sidecar))
        options = []
    arguments = ["--prediction", str(folder), "--reference", str(patients), *options]
    assert main(["evaluate", *arguments, "--output", str(output)]) == 0
    scores = read_scores(output / "metrics.json")
    own, copied = (scores[r, "Phantom_0001", "brain", "psnr"] for r in ("prediction", COPY_T1))
    assert own == "inf" or own > 80
    assert copied < 30
    described = json.loads((output / "metrics.json").read_text())
    assert (described["target"], described["inputs"]) == ("flair", ["t1", "t1ce", "t2"])
    page = (output / "report.html").read_text()
    assert "Synthetic against real FLAIR" in page and "real and synthetic FLAIR" in page


def named_for_patients(folder, patients):
    """The real T1ce of Phantom_0001 to 3 as another program would call them: ``ID.nii.gz``."""
    folder.mkdir()
    for subject in ("Phantom_0001", "Phantom_0002", "Phantom_0003"):
        real = patients / subject / f"{subject}_t1ce.nii.gz"
        shutil.copy(real, folder / f"{subject}.nii.gz")
    return folder


def test_foreign_predictions_in_other_units_are_pointed_out(tmp_path, patients, capsys):
    """Scaled to [0, 1] by another program: a bad score says nothing of the images."""
    folder = named_for_patients(tmp_path / "foreign", patients)
    for path in folder.iterdir():
        image = nib.load(path)
        scaled = image.get_fdata() / image.get_fdata().max()
        nib.save(nib.Nifti1Image(scaled.astype(np.float32), image.affine), path)
    rows = {"ours": folder, "real": named_for_patients(tmp_path / "real", patients)}
    one = ["Phantom_0001"]  # the legacy protocol takes its time
    result = evaluate(rows, patients, subjects=one, protocols=["default", "legacy"])
    assert list(result.units) == ["ours"] and 0 < result.units["ours"] < 0.1
    assert result.mean("ours", "brain", "psnr") < 20
    told = [sentence for sentence in result.remarks() if "units" in sentence]
    assert len(told) == 1 and "add protocols=['legacy']" in told[0]
    words = ["evaluate", "--prediction", f"ours={folder}", "--reference", str(patients)]
    assert main(words) == 0
    assert "ours is not in the units of the reference" in " ".join(capsys.readouterr().out.split())


def test_a_volume_of_ours_without_its_sidecar_is_in_units_of_an_input(tmp_path, patients):
    """As what ``dsdiff brasyn`` writes, however near its median is to that of the reference."""
    folder = named_for_patients(tmp_path / "made", patients)
    for path in folder.iterdir():
        image = nib.load(path)
        mark(image.header, statement({"target": "t1ce", "request": {"model_digest": "a" * 64}}))
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    result = evaluate({"ours": folder}, patients)
    assert result.units == {"ours": 1}
    assert "keep its .json beside it" in " ".join(result.remarks())


def test_a_protocol_of_tumours_says_that_there_are_no_labels(tmp_path, patients):
    bare = shutil.copytree(patients, tmp_path / "bare", ignore=shutil.ignore_patterns("*_seg*"))
    result = evaluate(named_for_patients(tmp_path / "foreign", bare), bare, protocols=["brasyn"])
    assert not result.scores
    assert "No reference has labels (seg), without which protocol brasyn" in result.remarks()[-1]


def test_the_terminal_shows_what_is_read_first(tmp_path, patients, capsys):
    """Files called ``ID.nii.gz``; the brain, the comparison with its warning, and the report."""
    folder = named_for_patients(tmp_path / "foreign", patients)
    words = ["evaluate", "--prediction", f"ours={folder}", "--reference", str(patients)]
    columns = ["--columns", "psnr", "tumour:psnr", "recovery"]
    assert main([*words, "--output", str(tmp_path / "out"), *columns]) == 0
    told = capsys.readouterr().out
    assert "Brain" in told and "Paired comparison" in told and "Tumour" not in told
    assert "Too few patients to decide: with 3 of them and 1 comparison" in " ".join(told.split())
    assert "out/report.html" in told
    assert main([*words, "--verbose"]) == 0
    assert "Tumour" in capsys.readouterr().out
    with (tmp_path / "out/table.csv").open() as file:
        head, ours, copy = csv.reader(file)
    sd = "PSNR dB sd", "PSNR dB, tumour sd"
    assert head == ["row", "PSNR dB", sd[0], "PSNR dB, tumour", sd[1], "Recovery"]
    assert (ours[0], float(ours[5]), copy[0], float(copy[5])) == ("ours", 1, COPY_T1, 0)
    summary = json.loads((tmp_path / "out/metrics.json").read_text())["summary"][COPY_T1]
    brain, tumour = (
        next(s for s in summary if (s["region"], s["measure"]) == (region, "psnr"))
        for region in ("brain", "tumour")
    )
    wanted = [brain["mean"], brain["sd"], tumour["mean"], tumour["sd"]]
    assert [float(cell) for cell in copy[1:5]] == wanted  # at full precision
    assert "siunitx" not in (tmp_path / "out/table.md").read_text()
    assert (tmp_path / "out/table.tex").read_text().startswith("\\begin{table}")
    pictures = {path.suffix for path in (tmp_path / "out/figures").iterdir()}
    assert pictures == {".png", ".svg"}
    assert '"n/a' not in (tmp_path / "out/metrics.json").read_text()
    assert main([*words, "--columns", "pnsr"]) == 2
    assert "--columns is 'pnsr': give one of psnr" in capsys.readouterr().err
