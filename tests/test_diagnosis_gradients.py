"""The layers whose gradients are logged are found in any network; losses are logged by timestep."""

from types import SimpleNamespace

import parity
import pytest
import torch
from torch import nn

from ldm.callbacks.gradients import TimestepLosses, layers_by_depth, watch_order
from ldm.config import config_root, load_config
from ldm.curves import PLACES
from ldm.study import build_model

TINY = sorted(path.stem for path in (config_root() / "backbone").glob("*_tiny.yaml"))


def places(model: nn.Module, *inputs: torch.Tensor) -> dict[str, str]:
    """Run a network once; return the name of the layer of each place."""
    order: dict[str, nn.Module] = {}
    hooks = watch_order(model, order)
    with torch.no_grad():
        model.eval()(*inputs)
    for hook in hooks:
        hook.remove()
    names = {module: name for name, module in order.items()}
    return {place: names[layer] for place, layer in layers_by_depth(order).items()}


@pytest.mark.parametrize("name", TINY)
def test_every_backbone_has_its_four_places(name):
    """They are four layers, ordered as they run, and the time embedding is none of them."""
    config = load_config([f"configs/backbone/{name}.yaml"], ["data.params.image_size=32"])
    model = build_model(config).model
    inputs = torch.zeros(1, 1, 32, 32), torch.tensor([5]), parity.normal("c", (1, 3, 32, 32))
    found = places(model, *inputs)
    assert tuple(found) == PLACES
    assert len(set(found.values())) == 4
    assert not any("time" in layer or "t_embedder" in layer for layer in found.values())


def test_the_places_of_a_u_net():
    config = load_config(["configs/backbone/unet_tiny.yaml"], ["data.params.image_size=32"])
    model = build_model(config).model
    inputs = torch.zeros(1, 1, 32, 32), torch.tensor([5]), torch.zeros(1, 3, 32, 32)
    found = places(model, *inputs)
    assert found["encoder_first"] == "diffusion_model.input_blocks.0.0"
    assert found["encoder_last"].startswith("diffusion_model.input_blocks.5.")
    assert found["decoder_first"].startswith("diffusion_model.output_blocks.0.")
    assert found["output"] == "diffusion_model.out.2"


def test_order_is_that_of_execution_not_of_registration():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.third, self.second, self.first = (nn.Conv1d(2, 2, 1) for _ in range(4))
            self.unused = nn.Conv1d(2, 2, 1)

        def forward(self, x):
            return self.last(self.third(self.second(self.first(x))))

    found = places(Backwards(), torch.zeros(1, 2, 5))
    assert list(found.values()) == ["first", "second", "third", "last"]


def test_a_network_of_one_layer_has_one_place_four_times():
    assert set(places(nn.Sequential(nn.Conv1d(2, 2, 1)), torch.zeros(1, 2, 5)).values()) == {"0"}


def test_of_batches_that_are_accumulated_one_loss_a_step_is_logged():
    logged = []
    logger = SimpleNamespace(log_metrics=lambda values, step: logged.append((step, values)))
    model = SimpleNamespace(schedule=range(8), last_fit=None)
    losses, step = TimestepLosses(), 0
    for batch in range(8):  # two of them make a step, which the callback is told after it
        step += batch % 2
        model.last_fit = (torch.tensor([0, 7]), torch.tensor([float(batch), 2.0]))
        loop = SimpleNamespace(_should_accumulate=lambda batch=batch: not batch % 2)
        trainer = SimpleNamespace(
            global_step=step, log_every_n_steps=2, loggers=[logger], fit_loop=loop
        )
        losses.on_train_batch_end(trainer, SimpleNamespace(model=model))
    model.last_fit = (torch.tensor([]), torch.tensor([]))  # all of a small batch was for the mean
    trainer.global_step = 6
    losses.on_train_batch_end(trainer, SimpleNamespace(model=model))
    assert logged == [
        (1, {"train/loss_t0": 3.0, "train/loss_t3": 2.0}),
        (3, {"train/loss_t0": 7.0, "train/loss_t3": 2.0}),
    ]
