"""Model FLOPs utilisation: the FLOPs that the model needs, over what the device could do at its peak.

Activations computed twice, padding's attention and the optimiser are not counted as useful; padding fed
through the matrices is. Known for devices whose bfloat16 peak the maker states; on others it is left out.
"""

from __future__ import annotations

import time

# FLOP/s in bfloat16, dense, float32 sums, by the makers' data sheets; the first whose words occur in the name.
PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L4": 121e12,
}


def peak_flops(device_name: str) -> float | None:
    """The peak of one device by its name, as CUDA reports it; None where it is not known."""
    name = f" {device_name.replace('-', ' ')} "
    return next((rate for known, rate in PEAKS.items() if f" {known} " in name), None)


def peak_of(device: str, count: int = 1) -> float | None:
    """The peak of `count` devices like this one; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    peak = peak_flops(torch.cuda.get_device_name(device))
    return peak and peak * count


class Utilisation:
    """Adds up FLOPs from the first report on, so that loading and compiling do not count."""

    def __init__(self, peak: float | None) -> None:
        self._peak, self._flops = peak, 0.0
        self._began: float | None = None

    def add(self, flops: float, now: float | None = None) -> str:
        """Takes the FLOPs since the last report; what to show: `, MFU 47%`, or nothing."""
        now = time.monotonic() if now is None else now
        if self._peak is None:
            return ""
        if self._began is None or now <= self._began:
            self._began = now
            return ""
        self._flops += flops
        return f", MFU {self._flops / (now - self._began) / self._peak:.0%}"
