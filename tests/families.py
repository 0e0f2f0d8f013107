"""What every backbone must hold, as checks that the tests of each family call.

The weights come from ``parity.fill``: at initialisation most residual branches are zero, and a
property of zeros proves nothing.
"""

import parity
import torch

# 64 channels in 32 groups: with one channel a group, a norm would cancel every added constant
SMALL_UNET = {
    "out_channels": 1,
    "model_channels": 64,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 1],
    "num_heads": 4,
}
# of the U-Nets with a stream for each contrast
STREAM_OPTIONS = [
    {},
    {"dims": 3},
    {"dims": 1},
    {"num_res_blocks": [1, 2]},
    {"use_scale_shift_norm": True, "resblock_updown": True},
    {"use_new_attention_order": True, "num_head_channels": 16},
    {"in_channels": 2, "out_channels": 2},
]


def call_inputs(channels, size, batch=3, **more):
    """Keyword arguments of ``forward``: an image of ``size`` and different timesteps."""
    x = parity.normal("x", (batch, channels, *size))
    return {"x": x, "timesteps": torch.arange(batch) * 300 + 10, **more}


def check_gradients(model, kwargs, shape):
    """The output has ``shape``, is finite, and every parameter takes part in it.

    In eval mode, because in training mode a batch norm cancels the bias before it.
    """
    grads = gradients(parity.fill(model).eval(), kwargs, shape)
    assert not [name for name, grad in grads.items() if grad is None or grad.abs().max() < 1e-7]


def check_gradients_of_a_narrow_network(model, kwargs, shape):
    """The same where a group norm has one channel a group, or keys of attention have a bias.

    Both cancel an added constant exactly, so a bias must only be part of the graph. Two sets of
    weights are tried, because the few units of a squeeze may all be below zero with one.
    """
    grads = gradients(parity.fill(model).eval(), kwargs, shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.flip(0))
    others = gradients(model, kwargs, shape)
    assert not [name for name, grad in grads.items() if grad is None]
    largest = {n: max(grads[n].abs().max(), others[n].abs().max()) for n in grads}
    assert not [n for n, value in largest.items() if not n.endswith("bias") and value < 1e-7]


def gradients(model, kwargs, shape):
    """Gradient of each parameter with respect to the mean square of the output."""
    model.zero_grad()
    output = model(**kwargs)
    assert output.shape == shape
    assert output.isfinite().all()
    output.square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@torch.no_grad()
def check_samples_are_independent(model, kwargs):
    """A permuted batch gives the permuted output, and samples of a batch differ."""
    parity.fill(model).eval()
    order = torch.tensor([2, 0, 1])
    output = model(**kwargs)
    permuted = model(**{name: value[order] for name, value in kwargs.items()})
    torch.testing.assert_close(permuted, output[order], rtol=1e-4, atol=1e-4)
    assert (output[0] - output[1]).abs().max() > 1e-2


@torch.no_grad()
def check_timestep_matters(model, kwargs, name="timesteps"):
    """Other timesteps (the argument ``name``) give another output."""
    parity.fill(model).eval()
    other = {**kwargs, name: kwargs[name].flip(0)}
    assert (model(**kwargs) - model(**other)).abs().max() > 1e-2


@torch.no_grad()
def check_bf16(model, kwargs, image="x", tolerance=0.05):
    """Weights in bf16 give nearly the same output, in the dtype of the argument ``image``."""
    parity.fill(model).eval()
    exact = model(**kwargs)
    rounded = model.to(torch.bfloat16)(**kwargs)
    assert rounded.dtype == kwargs[image].dtype
    assert (rounded - exact).norm() < tolerance * exact.norm()


def check_checkpointing(build, kwargs):
    """``build(use_checkpoint)`` gives the same output and gradients either way."""
    results = []
    for use_checkpoint in (False, True):
        model = parity.fill(build(use_checkpoint)).train()
        output = model(**kwargs)
        output.square().mean().backward()
        results.append((output.detach(), {n: p.grad for n, p in model.named_parameters()}))
    (plain, plain_grads), (recomputed, recomputed_grads) = results
    torch.testing.assert_close(recomputed, plain)
    torch.testing.assert_close(recomputed_grads, plain_grads)
