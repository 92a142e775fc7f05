"""The explainers, in the order of the report's sections. A new one is a file of its own and its name here."""

from __future__ import annotations

from evalengine.analysis.explain import (
    arms,
    decomposition,
    eft,
    eft_decisions,
    flips,
    format,
    format_shares,
    frequency,
    gelbach,
    item_transfer,
    proxies,
    snr,
    threshold,
)
from evalengine.analysis.explain.explainer import Explainer

EXPLAINERS: tuple[Explainer, ...] = (
    eft.EXPLAINER,
    eft.MEANS,
    decomposition.EXPLAINER,
    eft_decisions.EXPLAINER,
    proxies.EXPLAINER,
    snr.EXPLAINER,
    format.EXPLAINER,
    arms.EXPLAINER,
    format_shares.EXPLAINER,
    format_shares.WINNERS,
    item_transfer.EXPLAINER,
    threshold.EXPLAINER,
    flips.EXPLAINER,
    flips.CURVES,
    flips.ITEMS,
    frequency.EXPLAINER,
    frequency.BINNED,
    gelbach.EXPLAINER,
)
