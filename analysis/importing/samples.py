"""lm-evaluation-harness's samples_*.jsonl as files of a score store.

Every line holds one item's log-likelihoods, so accuracy, confidence and calibration come from the same code
as for scores of evalengine's own. Token counts are not in the file and stay null. The right choice is what the
target says by one rule for the whole file: an index, the text of a choice, or a letter; else what each line's `acc`
implies. A line whose `acc` contradicts that is refused. Of which model and with how many few-shot examples is said
by the results_*.json of the same run beside the file, else the folder's name is the model's.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evalengine import console
from evalengine.analysis.data.panel import RESULTS_FILE
from evalengine.analysis.importing import harness
from evalengine.analysis.importing.benchmark_info import NOTHING, Info
from evalengine.analysis.importing.imported import DATE, UNKNOWN, Known, Setting, refuse_two_files
from evalengine.analysis.importing.spellings import benchmark_name
from evalengine.errors import UserError
from evalengine.untrusted import RepeatedKeyError, check_name, parse_json, printable

if TYPE_CHECKING:
    import pyarrow as pa


POSITIVE_MOST = 1e-3  # of a log-likelihood: rounding


class SampleFile(NamedTuple):
    """A samples file: what it is about, as far as that is known."""

    path: Path
    model: harness.Model
    benchmark: str
    setting: Setting = Setting()
    items: int = 0  # which the run was of, 0 where that is not known


class HarnessSample(NamedTuple):
    """One line: an item, the log-likelihoods, greedy flags and texts of its choices, and what says which one is right.

    choices: as they were scored, delimiter included. right: what `acc` says of the choice with the highest log-likelihood,
    `picked`. right_norm: what `acc_norm` says of the one with the highest for each character. gold: once the targets are
    understood.
    """

    line: int
    item: str
    target: str
    right: bool | None
    picked: int
    loglik: tuple[float, ...]
    greedy: tuple[bool, ...]
    choices: tuple[str, ...]
    right_norm: bool | None
    gold: int = -1


def import_samples(
    paths: Sequence[Path], out: Path, pattern: str, known: Mapping[str, Known], info: Info = NOTHING
) -> list[Path]:
    """Writes `out`/<checkpoint>/<benchmark>.arrow from samples files, all or none; returns the paths written.

    Of `info`, what the user says of the benchmarks, the categories count: the rest is in the files.
    """
    from evalengine.store import KEYS, write

    if (out / RESULTS_FILE).exists():
        raise UserError(
            f"{out} holds {RESULTS_FILE}, and correlate reads one or the other: give another --out"
        )
    files = [_about(path, known) for path in paths]
    info.check({file.benchmark for file in files})
    whose = harness.identities((file.model for file in files), pattern)
    source: dict[Path, SampleFile] = {}
    for file in files:
        target = Path(whose[file.model].name, f"{file.benchmark}.arrow")
        other = source.setdefault(target, file)
        if other is not file:
            what = f"{file.benchmark} of {target.parent}"
            refuse_two_files(other.path, file.path, what, other.setting.shots, file.setting.shots)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".importing-", dir=out) as staging:
            for target, file in source.items():
                about = known.get(file.benchmark, UNKNOWN)
                checkpoint = whose[file.model]
                category = info.of(file.benchmark).category or about.category
                who = dict(zip(KEYS, (*checkpoint[:4], file.benchmark, category), strict=True))
                table = to_table(who, read_samples(file.path))
                if file.items not in (0, len(table)):
                    console.warn(
                        f"{file.path} holds {len(table)} items, and by the results beside it the run was of {file.items}: copy it"
                        " again if it was cut off"
                    )
                if table["chars"].null_count:
                    console.warn(
                        f"{file.path}: its acc_norm is not that of its choices' lengths, which are left out: acc alone is read"
                    )
                _refuse_other_scores(out / target, table)
                write(staging / target, table, _metadata(file, about, checkpoint.seed))
            for target in source:
                (out / target).parent.mkdir(exist_ok=True)
                os.replace(staging / target, out / target)
    finally:
        if not any(out.iterdir()):
            out.rmdir()
    return [out / target for target in source]


def _about(path: Path, known: Mapping[str, Known]) -> SampleFile:
    found = re.fullmatch(rf"samples_(.+)_({DATE})", path.stem)
    task = found[1] if found else path.stem.removeprefix("samples_")
    benchmark = benchmark_name(task, known)
    check_name(benchmark, "benchmark")
    results = path.with_name(f"results_{found[2]}.json") if found else None
    if results is None or not results.is_file():
        return SampleFile(path, harness.model_of_place(path)._replace(revision=""), benchmark)
    raw = harness.read_results(results)
    setting, items = harness.setting_of(raw, task), harness.items_of(raw, task)
    return SampleFile(path, harness.model_of(results, raw), benchmark, setting, items)


def _metadata(file: SampleFile, about: Known, seed: str) -> dict[str, str]:
    from evalengine import __version__
    from evalengine.store import STORE_VERSION

    how = file.setting
    return {
        "store_version": STORE_VERSION,
        "evalengine_version": __version__,
        "benchmark_version": f"lm-evaluation-harness {how.version}".strip(),
        "variant": "lm_eval",
        "default_score": about.default_score,
        "limit": "" if how.limit == "None" else how.limit.removesuffix(".0"),
        "fewshot": "" if how.shots is None else str(how.shots),
        "backend": "imported",
        "dtype": how.dtype,
        "checkpoint_seed": seed,
        "chat_format": how.chat,
        "system_instruction": how.system,
    }


def _refuse_other_scores(target: Path, table: pa.Table) -> None:
    """Refuses to replace a file that holds other scores; the same ones may get another identity."""
    from evalengine.store import read

    if not target.exists():
        return
    before = read(target)
    if any(not before[key].equals(table[key]) for key in ("item", "gold", "loglik")):
        raise UserError(f"{target} is there and holds other scores: delete it, or give another --out")


def read_samples(path: Path) -> list[HarnessSample]:
    """The items of a samples file. Raises UserError naming the line at fault."""
    samples: list[HarnessSample] = []
    first: dict[tuple[str, str], int] = {}
    with path.open("rb") as handle:
        for number, text in enumerate(handle, 1):
            if not text.strip():
                continue
            try:
                raw = parse_json(text, constants=True)
                sample = _sample(number, raw)
                document = (str(raw.get("doc_id", number)), sample.item)
                if first.setdefault(document, number) != number:
                    raise UserError(
                        f"the item of line {first[document]} again; give a file of one run and one filter"
                    )
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from None
            except RepeatedKeyError as error:
                raise UserError(f"{path}, line {number}: {error}; remove one of the two") from None
            except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
                raise UserError(
                    f"{path}, line {number} is no multiple-choice sample of lm-evaluation-harness "
                    "(run it with --log_samples on multiple-choice tasks)"
                ) from None
            samples.append(sample)
    if not samples:
        raise UserError(f"{path} is empty: nothing to import")
    golds = _golds(path, samples)
    return [sample._replace(gold=gold) for sample, gold in zip(samples, golds, strict=True)]


def _sample(number: int, raw: Mapping[str, Any]) -> HarnessSample:
    """Raises UserError, or what Python raises, where the line is no multiple-choice sample."""
    scored = [one[0] if isinstance(one[0], list) else one for one in raw["filtered_resps"]]
    loglik = tuple(float(value[0]) for value in scored)
    greedy = tuple(str(value[1]) == "True" for value in scored)
    arguments = raw["arguments"]
    if isinstance(arguments, dict):
        # A program that sorts keys puts gen_args_2 behind gen_args_10.
        arguments = [arguments[f"gen_args_{i}"] for i in range(len(arguments))]
    choices = tuple(pair["arg_1"] if isinstance(pair, dict) else pair[1] for pair in arguments)
    if len(choices) != len(loglik):
        raise ValueError("not one log-likelihood for each choice")
    if "acc_mutual_info" in raw:  # the unconditional requests follow the conditional ones
        n = len(choices) // 2
        choices, loglik, greedy = choices[:n], loglik[:n], greedy[:n]
    if len(choices) < 2:
        raise ValueError("fewer than two choices")
    if above := [value for value in loglik if value > POSITIVE_MOST]:
        raise UserError(
            f"its score {above[0]:g} is above 0, as no log-likelihood is: write natural logarithms"
        )
    said = {key: float(raw[key]) for key in ("acc", "acc_norm") if key in raw}
    if (acc := said.get("acc")) not in (None, 0.0, 1.0):
        raise UserError(f"its acc is {acc:g}: a task with several right choices cannot be imported")
    comparable = not any(map(math.isnan, loglik))
    right, right_norm = (
        said[key] == 1.0 if comparable and key in said else None for key in ("acc", "acc_norm")
    )
    item = str(raw.get("doc_hash") or raw["doc_id"])
    for text in (item, *choices):
        text.encode()  # a lone surrogate is no character
    target = str(raw["target"]).strip()
    return HarnessSample(number, item, target, right, _highest(loglik), loglik, greedy, choices, right_norm)


def _highest(scores: Sequence[float]) -> int:
    """The place of the highest score, the first on ties."""
    return max(range(len(scores)), key=lambda i: (scores[i], -i))


def _index(sample: HarnessSample) -> int | None:
    text = sample.target
    is_index = text.isascii() and text.isdigit() and len(text) < 6
    return int(text) if is_index and int(text) < len(sample.choices) else None


def _text(sample: HarnessSample) -> int | None:
    """The choice with the target's text; of several, the first, if nothing but their place tells them apart."""
    at = [i for i, choice in enumerate(sample.choices) if choice.strip() == sample.target]
    return at[0] if at and len({sample.loglik[i] for i in at}) == 1 else None


