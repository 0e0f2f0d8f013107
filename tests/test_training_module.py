"""A model as Lightning trains it."""

import torch
from torch import nn

from ldm.training.module import TrainingModule


def nested() -> nn.Module:
    """A model with names that begin as that of the model in its training does."""
    model = nn.Module()
    model.model = nn.Module()
    model.model.model, model.model.prior = nn.Linear(2, 2), nn.Linear(2, 1)
    model.prior = nn.Linear(1, 3)
    return model


def test_weights_have_the_names_of_the_model_and_are_read_by_them():
    one, other = nested(), nested()
    saved = TrainingModule(one).state_dict()
    assert saved.keys() == one.state_dict().keys()
    assert TrainingModule(other).load_state_dict(saved).missing_keys == []
    for name, value in other.state_dict().items():
        assert torch.equal(value, one.state_dict()[name])


def test_an_average_of_a_training_has_them_too():
    """As the average of the weights keeps them, which is saved in their place."""
    module = TrainingModule(nested())
    average = torch.optim.swa_utils.AveragedModel(module)
    names = {f"module.{name}" for name in module.state_dict()}
    assert average.state_dict().keys() - {"n_averaged"} == names
    average.load_state_dict(average.state_dict())
