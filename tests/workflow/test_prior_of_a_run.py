"""The prior of a run: fitted to whom it trains on, saved with it, asked for by a factor."""

import json

import numpy as np
import pytest
import torch

import ldm
from ldm.checkpoint import load_model
from ldm.cli.main import main
from ldm.config import load_config
from ldm.data.layouts import detect_layout
from ldm.errors import ConfigError
from ldm.models.prior import EnhancementPrior
from ldm.util import instantiate_from_config

CONDITIONS = ("t1", "t2", "flair")
STEPS = "lightning.trainer.max_steps=2"
ONE, OTHER = "data.params.train=[Phantom_0001]", "data.params.train=[Phantom_0002]"


def shipped(size):
    """The prior of the shipped recipe."""
    config = load_config(["configs/backbone/unet_tiny.yaml"], ["data.params.root=."])
    params = config["model"]["params"]["prior_config"]["params"]
    return EnhancementPrior(CONDITIONS, image_size=size, **params)


def coefficients(run):
    return load_model(run).model.prior.coefficients


@pytest.fixture(scope="module")
def of_one(train, tmp_path_factory):
    """A run on one patient."""
    folder = tmp_path_factory.mktemp("prior") / "run"
    assert train(folder, STEPS, ONE) == 0
    return folder


def test_a_run_fits_it_to_whom_it_trains_on(of_one, patients):
    overrides = [
        f"data.params.root={patients}",
        "data.params.image_size=32",
        "data.params.val=null",
    ]
    told = [*overrides, ONE]
    config = load_config(["configs/backbone/unet_tiny.yaml"], told)
    data = instantiate_from_config(config["data"], where="data")
    data.setup()
    prior = shipped((32, 32))
    prior.fit(data)
    assert torch.equal(coefficients(of_one), prior.coefficients)
    assert prior.coefficients.any()


def test_validation_shows_what_it_finds_in_volumes_also_when_resumed(train, tmp_path, monkeypatch):
    seen, forward = [], EnhancementPrior.forward

    def spied(self, *args, maps=None, **options):
        seen.append(maps is not None and bool((maps > 0).any()))
        return forward(self, *args, maps=maps, **options)

    monkeypatch.setattr(EnhancementPrior, "forward", spied)
    every = "lightning.trainer.val_check_interval=1"
    assert train(tmp_path / "run", STEPS, every) == 0
    first = len(seen)
    steps = "lightning.trainer.max_steps=3"
    assert main(["train", "--resume", str(tmp_path / "run"), steps]) == 0
    assert len(seen) > first > 0
    assert all(seen)


def test_slices_of_a_volume_have_what_it_finds_in_the_volume(of_one, patients):
    made = ldm.Synthesiser.load(of_one, precision="32", temperature=0, batch_size=5)
    layout, subjects = detect_layout(patients, None, made.study.contrasts)
    prepared = made.prepare(subjects["Phantom_0003"], layout)
    with_prior, _ = made._synthesise(prepared, "with")
    network, _ = made.at(enhancement=0)._synthesise(prepared, "without")
    prior, contrasts = made.model.prior, torch.from_numpy(prepared.slices)
    image, presence = torch.from_numpy(network)[:, None], torch.ones(len(network), 3).bool()
    expected = prior(image, contrasts, presence, maps=prior.maps(contrasts, prepared.aspect))
    assert abs(with_prior - network).max() > 0.05
    np.testing.assert_allclose(with_prior, expected[:, 0], atol=1e-4)


def test_a_training_adds_its_patients_to_those_of_the_run_it_starts_from(of_one, train, tmp_path):
    """Its regression is that of a training on all of them at once."""
    both = "data.params.train=[Phantom_0001,Phantom_0002]"
    assert train(tmp_path / "both", STEPS, both) == 0
    assert train(tmp_path / "on", STEPS, OTHER, "--from", str(of_one)) == 0
    found, expected = coefficients(tmp_path / "on"), coefficients(tmp_path / "both")
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert (found - coefficients(of_one)).abs().max() > 1e-3
    assert load_model(tmp_path / "on").model.prior.patients == 2


