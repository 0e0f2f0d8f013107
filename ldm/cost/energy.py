"""Energy of a GPU by the counter of the driver (NVML), where there is one."""

from __future__ import annotations

from typing import Any

import torch

MILLI = 1e-3


class EnergyMeter:
    """Joules that the whole GPU of ``device`` has used since the meter was made.

    The counter is that of the board (``nvmlDeviceGetTotalEnergyConsumption``, millijoules since the
    driver was loaded; Volta and later): it includes what other processes do there.

    Args:
        device: a torch device.

    Attributes:
        reason: why nothing can be measured, or empty.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.reason, self._nvml, self._handle, self._start = "", None, None, 0
        device = torch.device(device)
        if device.type != "cuda":
            self.reason = f"no energy counter is read on {device.type}"
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            self._nvml, self._handle = pynvml, _handle(pynvml, device)
            self._start = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except ImportError:
            self.reason = "the package nvidia-ml-py is not installed"
        except Exception as error:  # NVMLError has many kinds: old board, MIG, no rights
            self.reason = f"NVML: {error}"

    def joules(self) -> float | None:
        """Return what was used so far, or None; see ``reason``."""
        if self.reason:
            return None
        now = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        return (now - self._start) * MILLI


def _handle(nvml: Any, device: torch.device) -> Any:
    """Return NVML's handle by UUID, because its numbers ignore CUDA_VISIBLE_DEVICES."""
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
