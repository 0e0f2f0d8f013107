"""A patient of the training is known under any name, and its scores are no test: every route."""

import gzip
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.processing import resample_to_output

from ldm.cli.main import main
from ldm.data.layouts import detect_layout
from ldm.inference.trained import load_for_inference
from ldm.phantom import write_phantoms

KNOWN, OTHER, STRANGER = "Phantom_0001", "Phantom_0002", "Phantom_0003"


def byte_copy(source: Path, copy: Path) -> None:
    shutil.copy(source, copy)


def packed_anew(source: Path, copy: Path) -> None:
    copy.write_bytes(gzip.compress(gzip.decompress(source.read_bytes()), 1))


def saved_anew(source: Path, copy: Path) -> None:
    """As float32 in another order of axes, as TorchIO and MONAI save."""
    image = nib.as_closest_canonical(nib.load(source))
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine), copy)


def resampled(source: Path, copy: Path) -> None:
    nib.save(resample_to_output(nib.load(source), (2.0, 2.0, 2.0), order=1), copy)


# disguise -> id, of whom the images are, and what is done to each file
DISGUISES = {
    "byte copy": ("Twin", KNOWN, byte_copy),
    "packed anew": ("Twin", KNOWN, packed_anew),
    "saved anew": ("Twin", KNOWN, saved_anew),
    "resampled": ("Twin", KNOWN, resampled),
    "the id in another case": (KNOWN.upper(), STRANGER, byte_copy),
    "follow-up": (f"{KNOWN}_followup", STRANGER, byte_copy),
}
ROUTES = ("run", "student", "latent", "segmenter")


def disguise(patients: Path, folder: Path, name: str) -> Path:
    """Write one patient of the training so that its files, or its id, are others."""
    subject, images, change = DISGUISES[name]
    (folder / subject).mkdir(parents=True)
    for file in sorted((patients / images).glob("*.nii.gz")):
        change(file, folder / subject / file.name.replace(images, subject))
    return folder


@pytest.fixture(scope="module")
def detailed(tmp_path_factory) -> Path:
    """Patients whose anatomy is fine enough to survive another resolution."""
    folder = tmp_path_factory.mktemp("detailed")
    write_phantoms(folder, 3, size=96, seed=0)
    return folder


@pytest.fixture(scope="module")
def routes(tmp_path_factory, detailed, train, train_segmenter):
    """Four models of one step: KNOWN was in the training of each, or of what it is built from."""
    root = tmp_path_factory.mktemp("routes")
    few = [f"data.params.root={detailed}", "lightning.trainer.max_steps=1"]
    own = [*few, f"data.params.train=[{KNOWN}]", f"data.params.val=[{STRANGER}]"]
    later = [*few, f"data.params.train=[{OTHER}]", f"data.params.val=[{STRANGER}]"]
    autoencoder = ["configs/first_stage/autoencoder_kl_f4_tiny.yaml", "model.params.scale_slices=2"]
    stage = f"model.params.first_stage_config.params.path={root / 'autoencoder'}"
    assert train(root / "run", *own) == 0
    assert train_segmenter(root / "segmenter", *own) == 0
    options = ["lightning.trainer.accelerator=cpu", "data.params.image_size=[32,32]"]
    told = [*autoencoder, *options, *own, "--output", str(root / "autoencoder")]
    assert main(["train", *told]) == 0
    assert train(root / "latent", "configs/latent.yaml", stage, *later) == 0
    distill = ["distill", str(root / "run"), "--steps", "1", "model.params.substeps=1"]
    assert main([*distill, *later, "--output", str(root / "student")]) == 0
    return {name: load_for_inference(root / name) for name in ROUTES}


@pytest.mark.parametrize("name", DISGUISES)
@pytest.mark.parametrize("route", ROUTES)
def test_a_patient_of_the_training_is_known_in_every_disguise(
    tmp_path, routes, detailed, route, name
):
    (subject,) = detect_layout(disguise(detailed, tmp_path, name))[1].values()
    assert routes[route].has_seen(subject) is True


@pytest.mark.parametrize("route", ROUTES)
def test_a_stranger_is_not(routes, detailed, route):
    stranger = detect_layout(detailed)[1][STRANGER]
    assert routes[route].has_seen(stranger) is False


@pytest.mark.parametrize("route", ROUTES)
def test_without_a_list_it_is_not_known(tmp_path, routes, detailed, route, caplog):
    """As of a model that was imported."""
    shutil.copytree(routes[route].folder, tmp_path / "model")
    (tmp_path / "model/subjects.json").unlink()
    (tmp_path / "model/cost.json").unlink()
    model = load_for_inference(tmp_path / "model")
    stranger = detect_layout(detailed)[1][STRANGER]
    assert model.has_seen(stranger) is None
    assert "model does not say whom it was trained on" in caplog.text


