"""A segmenter trains from YAML, resumes exactly, writes label maps, and judges synthetic T1ce."""

import csv
import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from builders import read_scores

from ldm import evaluate
from ldm.checkpoint import load_model, read_run_config
from ldm.cli.main import main
from ldm.data.contrasts import load_contrasts, load_labels
from ldm.data.layouts import detect_layout
from ldm.errors import ConfigError, DataError, OutputError
from ldm.inference.segmentation import CommandSegmenter, NetworkSegmenter, Segmented
from ldm.model_file import read_model
from ldm.models.segmentation import Segmentation
from ldm.report.segmentation import evaluate_segmentations
from ldm.storage import MODEL_FILE

REAL, COPY_T1 = "real T1ce", "copy T1"


@pytest.fixture(scope="session")
def predicted(tmp_path_factory, segmenter_run, patients):
    """The label maps of that run."""
    folder = tmp_path_factory.mktemp("labels")
    assert main(predict(segmenter_run, patients, folder)) == 0
    return folder


def predict(run, patients, folder, *options):
    inputs = ["--input", str(patients), "--output", str(folder)]
    return ["segment", "predict", str(run), *inputs, *options]


def curve(run, metric):
    with (run / "metrics.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["metric"] == metric]
    return {int(r["step"]): float(r["value"]) for r in rows}


# ---- train ---------------------------------------------------------------------------------------


def test_training_logs_each_term_and_the_dice_of_each_region(segmenter_run):
    terms = [
        curve(segmenter_run, f"train/loss_{name}")
        for name in ("dice", "cross_entropy", "supervision")
    ]
    loss = curve(segmenter_run, "train/loss")
    assert len(loss) == 20
    assert all(loss[i] == pytest.approx(sum(t[i] for t in terms), rel=1e-4) for i in loss)
    for region in ("et", "tc", "wt"):
        assert set(curve(segmenter_run, f"val/dice_{region}")) == {9, 19}
    first, last = list(loss.values())[:5], list(loss.values())[-5:]
    assert np.median(last) < np.median(first)  # a batch without a lesion costs little at any time


def test_training_draws_what_is_segmented_and_where_the_gates_are_open(segmenter_run):
    names = {path.name for path in (segmenter_run / "samples").glob("*.png")}
    kinds = ("step", "attention")
    assert names == {f"{kind}-0000{step}.png" for kind in kinds for step in (10, 20)}


def test_saved_configuration_states_the_measured_weights(segmenter_run):
    model, config = load_model(segmenter_run)[0], read_run_config(segmenter_run)
    weights = config["model"]["params"]["loss_config"]["params"]["pos_weight"]
    assert len(weights) == 3 and min(weights) > 1
    assert weights[0] > weights[2]  # enhancing tumour is rarer than the whole
    assert model.loss.pos_weight == weights
    assert read_model(segmenter_run / MODEL_FILE)[1]["regions"] == ["et", "tc", "wt"]


def test_resumed_equals_uninterrupted(tmp_path, train_segmenter, weights):
    """Bitwise, with augmentation, a schedule that ends later and gates that wait for two steps."""
    options = [
        "configs/segmentation/staged.yaml",
        "lightning.callbacks.staged.params.steps=2",
        "model.params.decay_steps=5",
    ]
    assert train_segmenter(tmp_path / "whole", *options, "lightning.trainer.max_steps=4") == 0
    assert train_segmenter(tmp_path / "parts", *options, "lightning.trainer.max_steps=1") == 0
    resume = ["segment", "train", "--resume", str(tmp_path / "parts")]
    assert main([*resume, "lightning.trainer.max_steps=4"]) == 0
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")


def test_patients_without_labels_are_named(tmp_path, patients, train_segmenter, capsys):
    copy = tmp_path / "patients"
    shutil.copytree(patients, copy)
    (copy / "Phantom_0002/Phantom_0002_seg.nii.gz").unlink()
    assert train_segmenter(tmp_path / "run", f"data.params.root={copy}") == 3
    assert "case=Phantom_0002: 1 of 2 training patients have no seg" in capsys.readouterr().err


# ---- predict -------------------------------------------------------------------------------------


def test_label_maps_lie_on_the_grid_of_the_input(predicted, patients, segmenter_run):
    image = nib.load(patients / "Phantom_0003/Phantom_0003_t1.nii.gz")
    labels = nib.load(predicted / "Phantom_0003_seg.nii.gz")
    assert labels.get_data_dtype() == np.uint8 and labels.shape == image.shape
    assert np.array_equal(labels.affine, image.affine)
    voxels = np.asarray(labels.dataobj)
    assert set(np.unique(voxels)) <= {0, 1, 2, 4}
    assert not voxels[image.get_fdata() == 0].any()
    sidecar = json.loads((predicted / "Phantom_0003_seg.json").read_text())
    assert sidecar["request"]["regions"] == ["et", "tc", "wt"]
    assert sidecar["request"]["model_digest"] == read_model(segmenter_run / MODEL_FILE)[1]["sha256"]
    assert set(sidecar["inputs"]) == {"t1", "t1ce", "t2", "flair"}
    assert sidecar["geometry"] == {"form": "sform"}
    assert sidecar["weights"] == "ema"
    pictures = {path.name for path in (predicted / "pictures").iterdir()}
    assert {"Phantom_0003_overlay.png", "Phantom_0003_attention.png"} <= pictures


@pytest.mark.slow
def test_processes_that_share_subjects_write_the_label_maps_of_one(
    tmp_path, predicted, patients, segmenter_run, capsys
):
    """Byte for byte, with the pictures and the sidecars; and not again."""
    again = predict(segmenter_run, patients, tmp_path, "--device", "cpu", "--devices", "2")
    assert main(again) == 0
    one, two = (
        {p.relative_to(f): p.read_bytes() for p in f.rglob("Phantom*")}
        for f in (predicted, tmp_path)
    )
    assert len(one) == 3 * 4
    assert one == two
    capsys.readouterr()
    assert main(again) == 0
    assert "written=0 failed=0 skipped=3" in capsys.readouterr().out
    assert main([*again[:-1], "0"]) == 2


def test_label_map_is_what_the_network_says_of_each_slice(predicted, patients, segmenter_run):
    segmenter = NetworkSegmenter(segmenter_run, batch_size=3)
    layout, subjects = detect_layout(patients)
    prepared = segmenter.prepare(subjects["Phantom_0003"], layout)
    place = len(prepared.brain) // 2
    condition = segmenter._condition(prepared, [place])
    with torch.no_grad():
        logits = segmenter.model.logits(condition, torch.ones(1, 4, dtype=torch.bool))[0]
    whole = segmenter.masks(prepared)["wt"][place]
    height, width = whole.shape
    assert height <= 24 and width <= 32  # one window holds a slice
    top, left = (24 - height) // 2, (32 - width) // 2
    expected = logits[0, 2, top : top + height, left : left + width].numpy() > 0
    assert np.array_equal(whole, expected & prepared.brain[place])


def test_same_command_goes_on_and_another_overwrites_nothing(
    predicted, patients, segmenter_run, tmp_path, capsys
):
    shutil.copytree(predicted, tmp_path / "labels")
    assert main(predict(segmenter_run, patients, tmp_path / "labels")) == 0
    assert "written=0 failed=0 skipped=3" in capsys.readouterr().out
    foreign = tmp_path / "labels/Phantom_0002_seg.nii.gz"
    shutil.copy(patients / "Phantom_0002/Phantom_0002_seg.nii.gz", foreign)
    (tmp_path / "labels/Phantom_0002_seg.json").unlink()
    before = foreign.read_bytes()
    assert main(predict(segmenter_run, patients, tmp_path / "labels")) == 5
    assert foreign.read_bytes() == before and "OUT-EXISTS" in capsys.readouterr().err
    options = ["--overwrite", "--no-pictures", "--subjects", "Phantom_0002"]
    assert main(predict(segmenter_run, patients, tmp_path / "labels", *options)) == 0
    assert foreign.read_bytes() == (predicted / "Phantom_0002_seg.nii.gz").read_bytes()


def test_a_map_made_with_nan_set_to_zero_is_none_of_a_strict_run(
    tmp_path, segmenter_run, patients, capsys
):
    source, labels = tmp_path / "patients", tmp_path / "labels"
    shutil.copytree(patients / "Phantom_0003", source / "Phantom_0003")
    path = source / "Phantom_0003/Phantom_0003_t1.nii.gz"
    image = nib.load(path)
    voxels = image.get_fdata(dtype=np.float32)
    voxels[0, 0, 0] = np.nan
    nib.Nifti1Image(voxels, image.affine).to_filename(path)
    tolerant = predict(segmenter_run, source, labels, "--nonfinite", "zero")
    assert main(tolerant) == 0
    told = json.loads((labels / "Phantom_0003_seg.json").read_text())
    assert told["request"]["nonfinite"] == "zero"
    capsys.readouterr()
    assert main(tolerant) == 0
    assert "skipped=1" in capsys.readouterr().out
    assert main(predict(segmenter_run, source, labels)) == 5
    assert "OUT-EXISTS" in capsys.readouterr().err
    assert main(predict(segmenter_run, source, labels, "--overwrite")) == 3
    assert "DATA-NONFINITE" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
def test_a_network_that_overflows_paints_no_label(
    tmp_path, segmenter_run, patients, capsys, monkeypatch, wrong
):
    """The sigmoid of infinity is 1, a label as good as any."""
    plain = Segmentation.logits

    def overflows(self, *args):
        first, *others = plain(self, *args)
        first[..., first.shape[-2] // 2, first.shape[-1] // 2] = wrong
        return [first, *others]

    monkeypatch.setattr(Segmentation, "logits", overflows)
    given = predict(segmenter_run, patients, tmp_path / "out", "--subjects", "Phantom_0001")
    assert main(given) == 6
    assert "NONFINITE-SAMPLE" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.nii*"))


def test_models_of_another_kind_are_refused(tmp_path, segmenter_run, run_folder, patients, capsys):
    assert main(predict(run_folder, patients, tmp_path / "labels")) == 4
    assert "segments nothing" in capsys.readouterr().err
    out = ["--input", str(patients), "--output", str(tmp_path / "images")]
    assert main(["sample", str(segmenter_run), *out]) == 4
    assert "next is dsdiff segment predict" in capsys.readouterr().err


def test_patches_of_volumes_train_and_segment_in_windows(tmp_path, train_segmenter, patients):
    volumes = ["configs/segmentation/volume.yaml", "configs/segmentation/lesion.yaml"]
    volumes += ["data.params.image_size=[8,16,16]", "data.params.batch_size=1"]
    assert train_segmenter(tmp_path / "run", *volumes, "lightning.trainer.max_steps=2") == 0
    options = ["--subjects", "Phantom_0003"]
    assert main(predict(tmp_path / "run", patients, tmp_path / "labels", *options)) == 0
    labels = np.asarray(nib.load(tmp_path / "labels/Phantom_0003_seg.nii.gz").dataobj)
    assert set(np.unique(labels)) <= {0, 1}
    assert (tmp_path / "labels/pictures/Phantom_0003_attention.png").is_file()


# ---- evaluate ------------------------------------------------------------------------------------


def test_the_reference_agrees_with_itself(patients):
    result = evaluate_segmentations(patients, patients)
    assert result.protocol.regions == ("et", "tc", "wt") and len(result.subjects) == 3
    perfect = {"dice": 1, "iou": 1, "sensitivity": 1, "hd95": 0}
    for region in result.protocol.regions:
        for measure, value in perfect.items():
            assert set(result.values("prediction", region, measure).values()) == {value}
        found, labels = (
            result.values("prediction", region, f"{n}_ml") for n in ("volume", "labels")
        )
        assert found == labels and min(found.values()) > 0


def test_label_maps_of_a_network_are_named_where_they_are_the_reference(predicted):
    result = evaluate_segmentations(predicted, predicted, regions=["lesion"], allow_seen=True)
    assert any("drawn by dsdiff segment predict" in said for said in result.remarks())


def test_volumes_are_in_millilitres(patients):
    image = nib.load(patients / "Phantom_0001/Phantom_0001_seg.nii.gz")
    count = (np.asarray(image.dataobj) == 4).sum()
    volume = evaluate_segmentations(patients, patients, subjects=["Phantom_0001"])
    expected = count * np.prod(image.header.get_zooms()) / 1000
    assert volume.mean("prediction", "et", "volume_ml") == pytest.approx(expected, rel=1e-5)


def test_tables_files_and_terminal_say_the_same(tmp_path, predicted, patients, capsys):
    folders = ["--prediction", str(predicted), "--reference", str(patients), "--allow-seen"]
    assert main(["segment", "evaluate", *folders, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    with (tmp_path / "segmentation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({(row["subject"], row["region"]) for row in rows}) == 9
    stored = read_scores(tmp_path / "segmentation.json")
    wanted = [row for row in rows if (row["region"], row["measure"]) == ("wt", "dice")]
    dice = [float(row["value"]) for row in wanted]
    assert dice == [stored["prediction", row["subject"], "wt", "dice"] for row in wanted]
    assert f"{np.mean(dice):.4f}" in printed
    page = (tmp_path / "report.html").read_text()
    assert f"{np.mean(dice):.4f} ± {np.std(dice, ddof=1):.4f}" in page
    assert "data:image/png" in page
    assert f"dsdiff segment evaluate --prediction …/{predicted.name} --reference …/" in page
    lesion = evaluate_segmentations(predicted, patients, regions=["lesion"], allow_seen=True)
    whole = lesion.values("prediction", "lesion", "dice")  # the whole tumour is any label
    assert list(whole.values()) == pytest.approx(dice)


def test_a_map_that_cannot_be_read_ends_no_other(tmp_path, patients):
    """The page and the scores are written in Python as on the command line."""
    made, page = tmp_path / "made", tmp_path / "scores"
    made.mkdir()
    for patient in ("Phantom_0001", "Phantom_0002"):
        shutil.copy(patients / f"{patient}/{patient}_seg.nii.gz", made)
    (made / "Phantom_0001_seg.nii.gz").write_bytes(b"cut off")
    result = evaluate_segmentations(made, patients, output=page, layout="brats2021")
    assert result.failures["prediction"]["Phantom_0001"].startswith("DATA-")
    assert result.mean("prediction", "wt", "dice") == 1
    assert "Phantom_0001" in (page / "report.html").read_text()
    folders = ["--prediction", str(made), "--reference", str(patients), "--layout", "brats2021"]
    assert main(["segment", "evaluate", *folders, "--output", str(page)]) == 9
    assert main(["segment", "evaluate", *folders, "--subjects", "Phantom_0001"]) == 3  # of nobody
    with pytest.raises(OutputError, match="OUT-INPUT"):
        evaluate_segmentations(made, patients, output=patients)


@pytest.mark.parametrize("damage", ["NaN around the head", "thick slices"])
def test_a_picture_changes_no_score(tmp_path, patients, damage):
    """An image that cannot be shown beside the labels is left out of the page, and nothing else."""
    made, real = tmp_path / "made", tmp_path / "real"
    made.mkdir()
    shutil.copytree(patients / "Phantom_0001", real / "Phantom_0001")
    shutil.copy(real / "Phantom_0001/Phantom_0001_seg.nii.gz", made)
    path = real / "Phantom_0001/Phantom_0001_t2.nii.gz"
    image = nib.load(path)
    voxels = image.get_fdata(dtype=np.float32)
    voxels = np.where(voxels == 0, np.nan, voxels) if "NaN" in damage else voxels[..., ::2]
    nib.save(nib.Nifti1Image(voxels, image.affine), path)
    plain, with_page = (
        evaluate_segmentations(made, real, output=output) for output in (None, tmp_path / "page")
    )
    assert not with_page.failures.get("prediction")
    assert repr(with_page.scores) == repr(plain.scores)


def test_regions_of_python_are_those_of_the_command_line(predicted, patients):
    options = {"subjects": ["Phantom_0003"], "allow_seen": True}
    named = evaluate_segmentations(predicted, patients, regions="tumour", **options)
    listed = evaluate_segmentations(predicted, patients, regions=["et", "tc", "wt"], **options)
    assert repr(named.scores) == repr(listed.scores)
    with pytest.raises(ConfigError, match="CONFIG-VALUE: regions is 'tumor'"):
        evaluate_segmentations(predicted, patients, regions="tumor", **options)


def test_a_folder_without_label_maps_is_refused(tmp_path, patients):
    shutil.copy(patients / "Phantom_0001/Phantom_0001_t1.nii.gz", tmp_path)
    with pytest.raises(DataError, match="holds no segmentation such as ID_seg.nii.gz"):
        evaluate_segmentations(tmp_path, patients)


# ---- downstream ----------------------------------------------------------------------------------


class Enhancement:
    """An ideal reader: what is a fifth brighter on T1ce than on T1 enhances, the rest it knows."""

    regions = ("et", "tc", "wt")
    contrasts = ("t1", "t1ce")

    def has_seen(self, subject):
        return False  # it was never trained

    def segment(self, subject, layout):
        images, geometry = load_contrasts(subject, layout, ["t1", "t1ce"])
        labels = load_labels(subject, layout, geometry)
        brain = images["t1"] != 0
        gain = images["t1ce"] / np.where(brain, images["t1"], 1)
        bright = gain > 1.2 * np.median(gain[brain])
        return Segmented(np.where((labels > 0) & bright, 4, 2 * (labels > 0)), geometry)


@pytest.fixture
def half_enhanced(tmp_path, patients):
    """Synthetic T1ce that enhances by 30 % of what is real, with the real one in `real`."""
    for subject in ("Phantom_0001", "Phantom_0002", "Phantom_0003"):
        source = patients / subject
        t1, t1ce = (nib.load(source / f"{subject}_{c}.nii.gz") for c in ("t1", "t1ce"))
        weak = (0.7 * t1.get_fdata() + 0.3 * t1ce.get_fdata()).astype(np.float32)
        for name in ("weak", "real"):
            (tmp_path / name).mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(weak, t1.affine), tmp_path / f"weak/{subject}_t1ce.nii.gz")
        shutil.copy(source / f"{subject}_t1ce.nii.gz", tmp_path / "real")
    return tmp_path


def test_real_t1ce_scores_highest_and_t1_copied_as_t1ce_lowest(half_enhanced, patients):
    folders = {name: half_enhanced / name for name in ("weak", "real")}
    result = evaluate(folders, patients, segmenter=Enhancement()).others["downstream"]
    real, truth = ([s[1:] for s in result.scores if s.row == row] for row in ("real", REAL))
    assert repr(real) == repr(truth)
    assert result.mean(REAL, "et", "dice_real") == 1
    for measure in ("dice_real", "dice", "volume_ml"):
        real, weak, copied = (result.mean(row, "et", measure) for row in (REAL, "weak", COPY_T1))
        assert real > weak > copied == 0
    assert result.mean(COPY_T1, "wt", "dice") == 1  # its outline needs no gadolinium
    assert result.mean(COPY_T1, "wt", "nsd") == 1 and result.mean(COPY_T1, "wt", "hd95") == 0
    assert result.mean(REAL, "et", "hd95") < result.mean(COPY_T1, "et", "hd95")


def test_false_enhancement_is_counted_where_the_labels_hold_none(half_enhanced, patients):
    """In Phantom_0001, whose labels no longer name it, all that enhances is false."""
    copy = half_enhanced / "patients"
    shutil.copytree(patients, copy)
    path = copy / "Phantom_0001/Phantom_0001_seg.nii.gz"
    image = nib.load(path)
    voxels = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(np.where(voxels == 4, 1, voxels).astype(np.uint8), image.affine), path)
    rows = {"real": half_enhanced / "real"}
    result = evaluate(rows, copy, segmenter=Enhancement()).others["downstream"]
    false = {row: result.summary(row)["et", "false_ml"] for row in (REAL, COPY_T1)}
    found = result.values(REAL, "et", "volume_ml")["Phantom_0001"]
    assert false[REAL].n == 1 and false[REAL].mean == found > 0 == false[COPY_T1].mean
    assert result.values(REAL, "et", "dice")["Phantom_0001"] == 0


class Failing(Enhancement):
    """Runs out of memory on one patient: on the real volume, or on what stands in its place."""

    def __init__(self, on):
        self.on, self.asked = on, []

    def segment(self, subject, layout):
        self.asked.append(subject.id)
        if subject.id == "Phantom_0001" and self.asked.count(subject.id) >= self.on:
            raise DataError("DATA-SEGMENTER", "out of memory", subject.id)
        return super().segment(subject, layout)


def test_a_segmenter_that_fails_on_one_patient_ends_no_other(half_enhanced, patients):
    rows = {"weak": half_enhanced / "weak"}
    others = {"Phantom_0002", "Phantom_0003"}
    result = evaluate(rows, patients, segmenter=Failing(1)).others["downstream"]
    for row in (REAL, "weak", COPY_T1):
        told = result.failures[row]["Phantom_0001"]
        assert told == "the real patient: DATA-SEGMENTER: out of memory"
        assert set(result.values(row, "wt", "dice")) == others
    result = evaluate(rows, patients, segmenter=Failing(2)).others["downstream"]
    assert result.failures["weak"] == {"Phantom_0001": "DATA-SEGMENTER: out of memory"}
    assert set(result.values("weak", "wt", "dice")) == others
    assert set(result.values(REAL, "wt", "dice")) == {"Phantom_0001", *others}


def test_a_command_reads_real_and_synthetic_images_by_one_numbering(half_enhanced, patients):
    """That of the data set: enhancing tumour is 3 in BraTS 2023."""
    copy, labels = half_enhanced / "of2023", {4: 3}
    shutil.copytree(patients, copy)
    for path in copy.glob("*/*_seg.nii.gz"):
        image = nib.load(path)
        voxels = np.asarray(image.dataobj)
        changed = np.where(voxels == 4, labels[4], voxels).astype(np.uint8)
        nib.save(nib.Nifti1Image(changed, image.affine), path)
    body = (
        "case = next(pathlib.Path(given).iterdir()).name\n"
        f"shutil.copy(f'{copy}/{{case}}/{{case}}_seg.nii.gz', out)"
    )
    command = CommandSegmenter(copying_command(half_enhanced, body))
    told = {"labels": "necrosis 1, oedema 2, enhancing 3", "segmenter": command}
    rows = {"weak": half_enhanced / "weak"}
    result = evaluate(rows, copy, **told).others["downstream"]
    for row in (REAL, "weak", COPY_T1):
        assert result.mean(row, "et", "dice") == 1


def test_evaluate_takes_a_trained_segmenter(half_enhanced, patients, segmenter_run, capsys):
    command = ["evaluate", "--reference", str(patients), "--segmenter", str(segmenter_run)]
    command += ["--prediction", str(half_enhanced / "real"), "--subjects", "Phantom_0003"]
    assert main([*command, "--output", str(half_enhanced / "out")]) == 0
    assert "Segmentation with synthetic volumes" in capsys.readouterr().out
    stored = read_scores(half_enhanced / "out/downstream.json")
    own, real = ({k[1:]: v for k, v in stored.items() if k[0] == r} for r in ("prediction", REAL))
    assert own == real
    assert "Volumes found" in (half_enhanced / "out/report.html").read_text()
    with (half_enhanced / "out/downstream.csv").open() as file:
        assert {row["row"] for row in csv.DictReader(file)} == {REAL, "prediction", COPY_T1}


def test_a_segmenter_blind_to_t1ce_is_refused(half_enhanced, patients):
    segmenter = Enhancement()
    segmenter.contrasts = ("t1", "flair")
    with pytest.raises(DataError, match="takes t1, flair"):
        evaluate({"real": half_enhanced / "real"}, patients, segmenter=segmenter)


def copying_command(folder: Path, body: str) -> str:
    script = folder / "segment.py"
    script.write_text(f"import sys, shutil, pathlib\ngiven, out = sys.argv[1:]\n{body}\n")
    return f"{sys.executable} {script} {{input}} {{output}}"


def test_any_command_segments(tmp_path, patients):
    """A program that finds what the labels say, in the images that it is given."""
    body = (
        "case = next(pathlib.Path(given).iterdir()).name\n"
        "names = {p.name for p in pathlib.Path(given, case).iterdir()}\n"
        "assert names == {f'{case}_{c}.nii.gz' for c in ('t1', 't1ce', 't2', 'flair')}\n"
        f"shutil.copy(f'{patients}/{{case}}/{{case}}_seg.nii.gz', out)"
    )
    layout, subjects = detect_layout(patients)
    segmented = CommandSegmenter(copying_command(tmp_path, body)).segment(
        subjects["Phantom_0002"], layout
    )
    expected = load_labels(subjects["Phantom_0002"], layout, segmented.geometry)
    assert np.array_equal(segmented.labels, expected) and expected.any()


@pytest.mark.parametrize(
    ("body", "words"),
    [("sys.exit('no licence')", "exit code 1: no licence"), ("pass", "wrote no Phantom_0001_seg")],
    ids=["fails", "writes nothing"],
)
def test_a_command_that_fails_is_named(tmp_path, patients, body, words):
    layout, subjects = detect_layout(patients)
    with pytest.raises(DataError, match=words):
        CommandSegmenter(copying_command(tmp_path, body)).segment(subjects["Phantom_0001"], layout)
    with pytest.raises(ConfigError, match="expected {input} and {output}"):
        CommandSegmenter("segment everything")
