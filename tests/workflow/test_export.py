"""A model to hand over: it samples as the run does, and nothing in it tells of a patient."""

import itertools
import json
import os
import re
import shutil
import signal
import sys
import types
from pathlib import Path

import pytest

import ldm
from ldm.checkpoint import load_model
from ldm.claims import claim, owner_of
from ldm.cli.main import main
from ldm.cli.terminal import sampling_command
from ldm.curves import read_curves
from ldm.errors import CheckpointError, ConfigError, OutputError
from ldm.exporting.handover import require_private
from ldm.inference.onnx_denoiser import ONNX_FILE
from ldm.model_file import read_model, save_model
from ldm.storage import CONFIG_FILE, MODEL_FILE


@pytest.fixture(scope="module")
def exported(tmp_path_factory, run_folder):
    folder = tmp_path_factory.mktemp("handover") / "model"
    assert main(["export", str(run_folder), "--output", str(folder), "--licence", "CC-BY-4.0"]) == 0
    return folder


def test_nothing_of_a_patient_is_in_the_folder(exported, run_folder, patients):
    """No id, path, or digest: the run itself, beside it, holds all of them."""
    seen = json.loads((run_folder / "subjects.json").read_text())
    digests = {
        d for part in ("train", "val") for known in seen[part].values() for d in known.values()
    }
    secrets = {"Phantom", str(patients), str(run_folder), *(d for d in digests if len(d) > 16)}
    assert len(secrets) > 10

    def found(folder):
        files = [p for p in folder.rglob("*") if p.is_file()]
        content = b"\n".join(path.read_bytes() for path in files)
        return {s for s in secrets if s.encode() in content}

    assert found(run_folder) >= secrets - {str(run_folder)}
    assert found(exported) == set()
    assert {p.name for p in exported.iterdir()} <= {MODEL_FILE, CONFIG_FILE, "README.md", ".lock"}


def test_a_model_that_another_export_wrote_meanwhile_stays(tmp_path, run_folder, monkeypatch):
    output = tmp_path / "model"

    def late(run, trust):
        """The other command comes between the first look at the folder and the claim on it."""
        monkeypatch.setattr("ldm.exporting.handover.load_model", load_model)
        ldm.export(run_folder, output)
        return load_model(run, trust)

    monkeypatch.setattr("ldm.exporting.handover.load_model", late)
    with pytest.raises(OutputError, match="OUT-EXISTS"):
        ldm.export(run_folder, output, licence="CC0-1.0")
    assert "CC0" not in (output / "README.md").read_text()


