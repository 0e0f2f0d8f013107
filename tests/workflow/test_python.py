"""The Python door: README and docs/python.md as written, and equal to the command line."""

import contextlib
import functools
import io
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from workflow.conftest import TINY

import ldm
from ldm import Synthesiser, train
from ldm.cli.main import main
from ldm.errors import CheckpointError, ConfigError, DataError, OutputError, PartialError
from ldm.inference.synthesis import SyntheticVolume
from ldm.storage import sha256

REPO = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ID = "Phantom_0003"
TENSORS = torch.nn.Module, tuple  # which show what they hold, as torch does


def session(page: str) -> list[tuple[str, str]]:
    """Return each block of Python and what it prints, which the ``text`` block after it shows."""
    blocks = [match.groups() for match in BLOCK.finditer(page)]
    following = [*blocks[1:], ("", "")]
    return [
        (code, shown if kind == "text" else "")
        for (language, code), (kind, shown) in zip(blocks, following, strict=True)
        if language == "python"
    ]


def run_session(page: str) -> None:
    """Run the blocks in one namespace: each prints what the page shows, and nothing else.

    What a notebook shows of each object that a call returned is a few lines that say something.
    """
    namespace: dict = {}
    for code, shown in session(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "session", "exec"), namespace)  # noqa: S102
        assert printed.getvalue() == shown, code
        for made in namespace.values():
            if type(made).__module__.startswith("ldm.") and not isinstance(made, TENSORS):
                assert len(repr(made)) < 600 and " object at 0x" not in repr(made), code


@pytest.fixture
def files(patients):
    """``files(contrast)``: the path of a volume of the held-out patient."""
    return lambda contrast: patients / ID / f"{ID}_{contrast}.nii.gz"


@pytest.fixture(scope="module")
def synthesiser(run_folder):
    return Synthesiser.load(run_folder, device="cpu")


@pytest.fixture(scope="module")
def sampled(tmp_path_factory, run_folder, patients):
    """What ``dsdiff sample`` writes with two samples."""
    output = tmp_path_factory.mktemp("sampled")
    words = ["sample", run_folder, "--input", patients, "--output", output, "--subjects", ID]
    assert main([str(word) for word in [*words, "--samples", 2, "--seed", 4]]) == 0
    return output


def test_the_page_works_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_session((REPO / "docs/python.md").read_text(encoding="utf-8"))
    assert (tmp_path / "comparison/report.html").is_file()
    assert len(ldm.evaluate({"a": "predictions"}, "PATIENTS", baseline=False).scores) > 10


def test_scores_are_a_data_frame(tmp_path, patients, sampled):
    """pandas takes the long table as it is, and finds the means of the summary."""
    pandas = pytest.importorskip("pandas")
    result = ldm.evaluate({"mine": sampled}, patients, allow_seen=True)
    frame = pandas.DataFrame(result.scores)
    assert list(frame.columns) == ["row", "seed", "subject", "region", "measure", "value"]
    means = frame.pivot_table(index="row", columns=["region", "measure"], values="value")
    for row in ("mine", "copy T1"):
        expected = result.mean(row, "brain", "psnr")
        assert means.loc[row, ("brain", "psnr")] == pytest.approx(expected)


def test_the_readme_works_as_written(tmp_path, monkeypatch, run_folder, patients, files):
    shutil.copytree(run_folder, tmp_path / "runs/mine")
    (tmp_path / "NEW_PATIENTS").symlink_to(patients)
    (tmp_path / "p1").mkdir()
    for contrast in ("t1", "t2", "flair"):
        shutil.copy(files(contrast), tmp_path / f"p1/{contrast}.nii.gz")
    monkeypatch.chdir(tmp_path)
    run_session((REPO / "README.md").read_text(encoding="utf-8"))
    assert len(list((tmp_path / "predictions").glob("Phantom_000*_t1ce.nii.gz"))) == 3


