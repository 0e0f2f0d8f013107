"""Sampling: the geometry of the input, independent of batching, never mixed, resumed."""

import csv
import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from builders import INPUTS

from ldm.cli.main import main
from ldm.data.seen import read_seen
from ldm.errors import OutputError
from ldm.inference.fidelity import LIMIT
from ldm.inference.synthesis import Synthesiser
from ldm.storage import sha256


def sample(run, source, output, *more):
    """As ``dsdiff sample``, in fp32 on every machine unless ``more`` says otherwise."""
    start = ["sample", str(run), "--input", str(source), "--precision", "32"]
    return main([*start, "--output", str(output), *more])


@pytest.fixture(scope="module")
def one(tmp_path_factory, run_folder, patients):
    output = tmp_path_factory.mktemp("one")
    assert sample(run_folder, patients, output, "--subjects", "Phantom_0003") == 0
    return output


def test_output_takes_the_place_of_its_input(one, patients):
    """Shape, affine and codes are those of T1; outside the brain it is exactly 0; T1ce unneeded."""
    image = nib.load(one / "Phantom_0003_t1ce.nii.gz")
    t1 = nib.load(patients / "Phantom_0003/Phantom_0003_t1.nii.gz")
    assert image.shape == t1.shape
    np.testing.assert_array_equal(image.affine, t1.affine)
    for code in ("sform_code", "qform_code"):
        assert image.header[code] == t1.header[code]
    inputs = [
        np.asarray(nib.load(patients / f"Phantom_0003/Phantom_0003_{c}.nii.gz").dataobj)
        for c in ("t1", "t2", "flair")
    ]
    brain = np.any([a != 0 for a in inputs], axis=0)
    voxels = np.asarray(image.dataobj)
    assert voxels.dtype == np.float32
    assert (voxels[~brain] == 0).all()
    assert np.isfinite(voxels).all()
    assert voxels[brain].std() > 0


def test_costs_are_of_all_volumes_that_were_sampled_alike(tmp_path, run_folder, patients):
    """As of a job that was interrupted; seconds of other steps are not mixed with them."""

    def sampled(subject, *options):
        assert sample(run_folder, patients, tmp_path, "--subjects", subject, *options) == 0
        return [s["subject"] for s in json.loads((tmp_path / "cost.json").read_text())["subjects"]]

    assert sampled("Phantom_0003") == ["Phantom_0003"]
    assert sampled("Phantom_0001") == ["Phantom_0003", "Phantom_0001"]
    assert sampled("Phantom_0003") == ["Phantom_0003", "Phantom_0001"]  # it is there already
    assert sampled("Phantom_0001", "--overwrite", "--steps", "3") == ["Phantom_0001"]
    assert sampled("Phantom_0003", "--overwrite", "--timing", "1") == ["Phantom_0003"]
    assert sampled("Phantom_0003", "--overwrite", "--steps", "3") == ["Phantom_0003"]


def test_overwrite_says_that_it_leaves_what_would_be_the_same(
    tmp_path, run_folder, patients, capsys
):
    given = ("--subjects", "Phantom_0003", "--overwrite")
    for options, said in (
        ((), "written=1 failed=0 skipped=0:"),
        ((), "written=0 failed=0 skipped=1 (there already, and the same):"),
        (("--steps", "3"), "written=1 failed=0 skipped=0:"),
    ):
        assert sample(run_folder, patients, tmp_path, *given, *options) == 0
        assert said in capsys.readouterr().out


def test_sidecar_says_how_it_was_made(one):
    sidecar = json.loads((one / "Phantom_0003_t1ce.json").read_text())
    assert sidecar["Synthetic"] is True
    assert sidecar["request"]["steps"] == 2
    assert sidecar["intensity"]["contrast"] == "t1"
    assert sidecar["sha256"] == sha256(one / "Phantom_0003_t1ce.nii.gz")
    assert str(one) not in (one / "Phantom_0003_t1ce.json").read_text()


def test_needs_no_true_t1ce(tmp_path, run_folder, patients, one):
    source = tmp_path / "source"
    shutil.copytree(patients / "Phantom_0003", source / "Phantom_0003")
    for name in ("t1ce", "seg"):
        (source / f"Phantom_0003/Phantom_0003_{name}.nii.gz").unlink()
    assert sample(run_folder, source, tmp_path / "out") == 0
    name = "Phantom_0003_t1ce.nii.gz"
    assert sha256(tmp_path / "out" / name) == sha256(one / name)


