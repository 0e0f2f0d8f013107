"""scripts/bench_peers.py times the same work, and its limits and ratios mean what they say."""

import runpy
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "bench_peers.py"))
SMALL = SCRIPT["Shape"](width=32, mult=(1, 2), attention=(False, True), head=32, blocks=1)


@pytest.fixture(scope="module")
def results():
    return SCRIPT["run"](SMALL, side=16, batches=[1, 2], rounds=1)


def test_peers_compute_what_this_project_computes():
    networks = SCRIPT["same_networks"](SMALL)
    x, timesteps = torch.randn(2, 4, 32, 16), torch.tensor([3, 700])
    with torch.no_grad():
        expected = networks["dsdiff"](x, timesteps)
        for network in networks.values():
            torch.testing.assert_close(network(x, timesteps), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.01  # no layer was left at zero


def test_another_network_is_refused(monkeypatch):
    def other(shape):
        network = SCRIPT["diffusers_network"](shape)
        network.conv_norm_out.eps = 0.1
        return network

    monkeypatch.setitem(SCRIPT["same_networks"].__globals__, "diffusers_network", other)
    with pytest.raises(SystemExit, match="output of UNet2DModel differs"):
        SCRIPT["same_networks"](SMALL)


def test_every_network_is_timed_in_both_uses(results):
    forward = {
        f"{name}, {use}" for name in ("MONAI", "diffusers", "dsdiff") for use in ("plain", "best")
    }
    assert set(results["seconds"]["forward, 1"]) == forward
    assert set(results["seconds"]) == {"forward, 1", "forward, 2", "training step, 1"}
    assert all(s > 0 for task in results["seconds"].values() for s in task.values())


def test_ours_is_timed_compiled_too_where_that_is_asked(monkeypatch):
    asked = []

    def compile_lightly(network, kind, option, graphs=False):
        asked.append(graphs)
        network.compile(backend="eager")

    for name in ("forwards", "training_step"):
        monkeypatch.setitem(SCRIPT[name].__globals__, "compile_network", compile_lightly)
    results = SCRIPT["run"](SMALL, side=16, batches=[1], rounds=1, compiled=True)
    assert all(task["dsdiff, compiled"] > 0 for task in results["seconds"].values())
    assert asked == [True, False]  # CUDA graphs of a forward, none of a training step
    assert "| forward, 1 | dsdiff, compiled |" in SCRIPT["table"](results)


def test_table_counts_work_and_speed(results):
    chosen = {
        "gflop": 10.0,
        "limits": {"GEMM fp32": 9.0, "convolution fp32 NCHW": 50.0, "convolution fp32 NHWC": 100.0},
        "seconds": {"training step, 2": {"MONAI, plain": 2.0, "dsdiff, best": 1.0}},
    }
    page = SCRIPT["table"](results | chosen)
    # 2 slices x 3 passes x 10 GFLOP in a second, of 100 GFLOP/s
    assert "| training step, 2 | dsdiff, best | 1.000 | 2.000 | 60% |" in page
    assert "| training step, 2 | MONAI, plain | 2.000 | 1.000 | 30% |" in page
