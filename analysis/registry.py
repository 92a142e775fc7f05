"""The protocols, in the order of the report's sections. A new one is a file of its own and a line here."""

from __future__ import annotations

from evalengine.analysis import (
    alignment,
    calibration,
    coherence,
    decisions,
    effects,
    matrices,
    noise,
    transfer,
)

PROTOCOLS = (
    transfer.PROTOCOL,
    matrices.PROTOCOL,
    coherence.PROTOCOL,
    alignment.PROTOCOL,
    calibration.PROTOCOL,
    effects.PROTOCOL,
    noise.PROTOCOL,
    decisions.PROTOCOL,
)