@pytest.mark.parametrize("batch", ["1", "7"])
def test_independent_of_batch_size_and_order(tmp_path, run_folder, patients, one, batch):
    """A stochastic sampler in other batches, among other subjects: equal within float rounding."""
    name = "Phantom_0003_t1ce.nii.gz"
    options = ["--sampler", "ddpm", "--steps", "2"]
    only = ["--subjects", "Phantom_0003"]
    assert sample(run_folder, patients, tmp_path / "a", *options, *only) == 0
    others = ["--subjects", "Phantom_0003", "Phantom_0001", "--batch-size", batch]
    assert sample(run_folder, patients, tmp_path / "b", *options, *others) == 0
    a, b = (np.asarray(nib.load(tmp_path / f / name).dataobj) for f in ("a", "b"))
    np.testing.assert_allclose(a, b, atol=1e-5 * np.ptp(a))
    assert not np.allclose(a, np.asarray(nib.load(one / name).dataobj))  # ddim differs


def test_two_samples_lie_about_the_posterior_mean(tmp_path, run_folder, patients, caplog):
    """Their mean is the volume of temperature 0; the first is that of one sample asked alone."""
    only, name = ["--subjects", "Phantom_0003", "--enhancement", "0"], "Phantom_0003_t1ce"

    def sampled(folder, *options):
        assert sample(run_folder, patients, tmp_path / folder, *only, *options) == 0
        paths = [tmp_path / folder / f"{name}{end}.nii.gz" for end in ("", "_std")]
        return [np.asarray(nib.load(path).dataobj) for path in paths if path.exists()]

    (still,), (first,) = sampled("still", "--temperature", "0"), sampled("first")
    mean, deviation = sampled("two", "--samples", "2", "--deviation", "samples")
    inside = deviation > 0  # and no value was cut off
    assert inside.sum() > 100
    assert np.abs(mean - still)[inside].mean() < 0.01 * deviation[inside].mean()
    distance = np.abs(first - mean)[inside]
    np.testing.assert_allclose(distance.mean(), deviation[inside].mean(), rtol=0.01)
    sidecar = json.loads((tmp_path / f"two/{name}.json").read_text())
    assert sidecar["request"]["mirrored"] is True
    assert sampled("alike", "--samples", "2", "--steps", "1")[1].max() == 0
    assert "2 samples of one step are all alike" in caplog.text


def test_content_of_a_missing_contrast_does_not_matter(run_folder):
    from ldm.checkpoint import load_model
    from ldm.models.diffusion.noise import KeyedNoise

    model, *_ = load_model(run_folder)
    condition = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    presence = torch.tensor([[True, False, True]])
    images = []
    for content in (-1.0, 0.7):
        condition[:, 1] = content
        images.append(model.synthesise(condition, presence, KeyedNoise([(0, "a")], "cpu")))
    torch.testing.assert_close(*images, rtol=0, atol=0)


def test_run_again_skips_and_a_damaged_output_is_redone(
    tmp_path, run_folder, patients, one, capsys
):
    output = tmp_path / "out"
    shutil.copytree(one, output)
    path = output / "Phantom_0003_t1ce.nii.gz"
    digest = sha256(path)
    only = ["--subjects", "Phantom_0003"]
    assert sample(run_folder, patients, output, *only) == 0
    assert "skipped=1" in capsys.readouterr().out
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert sample(run_folder, patients, output, *only) == 0
    assert "written=1" in capsys.readouterr().out
    assert sha256(path) == digest


def test_killed_between_sidecar_and_volume_goes_on(tmp_path, run_folder, patients, one):
    output = tmp_path / "out"
    shutil.copytree(one, output)
    path = output / "Phantom_0003_t1ce.nii.gz"
    digest = sha256(path)
    path.unlink()
    assert sample(run_folder, patients, output, "--subjects", "Phantom_0003") == 0
    assert sha256(path) == digest


