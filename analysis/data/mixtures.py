"""What the mixtures are made of, from a study file (`mixtures:` of shares by source) or columns of an imported table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evalengine.analysis.data.panel import RESULTS_FILE
from evalengine.errors import UserError
from evalengine.untrusted import parse_json, read_yaml

KINDS = {  # what a source's name says about it
    "web": ("web", "dclm", "c4", "crawl", "pile_cc"),
    "code": ("code", "stack_v", "thestack", "the_stack", "github", "starcoder"),
}
OTHER_KIND = "curated"
WEB_SOURCE = "web_source"


class Mixtures(NamedTuple):
    """Shares of each mixture by kind (web, code, curated) or source, and the factors of the design: its web source where
    it has exactly one, columns of an imported table."""

    shares: dict[str, dict[str, float]]  # by name of the share, then mixture
    factors: dict[str, dict[str, str]]  # by name of the factor, then mixture

    @property
    def web_source(self) -> dict[str, str]:
        return self.factors.get(WEB_SOURCE, {})


def kind_of(source: str) -> str:
    plain = source.lower().replace("-", "_")
    for kind in ("code", "web"):
        if any(word in plain for word in KINDS[kind]):
            return kind
    return OTHER_KIND


def from_sources(mixtures: Mapping[str, Mapping[str, float]]) -> Mixtures:
    """Sums the shares of each kind of source; a source of its own kind only is not listed twice."""
    shares: dict[str, dict[str, float]] = {}
    web: dict[str, str] = {}
    for mixture, parts in mixtures.items():
        total = sum(parts.values()) or 1.0
        for source, share in parts.items():
            name = f"{kind_of(source)} share"
            shares.setdefault(name, dict.fromkeys(mixtures, 0.0))[mixture] += share / total
        sources = [source for source, share in parts.items() if kind_of(source) == "web" and share > 0]
        if len(sources) == 1:
            web[mixture] = sources[0]
    is_factor = len(set(web.values())) > 1 and len(web) == len(mixtures)
    return Mixtures(shares, {WEB_SOURCE: web} if is_factor else {})


def read_study(where: str) -> Mixtures:
    """The mixtures of a study file, or of a shipped study by its name; `blocks:` adds factors, {factor: {mixture: label}}, and
    may stand alone."""
    from importlib.resources import files

    path = Path(where)
    if not path.is_file():
        shipped = Path(str(files("evalengine.studies"))) / f"{where}.yaml"
        if not shipped.is_file():
            raise UserError(
                f"there is no study file {where}: --study takes a YAML file with `mixtures:` or `blocks:`"
            )
        path = shipped
    raw: Any = read_yaml(path, texts=True)
    try:
        mixtures = {
            str(name): {str(source): _number(share) for source, share in parts.items()}
            for name, parts in (raw.get("mixtures", {}) if "blocks" in raw else raw["mixtures"]).items()
        }
        factors = {
            str(factor): {str(mixture): str(label) for mixture, label in of.items()}
            for factor, of in raw.get("blocks", {}).items()
        }
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        raise UserError(
            f"{path} has neither `mixtures:` of sources and shares nor `blocks:` of factors and labels: give a study file"
        ) from None
    for name, parts in mixtures.items():
        if not all(0.0 <= share < math.inf for share in parts.values()):
            raise UserError(f"{path}: the shares of mixture {name} must be numbers from 0 up: correct them")
    found = from_sources(mixtures)
    return found._replace(factors={**found.factors, **factors})


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def imported_mixtures(source: Path | str) -> Mixtures | None:
    """The shares and factors that an imported table of results carries; None for a score store or a table without them."""
    from evalengine.store import sealed

    source = Path(source)
    path = source if source.suffix == ".arrow" else source / RESULTS_FILE
    if not path.is_file():
        return None
    try:
        raw = sealed.read(path).schema.metadata or {}
        shares, factors = (parse_json(raw.get(key, b"{}")) for key in (b"shares", b"blocks"))
        checked = Mixtures(
            {str(name): {m: float(share) for m, share in of.items()} for name, of in shares.items()},
            {str(name): {m: str(label) for m, label in of.items()} for name, of in factors.items()},
        )
    except (sealed.Damaged, OSError, ValueError, TypeError, AttributeError, OverflowError):
        raise UserError(f"{path} is damaged: import the results again") from None
    return checked if any(checked) else None


def joined(study: Mixtures | None, table: Mixtures | None) -> Mixtures | None:
    """The study file's shares and factors, and the table's factors beside them."""
    if study is None or table is None:
        return study or table
    return Mixtures(study.shares, {**table.factors, **study.factors})
