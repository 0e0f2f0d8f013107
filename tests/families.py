"""What every backbone must hold, as checks that the tests of each family call.

The weights come from ``parity.fill``: at initialisation most residual branches are zero, and a
property of zeros proves nothing.
"""

import parity
import torch


def call_inputs(channels, size, batch=3, **more):
    """Keyword arguments of ``forward``: an image of ``size`` and different timesteps."""
    x = parity.normal("x", (batch, channels, *size))
    return {"x": x, "timesteps": torch.arange(batch) * 300 + 10, **more}


def check_gradients(model, kwargs, shape):
    """The output has ``shape``, is finite, and every parameter takes part in it.

    In eval mode, because in training mode a batch norm cancels the bias before it.
    """
    output = parity.fill(model).eval()(**kwargs)
    assert output.shape == shape
    assert output.isfinite().all()
    output.square().mean().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert not [name for name, grad in grads.items() if grad is None or grad.abs().max() < 1e-7]


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
def check_timestep_matters(model, kwargs):
    """Other timesteps give another output."""
    parity.fill(model).eval()
    other = {**kwargs, "timesteps": kwargs["timesteps"].flip(0)}
    assert (model(**kwargs) - model(**other)).abs().max() > 1e-2


@torch.no_grad()
def check_bf16(model, kwargs, tolerance=0.05):
    """Weights in bf16 give nearly the same output, in the dtype of the input."""
    parity.fill(model).eval()
    exact = model(**kwargs)
    rounded = model.to(torch.bfloat16)(**kwargs)
    assert rounded.dtype == kwargs["x"].dtype
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
