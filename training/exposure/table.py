"""exposure.arrow: counts of every item's n-grams in every source, one sealed Arrow file (docs/exposure.md: columns and kinds).

`grams` is how many different n-grams were looked for: 0 says that the item has none of that n, so that nothing is known
(such rows are always there), while a row that is left out is a count of zero. `items` in the metadata lists all items.
Reading needs neither PyTorch nor Numba.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evalengine import arrow
from evalengine.errors import UserError
from evalengine.store import sealed
from evalengine.untrusted import parse_json

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
NAME = "exposure.arrow"
KINDS = ("cross", "task", "longest", "context")
NUMBERS = {"choice": np.int16, "n": np.int8, "grams": np.int32, "count": np.int64}


class SourceSize(NamedTuple):
    """What was read of a source."""

    words: int
    bytes: int  # of its documents as UTF-8
    documents: int
    tokens: int  # of the study's tokenizer; of the whole source
    tokens_estimated: bool  # from the bytes, where the source was never tokenised


@dataclass(frozen=True)
class ExposureAbout:
    """The metadata key `exposure`: what was read, and the design that turns counts into doses."""

    sources: Mapping[str, SourceSize]
    mixtures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # shares; empty: no study
    tokens: Mapping[str, int] = field(default_factory=dict)  # scale -> pretraining tokens
    data: Mapping[str, str] = field(default_factory=dict)  # benchmark -> hash of its rows, as in a store
    versions: Mapping[str, str] = field(default_factory=dict)  # benchmark -> its version, as in a store

    def as_json(self) -> str:
        sources = {name: size._asdict() for name, size in self.sources.items()}
        mixtures = {name: dict(shares) for name, shares in self.mixtures.items()}
        value = {"format": FORMAT, "sources": sources, "mixtures": mixtures, "tokens": dict(self.tokens)}
        return json.dumps({**value, "data": dict(self.data), "versions": dict(self.versions)})

    def same_items(self, other: ExposureAbout) -> bool:
        """Whether the benchmarks that both hold have the same rows and versions, as far as both say."""
        return all(
            theirs.get(name, value) == value
            for ours, theirs in ((self.data, other.data), (self.versions, other.versions))
            for name, value in ours.items()
        )


class Coded(NamedTuple):
    """A column of strings: `names[code_R[r]]`."""

    names: list[str]
    code_R: np.ndarray

    def arrow(self) -> pa.DictionaryArray:
        import pyarrow as pa

        codes = arrow.array_of(self.code_R.astype(np.int32))
        return pa.DictionaryArray.from_arrays(codes, arrow.strings(self.names))


def coded(strings: Sequence[str]) -> Coded:
    """The different strings in order, and the place of each among them."""
    place = {text: number for number, text in enumerate(dict.fromkeys(strings))}
    return Coded(list(place), np.array([place[text] for text in strings], np.intp))


class Exposure(NamedTuple):
    """The rows of exposure.arrow."""

    about: ExposureAbout
    items: Mapping[str, Sequence[str]]  # benchmark -> its items, in order
    benchmark: Coded
    item: Coded
    source: Coded
    kind: Coded
    choice_R: np.ndarray
    n_R: np.ndarray
    grams_R: np.ndarray
    count_R: np.ndarray


def write(path: Path, exposure: Exposure) -> None:
    """Writes all of it, or nothing."""
    import pyarrow as pa

    columns = {name: getattr(exposure, name).arrow() for name in ("benchmark", "item", "source", "kind")}
    for name, kind in NUMBERS.items():
        columns[name] = arrow.array_of(getattr(exposure, f"{name}_R").astype(kind))
    items = json.dumps({benchmark: list(ids) for benchmark, ids in exposure.items.items()})
    sealed.write(path, pa.table(columns), {"exposure": exposure.about.as_json(), "items": items})


def about_of(path: Path, metadata: Mapping[bytes, bytes] | None) -> ExposureAbout:
    """What the metadata of a file says under `exposure`; older files have no `data` or no `versions`.

    Raises UserError for another format, and KeyError, TypeError, ValueError or AttributeError for what `as_json` did not write.
    """
    about = parse_json((metadata or {})[b"exposure"])
    if about["format"] != FORMAT:
        raise UserError(f"{path} is of format {about['format']}: upgrade evalengine, or count again")
    sources = {name: SourceSize(**size) for name, size in about["sources"].items()}
    known = (dict[str, str](about.get(key, {})) for key in ("data", "versions"))
    return ExposureAbout(sources, about["mixtures"], about["tokens"], *known)


def read(path: Path) -> Exposure:
    """What `evalengine expose` wrote to `path`: its rows as arrays of one length, and what it says of sources and mixtures.

    Raises UserError for a file that is missing, damaged, of another kind or of a newer format.
    """
    try:
        table = sealed.read(path)
        about = about_of(path, table.schema.metadata)
        items = parse_json(table.schema.metadata[b"items"])
        benchmark, item, source, kind = (
            _decoded(table, name) for name in ("benchmark", "item", "source", "kind")
        )
        numbers = (arrow.numbers(table.column(name).combine_chunks()) for name in NUMBERS)
        return Exposure(about, items, benchmark, item, source, kind, *numbers)
    except FileNotFoundError:
        raise UserError(f"there is no {path}: make it with `evalengine expose`") from None
    except (sealed.Damaged, KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{path} is damaged or no exposure table: make it again with `evalengine expose`"
        ) from None


def _decoded(table: Any, name: str) -> Coded:
    column = table.column(name).combine_chunks()
    return Coded(column.dictionary.to_pylist(), arrow.numbers(column.indices))
