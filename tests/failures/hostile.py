"""Hostile inputs: good ones with damage, and values that parsers stumble over."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from evalengine.errors import UserError

tried: Counter[str] = Counter()  # inputs, by reader

NUMBERS: list[Any] = [
    0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.0, -0.0, 1e308, 5e-324, float("nan"), float("inf"),
    -float("inf"), True, False,
]  # fmt: skip
TEXTS = [
    "", " ", "\0", "a\0b", "\ud800", "\udfff x", "../../x", "/etc/passwd", "..", ".", "x" * 300, "x" * 5000, "é" * 200, "．．／x",
    "A\u202eB", "\x1b[2J", "nan", "null", "1e999", "9" * 5000, "-1", "<script>alert(1)</script>", "{", "}}", "{x}", "a\nb",
    "\ufeff",
    "con", "runs.jsonl", "😀", "a" * 20_000,
]  # fmt: skip


def deep(levels: int, kind: str) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if kind == "list" else {"a": value}
    return value


SCALARS = st.one_of(
    st.none(),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
)
VALUES = st.one_of(
    SCALARS,
    st.recursive(
        SCALARS,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(TEXTS[:12]) | st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=6,
    ),
    st.sampled_from([deep(n, kind) for n in (5, 150, 800) for kind in ("list", "dict")]),
)
SEEDS = st.integers(0, 2**32 - 1)
SOME = st.lists(VALUES, min_size=1, max_size=3)
COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
settings.register_profile("short", max_examples=40, derandomize=True, **COMMON)
settings.register_profile("long", max_examples=250, **COMMON)


def bounded(test: Callable[..., None]) -> Callable[..., None]:
    """As many inputs as the profile asks for."""
    long = settings.default.max_examples > 100
    return (settings.default if long else settings.get_profile("short"))(test)


def refuses_or_reads(reader: str, read: Callable[[], Any]) -> Any:
    """What `read` gives, None where it refuses in one sentence; anything else is a defect."""
    tried[reader] += 1
    try:
        return read()
    except UserError as refused:
        said = str(refused)
        assert said.strip() and len(said) < 5000 and "Traceback" not in said
        return None


def changed(document: Any, values: list[Any], seed: int) -> Any:
    """`document` with some of its parts replaced by `values`, removed, doubled or renamed."""
    rng = random.Random(seed)
    out = copy.deepcopy(document)
    for value in values:
        places = list(_places(out))
        if not places:
            return value
        holder, key = rng.choice(places)
        action = rng.random()
        if action < 0.7:
            holder[key] = copy.deepcopy(value) if isinstance(value, dict | list) else value
        elif action < 0.8:
            del holder[key]
        elif isinstance(holder, dict):
            holder[value if isinstance(value, str) else "new"] = copy.copy(holder[key])
        else:
            holder.append(copy.copy(holder[key]))
    return out


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where something stands in the first levels of a document."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(4):
        for holder in level:
            yield from (
                (holder, key) for key in (list(holder) if isinstance(holder, dict) else range(len(holder)))
            )
        level = [
            inner
            for holder in level
            for inner in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(inner, dict | list)
        ]


def json_text(value: Any) -> str:
    """JSON as a careless writer would make it: NaN and lone surrogates included."""
    try:
        return json.dumps(value)
    except (RecursionError, ValueError):  # too deep, or a number of too many digits
        return "[" * 2000 + "]" * 2000


def damaged(content: bytes, seed: int) -> bytes:
    """`content` with one to eight bytes, lengths or stretches changed, or cut."""
    rng = random.Random(seed)
    out = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 8])):
        at = rng.randrange(len(out)) if out else 0
        action = rng.randrange(8)
        if not out or action == 0:
            out[at:at] = rng.randbytes(rng.choice([1, 4, 64]))
        elif action == 1:
            out[at] ^= 1 << rng.randrange(8)
        elif action == 2:
            out[at] = rng.choice([0, 1, 127, 128, 255, 34, 91, 123])
        elif action == 3:
            del out[at : at + rng.choice([1, 2, 8, 100])]
        elif action == 4:
            out[at:at] = out[at : at + rng.choice([1, 8, 200])]
        elif action == 5:
            number = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1])
            width = rng.choice(["<I", "<Q"])
            packed = struct.pack(width, number & (2**32 - 1 if width == "<I" else 2**64 - 1))
            out[at : at + len(packed)] = packed
        elif action == 6:
            del out[at:]
        else:
            other = rng.randrange(len(out))
            out[at : at + 8] = out[other : other + 8]
    return bytes(out)