def _letter(sample: HarnessSample) -> int | None:
    index = "ABCDEFGHIJ".find(sample.target) if len(sample.target) == 1 else -1
    return index if 0 <= index < len(sample.choices) else None


def _implied(sample: HarnessSample) -> int | None:
    """The right choice by `acc` alone: the picked one, or of two the other."""
    if sample.right is False and len(sample.choices) == 2:
        return 1 - sample.picked
    return sample.picked if sample.right else None


# A digit is an index wherever it can be one: lm-evaluation-harness writes texts only for tasks that give texts.
RULES: dict[str, Callable[[HarnessSample], int | None]] = {
    "an index": _index,
    "a text": _text,
    "a letter": _letter,
}


def _golds(path: Path, samples: Sequence[HarnessSample]) -> list[int]:
    """The right choice of every sample, by the first rule that fits them all. Raises UserError where none does."""
    contradiction = ""
    for meaning, rule in RULES.items():
        golds = _by(rule, samples)
        if golds is None:
            continue
        pairs = zip(samples, golds, strict=True)
        wrong = next((s for s, gold in pairs if s.right not in (None, s.picked == gold)), None)
        if wrong is None:
            return golds
        contradiction = contradiction or (
            f"{path}, line {wrong.line}: its acc says {'right' if wrong.right else 'wrong'}, but its "
            f"log-likelihoods and target do not (its target '{printable(wrong.target[:40])}' read as {meaning})"
        )
    if contradiction:
        raise UserError(contradiction)
    implied = _by(_implied, samples)
    if implied is not None:
        return implied
    unclear = next((s for s in samples if all(rule(s) is None for rule in RULES.values())), None)
    if unclear is None:
        raise UserError(
            f"{path}: its targets are not all of one kind, an index, a choice's text or a letter: "
            "give a file of one task"
        )
    raise UserError(
        f"{path}, line {unclear.line}: cannot tell which choice its target '{printable(unclear.target[:40])}' means"
    )


