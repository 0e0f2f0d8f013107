"""A segmenter as a loss: what it finds on the prediction must be what the labels say."""

import shutil

import pytest
import torch

from ldm.checkpoint import load_model
from ldm.cli.main import main
from ldm.losses.prediction import PredictedBatch

LOSS = "configs/objective/segmenter.yaml"
PATH = "model.params.loss_config.segmenter.params.path"


@pytest.fixture(scope="module")
def taught(tmp_path_factory, train, segmenter_run):
    """A run of four steps with the loss, whose segmenter is gone by now."""
    folder = tmp_path_factory.mktemp("taught")
    segmenter = shutil.copytree(segmenter_run, folder / "segmenter")
    steps = "lightning.trainer.max_steps=4"
    assert train(folder / "run", steps, LOSS, f"{PATH}={segmenter}") == 0
    shutil.rmtree(segmenter)
    return folder / "run"


def predicted(image, batch):
    return PredictedBatch(image, batch["target"], image, torch.zeros(len(image)), batch=batch)


@pytest.fixture(scope="module")
def told(taught):
    """The loss of that run, and a batch of phantoms' size with a bright ball as the tumour."""
    loss = load_model(taught).model.losses["segmenter"]
    grid = torch.linspace(-1, 1, 32)
    ball = (grid[:, None] ** 2 + grid[None] ** 2 < 0.2).expand(2, 1, 32, 32)
    batch = {
        "condition": torch.randn(2, 3, 32, 32, generator=torch.manual_seed(0)),
        "target": torch.where(ball, 1.0, -0.5),
        "brain": torch.ones(2, 1, 32, 32, dtype=torch.bool),
        "presence": torch.ones(2, 3, dtype=torch.bool),
        "seg": ball * torch.tensor(4, dtype=torch.uint8),
    }
    return loss, batch


def test_a_run_shows_the_term_and_needs_the_segmenter_no_more(taught, patients, tmp_path):
    assert "train/segmenter" in (taught / "metrics.csv").read_text()
    assert "segmenter/segmenter" not in (taught / "config.yaml").read_text()  # its folder
    made = tmp_path / "made"
    assert main(["sample", str(taught), "--input", str(patients), "--output", str(made)]) == 0


def test_a_training_goes_on_from_such_a_run(taught, train, tmp_path):
    """The weights of the run hold the segmenter, whose own folder is gone."""
    again = ["train", "--from", str(taught), "lightning.trainer.max_steps=2"]
    assert main([*again, "--output", str(tmp_path / "again")]) == 0
    known = load_model(taught).model
    kept = load_model(tmp_path / "again").model.losses["segmenter"].state_dict()
    for name, weight in known.losses["segmenter"].state_dict().items():
        torch.testing.assert_close(kept[name], weight)


def test_a_segmenter_that_is_named_is_the_one_that_judges(
    taught, train, train_segmenter, segmenter_run, tmp_path
):
    """It begins with the network of a run that has another segmenter, or none of its own."""
    other, steps = tmp_path / "other", "lightning.trainer.max_steps=1"
    assert train_segmenter(other, steps, "data.params.augmentation_config=null") == 0
    told, judge = (steps, LOSS, f"{PATH}={other}"), load_model(other).model.state_dict()
    for start in (taught, tmp_path / "plain"):
        if not start.exists():
            assert train(start, steps) == 0
        run = tmp_path / f"from-{start.name}"
        assert train(run, *told, "--from", str(start)) == 0
        kept = load_model(run).model.losses["segmenter"].model.state_dict()
        for name, weight in judge.items():
            torch.testing.assert_close(kept[name], weight)


def test_a_loss_is_left_behind_where_the_new_run_has_none(taught, train, tmp_path):
    still = ["model.params.optimizer_config.params.lr=1e-30", "lightning.trainer.max_steps=1"]
    assert train(tmp_path / "plain", *still, "--from", str(taught)) == 0
    before, after = (load_model(run).model.state_dict() for run in (taught, tmp_path / "plain"))
    assert not any(name.startswith("losses.") for name in after)
    for name, weight in after.items():
        if not name.startswith("prior."):  # which adds the patients to those of the start
            torch.testing.assert_close(weight, before[name])