def killed_at(number: int, export) -> bool:
    """Export in a process that is killed before it gives a file its name, or removes one, again.

    Returns:
        Whether there was such a moment; else the export is whole.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    moments = itertools.count()

    def or_killed(plain):
        def act(*given, **options):
            if next(moments) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*given, **options)

        return act

    for place, name in ((os, "link"), (Path, "replace"), (Path, "unlink"), (os, "write")):
        setattr(place, name, or_killed(getattr(place, name)))
    export()
    os._exit(0)


@pytest.fixture
def another_run(tmp_path, run_folder):
    """A run whose weights are others."""
    run = tmp_path / "another"
    shutil.copytree(run_folder, run)
    tensors, metadata = read_model(run / MODEL_FILE)
    del metadata["sha256"], metadata["format"]
    with claim(run, "train"):
        save_model(run, {name: value * 2 for name, value in tensors.items()}, metadata)
    return run


@pytest.mark.parametrize("replaces", [True, False])
def test_killed_at_any_moment_it_leaves_a_whole_model_or_says_so(
    tmp_path, run_folder, another_run, replaces, monkeypatch
):
    """And the same command goes on. The older model has a denoiser beside it, the newer none."""
    monkeypatch.setattr(
        "ldm.exporting.handover.denoiser_files", lambda *given: {ONNX_FILE: b"of older"}
    )
    older = load_model(ldm.export(run_folder, tmp_path / "older", onnx=True)).digest
    newer = load_model(another_run).digest
    output, found = tmp_path / "model", []

    def export():
        ldm.export(another_run, output, overwrite=replaces)

    for number in itertools.count():
        shutil.rmtree(output, ignore_errors=True)
        if replaces:
            shutil.copytree(tmp_path / "older", output)
        if not killed_at(number, export):
            break
        if not owner_of(output):  # it has done nothing yet
            continue
        try:
            found.append(load_model(output).digest)
            assert found[-1] in (output / "README.md").read_text()
            assert (output / ONNX_FILE).exists() == (found[-1] == older)
        except CheckpointError as error:
            assert error.message.startswith(f"{output} holds no whole model: dsdiff export was int")
            found.append("none")
            export()
            files = {MODEL_FILE, CONFIG_FILE, "README.md", ".lock"}
            assert {path.name for path in output.iterdir()} == files  # the rest is swept
            assert load_model(output).digest == newer
    assert load_model(output).digest == newer
    assert list(dict.fromkeys(found)) == [*[older] * replaces, "none"]


def test_a_full_disk_leaves_the_older_model(tmp_path, run_folder, another_run, monkeypatch):
    output = ldm.export(run_folder, tmp_path / "model")
    before = {path.name: path.read_bytes() for path in output.iterdir()}

    def full(*given, **options):
        raise OSError(28, "No space left on device")

    for write in ("ldm.model_file.save_file", "pathlib.Path.write_bytes"):
        with monkeypatch.context() as patch, pytest.raises(OutputError, match="OUT-IO: .*No space"):
            patch.setattr(write, full)
            ldm.export(another_run, output, overwrite=True)
        assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_a_file_of_somebody_else_is_no_file_of_an_export(tmp_path, run_folder):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/config.yaml").write_text("of somebody else\n")
    with pytest.raises(OutputError, match=r"OUT-EXISTS: .*config\.yaml"):
        ldm.export(run_folder, tmp_path / "own")
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["config.yaml"]
    assert (tmp_path / "own/config.yaml").read_text() == "of somebody else\n"


def test_it_gives_the_voxels_of_the_run_and_cannot_know_the_patient(
    exported, run_folder, patients, caplog
):
    made = []
    for folder in (run_folder, exported):
        caplog.clear()
        volumes = ldm.Synthesiser.load(folder).volumes(patients, ["Phantom_0001"], steps=1)
        made.append(next(volumes))
        said = caplog.text
    assert (made[0].volume == made[1].volume).all()
    assert made[0].content == made[1].content
    assert made[1].described["seen"] is None
    assert "it may know these patients" in said
    assert (
        read_model(exported / MODEL_FILE)[1]["sha256"]
        == read_model(run_folder / MODEL_FILE)[1]["sha256"]
    )


def test_the_card_has_what_a_reader_asks_for(exported):
    card = (exported / "README.md").read_text()
    assert re.findall("^## (.*)$", card, re.M) == [
        *("Intended use", "Data", "Protocol", "Metrics", "Limits", "Licence")
    ]
    assert card.startswith("---\nlicense: CC-BY-4.0\n")
    assert "patients trained on: 2" in card
    assert "not for diagnosis" in card
    assert read_model(exported / MODEL_FILE)[1]["sha256"] in card


def test_the_metrics_of_the_card_are_of_its_weights(tmp_path, train):
    """Of the best validation, not the last; none where the weights were not validated."""
    run, every = tmp_path / "run", "lightning.trainer.val_check_interval=1"
    best = "lightning.callbacks.checkpoint.params.best_by=val/psnr"
    fast = ("model.params.optimizer_config.params.lr=1", "model.params.warmup_steps=1")
    assert train(run, "lightning.trainer.max_steps=3", every, best, *fast) == 0
    (value,) = read_model(run / MODEL_FILE)[1]["best"].values()
    last = read_curves(run)["val/psnr"][1][-1]
    assert value > last + 0.01  # they can be told apart
    card = (ldm.export(run, tmp_path / "model") / "README.md").read_text()
    assert re.findall("^- val/psnr: (.*)$", card, re.M) == [f"{value:.4g}"]
    assert train(tmp_path / "other", "lightning.trainer.max_steps=3", f"{every[:-1]}2") == 0
    card = (ldm.export(tmp_path / "other", tmp_path / "unmeasured") / "README.md").read_text()
    assert "- val/" not in card and "None was measured of these weights" in card


@pytest.fixture
def hub(exported, segmenter_run, monkeypatch):
    """What is asked of a stand-in for the hub, which holds two models."""
    asked = []
    held = {"owner/name": exported, "owner/segmenter": segmenter_run}

    def snapshot_download(name, revision=None, allow_patterns=None):
        asked.append((name, revision))
        assert set(allow_patterns) == {MODEL_FILE, CONFIG_FILE, "README.md"}
        if name not in held:
            raise FileNotFoundError("404: no such\nrepository")
        return str(held[name])

    package = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    return asked


def test_a_model_of_a_hub_is_downloaded_only_when_it_is_asked_for(exported, hub, monkeypatch):
    """Without a package for it nothing is asked."""
    own = ldm.Synthesiser.load(exported)
    assert hub == []
    other = ldm.Synthesiser.load("hub:owner/name@v1")
    assert hub == [("owner/name", "v1")]
    assert other.trained.digest == own.trained.digest
    with pytest.raises(
        CheckpointError, match="CKPT-MISSING: hub:owner/none could not be had .404: no"
    ):
        ldm.Synthesiser.load("hub:owner/none")
    for wrong in ("hub:name", "hub:a/b/c"):
        with pytest.raises(ConfigError, match=f"CONFIG-VALUE: '{wrong}' names no model"):
            ldm.Synthesiser.load(wrong)
    assert len(hub) == 2
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"CONFIG-EXTRA: .*pip install 'dsdiff\[hub\]'"):
        ldm.Synthesiser.load("hub:owner/name")


def test_the_command_line_takes_a_model_of_a_hub(
    exported, segmenter_run, patients, tmp_path, hub, monkeypatch, capsys
):
    """Each verb that applies a model writes what it writes with the folder, and asks once."""
    one = ["--input", str(patients), "--subjects", "Phantom_0003", "--output"]
    verbs = {
        "owner/name": (exported, ["sample", "MODEL", *one], "Phantom_0003_t1ce.nii.gz"),
        "owner/segmenter": (
            segmenter_run,
            ["segment", "predict", "MODEL", "--no-pictures", *one],
            "Phantom_0003_seg.nii.gz",
        ),
    }
    for name, (folder, words, file) in verbs.items():
        made = []
        for model in (folder, f"hub:{name}"):
            own = [str(model) if word == "MODEL" else word for word in words]
            output = tmp_path / f"{name.replace('/', '-')}-{len(made)}"
            assert main([*own, str(output)]) == 0
            made.append((output / file).read_bytes())
        assert made[0] == made[1]
    judge = ["evaluate", "--prediction", str(output.parent / "owner-name-1"), "--allow-seen"]
    judge += ["--reference", str(patients), "--segmenter", "hub:owner/segmenter"]
    assert main(judge) == 0
    assert hub == [("owner/name", None), *[("owner/segmenter", None)] * 2]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    cases = ["--input", str(patients), "--output", str(tmp_path / "none")]
    capsys.readouterr()
    assert main(["brasyn", "--model", "hub:owner/name", *cases]) == 2
    assert "pip install 'dsdiff[hub]'" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["/data/lpips.pt", "as in P7"])
def test_a_place_or_a_patient_in_the_configuration_is_refused(text):
    with pytest.raises(CheckpointError, match="CKPT-PRIVATE: config.yaml holds '(/data/lp|P7)"):
        require_private([{"note": text}], {"P7"})


def test_an_exported_folder_is_replaced_only_when_asked(exported, run_folder):
    again = ["export", str(run_folder), "--output", str(exported)]
    kept = (exported / "README.md").read_bytes()
    assert main(again) == 5
    assert (exported / "README.md").read_bytes() == kept
    assert main([*again, "--overwrite", "--licence", "CC-BY-4.0"]) == 0
    assert main(["export", str(run_folder), "--output", str(run_folder)]) == 5


def test_a_card_that_somebody_has_completed_is_kept(
    tmp_path, run_folder, another_run, capsys, caplog
):
    """Also by the next export, and by one that a kill left unfinished; the new one is beside it."""
    output = tmp_path / "model"
    ldm.export(run_folder, output)
    card = output / "README.md"
    mine = card.read_text().replace("## Data", "## Data\n\nOf our hospital, approval 12/34.")
    card.write_text(mine)
    again = ["export", str(another_run), "--output", str(output), "--overwrite"]
    for licence in ("CC0-1.0", "CC-BY-4.0"):
        assert main([*again, "--licence", licence]) == 0
        new = (output / "README.new.md").read_text()
        assert card.read_text() == mine
        assert f"license: {licence}" in new and load_model(output).digest in new
        assert "README.md is not as an export wrote it and stays" in caplog.text
        assert "README.new.md: the model card" in capsys.readouterr().out
    (output / MODEL_FILE).unlink()  # as a kill between two files leaves it
    assert main(again[:-1]) == 0
    assert card.read_text() == mine
    card.unlink()
    assert main(again) == 0
    assert load_model(output).digest in card.read_text()
    assert not (output / "README.new.md").exists()


def test_the_next_command_trusts_what_this_one_did():
    command = sampling_command("a model", ["my_units.Own"])
    assert "dsdiff sample 'a model' --input" in command and "--trust my_units.Own" in command
