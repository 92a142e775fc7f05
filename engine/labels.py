"""Orders of names that people gave: scales by size, steps by number, stages as they are trained."""

from __future__ import annotations

import re

TRAINED = ("pt", "sft", "dpo")  # stages, each from the one before
CHAT = "+chat"  # ends the names and stages of what `score --chat` stores


def natural_key(text: str) -> list[tuple[int, float, str]]:
    """Orders "step9" before "step10"."""
    return [
        (0, float(part), "") if part[0].isdecimal() else (1, 0.0, part)
        for part in re.split(r"(\d+(?:\.\d+)?)", text)
        if part
    ]


def scale_key(text: str) -> tuple[float, list[tuple[int, float, str]]]:
    """Orders scales by size: 1m, 60M, 240M-base, 1B; of one size and without a size, by name."""
    number = r"\d+(?:\.\d+)?"
    found = re.search(rf"(?<![a-z0-9.])({number})\s*([kmbt])(?![a-z0-9])|^({number})$", text.strip().lower())
    if not found:
        return float("inf"), natural_key(text)
    unit = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}.get(found[2], 1.0)
    return float(found[1] or found[3]) * unit, natural_key(text)


def stage_key(text: str) -> tuple[int, bool, list[tuple[int, float, str]], str]:
    """Orders stages: pt, sft and its arms, dpo, others by name; each before its own in chat format."""
    plain = text.removesuffix(CHAT)
    kind = plain.split("_")[0]
    place = TRAINED.index(kind) if kind in TRAINED else len(TRAINED)
    return place, plain != kind, natural_key(plain), text