def test_other_settings_are_not_mixed_in(tmp_path, run_folder, patients, one, capsys):
    output = tmp_path / "out"
    shutil.copytree(one, output)
    before = sha256(output / "Phantom_0003_t1ce.nii.gz")
    other = ["--subjects", "Phantom_0003", "--seed", "1"]
    assert sample(run_folder, patients, output, *other) == 5
    assert "OUT-EXISTS" in capsys.readouterr().err
    assert sha256(output / "Phantom_0003_t1ce.nii.gz") == before
    assert sample(run_folder, patients, output, *other, "--overwrite") == 0
    assert sha256(output / "Phantom_0003_t1ce.nii.gz") != before


def test_samples_give_mean_and_standard_deviation(tmp_path, run_folder, patients):
    only = ["--subjects", "Phantom_0003"]
    assert sample(run_folder, patients, tmp_path / "n", *only, "--samples", "3") == 0
    spread = np.asarray(nib.load(tmp_path / "n/Phantom_0003_t1ce_std.nii.gz").dataobj)
    assert spread.min() == 0
    assert spread.max() > 0


@pytest.mark.parametrize("noise", ["smooth", "patient"])
def test_noise_along_the_slices_is_recorded_and_independent_of_batches(
    tmp_path, run_folder, patients, one, noise
):
    name = "Phantom_0003_t1ce"
    options = ["--subjects", "Phantom_0003", "--noise", noise]
    for batch in ("1", "7"):
        assert sample(run_folder, patients, tmp_path / batch, *options, "--batch-size", batch) == 0
    a, b = (np.asarray(nib.load(tmp_path / f / f"{name}.nii.gz").dataobj) for f in ("1", "7"))
    np.testing.assert_allclose(a, b, atol=1e-5 * np.ptp(a))
    assert json.loads((tmp_path / "1" / f"{name}.json").read_text())["request"]["noise"] == noise
    assert sample(run_folder, patients, tmp_path / "1", "--subjects", "Phantom_0003") == 5  # other
    assert not np.allclose(a, np.asarray(nib.load(one / f"{name}.nii.gz").dataobj))


def test_conditions_of_neighbouring_slices(tmp_path, train, patients):
    """2.5-D from training to volumes: one slice of T2 matters to those beside it, no others.

    To the network, that is: the prior of enhancement looks further.
    """
    run, source = tmp_path / "run", tmp_path / "source"
    assert train(run, "data.params.neighbours=1", "lightning.trainer.max_steps=2") == 0
    shutil.copytree(patients / "Phantom_0003", source / "Phantom_0003")
    path = source / "Phantom_0003/Phantom_0003_t2.nii.gz"
    image = nib.load(path)
    array = np.asarray(image.dataobj).copy()
    middle = int((array != 0).sum(axis=(0, 1)).argmax())
    plane = array[..., middle]
    plane[plane != 0] = plane[plane != 0][::-1]  # the same values: the scale of T2 stays
    volumes = []
    for name in ("before", "after"):
        network = ["--temperature", "0", "--enhancement", "0"]
        assert sample(run, source, tmp_path / name, *network) == 0
        volumes.append(nib.load(tmp_path / name / "Phantom_0003_t1ce.nii.gz").get_fdata())
        nib.save(nib.Nifti1Image(array, image.affine, image.header), path)
    changed = np.flatnonzero(np.abs(np.subtract(*volumes)).max(axis=(0, 1)))
    assert changed.tolist() == [middle - 1, middle, middle + 1]


def test_at_temperature_zero_the_seed_does_not_matter(tmp_path, run_folder, patients):
    name = "Phantom_0003_t1ce.nii.gz"
    for seed in ("0", "1"):
        options = ["--subjects", "Phantom_0003", "--temperature", "0", "--seed", seed]
        assert sample(run_folder, patients, tmp_path / seed, *options) == 0
    assert sha256(tmp_path / "0" / name) == sha256(tmp_path / "1" / name)


def test_a_bad_subject_does_not_stop_the_others(tmp_path, run_folder, patients, capsys):
    source = tmp_path / "source"
    shutil.copytree(patients, source)
    flair = source / "Phantom_0002/Phantom_0002_flair.nii.gz"
    flair.write_bytes(flair.read_bytes()[:-100])
    assert sample(run_folder, source, tmp_path / "out") == 9
    printed = capsys.readouterr()
    assert "written=2 failed=1 skipped=0" in printed.out
    assert "DATA-CORRUPT case=Phantom_0002" in printed.err
    assert not (tmp_path / "out/Phantom_0002_t1ce.nii.gz").exists()