@pytest.mark.parametrize(
    "other", ["prior_config=null", "prior_config.params.pools=false"], ids=["none", "unpooled"]
)
def test_from_a_run_that_hands_none_on_it_is_that_of_the_new_patients(train, tmp_path, other):
    assert train(tmp_path / "start", STEPS, ONE, f"model.params.{other}") == 0
    assert train(tmp_path / "on", STEPS, OTHER, "--from", str(tmp_path / "start")) == 0
    assert train(tmp_path / "new", STEPS, OTHER) == 0
    assert torch.equal(coefficients(tmp_path / "on"), coefficients(tmp_path / "new"))


def test_a_run_of_its_contrasts_in_another_order_is_refused(of_one, train, tmp_path, capsys):
    """Its first layer, and the sums of its prior, would take T1 for T2."""
    turned = "data.params.conditions=[t2,t1,flair]"
    assert train(tmp_path / "on", STEPS, turned, "--from", str(of_one)) == 4
    assert "in another order: give data.params.conditions=[t1,t2,flair]" in capsys.readouterr().err


def test_of_a_run_that_made_another_contrast_the_prior_is_left(of_one, train, tmp_path, caplog):
    other = ["data.params.conditions=[t1,t2,t1ce]", "data.params.target=flair"]
    assert train(tmp_path / "on", STEPS, *other, "--from", str(of_one)) == 0
    assert "has read other contrasts: t1, t2, flair" in caplog.text
    assert load_model(tmp_path / "on").model.prior.patients <= 1


def test_new_patients_in_whom_nothing_is_found_leave_it_as_it_was(
    of_one, train, tmp_path, monkeypatch
):
    monkeypatch.setattr(EnhancementPrior, "fit", lambda self, data: None)
    assert train(tmp_path / "on", STEPS, OTHER, "--from", str(of_one)) == 0
    priors = [load_model(run).model.prior.state_dict() for run in (tmp_path / "on", of_one)]
    for name, value in priors[0].items():
        torch.testing.assert_close(value, priors[1][name])


def test_a_student_has_that_of_its_teacher(of_one, patients, tmp_path):
    told = [f"data.params.root={patients}", STEPS, OTHER, "--output", str(tmp_path / "student")]
    assert main(["distill", str(of_one), "--steps", "1", *told]) == 0
    assert torch.equal(coefficients(tmp_path / "student"), coefficients(of_one))


def test_a_student_cannot_have_another(of_one, patients, tmp_path, capsys):
    told = [f"data.params.root={patients}", STEPS, "--output", str(tmp_path / "student")]
    other = "model.params.prior_config.params.relative=false"
    assert main(["distill", str(of_one), "--steps", "1", *told, other]) == 4
    assert "CKPT-MISMATCH: run does not fit the model: 2 unexpected" in capsys.readouterr().err


@pytest.mark.parametrize("factor", ["1", np.array(0.5), float("nan"), 11, -1])
def test_a_factor_is_a_number_from_0_to_10(of_one, factor):
    with pytest.raises(ConfigError, match="enhancement is .*: give 0 to 10"):
        ldm.Synthesiser.load(of_one, enhancement=factor)


def test_how_much_of_it_is_asked_of_a_model_that_has_it(of_one, patients, tmp_path, capsys):
    def volume(factor):
        made = ldm.Synthesiser.load(of_one, precision="32", enhancement=factor)
        return next(made.volumes(patients, ["Phantom_0003"], temperature=0)).volume

    nothing, as_trained, default, twice = map(volume, (0, 1, None, 2))
    assert np.array_equal(as_trained, default)
    assert not np.array_equal(nothing, as_trained)
    assert (twice >= as_trained).all()
    assert (twice > as_trained).any()
    out = tmp_path / "out"
    asked = ["sample", str(of_one), "--input", str(patients), "--enhancement", "0.5"]
    assert main([*asked, "--subjects", "Phantom_0003", "--output", str(out)]) == 0
    said = json.loads(next(out.rglob("*Phantom_0003*.json")).read_text())
    assert said["request"]["options"]["enhancement"] == 0.5