def test_what_is_built_on_such_a_model_does_not_know_either(tmp_path, routes, detailed, train):
    start = tmp_path / "start"
    shutil.copytree(routes["run"].folder, start)
    (start / "subjects.json").unlink()
    (start / "cost.json").unlink()
    own = [f"data.params.root={detailed}", f"data.params.train=[{OTHER}]"]
    more = [*own, "lightning.trainer.max_steps=1", "--from", str(start)]
    assert train(tmp_path / "tuned", *more) == 0
    tuned, subjects = load_for_inference(tmp_path / "tuned"), detect_layout(detailed)[1]
    assert [tuned.has_seen(subjects[i]) for i in (OTHER, STRANGER)] == [True, None]


@pytest.fixture(scope="module")
def twins(tmp_path_factory, patients) -> Path:
    """A patient of the training saved anew under another name, and one that was held out."""
    folder = disguise(patients, tmp_path_factory.mktemp("twins"), "saved anew")
    shutil.copytree(patients / STRANGER, folder / STRANGER)
    return folder


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_a_synthetic_volume_of_the_training_is_a_failed_case(
    tmp_path, run_folder, segmenter_run, twins, capsys
):
    """Of the model that made it, and of the segmenter that judges it."""
    made, out = tmp_path / "made", tmp_path / "out"
    assert run("sample", run_folder, "--input", twins, "--output", made) == 0
    seen = {
        i: json.loads((made / f"{i}_t1ce.json").read_text())["seen"] for i in ("Twin", STRANGER)
    }
    assert seen == {"Twin": True, STRANGER: False}

    judge = ["evaluate", "--prediction", made, "--reference", twins, "--output", out]
    assert run(*judge, "--segmenter", segmenter_run) == 9
    for name in ("metrics", "downstream"):
        written = json.loads((out / f"{name}.json").read_text())
        judged = [s for s in written["scores"] if not s["row"].startswith("copy")]
        assert {s["subject"] for s in judged if s["subject"]} == {STRANGER}
        for row in ("prediction", "real T1ce") if name == "downstream" else ("prediction",):
            assert list(written["failures"][row]) == ["Twin"]
            assert written["failures"][row]["Twin"].startswith("LEAK: ")
    said = f"LEAK: the model was trained on this patient (as {KNOWN}, same image)"
    assert said in (out / "report.html").read_text()
    assert run(*judge, "--allow-seen") == 0
    scores = json.loads((out / "metrics.json").read_text())["scores"]
    assert {s["subject"] for s in scores if s["row"] == "prediction"} >= {"Twin", STRANGER}


def test_a_sweep_leaves_a_patient_of_the_training_out_under_any_name(tmp_path, run_folder, twins):
    told = ["--input", twins, "--output", tmp_path, "--steps", 1, "--sampler", "ddim"]
    assert run("sweep", run_folder, *told) == 0
    assert json.loads((tmp_path / "sweep.json").read_text())["subjects"] == [STRANGER]


@pytest.mark.parametrize("choice", ["nobody else is there", "named"])
def test_a_sweep_that_says_that_it_judges_the_training_does(
    tmp_path, run_folder, twins, choice, caplog
):
    """It has no --allow-seen: to name somebody is to want it."""
    folder = twins
    if choice != "named":
        folder = tmp_path / "alone"
        shutil.copytree(twins / "Twin", folder / "Twin")
    told = ["--input", folder, "--output", tmp_path / "out", "--steps", 1, "--sampler", "ddim"]
    assert run("sweep", run_folder, *told, *(["--subjects", "Twin"] * (choice == "named"))) == 0
    said_so = "sweeping on all, the training's too" in caplog.text
    assert said_so == (choice != "named")
    assert "no test of the model: Twin" in caplog.text
    written = json.loads((tmp_path / "out/sweep.json").read_text())
    assert written["subjects"] == ["Twin"] and written["settings"]["trained on"] == "Twin"
    assert [cell["problem"] for cell in written["cells"]] == [""]


def test_a_label_map_of_the_training_is_a_failed_case(tmp_path, segmenter_run, twins):
    made, out = tmp_path / "made", tmp_path / "out"
    predict = ["segment", "predict", segmenter_run, "--input", twins, "--output", made]
    assert run(*predict, "--no-pictures") == 0
    judge = ["segment", "evaluate", "--prediction", made, "--reference", twins, "--output", out]
    assert run(*judge) == 9
    written = json.loads((out / "segmentation.json").read_text())
    assert {s["subject"] for s in written["scores"]} == {STRANGER}
    assert written["failures"]["prediction"]["Twin"].startswith("LEAK: ")
    assert run(*judge, "--allow-seen") == 0


def test_a_result_says_that_a_model_does_not_tell_its_patients(tmp_path, run_folder, twins, capsys):
    shutil.copytree(run_folder, tmp_path / "model")
    (tmp_path / "model/subjects.json").unlink()
    (tmp_path / "model/cost.json").unlink()
    made = tmp_path / "made"
    told = ["--input", twins, "--subjects", STRANGER, "--output", made]
    assert run("sample", tmp_path / "model", *told) == 0
    out = ["--output", tmp_path / "out"]
    assert run("evaluate", "--prediction", made, "--reference", twins, *out) == 0
    assert json.loads((tmp_path / "out/metrics.json").read_text())["untold"] == ["prediction"]
    assert "Trained on unknown patients" in (tmp_path / "out/report.html").read_text()
    assert "Trained on unknown patients" in capsys.readouterr().out