def test_volumes_are_those_of_the_command_line(tmp_path, synthesiser, patients, sampled):
    (result,) = synthesiser.volumes(patients, [ID], samples=2, seed=4)
    result.save(tmp_path)
    names = sorted(path.name for path in tmp_path.glob("[!.]*"))
    assert names == [f"{ID}_t1ce.json", f"{ID}_t1ce.nii.gz", f"{ID}_t1ce_std.nii.gz"]
    for name in names:
        assert sha256(tmp_path / name) == sha256(sampled / name)
    assert result.sidecar == json.loads((sampled / f"{ID}_t1ce.json").read_text())
    for image, name in ((result.image, "t1ce"), (result.std, "t1ce_std")):
        written = nib.load(sampled / f"{ID}_{name}.nii.gz")
        np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(written.dataobj))
        np.testing.assert_array_equal(image.affine, written.affine)


@pytest.mark.parametrize("kind", ["path", "nibabel", "array"])
def test_a_contrast_is_a_path_an_image_or_an_array(synthesiser, files, sampled, kind):
    """With the id of the folder the noise, and so every voxel, is that of ``dsdiff sample``."""

    def given(contrast):
        image = nib.load(files(contrast))
        return {
            "path": str(files(contrast)),
            "nibabel": image,
            "array": (np.asarray(image.dataobj), image.affine),
        }[kind]

    contrasts = {name: given(name) for name in ("t1", "t2", "flair")}
    image = synthesiser(**contrasts, subject=ID, samples=2, seed=4)
    written = nib.load(sampled / f"{ID}_t1ce.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(written.dataobj))
    np.testing.assert_allclose(image.affine, written.affine, atol=1e-6)
    other = synthesiser(**contrasts, subject="another", samples=2, seed=4)
    assert not np.array_equal(other.get_fdata(), image.get_fdata())


@pytest.mark.parametrize("dtype", [bool, np.float16, np.int64, np.uint16, np.float64])
def test_arrays_of_any_number_type_are_read_as_they_are(dtype):
    from ldm.inference.given import as_file

    array = (np.arange(60).reshape(3, 4, 5) % 2).astype(dtype)
    volume = as_file("t1", (array, np.eye(4))).read()
    np.testing.assert_array_equal(volume.array, array.astype(np.float32))


def test_a_wrong_contrast_is_one_sentence(synthesiser, files):
    own = {name: files(name) for name in ("t1", "t2", "flair")}
    with pytest.raises(
        ConfigError, match=r"'t1w' is neither .* \(nearest: 't1'\): it takes t1, t2"
    ):
        synthesiser(**own, t1w=files("t1"))
    with pytest.raises(DataError, match=r"no flair: this model takes t1, t2, flair; give flair="):
        synthesiser(t1=files("t1"), t2=files("t2"), flair=None)
    with pytest.raises(DataError, match=r"t2 is a ndarray: give a path, a nibabel image or \(arr"):
        synthesiser(**own | {"t2": np.zeros((4, 4, 4))})
    with pytest.raises(DataError, match="cannot read nowhere.nii.gz"):
        synthesiser(**own | {"t2": "nowhere.nii.gz"})
    image = nib.load(files("t2"))
    moved = (np.asarray(image.dataobj), image.affine + np.eye(4))
    with pytest.raises(DataError, match="DATA-AFFINE"):
        synthesiser(**own | {"t2": moved})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 3}, r"'step' is no option of sampling \(nearest: 'steps'\)"),
        ({"steps": 0}, "steps is 0: give a whole number, 1 or more"),
        ({"steps": 2.5}, "steps is 2.5: give a whole number, 1 or more"),
        ({"seed": 2**64}, f"seed is {2**64}: give a whole number, 0 to {2**63 - 1}"),
        ({"seed": -1}, "seed is -1: give a whole number, 0 to"),
        ({"noise": "slices"}, r"noise is 'slices': give one of .* \(nearest: 'slice'\)"),
        ({"overlap": 0.5}, "samples slices, which have no windows"),
        ({"precision": "auto"}, "give precision to Synthesiser.load"),
        ({"guidance": 2}, "in training no item lost all its conditions"),
    ],
)
def test_a_wrong_option_is_refused_before_any_work(synthesiser, options, message):
    with pytest.raises(ConfigError, match=message):
        synthesiser.volumes("NOWHERE", **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda data, run: ldm.diagnose_data(data, limit=0), "limit is 0: give a number of pat"),
        (lambda data, run: ldm.diagnose_data(data, {"valu": 1}), "data.params.valu is not a param"),
        (lambda data, run: ldm.sweep(run, data, "swept", steps=[1, 0]), "steps is 0: give a whole"),
        (lambda data, run: ldm.evaluate(data, data).summary("mien"), "row is 'mien': give one of"),
        (
            lambda data, run: ldm.train(run / "config.yaml", {"lightning.trainer.max_steps": "x"}),
            "lightning.trainer.max_steps is 'x' (str)",
        ),
        (
            lambda data, run: ldm.train(
                run / "config.yaml", {"lightning.trainer.max_steps": np.int64(0)}
            ),
            "lightning.trainer.max_steps is 0: give a whole number",
        ),
    ],
)
def test_a_mistake_is_named_as_it_was_typed(
    call, message, patients, run_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(message)):
        call(patients, run_folder)
    assert list(tmp_path.iterdir()) == []


