"""What the machine is asked before a precision is chosen, and its allocator told."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from ldm.environment import prefers_channels_last, resolve_precision, resolve_weights

FAULTS = """
import resource, torch
from ldm.memory import keep_freed_memory
keep_freed_memory()
for step in range(30):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [torch.ones(size, 1024, 256) for size in (36, 18, 36)]  # MiB
    del maps
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize(
    ("kind", "capabilities", "expected"),
    [
        ("cpu", {}, "32"),
        ("cpu", {"avx512_bf16": False, "amx_bf16": False}, "32"),
        ("cpu", {"avx512_bf16": True}, "bf16"),
        ("cpu", {"amx_bf16": True}, "bf16"),
        ("mps", {"avx512_bf16": True}, "32"),
    ],
)
def test_auto_is_bf16_where_the_device_multiplies_in_it(
    kind, capabilities, expected, monkeypatch, caplog
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_weights("auto", kind) == expected
    assert resolve_weights("32", kind) == "32"
    assert not caplog.records


@pytest.mark.parametrize("generation", ["Ampere", "Turing"])
def test_auto_on_a_gpu_asks_for_hardware_not_emulation(generation, monkeypatch):
    def supported(including_emulation=True):
        return including_emulation or generation == "Ampere"

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert resolve_weights("auto", "cuda") == {"Ampere": "bf16", "Turing": "32"}[generation]


@pytest.mark.parametrize("has_cuda", [True, False])
def test_the_precision_of_a_training_is_that_of_where_it_trains(has_cuda, monkeypatch):
    """A slow processor beside a fast GPU: only what is trained there is trained in bf16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    on_gpu = "bf16-mixed" if has_cuda else "32"
    expected = {"auto": on_gpu, "gpu": on_gpu, "cuda": on_gpu, "cpu": "32", "mps": "32"}
    assert {kind: resolve_precision("auto", kind) for kind in expected} == expected
    assert resolve_precision("16-mixed", "cpu") == "16-mixed"
    assert prefers_channels_last("bf16-mixed", "cuda")
    assert not prefers_channels_last("bf16-mixed", "cpu")


def test_an_explicit_bf16_that_is_slow_is_kept_and_told_in_one_line(monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert resolve_weights("bf16", "cpu") == "bf16"
    assert "5 to 10 times slower" in caplog.text
    assert len(caplog.records) == len(caplog.text.splitlines()) == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc")
def test_freed_memory_is_used_again_unless_the_variable_says_no():
    """Once warm, maps as a network makes them ask the system for hardly a page."""

    def faults(keep):
        given = os.environ | {"DSDIFF_KEEP_MEMORY": keep}
        run = subprocess.run(
            [sys.executable, "-c", FAULTS], env=given, capture_output=True, text=True, check=True
        )
        return int(run.stdout)

    assert faults("1") * 5 < faults("0")
