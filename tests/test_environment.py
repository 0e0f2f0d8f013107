"""What the machine is asked before a precision is chosen."""

import pytest
import torch

from ldm.environment import resolve_weights


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


def test_an_explicit_bf16_that_is_slow_is_kept_and_told_in_one_line(monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert resolve_weights("bf16", "cpu") == "bf16"
    assert "5 to 10 times slower" in caplog.text
    assert len(caplog.records) == len(caplog.text.splitlines()) == 1
