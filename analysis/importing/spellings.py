"""evalengine's names for benchmarks that papers, tables and other harnesses spell in their own way.

A name is looked up whole, without case and separators, and never by likeness: `wsc273`, `mnli_mismatched` and
`arc_easy_mc` are other benchmarks than `wsc`, `mnli` and `arc_easy`, and keep their names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

SPELLINGS = {
    "piqa": ("physical_iqa",),
    "winogrande": ("winogrande_xl",),
    "siqa": ("social_iqa",),
    "commonsense_qa": ("commonsense_qa", "csqa"),
    "arc_easy": ("arc_easy", "arc_e", "ai2_arc_easy"),
    "arc_challenge": ("arc_challenge", "arc_c", "ai2_arc_challenge"),
    "openbookqa": ("obqa",),
    "mnli": ("mnli_matched", "mnli_m", "glue_mnli_matched"),
    "cb": ("commitment_bank",),
    "wsc": ("wsc_fixed", "super_glue_wsc_fixed", "superglue_wsc_fixed"),
}
SUITES = {  # whose names stand before those of their tasks
    ("glue",): ("mnli", "mrpc", "qnli", "qqp", "rte"),
    ("super_glue", "sglue"): ("boolq", "cb", "copa", "multirc", "rte", "wic", "wsc"),
}


def _letters(name: str) -> str:
    return re.sub(r"[-_:./ ]", "", name.lower())


OURS = {_letters(spelling): name for name, spellings in SPELLINGS.items() for spelling in spellings} | {
    _letters(prefix + name): name
    for prefixes, tasks in SUITES.items()
    for prefix in prefixes
    for name in tasks
}


def benchmark_name(name: str, known: Iterable[str]) -> str:
    """evalengine's name for a benchmark that others call, say, "ARC-Easy" or "super_glue:boolq"; else the name itself."""
    letters = _letters(name)
    ours = OURS.get(letters, letters)
    return ours if ours in known else name


def similar(name: str, known: Iterable[str]) -> str | None:
    """The known benchmark that an unknown name begins with or is nearly spelled like, if there is one."""
    known = list(known)
    begins = [one for one in known if _letters(name).startswith(_letters(one))]
    close = sorted(begins, key=len, reverse=True) or difflib.get_close_matches(
        name[:60].lower(), known, 1, 0.8
    )
    return close[0] if close else None