def test_bf16_is_close_to_fp32(tmp_path, run_folder, patients, one, capsys):
    only = ["--subjects", "Phantom_0003", "--precision", "bf16"]
    assert sample(run_folder, patients, tmp_path / "bf16", *only) == 0
    assert "of its spread from that in 32 bit" in capsys.readouterr().out
    costs = [json.loads((f / "cost.json").read_text()) for f in (one, tmp_path / "bf16")]
    assert "first_call_from_32_bit" not in costs[0]
    assert 0 < costs[1]["first_call_from_32_bit"] < LIMIT
    name = "Phantom_0003_t1ce.nii.gz"
    a, b = (np.asarray(nib.load(f / name).dataobj) for f in (one, tmp_path / "bf16"))
    assert np.abs(a - b).mean() < 0.02 * np.ptp(a)


def test_a_batch_begun_on_another_kind_of_machine_is_never_mixed(
    tmp_path, run_folder, patients, monkeypatch, capsys
):
    """``auto`` is what it means where the batch began: that is written and compared."""

    def on(machine, precision="auto"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: machine)
        options = ["--subjects", "Phantom_0003", "--device", "cpu", "--precision", precision]
        code = sample(run_folder, patients, tmp_path, *options)
        sidecar = json.loads((tmp_path / "Phantom_0003_t1ce.json").read_text())
        return code, sidecar["request"]["precision"], capsys.readouterr()

    old, new = {}, {"avx512_bf16": True}
    assert on(old)[:2] == (0, "32")
    code, written, printed = on(new)
    assert (code, written) == (OutputError.exit_code, "32")
    assert "(precision 32 there, bf16 here)" in printed.err
    code, written, printed = on(new, "32")
    assert (code, written) == (0, "32")
    assert "written=0 failed=0 skipped=1" in printed.out
    assert on(new, "bf16")[0] == OutputError.exit_code


def test_inputs_are_never_changed(run_folder, patients, tmp_path):
    before = {p: (sha256(p), p.stat().st_mtime_ns) for p in patients.rglob("*.nii.gz")}
    assert sample(run_folder, patients, tmp_path / "out", "--subjects", "Phantom_0001") == 0
    assert before == {p: (sha256(p), p.stat().st_mtime_ns) for p in patients.rglob("*.nii.gz")}


def test_lps_and_ras_input_give_one_brain(tmp_path, run_folder, patients, one):
    """The same head stored in another orientation gives the same voxels in the world."""
    source = tmp_path / "source/Phantom_0003"
    source.mkdir(parents=True)
    for contrast in ("t1", "t2", "flair"):
        name = f"Phantom_0003_{contrast}.nii.gz"
        nib.save(
            nib.as_closest_canonical(nib.load(patients / "Phantom_0003" / name)), source / name
        )
    assert sample(run_folder, source.parent, tmp_path / "out") == 0
    turned = nib.load(tmp_path / "out/Phantom_0003_t1ce.nii.gz")
    assert nib.aff2axcodes(turned.affine) == ("R", "A", "S")
    expected = nib.as_closest_canonical(nib.load(one / "Phantom_0003_t1ce.nii.gz"))
    np.testing.assert_array_equal(turned.get_fdata(), expected.get_fdata())


def test_a_patient_with_two_files_of_a_contrast_fails_alone(tmp_path, patients, run_folder, capsys):
    """Beside a named one it is no matter; asked for, it fails as one that cannot be read."""
    folder = tmp_path / "patients"
    shutil.copytree(patients, folder)
    packed = folder / "Phantom_0002" / "Phantom_0002_t2.nii.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    command = ["sample", str(run_folder), "--input", str(folder), "--steps", "1", "--subjects"]
    assert main([*command, "Phantom_0001", "--output", str(tmp_path / "one")]) == 0
    both = [*command, "Phantom_0001", "Phantom_0002", "--output", str(tmp_path / "two")]
    capsys.readouterr()
    assert main(both) == 9
    assert "DATA-AMBIGUOUS case=Phantom_0002: Phantom_0002_t2.nii and" in capsys.readouterr().err
    written = [{p.name for p in (tmp_path / o).glob("*.nii.gz")} for o in ("one", "two")]
    assert written == [{"Phantom_0001_t1ce.nii.gz"}] * 2


