"""SE of docs/reliability.md: what a foreign folder may not do, and what of the user never leaks."""

import gzip
import json
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ldm import environment
from ldm.config import load_config, read_saved_config, save_config, trusted_targets
from ldm.errors import ConfigError, UnsafeError
from ldm.phantom import write_phantoms
from ldm.report.page import shareable
from ldm.util import refuse_untrusted_targets

QUICK = ("--steps", "1")
EVIL = {
    "SE-01": "os.system",
    "SE-02": "builtins.eval",
    "SE-03": "torch.hub.load",
    "SE-04": "torch.load",
    "SE-05": "logging.os.system",
    "SE-06": "ldm.util.instantiate_from_config",
}


@pytest.mark.parametrize("case", EVIL)
@pytest.mark.parametrize("slot", ["model", "data", "optimizer", "callback", "first stage"])
def test_se_01_to_se_07_a_foreign_class_is_refused_in_every_slot(
    dsdiff, tmp_path, run_folder, case, slot
):
    """Through the verb, from the configuration of a model folder; nothing is imported."""
    import yaml

    folder = Path(shutil.copytree(run_folder, tmp_path / "model"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    evil = {"target": EVIL[case], "params": {"command": f"touch {tmp_path}/canary"}}
    model = config["model"]
    if slot in ("model", "data"):
        config[slot] = evil
    elif slot == "optimizer":
        model["params"]["optimizer_config"] = evil
    elif slot == "callback":
        config["lightning"]["callbacks"]["ema"] = evil
    else:
        model["params"]["first_stage_config"] = evil
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    before = {*sys.modules, "concurrent.futures.process"}  # of the command itself
    code, line = dsdiff("sample", folder, "--input", tmp_path, "--output", tmp_path / "out")
    assert (code, f"names the class '{EVIL[case]}'" in line) == (10, True), line
    assert not (tmp_path / "canary").exists()
    assert not {m for m in set(sys.modules) - before if not m.startswith(("ldm", "torch"))}


# --- SE-X1: a package of a trusted name in the working directory ---------------------------------


@pytest.fixture
def shadow(tmp_path, monkeypatch):
    """A folder with a package that bears the name of a trusted one, which is not installed."""
    package = tmp_path / "shadowed_package"
    package.mkdir()
    (package / "__init__.py").write_text("from pathlib import Path\nPath('canary').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(Path.cwd()))])
    return {"model": {"target": "shadowed_package.Net"}}


def test_se_x1_a_package_that_is_not_installed_is_not_taken_from_here(tmp_path, shadow):
    with pytest.raises(ConfigError, match="'shadowed_package' is not installed") as refused:
        refuse_untrusted_targets(shadow, {"shadowed_package.Net"}, "config.yaml")
    assert "nothing is imported from the working directory" in str(refused.value)
    assert not (tmp_path / "canary").exists()


def test_se_x1_nor_where_python_would_look_there_first(tmp_path, shadow, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnsafeError, match="UNSAFE-IMPORT"):
        refuse_untrusted_targets(shadow, {"shadowed_package.Net"}, "config.yaml")
    assert not (tmp_path / "canary").exists()
    assert "shadowed_package" not in sys.modules


def test_se_x1_what_the_user_names_may_lie_there(shadow):
    refuse_untrusted_targets(shadow, trusted_targets(), "config.yaml", ["shadowed_package.Net"])


# --- SE-11: archives, SE-12: links in a run folder ------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("as_what", ["data", "model"])
def test_se_11_an_archive_is_not_unpacked(dsdiff, tmp_path, run_folder, patients, kind, as_what):
    inside = tmp_path / "one" / "two"
    inside.mkdir(parents=True)
    archive, payload = inside / f"a.{kind}", inside / "payload"
    payload.write_text("x")
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as made:
            made.write(payload, "../canary")
    else:
        with tarfile.open(archive, "w") as made:
            made.add(payload, "../canary")
    model, data = (archive, patients) if as_what == "model" else (run_folder, archive)
    code, line = dsdiff("sample", model, "--input", data, "--output", inside / "out")
    assert code == (4 if as_what == "model" else 3), line
    assert not list(tmp_path.glob("**/canary"))


def test_se_12_the_folder_of_tensorboard_is_no_link(tmp_path, train):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/tensorboard").symlink_to(elsewhere)
    assert train(tmp_path / "run", "lightning.trainer.max_steps=1") == 5
    assert list(elsewhere.iterdir()) == []


# --- SE-13: no name of a patient leaves -----------------------------------------------------------

SECRET = "DOE^JOHN"


def test_se_13_no_text_of_a_header_and_no_path_of_the_data_is_in_what_is_given_away(
    dsdiff, tmp_path, train, monkeypatch, caplog
):
    """One file of a run keeps the path, for its owner alone: ``--resume`` reads it there."""
    root = tmp_path / SECRET / "patients"
    write_phantoms(root, 3, size=32, seed=0)
    for path in root.rglob("*.nii.gz"):
        image = nib.load(path)
        for field in ("descrip", "aux_file", "db_name", "intent_name"):
            image.header[field] = SECRET[: image.header[field].itemsize or 8]
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", SECRET.encode()))
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
        path.with_suffix("").with_suffix(".json").write_text(json.dumps({"PatientName": SECRET}))
    run, out, judged = (tmp_path / name for name in ("run", "out", "judged"))
    assert train(run, "lightning.trainer.max_steps=1", f"data.params.root={root}") == 0
    monkeypatch.chdir(tmp_path)
    assert dsdiff("sample", run, "--input", root, "--output", out, *QUICK) == (0, "")
    judge = ("evaluate", "--prediction", out, "--reference", root, "--allow-seen")
    assert dsdiff(*judge, "--output", judged)[0] == 0
    found = [p for folder in (run, out, judged) for p in folder.rglob("*") if p.is_file()]
    leaks = {str(p.relative_to(tmp_path)) for p in found if SECRET.encode() in unpacked(p)}
    assert len(found) > 20
    assert leaks == {"run/place.json"}, leaks
    assert (run / "place.json").stat().st_mode & 0o777 == 0o600
    assert SECRET not in caplog.text
    assert dsdiff("train", "--resume", run, "lightning.trainer.max_steps=2") == (0, "")
    (run / "place.json").unlink()  # given away
    assert dsdiff("sample", run, "--input", root, "--output", tmp_path / "again", *QUICK)[0] == 0
    code, line = dsdiff("train", "--resume", run, "lightning.trainer.max_steps=3")
    assert code == 2
    assert "data.params.root is not set: give data.params.root=PATIENTS" in line


def test_se_13_the_place_of_the_data_is_kept_beside_a_configuration(tmp_path):
    config = load_config(["configs/backbone/unet_tiny.yaml"], [f"data.params.root={SECRET}/a"])
    path, place = tmp_path / "config.yaml", tmp_path / "place.json"
    save_config(config, path)
    assert SECRET not in path.read_text() and place.stat().st_mode & 0o077 == 0
    assert read_saved_config(path) == load_config([path]) == config  # also as a YAML of the user
    for content in ('{"root": 3}', '{"ro', "[]", ""):
        place.write_text(content)
        assert read_saved_config(path)["data"]["params"]["root"] is None
    place.write_text('{"root": "${oc.env:HOME}"}')
    with pytest.raises(UnsafeError, match="CONFIG-RESOLVER"):
        read_saved_config(path)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("dsdiff evaluate --reference /home/doe/PAT", "dsdiff evaluate --reference …/PAT"),
        ("dsdiff x unet='/home/John Doe/out' a=[/x/y,/z/w]", "dsdiff x unet=…/out a=[…/w]"),
        ("dsdiff x data.params.root=PAT ../a/b", "dsdiff x data.params.root=PAT ../a/b"),
    ],
)
def test_se_13_a_report_shows_the_end_of_a_path_alone(command, shown):
    assert shareable(command) == shown


def unpacked(path: Path) -> bytes:
    """Return the bytes of a file, and those inside it."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        return content + gzip.decompress(content)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return content + b"".join(archive.read(name) for name in archive.namelist())
    return content


# --- SE-16: versions ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.4.0", "1.13.1", "2.9.1+cpu", "2.9.0a0+git1"])
def test_se_16_a_torch_whose_weights_only_is_no_protection(
    dsdiff, tmp_path, monkeypatch, run_folder, version
):
    monkeypatch.setattr(environment.torch, "__version__", version)
    code, line = dsdiff("train", "--resume", run_folder)
    assert code == 10
    assert f"UNSAFE-VERSION: torch is {version}: below 2.10" in line
    code, line = dsdiff("sample", run_folder, "--input", tmp_path, "--output", tmp_path / "out")
    assert code in (3, 10)  # the data are looked for first


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "3.0.0"])
def test_se_16_others_are_taken(monkeypatch, version):
    monkeypatch.setattr(environment.torch, "__version__", version)
    environment.require_safe_libraries()


@pytest.mark.parametrize("version", environment.STOLEN)
def test_se_16_a_stolen_release_is_refused(monkeypatch, version):
    monkeypatch.setattr(environment, "installed_version", lambda package: version)
    with pytest.raises(UnsafeError, match=f"{version} is a compromised release"):
        environment.require_safe_libraries()


def test_se_16_the_constraints_name_no_refused_version():
    lines = (Path(__file__).parents[2] / "setup.py").read_text()
    assert '"torch>=2.10"' in lines
    assert all(f"!={version}" in lines for version in environment.STOLEN)


# --- SE-18: names of temporary files --------------------------------------------------------------


def test_se_18_names_of_temporary_files_cannot_be_guessed(tmp_path):
    from ldm.storage import atomic_path

    names = set()
    for _ in range(50):
        with atomic_path(tmp_path / "a.json", replace=True) as temporary:
            temporary.write_text("x")
            names.add(temporary.name)
            assert temporary.stat().st_mode & 0o077 == 0
            assert temporary.parent == tmp_path
    assert len(names) == 50
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
