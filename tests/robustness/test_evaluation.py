"""EX-11 and BN-04 of docs/reliability.md: one odd patient never ends an evaluation."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from ldm import evaluate

P1, P2 = "Phantom_0001", "Phantom_0002"


@pytest.fixture(scope="module")
def sampled(tmp_path_factory, run_folder, patients):
    """Volumes of two patients."""
    from ldm.cli.main import main

    folder = tmp_path_factory.mktemp("sampled")
    given = ["--input", patients, "--subjects", P1, P2, "--output", folder, "--steps", "1"]
    assert main(["sample", str(run_folder), *map(str, given)]) == 0
    return folder


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


ODD = {
    "request is a list": {"request": [1, 2]},
    "request is a text": {"request": "x"},
    "preparation is a text": {"preparation": "x"},
    "preparation is a list": {"preparation": [5]},
    "mask is a list": {"preparation": {"mask": [1]}},
    "samples is a text": {"request": {"samples": "many"}},
    "samples is negative": {"request": {"samples": -1}},
    "no units": {"intensity": None},
    "units are a list": {"intensity": [1, 2, 3, 4]},
    "width is 0": {"intensity": {"centre": 0, "width": 0, "lower": -1, "upper": 1}},
    "width is NaN": {"intensity": {"centre": 0, "width": float("nan"), "lower": -1, "upper": 1}},
    "width is a text": {"intensity": {"centre": 0, "width": "x", "lower": -1, "upper": 1}},
    "normaliser is a number": {"normaliser": 5},
    "normaliser has an odd argument": {
        "normaliser": {"target": "ldm.data.normalise.RobustNormaliser", "params": {"upper": "x"}}
    },
    "normaliser is another class": {
        "normaliser": {"target": "torch.optim.AdamW", "params": {"params": []}}
    },
    "conditions are numbers": {"conditions": [1, 2], "intensity": None},
    "target is a list": {"target": ["t1ce"], "intensity": None},
    "contrasts are a number": {"contrasts": 7, "intensity": None},
}
TEXTS = {
    "empty": "",
    "torn": '{"intensity": {"cen',
    "a list": "[1, 2]",
    "a number": "5",
    "deep": deep(100_000),
    "deep inside": '{"request": ' + deep(5000) + "}",
}


def failures(folder, patients) -> tuple[str, int]:
    """Return why P1 cannot be judged, and how many scores P2 has."""
    result = evaluate(folder, patients, subjects=[P1, P2], baseline=False, allow_seen=True)
    found = result.to_dict()
    scores = [s["value"] for s in found["scores"] if s["subject"] == P2]
    return str(found["failures"]), sum(isinstance(value, float) for value in scores)


def judged(dsdiff, folder, patients, out):
    """Return exit code, error line and the failures of an evaluation."""
    given = ("--prediction", folder, "--reference", patients, "--subjects", P1, P2)
    code, line = dsdiff("evaluate", *given, "--allow-seen", "--output", out)
    found = (
        json.loads((out / "metrics.json").read_text()) if (out / "metrics.json").exists() else {}
    )
    return code, line, found


@pytest.mark.parametrize("name", [*ODD, *TEXTS])
def test_ex_11_an_odd_sidecar_is_a_failure_of_its_patient(tmp_path, sampled, patients, name):
    folder = shutil.copytree(sampled, tmp_path / "odd")
    sidecar = folder / f"{P1}_t1ce.json"
    known = json.loads(sidecar.read_text())
    sidecar.write_text(TEXTS.get(name) if name in TEXTS else json.dumps(known | ODD[name]))
    said, scores = failures(folder, patients)
    assert f"DATA-SIDECAR: {sidecar.name} does not state the units" in said
    assert scores > 0


def test_ex_11_the_verb_says_so_with_exit_9(dsdiff, tmp_path, sampled, patients):
    folder = shutil.copytree(sampled, tmp_path / "odd")
    (folder / f"{P1}_t1ce.json").write_text("")
    code, line, found = judged(dsdiff, folder, patients, tmp_path / "out")
    assert (code, "DATA-SIDECAR" in str(found["failures"])) == (9, True), line


def test_ex_11_a_class_of_someone_in_a_sidecar_is_refused(dsdiff, tmp_path, sampled, patients):
    folder = shutil.copytree(sampled, tmp_path / "odd")
    sidecar = folder / f"{P1}_t1ce.json"
    known = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps(known | {"normaliser": {"target": "os.system"}}))
    code, line, _ = judged(dsdiff, folder, patients, tmp_path / "out")
    assert (code, "UNSAFE-TARGET" in line) == (10, True)


def test_predictions_in_units_of_a_normaliser_of_ones_own(
    dsdiff, tmp_path, sampled, patients, monkeypatch
):
    """Its class is named in their sidecars, and by who trusts it."""
    (tmp_path / "own_units.py").write_text(
        "from ldm.data.normalise import RobustNormaliser\nclass Own(RobustNormaliser): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    folder = shutil.copytree(sampled, tmp_path / "own")
    for sidecar in folder.glob("*_t1ce.json"):
        known = json.loads(sidecar.read_text())
        sidecar.write_text(json.dumps(known | {"normaliser": {"target": "own_units.Own"}}))
    given = ("evaluate", "--prediction", folder, "--reference", patients, "--allow-seen")
    code, line = dsdiff(*given)
    assert (code, "add --trust own_units.Own" in line) == (10, True)
    code, line = dsdiff(*given, "--trust", "own_units.Own", "--output", tmp_path / "out")
    assert code == 0, line
    own, usual = (
        evaluate(place, patients, allow_seen=True, trust=["own_units.Own"]).scores
        for place in (folder, sampled)
    )
    assert [score.value for score in own] == [score.value for score in usual]


@pytest.mark.parametrize("constant", ["inside the brain", "everywhere"])
def test_bn_04_a_constant_reference_ends_no_evaluation(dsdiff, tmp_path, sampled, cohort, constant):
    path = cohort / P1 / f"{P1}_t1ce.nii.gz"
    image = nib.load(path)
    voxels = np.asarray(image.dataobj)
    flat = np.where(voxels > 0, 100, 0) if constant == "inside the brain" else 0 * voxels + 100
    nib.save(nib.Nifti1Image(flat.astype(np.int16), image.affine), path)
    code, line, found = judged(dsdiff, sampled, cohort, tmp_path / "out")
    assert code == 9, line
    assert "DATA-CONSTANT" in str(found["failures"])
    own = [s for s in found["scores"] if s["subject"] == P2]
    assert any(isinstance(s["value"], float) for s in own)


def test_bn_04_a_prediction_that_is_the_truth(dsdiff, tmp_path, patients):
    """Its error is 0 and its SSIM 1; an infinite PSNR is told as such, and is no NaN."""
    folder = tmp_path / "same"
    folder.mkdir()
    for p in (P1, P2):
        shutil.copy(patients / p / f"{p}_t1ce.nii.gz", folder)
    code, line, found = judged(dsdiff, folder, patients, tmp_path / "out")
    assert (code, line) == (0, "")
    values = {
        s["measure"]: s["value"]
        for s in found["scores"]
        if (s["row"], s["subject"], s["region"]) == ("prediction", P1, "brain")
    }
    assert values["psnr"] == "inf" and values["nrmse"] == 0
    assert all(abs(v - 1) < 1e-9 for name, v in values.items() if name.startswith("ssim"))