def test_no_volume_is_saved_beside_the_folder_of_its_patient(synthesiser, patients, tmp_path):
    (result,) = synthesiser.volumes(patients, [ID])
    with pytest.raises(OutputError, match=r"OUT-INPUT: .* further subjects"):
        result.save(patients)
    assert result.save(tmp_path / "beside").is_file()


def test_home_is_found_in_every_path(tmp_path, monkeypatch, run_folder, patients):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    ldm.export(run_folder, "~/handed")
    assert Synthesiser.load("~/handed").target == "t1ce"
    ldm.evaluate(patients, patients, subjects=[ID], output="~/scores")
    assert not (tmp_path / "~").exists()
    assert (tmp_path / "scores/report.html").is_file()


@pytest.mark.parametrize("path", [None, 5, "~nobody-of-this-name/x"])
@pytest.mark.parametrize(
    "call",
    [
        lambda path, run: Synthesiser.load(path),
        lambda path, run: ldm.export(path, "model"),
        lambda path, run: ldm.export(run, path),
        lambda path, run: ldm.evaluate(run, path, output="scores"),
        lambda path, run: ldm.sample(run, path, "predictions"),
        lambda path, run: ldm.segment(run, path, "labels"),
        lambda path, run: ldm.prepare(path, "prepared"),
        lambda path, run: ldm.diagnose_run(path),
        lambda path, run: ldm.ensemble([run, path], "mean"),
    ],
)
def test_what_is_no_path_is_named(call, path, run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"CONFIG-VALUE: .*{path!r}.*: give "):
        call(path, run_folder)
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_has_a_folder(run_folder, tmp_path):
    with pytest.raises(ConfigError, match="has its own YAML and folder"):
        train(resume=run_folder, output=tmp_path)


def test_a_model_that_synthesises_nothing_says_what_it_is_for(segmenter_run, run_folder):
    with pytest.raises(CheckpointError, match="which synthesises nothing: next is"):
        Synthesiser.load(segmenter_run)
    with pytest.raises(CheckpointError, match="which segments nothing"):
        ldm.Segmenter.load(run_folder)
    with pytest.raises(CheckpointError, match="always saw|trained with every contrast"):
        Synthesiser.load(run_folder, allow_missing="t2")


def test_a_checkpoint_of_the_last_step_is_the_model(synthesiser, run_folder):
    loaded = Synthesiser.load(run_folder / "checkpoints/last.ckpt", device="cpu")
    assert loaded.trained.digest == synthesiser.trained.digest
    assert loaded.trained.seen == synthesiser.trained.seen and loaded.trained.seen


def test_a_patient_that_fails_does_not_stop_the_others(tmp_path, synthesiser, patients, caplog):
    shutil.copytree(patients, tmp_path / "source")
    damaged = tmp_path / "source/Phantom_0002/Phantom_0002_flair.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    done = []
    with caplog.at_level(logging.WARNING), pytest.raises(PartialError, match="1 of 3 subjects"):
        for result in synthesiser.volumes(tmp_path / "source"):
            done.append(result.id)
    assert done == ["Phantom_0001", "Phantom_0003"]
    assert "DATA-CORRUPT case=Phantom_0002" in caplog.text
    with pytest.raises(DataError, match="DATA-CORRUPT"):
        list(synthesiser.volumes(tmp_path / "source", ["Phantom_0002"]))


