"""A verb that does its work imports no library that this work does not use."""

import pytest
from builders import started

UNUSED = {"pytorch_lightning", "monai", "timm", "skimage.metrics", "tensorboard.summary"}


@pytest.fixture(scope="module")
def places(patients, run_folder, tmp_path_factory):
    new = tmp_path_factory.mktemp("made")
    return {"patients": patients, "run": run_folder, "new": new}


@pytest.mark.parametrize(
    ("command", "done"),
    [
        ("prepare {patients} --output {new}/prepared", "prepared=3"),
        ("diagnose data {patients} --output {new}/diagnosis", "Phantom_0003"),
        ("diagnose run {run}", "gradient norms"),
        ("sample {run} --input {patients} --output {new}/made --device cpu", "written=3"),
        ("export {run} --output {new}/model", "Written"),
    ],
    ids=lambda text: " ".join(text.split()[:2]),
)
def test_a_verb_imports_no_more_than_it_uses(places, command, done):
    text, modules = started(*(word.format(**places) for word in command.split()))
    assert done in text
    assert modules.isdisjoint(UNUSED)