def _by(rule: Callable[[HarnessSample], int | None], samples: Sequence[HarnessSample]) -> list[int] | None:
    """The right choices by one rule; None where it does not fit them all."""
    golds = [gold for sample in samples if (gold := rule(sample)) is not None]
    return golds if len(golds) == len(samples) else None


# What the harness puts before a choice, " " if the task does not say otherwise, is not in its length.
CUTS: tuple[Callable[[str], str], ...] = (lambda text: text.removeprefix(" "), str, str.lstrip)


def without_delimiter(samples: Sequence[HarnessSample]) -> list[list[str]] | None:
    """The choices of every sample as the harness measures them: by the first of CUTS with which `acc_norm` is as it says.

    None where it is so with none, as for tasks whose contexts and not whose choices differ.
    """
    for cut in CUTS:
        found = [[cut(choice) for choice in sample.choices] for sample in samples]
        if all(map(_norm_agrees, samples, found)):
            return found
    return None


def _norm_agrees(sample: HarnessSample, choices: Sequence[str]) -> bool:
    """Whether the log-likelihoods for each character of these choices give the sample's `acc_norm`, if it has one."""
    if sample.right_norm is None:
        return True
    if not all(choices):  # NumPy's division by 0, as in the harness, is not worth a guess
        return False
    by_length = [score / len(choice) for score, choice in zip(sample.loglik, choices, strict=True)]
    return sample.right_norm == (_highest(by_length) == sample.gold)


def to_table(who: Mapping[str, str | None], samples: Sequence[HarnessSample]) -> pa.Table:
    """A table of the store's schema; an item that occurs twice gets a number behind its id, and lengths that are not known
    are null."""
    import pyarrow as pa

    from evalengine.store import schema

    count: Counter[str] = Counter()
    rows = []
    measured = without_delimiter(samples)
    for at, sample in enumerate(samples):
        choices = measured[at] if measured is not None else None
        count[sample.item] += 1
        again = f"#{count[sample.item]}" if count[sample.item] > 1 else ""
        rows.append(
            {
                **who,
                "item": sample.item + again,
                "gold": sample.gold,
                "loglik": sample.loglik,
                "greedy": sample.greedy,
                "chars": None if choices is None else [len(choice) for choice in choices],
                "bytes": None if choices is None else [len(choice.encode()) for choice in choices],
            }
        )
    return pa.Table.from_pylist(rows, schema())
