"""``dsdiff diagnose``: every fault of a folder is named, and wrong set-ups by their right cause."""

import csv
import json
import shlex
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from ldm.cli.diagnose import cure_command
from ldm.cli.main import main
from ldm.config import load_config, read_saved_config
from ldm.diagnosis.data import diagnose_data
from ldm.diagnosis.findings import ERROR, NOTE
from ldm.phantom import write_phantoms

IDS = [f"Phantom_{number:04d}" for number in range(1, 6)]


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Phantom_0001 to Phantom_0005, 32 voxels across."""
    folder = tmp_path_factory.mktemp("five")
    write_phantoms(folder, 5, size=32, seed=0)
    return folder


@pytest.fixture
def folder(tmp_path, five):
    """A copy of them to damage."""
    return Path(shutil.copytree(five, tmp_path / "patients"))


def file_of(root, subject, contrast):
    return root / subject / f"{subject}_{contrast}.nii.gz"


def edit(root, subject, contrast, change, affine=None):
    """Replace the voxels of a file by ``change(voxels)``, and its affine."""
    path = file_of(root, subject, contrast)
    image = nib.load(path)
    voxels = change(np.asarray(image.dataobj))
    nib.save(nib.Nifti1Image(voxels, image.affine if affine is None else affine), path)


def copy_subject(root, subject, name):
    shutil.copytree(root / subject, root / name)
    for path in (root / name).iterdir():
        path.rename(path.with_name(path.name.replace(subject, name)))


def found(root, **options):
    """{(severity, kind, subject)} of what is more than a note."""
    diagnosis = diagnose_data(root, **options)
    return {(f.severity, f.kind, f.subject) for f in diagnosis.findings if f.severity != NOTE}


SEGMENTATION = {"target": None}  # data.params: masks are what is learned


def test_healthy_patients_have_no_fault(five):
    assert found(five) == set()
    diagnosis = diagnose_data(five, SEGMENTATION)
    assert not diagnosis.breaks_training
    assert {f.kind for f in diagnosis.findings} <= {
        "foreground",
        "scheme",
    }  # one has a small tumour
    assert diagnosis.mask_fit.mean_rank < 0.05


def test_a_synthesis_needs_no_mask_and_a_segmentation_does(folder):
    file_of(folder, IDS[0], "seg").unlink()
    assert found(folder) == set()
    assert (ERROR, "missing", IDS[0]) in found(folder, data_params=SEGMENTATION)


def test_a_synthesis_needs_its_own_contrasts_only(folder):
    file_of(folder, IDS[0], "t2").unlink()
    assert (ERROR, "missing", IDS[0]) in found(folder)
    assert found(folder, data_params={"conditions": ["t1", "flair"]}) == set()
    file_of(folder, IDS[1], "t2").write_bytes(b"no volume")
    told = found(folder, data_params={"conditions": ["t1", "flair"]})
    assert told == {("warning", "unreadable", IDS[1])}  # which no training reads


def test_subjects_without_any_contrast_are_not_fit(folder, capsys):
    """Whatever their files are called, a mask alone trains nothing."""
    for number, path in enumerate(sorted(folder.glob("*/*"))):
        if not path.name.endswith("_seg.nii.gz"):
            path.rename(path.with_name(f"image{number}.nii.gz"))
    assert main(["diagnose", "data", str(folder)]) == 3
    assert "something breaks a training" in capsys.readouterr().out


@pytest.mark.parametrize("contrast", ["t2", "flair"])
def test_a_contrast_that_is_mirrored_under_its_header_is_found(folder, contrast):
    """As some conversions leave it: the affine says nothing of it."""
    edit(folder, IDS[0], contrast, lambda array: array[::-1].copy())
    assert ("warning", "mirrored", IDS[0]) in found(folder)
    edit(folder, IDS[0], contrast, lambda array: array[::-1].copy())
    assert found(folder) == set()


def test_a_target_acquired_in_two_ways_is_noted(folder):
    """T1ce is a line of T1, which has a correlation of 1, in some patients, and of T2 in others."""

    def take_from(contrast, subjects):
        for subject in subjects:
            taken = nib.load(file_of(folder, subject, contrast)).get_fdata()
            edit(folder, subject, "t1ce", lambda _, taken=taken: (3 * taken).astype("f4"))

    take_from("t1", IDS)
    alike = diagnose_data(folder)
    assert [s.likeness for s in alike.subjects] == [pytest.approx(1)] * 5
    assert not alike.of_kind("acquisition")
    take_from("t2", IDS[:2])
    (noted,) = diagnose_data(folder).of_kind("acquisition")
    assert "above 0.7 in 3 of 5 subjects and below 0.5 in 2" in noted.message
    assert not diagnose_data(folder, SEGMENTATION).of_kind("acquisition")


@pytest.mark.parametrize("params", [{}, SEGMENTATION])
@pytest.mark.parametrize("covered", ["the brain", "the box", "most of the brain"])
def test_labels_that_cover_the_brain_are_pointed_out(covered, params, folder):
    """A mask of the brain, or of the head, that is called as the labels; whatever is trained."""
    brain = nib.load(file_of(folder, IDS[0], "t1")).get_fdata() != 0
    masks = {"the brain": brain, "the box": np.ones_like(brain)}
    mask = masks.get(covered, ndimage.binary_erosion(brain)).astype(np.uint8)
    edit(folder, IDS[0], "seg", lambda array: mask)
    told = [f.message for f in diagnose_data(folder, params).of_subject(IDS[0])]
    assert sum("the labels cover" in message for message in told) == 1


@pytest.mark.parametrize("how", ["from -1 to 1", "z-score", "percent"])
def test_what_is_called_fit_is_prepared_whatever_the_background(how, folder, tmp_path, capsys):
    """Volumes whose background is -1, or some negative number, with the cure of mask=head too."""
    changes = {
        "from -1 to 1": lambda a: (2 * (a / a.max()) - 1).astype("f4"),
        "z-score": lambda a: ((a - a.mean()) / a.std()).astype("f4"),
        "percent": lambda a: (100 * a / a.max()).astype("f4"),
    }
    for subject in IDS[2:]:
        shutil.rmtree(folder / subject)
    for subject in IDS[:2]:
        for contrast in ("t1", "t1ce", "t2", "flair"):
            edit(folder, subject, contrast, changes[how])
    assert found(folder) == set()
    for mask in ("auto", "head"):
        config = ["--config", f"data.params.mask={mask}"]
        assert main(["diagnose", "data", str(folder), *config]) == 0
        output = ["--output", str(tmp_path / mask)]
        assert main(["prepare", str(folder), *output, *config]) == 0
    shares = []
    for mask in ("auto", "head"):
        with (tmp_path / mask / "manifest.csv").open() as file:
            shares.append([int(row["brain_voxels"]) for row in csv.DictReader(file)])
    assert np.allclose(*shares, rtol=0.15)  # voxels of 7.5 mm: one at the edge is 10 %


def test_an_image_size_that_cuts_the_brain_is_named_with_one_that_does_not(folder):
    assert found(folder, data_params={"image_size": 32}) == set()
    diagnosis = diagnose_data(folder, {"image_size": [16, 32]})
    (finding,) = diagnosis.of_kind("crop")
    assert f"of {len(IDS)} of {len(IDS)} subjects" in finding.message
    assert "give data.params.image_size=[32,32]" in finding.message
    worst = next(s for s in diagnosis.subjects if s.id == finding.subject)
    brain = np.asarray(nib.load(file_of(folder, worst.id, "t1")).dataobj) != 0
    box = ndimage.find_objects(brain.astype(int))[0]
    assert worst.plane == brain[box].shape[:2] and 0 < worst.cut < 0.5


def test_the_next_command_trains_on_no_larger_slices_than_the_brains_need(five, capsys):
    """But a size that the user gave stays."""
    for given, size in (([], "[32,32]"), (["--config", "data.params.image_size=64"], "64")):
        assert main(["diagnose", "data", str(five), *given]) == 0
        command = shlex.split(capsys.readouterr().out.partition("next: ")[2])
        sizes = [word for word in command if word.startswith("data.params.image_size=")]
        assert sizes == [f"data.params.image_size={size}"]


def test_the_next_command_keeps_patients_out_unless_the_user_said_who(five, capsys):
    for given, kept in (
        ([], ["data.params.test=0.2"]),
        (["--config", "data.params.test=0.4"], ["data.params.test=0.4"]),
        (["--config", "data.params.fold=0"], []),
    ):
        assert main(["diagnose", "data", str(five), *given]) == 0
        command = shlex.split(capsys.readouterr().out.partition("next: ")[2])
        assert [word for word in command if word.startswith("data.params.test=")] == kept


def test_no_slice_with_enough_brain_is_what_a_training_would_say(folder):
    told = diagnose_data(folder, {"min_brain": 1.0})
    assert told.breaks_training
    assert "lower data.params.min_brain" in told.of_kind("unfit")[0].message


def test_foreground_share_and_weight_are_those_of_the_voxels(five):
    report = diagnose_data(five).subjects[0]
    brain = sum(np.asarray(nib.load(p).dataobj) != 0 for p in (five / IDS[0]).glob("*_t[12].*"))
    box = ndimage.find_objects((brain > 0).astype(int))[0]
    mask = np.asarray(nib.load(file_of(five, IDS[0], "seg")).dataobj)[box] > 0
    assert report.share == pytest.approx(mask.mean())


def test_a_missing_and_a_damaged_file_are_listed_with_the_subject(folder):
    file_of(folder, IDS[0], "flair").unlink()
    file_of(folder, IDS[1], "t1ce").write_bytes(b"no volume")
    faults = found(folder)
    assert (ERROR, "missing", IDS[0]) in faults
    assert (ERROR, "unreadable", IDS[1]) in faults


def test_contrasts_on_other_grids_are_errors(folder):
    affine = nib.load(file_of(folder, IDS[0], "t2")).affine
    moved = affine + np.eye(4)[:, [3]] * 0
    moved[0, 3] += 3
    edit(folder, IDS[0], "t2", lambda a: a, moved)
    turned = affine @ np.diag([-1, 1, 1, 1])
    edit(folder, IDS[1], "t2", lambda a: a, turned)
    diagnosis = diagnose_data(folder)
    messages = {f.subject: f.message for f in diagnosis.of_kind("geometry")}
    assert set(messages) == {IDS[0], IDS[1]}
    assert "3 mm" in messages[IDS[0]]
    assert "t1 is stored LPS, t2 RPS" in messages[IDS[1]]


def test_an_image_that_ends_early_and_an_empty_one(folder):
    edit(folder, IDS[0], "t1", lambda a: np.where(np.arange(a.shape[2]) > 10, 0, a))
    edit(folder, IDS[1], "t2", lambda a: np.zeros_like(a))
    faults = found(folder)
    assert ("warning", "slices", IDS[0]) in faults
    assert (ERROR, "empty", IDS[1]) in faults


def test_a_whole_head_among_stripped_brains_is_noted(folder):
    """Air that holds noise, where the other patients hold exact zeros."""
    rng = np.random.default_rng(0)
    for contrast in ("t1", "t1ce", "t2", "flair"):
        edit(folder, IDS[0], contrast, lambda a: np.where(a, a, rng.uniform(1, 3, a.shape)))
    (finding,) = diagnose_data(folder).of_kind("stripping")
    assert finding.subject == IDS[0]
    assert finding.message.startswith(f"1 of {len(IDS)} subjects are whole heads")


def test_a_shifted_contrast_is_named_with_millimetres(folder):
    edit(folder, IDS[0], "flair", lambda a: np.roll(a, 2, axis=1))
    (finding,) = diagnose_data(folder).of_kind("registration")
    assert finding.subject == IDS[0] and finding.message.startswith("flair lies")
    assert 13 < float(finding.message.split("lies ")[1].split(" mm")[0]) < 17  # 2 voxels of 7.5 mm


def test_copies_and_near_copies_are_named_and_leak_across_a_split(folder):
    copy_subject(folder, IDS[0], "Copy")
    copy_subject(folder, IDS[1], "Near")
    noise = np.random.default_rng(0)
    for contrast in ("t1", "t1ce", "t2", "flair", "seg"):
        size = 0 if contrast == "seg" else 3
        edit(
            folder,
            "Near",
            contrast,
            lambda a, s=size: np.where(a > 0, a + noise.normal(0, s, a.shape), 0).astype("f4"),
        )
    pairs = {
        (f.subject, f.message.split(" of ")[1].split(":")[0].split(" ")[0])
        for f in diagnose_data(folder, {"val": 0}).of_kind("duplicate")
    }
    assert pairs == {(IDS[0], "Copy"), (IDS[1], "Near")}
    split = {"conditions": ["t1"], "target": "t1ce", "train": [*IDS], "val": ["Copy", "Near"]}
    leaks = {f.subject for f in diagnose_data(folder, split).of_kind("leak")}
    assert leaks == {IDS[0], IDS[1]}


def test_each_further_copy_of_a_patient_is_told_once(folder):
    """Three that are one: which files are equal says all, and no pair also looks alike."""
    copies = ["Copy", "Further", "Last"]
    for name in copies:
        copy_subject(folder, IDS[0], name)
    findings = diagnose_data(folder, {"val": 0}).of_kind("duplicate")
    assert sorted(f.subject for f in findings) == sorted([*copies[1:], IDS[0]])
    assert all(f.message.startswith("same as files of Copy") for f in findings)


def test_a_contrast_that_is_darker_than_its_background_is_named(folder, caplog):
    """Inverted, or less a number: in a preparation too, which samples, trains and segments."""
    edit(folder, IDS[0], "t2", lambda a: -a.astype("f4"))
    edit(folder, IDS[1], "flair", lambda a: np.where(a, a - 1e4, 0).astype("f4"))
    edit(folder, IDS[2], "t1", lambda a: np.where(a, a - np.median(a[a > 0]), 0).astype("f4"))
    told = {f.subject: f.message for f in diagnose_data(folder).of_kind("background")}
    assert set(told) == set(IDS[:2])
    assert told[IDS[0]].startswith("t2: the brain is darker than the background")
    assert f"{IDS[1]}: flair: the brain is darker" in caplog.text


def test_ids_that_may_count_examinations_are_asked_about(folder):
    """No convention tells the second scan of a patient from the second patient of a site."""
    for number in (1, 2):
        (folder / IDS[number]).rename(folder / f"P1_{number}")
        for file in (folder / f"P1_{number}").iterdir():
            file.rename(file.with_name(file.name.replace(IDS[number], f"P1_{number}")))
    (finding,) = diagnose_data(folder).of_kind("patients")
    assert finding.message.startswith("P1_1 and P1_2 count as two patients")
    assert not diagnose_data(folder, {"patient": r"(.+)[_.-]\d+"}).of_kind("patients")


def test_the_tables_of_a_narrow_terminal_have_whole_ids_and_every_column(
    folder, tmp_path, capsys, monkeypatch
):
    """Of `diagnose data` and of `prepare`: two long ids differ in their last sign."""
    monkeypatch.setenv("COLUMNS", "50")
    long = "a_hospital_of_the_north_examination_"
    for sign in "12":
        copy_subject(folder, "Phantom_0001", long + sign)
    assert main(["diagnose", "data", str(folder)]) in (0, 3)
    lines = capsys.readouterr().out.splitlines()
    starts = ("note", "warning", "error")
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith(starts))]
    words = " ".join(table).split()
    assert {"subject", "voxels", "contrasts", "labels", "mask", "findings"} <= set(words)
    assert {long + "1", long + "2"} <= set(words)
    assert main(["prepare", str(folder), "--output", str(tmp_path / "made")]) == 0
    table = capsys.readouterr().out.partition("prepared=")[0]
    assert {"Part", "seg", "(median)", "Orientation", "LPS"} <= set(table.split())
    assert max(map(len, table.splitlines())) <= 50


def test_what_holds_for_several_subjects_is_said_once(folder, capsys):
    for subject in IDS[:4]:
        edit(folder, subject, "seg", lambda a: np.where(a == 4, 3, a))
    assert main(["diagnose", "data", str(folder)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("labels 3 are unknown") == 1
    assert f"{IDS[0]}, {IDS[1]}, {IDS[2]} and 1 more: labels 3 are unknown" in shown


def test_what_holds_for_several_contrasts_of_a_subject_is_said_once(folder, capsys):
    """`diagnosis.json` and Python have each; another reason is another line."""
    for contrast in ("t1", "t2", "t1ce"):
        edit(folder, IDS[0], contrast, lambda a: np.where(a == a.max(), np.nan, a.astype("f4")))
    file_of(folder, IDS[0], "flair").write_bytes(b"no volume")
    for contrast in ("t1ce", "t2"):
        shutil.copy(file_of(folder, IDS[1], "t1"), file_of(folder, IDS[1], contrast))
    assert len(diagnose_data(folder).of_kind("unreadable")) == 4
    assert main(["diagnose", "data", str(folder)]) == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("DATA-NONFINITE") == shown.count("(likewise t1ce, t2)") == 1
    assert f"{IDS[0]}: flair: DATA-" in shown
    assert shown.count("are the same file") == 1
    assert f"{IDS[1]}_t1ce.nii.gz, {IDS[1]}_t2.nii.gz and {IDS[1]}_t1.nii.gz are" in shown


def test_subjects_with_errors_stand_first_and_a_terminal_shows_them_in_colour(
    folder, capsys, monkeypatch
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    edit(folder, IDS[1], "t2", lambda array: array[::-1].copy())
    file_of(folder, IDS[3], "t2").unlink()
    for subject in (IDS[0], IDS[2]):
        shutil.rmtree(folder / subject)
    assert main(["diagnose", "data", str(folder)]) == 3
    error, warning, fine, *_ = [s for s in capsys.readouterr().out.splitlines() if "Phantom_" in s]
    assert IDS[3] in error and "\x1b[1;31m" in error
    assert IDS[1] in warning and "\x1b[33m" in warning
    assert IDS[4] in fine and "\x1b[1;31m" not in fine and "\x1b[33m" not in fine


def test_one_subject_is_no_subjects(folder, capsys):
    for subject in IDS[1:]:
        shutil.rmtree(folder / subject)
    assert main(["diagnose", "data", str(folder)]) == 0
    assert "\n1 subject (BraTS" in capsys.readouterr().out


def test_empty_masks_are_equal_files_but_no_duplicates(folder):
    for subject in IDS[:2]:
        edit(folder, subject, "seg", np.zeros_like)
    assert not diagnose_data(folder).of_kind("duplicate")


def test_exit_code_json_and_pictures(folder, tmp_path, capsys):
    assert main(["diagnose", "data", str(folder)]) == 0
    assert "fit to train on" in capsys.readouterr().out
    edit(folder, IDS[2], "seg", lambda a: a * 0.3)
    output = tmp_path / "out"
    config = ["--config", "configs/segmentation/unet.yaml"]
    assert main(["diagnose", "data", str(folder), "--output", str(output), *config]) == 3
    written = json.loads((output / "diagnosis.json").read_text())
    assert written["breaks_training"] is True
    assert written["findings"][0]["kind"] == "labels"
    assert written["findings"][0]["subject"] == IDS[2]
    assert (output / f"{IDS[2]}.png").read_bytes().startswith(b"\x89PNG")


# Convergence: the same small segmentation, set up right and in four ways wrong.

WRONG = {
    "healthy": (None, [], None),
    "soft masks": ("soft", [], "a mask is not binary"),
    "slow": (
        None,
        ["model.params.optimizer_config.params.lr=2.0e-5"],
        "the learning rate is too low",
    ),
    "dice": (None, ["model.params.loss_config.params.dice=100"], "the Dice term weighs too much"),
    "shuffled": ("shuffled", [], "the masks belong to other images"),
}


def spoil(root, how):
    """Make the masks ``soft`` (255, blurred), or ``shuffled`` (each that of another patient)."""
    masks = {
        p.name: np.asarray(nib.load(file_of(root, p.name, "seg")).dataobj)
        for p in sorted(root.iterdir())
    }
    names = list(masks)
    for place, name in enumerate(names):
        if how == "soft":
            blurred = ndimage.gaussian_filter((masks[name] > 0) * 255.0, 1).astype("f4")
            edit(root, name, "seg", lambda a, b=blurred: b)
        else:
            edit(root, name, "seg", lambda a, b=masks[names[place - 1]]: b)


def diagnosed(root, run, steps, size, overrides):
    """Train a segmenter for ``steps``; return what ``diagnose run`` writes."""
    arguments = [
        "configs/segmentation/attention_unet_tiny.yaml",
        "configs/segmentation/lesion.yaml",
        f"data.params.root={root}",
        f"data.params.image_size={size}",
        "data.params.batch_size=4",
        "data.params.val_slices=4",
        "lightning.callbacks.samples=null",
        "lightning.callbacks.curve=null",
        "data.params.augmentation_config=null",
        "lightning.trainer.precision=32",
        "lightning.trainer.accelerator=cpu",
        f"lightning.trainer.max_steps={steps}",
        f"lightning.trainer.val_check_interval={steps // 2}",
        f"lightning.trainer.log_every_n_steps={max(1, steps // 75)}",
        "model.params.warmup_steps=5",
        *overrides,
    ]
    assert main(["segment", "train", *arguments, "--output", str(run)]) == 0
    assert main(["diagnose", "run", str(run), "--output", str(run / "why")]) == 0
    return json.loads((run / "why/diagnosis.json").read_text())


def check_cause(written, config, name):
    """The cause ``name`` comes first, or none is likely; the overrides are valid ones."""
    assert written["healthy"] == (name is None)
    if name:
        assert written["causes"][0]["name"] == name
    for cause in written["causes"]:
        if cause["override"]:
            load_config([config], [cause["override"]])


@pytest.mark.parametrize("setup", WRONG)
def test_a_wrong_setup_is_diagnosed_from_a_few_steps(setup, folder, tmp_path, capsys):
    how, overrides, name = WRONG[setup]
    if how:
        spoil(folder, how)
    run = tmp_path / "run"
    written = diagnosed(folder, run, 14, 32, overrides)
    check_cause(written, read_saved_config(run / "config.yaml"), name)
    printed = capsys.readouterr().out
    assert f"1. {name}" in printed if name else "No likely cause" in printed or "healthy" in printed
    assert (run / "why/diagnosis.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("setup", WRONG)
def test_a_wrong_setup_is_diagnosed_from_a_whole_run(setup, tmp_path):
    how, overrides, name = WRONG[setup]
    write_phantoms(tmp_path / "patients", 8, size=48, seed=1)
    if how:
        spoil(tmp_path / "patients", how)
    run = tmp_path / "run"
    written = diagnosed(tmp_path / "patients", run, 150, 48, overrides)
    check_cause(written, read_saved_config(run / "config.yaml"), name)


def test_a_diffusion_run_is_diagnosed_with_its_loss_by_timestep(run_folder, tmp_path, capsys):
    """Four steps are too few, and that is what is said."""
    with (run_folder / "metrics.csv").open() as file:
        names = {row["metric"] for row in csv.DictReader(file)}
    assert {"gradient/encoder_first", "gradient/output", "train/lr"} <= names
    assert any(name.startswith("train/loss_t") for name in names)
    output = tmp_path / "why"
    assert main(["diagnose", "run", str(run_folder), "--output", str(output)]) == 0
    written = json.loads((output / "diagnosis.json").read_text())
    assert written["causes"][0]["name"] == "the run is too short"
    assert written["data"]["split"]["val"] == ["Phantom_0003"]
    printed = capsys.readouterr().out
    assert "loss by timestep" in printed and "lightning.trainer.max_steps=40" in printed
    resumed = f"next: dsdiff train --resume {run_folder} lightning.trainer.max_steps=40"
    assert printed.rstrip().partition("Written")[0].rstrip().endswith(resumed)


def test_another_cure_is_tried_by_a_new_run_beside_this_one(run_folder, patients, tmp_path):
    rate = "model.params.optimizer_config.params.lr=0.0005"
    words = shlex.split(cure_command(run_folder, rate).replace("PATIENTS", str(patients)))[1:]
    assert rate in words and words[-1] == f"{run_folder}-cured"
    assert main([*words[:-1], str(tmp_path / "cured"), "--dry-run"]) == 0


def test_no_data_and_data_that_moved(run_folder, tmp_path, capsys):
    assert main(["diagnose", "run", str(run_folder), "--no-data"]) == 0
    assert "subjects examined" not in capsys.readouterr().out
    empty = tmp_path / "moved"
    assert main(["diagnose", "run", str(run_folder), "--root", str(empty)]) == 0
    assert "data not examined: DATA-MISSING" in " ".join(capsys.readouterr().out.split())


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert main(["diagnose", "run", str(tmp_path)]) == 4
    assert "CKPT-MISSING" in capsys.readouterr().err
