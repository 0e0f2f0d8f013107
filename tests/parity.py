"""Run this project's networks on the reference cases of the public implementations.

``reference/networks.json`` describes each case: the class, its parameters, the state-dict keys
with their shapes, and the inputs; ``reference/networks.npz`` holds the outputs. No weight is
stored: each tensor is drawn from a generator seeded with the CRC-32 of its key, so equal keys and
shapes give equal weights. The test of a new backbone is one line:

    @pytest.mark.parametrize("name", parity.cases("ldm.modules.diffusionmodules.dit.DiT"))
    def test_reference(name): parity.check(name)
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

from ldm.util import get_obj_from_str

REFERENCE = Path(__file__).parent / "reference"
CASES = json.loads((REFERENCE / "networks.json").read_text())
RTOL, ATOL = 1e-3, 2e-4


def cases(target):
    """Names of the cases of one class."""
    names = [name for name, case in CASES.items() if case["target"] == target]
    assert names, f"no reference case of {target}"
    return names


def expected(name):
    """Array of the reference file: a case's output, or ``CASE/feature``."""
    with np.load(REFERENCE / "networks.npz") as arrays:
        return torch.from_numpy(arrays[name])


def normal(seed, shape, scale=1.0):
    """Normal numbers that depend on the text ``seed`` and the shape alone."""
    values = np.random.RandomState(zlib.crc32(seed.encode())).standard_normal(tuple(shape))  # noqa: NPY002 - the references were drawn so
    return torch.from_numpy(values.astype(np.float32) * scale)


def weight(key, shape):
    """Value of the state-dict entry ``key``."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(tuple(shape), dtype=torch.long)
    if key.endswith("running_var"):
        return 1.0 + 0.1 * normal(key, shape).abs()
    if len(shape) >= 2:
        fan_in = int(np.prod(shape[1:]))
        return normal(key, shape, 1.0 / np.sqrt(fan_in))
    return normal(key, shape, 0.1) + (1.0 if key.endswith("weight") else 0.0)


def fill(model):
    """Give every entry of the state dict the value that belongs to its key; return the model."""
    state = {key: weight(key, value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    return model


def build(name):
    """The network of a case in eval mode, its keys and shapes checked, its weights filled."""
    case = CASES[name]
    model = get_obj_from_str(case["target"])(**case["params"]).eval()
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == case["keys"]
    return fill(model)


def inputs(name):
    """Keyword arguments of ``forward``: x, timesteps, and context or y where the case has them."""
    return {key: _tensor(value) for key, value in CASES[name]["inputs"].items()}


def _tensor(value):
    return normal(**value) if isinstance(value, dict) else torch.tensor(value)


@torch.inference_mode()
def check(name):
    """Compare one network's output with the reference."""
    output = build(name)(**inputs(name))
    torch.testing.assert_close(output, expected(name), rtol=RTOL, atol=ATOL)
