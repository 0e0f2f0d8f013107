"""A patch discriminator as one more loss of a prediction: the conditional GAN."""

import pytest
import torch

from ldm.losses.adversarial import Adversarial
from ldm.losses.prediction import PredictedBatch


def predicted(size=(2, 1, 32, 32), seed=0):
    """A prediction with a gradient, the truth and three conditions."""
    drawn = torch.randn(5, *size, generator=torch.Generator().manual_seed(seed))
    fake = drawn[0].requires_grad_()
    batch = {"condition": torch.cat([*drawn[2:5]], dim=1)}
    return PredictedBatch(fake, drawn[1], fake.detach(), torch.zeros(size[0]), {}, batch)


def adversary(**params):
    torch.manual_seed(0)
    return Adversarial(
        channels=1, size=(32, 32), images=3, disc_channels=8, disc_num_layers=2, **params
    )


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_pull_is_as_long_as_the_gradient_of_an_absolute_error_times_the_weight(weight):
    prediction = predicted()
    sum(adversary(weight=weight)(prediction).values()).backward()
    of_l1 = prediction.x_0.numel() ** -0.5
    assert prediction.x_0.grad.norm().item() == pytest.approx(weight * of_l1, rel=1e-4)


def test_discriminator_learns_to_tell_the_prediction_from_the_truth_given_the_conditions():
    """The truth is one of the conditions: only who sees them can tell."""
    model = adversary()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(120):
        real, fake = torch.randn(
            2, 4, 1, 16, 16, generator=torch.Generator().manual_seed(step)
        ).unbind()
        blank = torch.zeros_like(real)
        batch = {"condition": torch.cat([real, blank, blank], dim=1)}
        given = PredictedBatch(fake.requires_grad_(), real, fake, torch.zeros(4), {}, batch)
        terms = model(given)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    # hinge loss, of the weight: 1 by chance
    assert terms["discriminator"].item() / model.weight < 0.5


def test_validation_is_judged_without_it():
    assert adversary().eval()(predicted()) == {}
