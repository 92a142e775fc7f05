"""lm-evaluation-harness's samples_*.jsonl as files of a score store.

Every line holds one item's log-likelihoods, so accuracy, confidence and calibration come from the same code
as for scores of evalengine's own. Token counts are not in the file and stay null. The right choice is the
target's index, or its text among the continuations, or what the line's own `acc` implies; a line whose `acc`
contradicts the result is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evalengine.analysis.importing import Known, identify
from evalengine.errors import UserError
from evalengine.untrusted import check_name, parse_json

if TYPE_CHECKING:
    import pyarrow as pa


class Sample(NamedTuple):
    """One item: log-likelihoods, greedy flags and continuations of its choices, and the right one."""

    item: str
    gold: int
    loglik: tuple[float, ...]
    greedy: tuple[bool, ...]
    choices: tuple[str, ...]


def import_samples(
    path: Path, out: Path, pattern: str, known: Mapping[str, Known], alias: Mapping[str, str]
) -> Path:
    """Writes `out`/<checkpoint>/<benchmark>.arrow from one samples file; returns the path written."""
    from evalengine import __version__
    from evalengine.store import STORE_VERSION, write

    found = re.fullmatch(r"samples_(.+)_\d{4}-\d{2}-\d{2}T[\d.\-:]+", path.stem)
    task = found[1] if found else path.stem.removeprefix("samples_")
    benchmark = alias.get(task, task)
    check_name(benchmark, "benchmark")
    checkpoint, scale, mixture, stage = identify(path.parent.name, pattern)
    about = known.get(benchmark, Known("Other", "acc"))
    samples = read_samples(path)
    who = {"checkpoint": checkpoint, "scale": scale, "mixture": mixture, "stage": stage}
    table = to_table({**who, "benchmark": benchmark, "category": about.category}, samples)
    metadata = {
        "store_version": STORE_VERSION,
        "evalengine_version": __version__,
        "benchmark_version": "lm-evaluation-harness",
        "variant": "lm_eval",
        "default_score": about.default_score,
        "limit": "",
        "fewshot": "",
        "backend": "imported",
        "dtype": "",
    }
    target = out / checkpoint / f"{benchmark}.arrow"
    write(target, table, metadata)
    return target


def read_samples(path: Path) -> list[Sample]:
    """The items of a samples file. Raises UserError naming the line at fault."""
    samples = []
    number = 0
    try:
        with path.open(encoding="utf-8") as handle:
            for line in handle:
                number += 1
                if line.strip():
                    samples.append(_sample(parse_json(line, constants=True)))
    except UserError as error:
        raise UserError(f"{path}, line {number}: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: give a samples_*.jsonl file") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError):
        raise UserError(
            f"{path}, line {number} is no multiple-choice sample of lm-evaluation-harness "
            "(run it with --log_samples on multiple-choice tasks)"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error}): give a samples_*.jsonl file") from None
    if not samples:
        raise UserError(f"{path} is empty: nothing to import")
    return samples


def _sample(raw: Mapping[str, Any]) -> Sample:
    scored = [
        response[0] if isinstance(response[0], list) else response for response in raw["filtered_resps"]
    ]
    loglik = tuple(float(value[0]) for value in scored)
    greedy = tuple(str(value[1]) == "True" for value in scored)
    arguments = raw["arguments"]
    pairs = arguments.values() if isinstance(arguments, dict) else arguments
    texts = [pair["arg_1"] if isinstance(pair, dict) else pair[1] for pair in pairs]
    # With mutual information the unconditional requests follow the conditional ones.
    choices = tuple(text[1:] if text.startswith(" ") else text for text in texts[: len(loglik)])
    picked = max(range(len(loglik)), key=lambda i: (loglik[i], -i))
    if len(choices) < 2 or len(choices) != len(loglik):
        raise ValueError("not one log-likelihood for each of two choices or more")
    right = None if "acc" not in raw else float(raw["acc"]) == 1.0
    gold = _gold(str(raw["target"]), choices, picked, right)
    if right is not None and (picked == gold) != right:
        raise UserError(
            f"its acc says {'right' if right else 'wrong'}, but its log-likelihoods and target do not"
        )
    item = str(raw.get("doc_hash") or raw["doc_id"])
    for text in (item, *choices):
        text.encode()  # a lone surrogate is no character
    return Sample(item, gold, loglik, greedy, choices)


def _gold(target: str, choices: tuple[str, ...], picked: int, right: bool | None) -> int:
    plain = [choice.strip() for choice in choices]
    if len(set(plain)) == len(plain):
        if target.strip() in plain:
            return plain.index(target.strip())
        if target.strip().isdigit() and int(target) < len(choices):
            return int(target)
        if re.fullmatch(r"[A-J]", target.strip()) and ord(target.strip()) - 65 < len(choices):
            return ord(target.strip()) - 65
    if right:
        return picked
    if right is False and len(choices) == 2:
        return 1 - picked
    raise UserError(f"cannot tell which choice its target '{target[:40]}' means")


def to_table(who: Mapping[str, str | None], samples: list[Sample]) -> pa.Table:
    """A table of the store's schema; an item that occurs twice gets a number behind its id."""
    import pyarrow as pa

    from evalengine.store import KEYS, schema

    count: dict[str, int] = {}
    ids = []
    for sample in samples:
        count[sample.item] = count.get(sample.item, 0) + 1
        ids.append(sample.item if count[sample.item] == 1 else f"{sample.item}#{count[sample.item]}")
    fields = schema()
    columns: dict[str, Any] = {
        **{key: pa.array([who[key]] * len(samples), pa.string()).dictionary_encode() for key in KEYS},
        "item": ids,
        "gold": [sample.gold for sample in samples],
        "loglik": [sample.loglik for sample in samples],
        "tokens": [None] * len(samples),
        "chars": [[len(choice) for choice in sample.choices] for sample in samples],
        "bytes": [[len(choice.encode()) for choice in sample.choices] for sample in samples],
        "greedy": [sample.greedy for sample in samples],
        "loglik_uncond": [None] * len(samples),
    }
    arrays = [
        values.cast(fields.field(name).type) if name in KEYS else pa.array(values, fields.field(name).type)
        for name, values in columns.items()
    ]
    return pa.Table.from_arrays(arrays, schema=fields)
