"""The protocols, in the order of the report's sections. A new one is a file of its own and its name here."""

from __future__ import annotations

from evalengine.analysis.protocols import (
    across_blocks,
    alignment,
    calibration,
    coherence,
    decisions,
    effects,
    matrices,
    noise,
    seeds,
    shares,
    stages,
    transfer,
)

PROTOCOLS = tuple(
    file.PROTOCOL
    for file in (
        transfer,
        shares,
        stages,
        seeds,
        matrices,
        coherence,
        alignment,
        calibration,
        effects,
        noise,
        decisions,
        across_blocks,
    )
)