def test_what_is_saved_is_never_mixed_with_another_request(tmp_path, synthesiser, patients):
    def of(seed):
        return next(synthesiser.volumes(patients, [ID], seed=seed, temperature=1))

    first = of(0)
    path = first.save(tmp_path)
    before = path.stat().st_mtime_ns
    assert of(0).save(tmp_path) == path
    assert path.stat().st_mtime_ns == before  # the same volume stays as it is
    with pytest.raises(OutputError, match="OUT-EXISTS"):
        of(1).save(tmp_path)
    assert sha256(of(1).save(tmp_path, overwrite=True)) != first.sidecar["sha256"]


@pytest.mark.parametrize("beside", [None, {"Modality": "MR"}], ids=["alone", "a sidecar of BIDS"])
def test_an_acquired_image_is_never_written_over(tmp_path, synthesiser, patients, beside):
    folder = Path(shutil.copytree(patients / ID, tmp_path / ID))
    real = folder / f"{ID}_t1ce.nii.gz"
    if beside:
        (folder / f"{ID}_t1ce.json").write_text(json.dumps(beside))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    (result,) = synthesiser.volumes(patients, ID, steps=1)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="OUT-"):
            result.save(folder, overwrite=overwrite)
    assert {path: path.read_bytes() for path in before} == before and real in before


def test_progress_is_any_function_that_wraps(run_folder, patients):
    seen = []

    def watch(items, title, total):
        seen.append((title, total))
        return items

    loaded = Synthesiser.load(run_folder, progress=watch, batch_size=16)
    (result,) = loaded.volumes(patients, [ID])
    assert isinstance(result, SyntheticVolume)
    ((title, total),) = seen
    assert title == f"{ID} (1/1)" and total == -(
        -len(nib.load(path_of(patients)).dataobj[0, 0]) // 16
    )


def path_of(patients):
    return patients / ID / f"{ID}_t1.nii.gz"


def test_training_says_nothing_and_returns_what_it_made(tmp_path, patients, capfd, run_folder):
    root = [f"data.params.root={patients}", "data.params.val=[Phantom_0003]"]
    run = train(TINY[0], [*TINY[1:], *root, "lightning.trainer.max_steps=2"], tmp_path / "run")
    assert capfd.readouterr().out == ""
    assert (run.folder, run.steps, run.stopped_by) == (tmp_path / "run", 2, None)
    assert run.model.is_file() and run.cost["steps"] == 2
    assert run.curves["train/loss"][0] == [0, 1]
    more = train(resume=run.folder, overrides=["lightning.trainer.max_steps=3"])
    assert more.steps == 3
    with pytest.raises(OutputError, match="holds a run"):
        train(TINY[0], [*TINY[1:], *root, "lightning.trainer.max_steps=2"], run.folder)
    with pytest.raises(ConfigError, match="give a YAML"):
        train()


@pytest.mark.parametrize("in_a_thread", [False, True])
def test_training_leaves_the_signals_of_the_program_alone(tmp_path, patients, in_a_thread):
    numbers = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP
    before = [signal.getsignal(number) for number in numbers]
    overrides = [f"data.params.root={patients}", "lightning.trainer.max_steps=1"]
    overrides += ["data.params.image_size=32", "data.params.val=null"]
    work = functools.partial(
        train, "configs/backbone/unet_tiny.yaml", overrides, output=tmp_path / "run"
    )
    if in_a_thread:  # where Python lets nobody set a handler
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(work).result()
    else:
        run = work()
    assert run.folder.is_dir()
    assert [signal.getsignal(number) for number in numbers] == before


def test_the_door_is_cheap_until_it_is_used():
    told = "import sys, ldm; print('torch' in sys.modules, dir(ldm) == sorted(ldm.__all__))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"
    with pytest.raises(AttributeError, match="no attribute 'Synthesizer'"):
        _ = ldm.Synthesizer