def test_a_row_whose_id_leaves_the_output_is_a_failed_case(tmp_path, run_folder, patients, capsys):
    files = [f"{patients}/Phantom_0003/Phantom_0003_{c}.nii.gz" for c in INPUTS]
    rows = [",".join([i, *files]) for i in ("../out", "q")]
    table = tmp_path / "table.csv"
    table.write_text("\n".join([",".join(["id", *INPUTS]), *rows]))
    assert sample(run_folder, table, tmp_path / "in/out") == 9
    assert "DATA-ID" in capsys.readouterr().err
    assert {p.name for p in (tmp_path / "in/out").glob("*.nii.gz")} == {"q_t1ce.nii.gz"}
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["out"]


@pytest.mark.slow
def test_processes_that_share_subjects_write_the_volumes_of_one(
    tmp_path, patients, run_folder, capsys
):
    """Byte for byte, also beside a patient that cannot be read; and not again."""
    folder = tmp_path / "patients"
    shutil.copytree(patients, folder)
    damaged = folder / "Phantom_0002" / "Phantom_0002_t2.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:500])

    def sample(output: str, *options: str) -> int:
        where = ["--input", str(folder), "--output", str(tmp_path / output), "--device", "cpu"]
        return main(["sample", str(run_folder), *where, *options])

    codes = sample("one"), sample("two", "--devices", "2")
    assert codes == (9, 9)
    assert "written=2 failed=1 skipped=0" in capsys.readouterr().out
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").glob("Phantom*")}
    assert len(files) == 4  # two volumes and their sidecars
    for output in ("one", "two"):
        with (tmp_path / output / "failures.csv").open(newline="") as file:
            (failure,) = csv.DictReader(file)
        assert (failure["subject"], failure["code"]) == ("Phantom_0002", "DATA-CORRUPT")
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "two").glob("Phantom*")}
    subjects = json.loads((tmp_path / "two/cost.json").read_text())["subjects"]
    assert {s["subject"] for s in subjects} == {"Phantom_0001", "Phantom_0003"}
    assert sample("two", "--devices", "2") == 9
    assert "written=0 failed=1 skipped=2" in capsys.readouterr().out
    assert sample("none", "--subjects", "Phantom_0002") == 3
    assert "next:" not in capsys.readouterr().out  # there is nothing to evaluate
    assert sample("two", "--subjects", "Phantom_0001") == 0
    assert "Phantom_0002" in (tmp_path / "two/failures.csv").read_text()  # still lacks there
    shutil.copy(patients / damaged.relative_to(folder), damaged)
    assert sample("two") == 0
    assert not (tmp_path / "two/failures.csv").exists()


@pytest.mark.parametrize("devices", ["0", "-1"])
def test_a_number_of_processes_below_one_is_refused(tmp_path, patients, run_folder, devices):
    where = ["--input", str(patients), "--output", str(tmp_path / "out")]
    assert main(["sample", str(run_folder), *where, "--devices", devices]) == 2


def test_unseen_are_the_patients_that_the_run_kept_out(tmp_path, train, patients, capsys):
    run, output = tmp_path / "run", tmp_path / "out"
    parts = ["train=null", "val=[Phantom_0003]", "test=0.2"]
    assert train(run, "lightning.trainer.max_steps=1", *(f"data.params.{p}" for p in parts)) == 0
    printed = capsys.readouterr()
    assert printed.out.rstrip().endswith("--subjects unseen")  # the next command
    assert "Learning how far the truth lies from a mean of samples" in printed.err
    told = ["--input", str(patients), "--output", str(output), "--subjects", "unseen"]
    assert main(["sample", str(run), *told, "--steps", "1"]) == 0
    written = {path.name for path in output.glob("*.nii.gz")}
    assert len(written) == 1 and "Phantom_0003_t1ce.nii.gz" not in written
    (made,) = Synthesiser.load(run).volumes(patients, subjects="unseen", steps=1)
    assert {f"{made.id}_t1ce.nii.gz"} == written
    assert made.id not in read_seen(run) and len(read_seen(run)) == 1