def test_the_segmenter_is_asked_about_the_prediction_beside_the_conditions(told):
    """It sees t1, t1ce, t2, flair: the second is predicted, but nothing outside the brain is."""
    loss, batch = told
    t1, t2, flair = batch["condition"].split(1, dim=1)
    batch = {**batch, "brain": batch["brain"].clone()}
    batch["brain"][..., :4, :] = False
    image = torch.rand(2, 1, 32, 32, requires_grad=True)
    shown = torch.cat([t1, torch.where(batch["brain"], image, -1.0), t2, flair], dim=1)
    logits = loss.model.logits(shown, torch.ones(2, 4, dtype=torch.bool))[0]
    expected = 0.2 * loss.loss(logits, loss.model.target(batch))["loss"]
    term = loss(predicted(image, batch))["segmenter"]
    torch.testing.assert_close(term, expected)
    term.backward()
    assert image.grad[..., 4:, :].abs().sum() > 0
    assert not image.grad[..., :4, :].any()
    assert all(p.grad is None for p in loss.parameters())
    assert not loss.train().model.training


def test_an_absent_condition_is_absent_for_the_segmenter_too(told):
    loss, batch = told
    absent = {**batch, "presence": torch.tensor([[True, False, True]] * 2)}
    noise = {**absent, "condition": batch["condition"].clone()}
    noise["condition"][:, 1] = 7.0
    image = torch.zeros(2, 1, 32, 32)
    first, second = (loss(predicted(image, b))["segmenter"] for b in (absent, noise))
    torch.testing.assert_close(first, second)


def test_validation_patients_without_labels_give_no_term(told):
    loss, batch = told
    bare = {name: value for name, value in batch.items() if name != "seg"}
    assert loss(predicted(torch.zeros(2, 1, 32, 32), bare)) == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "which segmenter? Give model.params.loss_config.segmenter.params.path=RUN"),
        (["{run}"], "run is a LatentDiffusion: give a segmenter of single slices"),
        (["{segmenter}", "data.params.conditions=[t1,flair]"], "looks at t1, t1ce, t2, flair"),
        (["{segmenter}", "data.params.target=t2", "data.params.conditions=[t1,flair]"], "looks at"),
    ],
)
def test_what_is_no_segmenter_of_these_contrasts_is_refused(
    overrides, message, tmp_path, train, run_folder, segmenter_run, capfd
):
    said = [o.format(run=run_folder, segmenter=segmenter_run) for o in overrides]
    said = [f"{PATH}={o}" if "=" not in o else o for o in said]
    assert train(tmp_path / "run", "lightning.trainer.max_steps=1", LOSS, *said) != 0
    assert message in " ".join(capfd.readouterr().err.split())


def test_patients_without_labels_are_refused(tmp_path, patients, segmenter_run, capfd):
    cohort = shutil.copytree(patients, tmp_path / "cohort")
    for labels in (cohort / "Phantom_0001").glob("*_seg.*"):
        labels.unlink()
    told = ["train", "configs/backbone/unet_tiny.yaml", LOSS, f"{PATH}={segmenter_run}"]
    told += [f"data.params.root={cohort}", "data.params.val=[Phantom_0003]"]
    told += ["lightning.trainer.max_steps=1", "--output", str(tmp_path / "run")]
    assert main([*told, "data.params.image_size=32"]) != 0
    assert "1 of 2 training patients have no seg" in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_the_default_units_need_not_be_named(tmp_path, train, segmenter_run):
    given = ["lightning.trainer.max_steps=1", LOSS, "data.params.normaliser_config=null"]
    assert train(tmp_path / "run", *given, f"{PATH}={segmenter_run}") == 0


def test_other_units_of_intensity_are_refused(tmp_path, train, segmenter_run, capfd):
    zscore = "configs/preprocessing/zscore.yaml"
    given = ["lightning.trainer.max_steps=1", LOSS, zscore, f"{PATH}={segmenter_run}"]
    assert train(tmp_path / "run", *given) != 0
    assert "train the segmenter with the same" in " ".join(capfd.readouterr().err.split())
