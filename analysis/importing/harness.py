"""lm-evaluation-harness's results_*.json (0.3 and 0.4), and lighteval's: one accuracy per task of one model, with its
standard error and number of items where they say them.

Which model that is, says `config.model_args`, with its revision, subfolder and adapter; older files leave it to
their place, as EleutherAI/pythia does: pythia-160m/zero-shot/160m_step1000.json.
"""

from __future__ import annotations

import hashlib
import math
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evalengine.analysis.data.items import CheckpointLabels, names
from evalengine.analysis.importing.imported import (
    APART,
    MISSING,
    UNKNOWN,
    FileResults,
    Known,
    Result,
    Setting,
)
from evalengine.analysis.importing.spellings import benchmark_name
from evalengine.errors import UserError
from evalengine.untrusted import check_label, check_name, printable, read_json

NAME_PATTERN = r"(?P<scale>[^-]+)-(?P<mixture>.+)-(?P<stage>[^-]+)"
MODEL_KEYS = ("pretrained", "model", "path", "engine", "model_name")
ADAPTER_KEYS = ("peft", "delta", "lora_local_path")
SHOTS_FOLDER = r"(?i)(zero|one|two|three|four|five|ten|few|\d+)[-_ ]?shots?"
QUANTISED = (
    "load_in_8bit",
    "load_in_4bit",
    "quantization",
    "quantization_config",
    "autogptq",
    "gptqmodel",
    "gguf_file",
)
NOT_ASKED = ("None", "False", "false", "")  # values of an argument
NO_METRICS = {"alias", "sample_len", "name", " "}
CHAT_NOT_SAID = (
    "lighteval's files do not say whether a chat template was applied (the tokenizer decides, unless override_chat_template is "
    "set), so results with and without one may be mixed"
)


class Model(NamedTuple):
    """What a file says it evaluated: a path or hub name, and what was loaded of it and onto it."""

    path: str
    adapter: str = ""
    revision: str = ""
    subfolder: str = ""

    def name(self, parts: int = 1) -> str:
        """Such as "60M-m0-pt@step1000": the last `parts` of the path, +adapter, @revision, __subfolder."""
        whole = "+".join("__".join(_parts(path)[-parts:]) for path in (self.path, self.adapter) if path)
        revision = f"@{'_'.join(_parts(self.revision))}" if self.revision else ""
        return "__".join([whole + revision, *_parts(self.subfolder)])

    def plain_name(self) -> str:
        """The name that says scale, mixture and stage: an adapter's, where there is one."""
        return (_parts(self.adapter or self.path) or [""])[-1]


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def read_results(path: Path) -> dict[str, Any]:
    """The content of a results file. Raises UserError."""
    raw = read_json(path, "give a results_*.json of lm-evaluation-harness", constants=True)
    if not mapping(raw, "results"):
        raise UserError(f"{path} is no results file of lm-evaluation-harness (no `results` in it)")
    return mapping(raw)


def mapping(raw: Any, *keys: str) -> dict[str, Any]:
    """The JSON object `raw[key][key]...`, an empty one where there is none."""
    for key in keys:
        raw = raw.get(key) if isinstance(raw, dict) else None
    return raw if isinstance(raw, dict) else {}


def model_of(path: Path, raw: Mapping[str, Any]) -> Model:
    """The model of a results file, by its arguments, else by its name, else by the file's place."""
    config, general = mapping(raw, "config"), mapping(raw, "config_general")
    arguments = _arguments(config.get("model_args")) | mapping(general, "model_config")
    name = _first(arguments, *MODEL_KEYS) or _first(raw, "model_name") or _first(general, "model_name")
    if not name:
        return model_of_place(path)
    revision = _first(arguments, "revision") or _first(config, "model_revision")
    return Model(
        posixpath.normpath(name),
        _first(arguments, *ADAPTER_KEYS),
        "" if revision == "main" else revision,
        _first(arguments, "subfolder"),
    )


def model_of_place(path: Path) -> Model:
    """The model of a file that does not say it: the name of its folder, and the step in the file's own name.

    lm-evaluation-harness writes a path into one name, "__runs__a__60M-m0-pt".
    """
    folder = path.absolute().parent
    if re.fullmatch(SHOTS_FOLDER, folder.name):
        folder = folder.parent
    step = re.search(r"step[-_]?\d+", path.stem)
    revision = step[0] if step and step[0] not in folder.name else ""
    written = folder.name.replace("__", "/")
    return Model(written if "/" in written else str(folder), revision=revision)


def _arguments(given: Any) -> dict[str, Any]:
    """model_args as a dict: "pretrained=org/model,revision=step1000", or a dict already."""
    if not isinstance(given, str):
        return mapping(given)
    pairs = (part.partition("=") for part in given.split(","))
    return {key.strip(): value.strip() for key, _, value in pairs}


def _first(raw: Mapping[str, Any], *keys: str) -> str:
    """The first of the keys that holds a text or a whole number."""
    values = (raw.get(key) for key in keys)
    return next((str(v) for v in values if type(v) in (str, int) and v not in ("", "None")), "")


def identities(models: Iterable[Model], pattern: str) -> dict[Model, CheckpointLabels]:
    """A name for every model, no two alike, and scale, mixture, stage and replicate by `pattern`.

    Models with the same last part of the path are named by as many of its parts as tell them apart. A pattern of the
    user's own may ask for any part of that name, such as @(?P<stage>.+) for the revision.
    """
    alike: dict[str, list[Model]] = defaultdict(list)
    for model in dict.fromkeys(models):
        alike[model.name()].append(model)
    named: dict[str, Model] = {}
    for same in alike.values():
        most = max(len(_parts(path)) for model in same for path in (model.path, model.adapter))
        depth = next((n for n in range(1, most + 1) if len({m.name(n) for m in same}) == len(same)), most)
        for model in same:
            other = named.setdefault(model.name(depth), model)
            if other is not model:
                raise UserError(
                    f"the models {printable(str(other.path))} and {printable(str(model.path))} have one name, "
                    f"{printable(model.name(depth))}: {APART}"
                )
    return {model: _identify(model, name, pattern) for name, model in named.items()}


def _identify(model: Model, name: str, pattern: str) -> CheckpointLabels:
    check_name(name, "checkpoint")
    try:
        found = re.fullmatch(pattern, model.plain_name())
        if not found and pattern != NAME_PATTERN:
            found = re.fullmatch(pattern, name)
    except re.error as error:
        raise UserError(f"--pattern is not a regular expression ({error})") from None
    groups = found.groupdict() if found else {}
    for key, value in groups.items():
        if value is not None:
            check_label(value, f"{printable(name)}, {key}")
    scale, mixture, stage, replicate = map(groups.get, ("scale", "mixture", "stage", "replicate"))
    return CheckpointLabels(name, scale, mixture, stage, replicate or "")


def read_lm_eval(
    path: Path, who: CheckpointLabels, known: Mapping[str, Known], metric: str | None = None
) -> FileResults:
    """The accuracies, standard errors and numbers of items in a results file of checkpoint `who`.

    metric: which accuracy, else the one that the benchmark is judged by, else plain acc. A NaN is a missing value.
    Raises UserError for a file that is damaged.
    """
    raw = read_results(path)
    results: list[Result] = []
    left_out: dict[str, str] = {}
    zero: list[str] = []
    for task in mapping(raw, "results"):
        name = _task(task)[0]
        benchmark = benchmark_name(name, known)
        check_label(benchmark, f"{path}, task")
        if task == "all" or name.endswith("_average"):  # lighteval's means
            left_out[task] = "means of others"
            continue
        metrics = _metrics(mapping(raw, "results", task))
        wanted = (metric,) if metric else (known.get(benchmark, UNKNOWN).default_score, "acc")
        score = next((name for name in wanted if name in metrics), None)
        if score is None:
            if metrics:  # a heading of a group has none
                left_out[task] = f"no {wanted[0]}, only {', '.join(metrics)}"
            elif mapping(raw, "results", task).keys() - NO_METRICS:
                left_out[task] = "no numbers"
            continue
        value, stderr, by, others = metrics[score]
        if others:
            left_out[task] = f"{score} by several filters, {', '.join((by, *others))}"
            continue
        for what, number in (("accuracy", value), ("standard error", stderr)):
            if number < 0 or number > 1:
                raise UserError(
                    f"{path}: the {what} of {printable(task[:60])} must be between 0 and 1: correct it"
                )
        if stderr == 0 < value < 1:
            stderr = math.nan
            zero.append(benchmark)
        items, setting = items_of(raw, task), setting_of(raw, task)
        score += f" by the filter {by}" * bool(by)
        results.append(Result(who, benchmark, "accuracy", value, items, stderr, path, score, setting))
    unsaid = "config_general" in raw and not all(one.setting.chat for one in results)
    notes = [CHAT_NOT_SAID] if unsaid else []
    if zero:
        notes.append(f"{path}: standard errors of 0, which none is, are taken as not known: {names(zero, 8)}")
    return FileResults(path, results, groups=_groups(raw, known), left_out=left_out, notes=notes)


def setting_of(raw: Mapping[str, Any], task: str) -> Setting:
    """How a task was run. Whether a chat template was applied, lighteval says only where its user did: else it goes by the
    tokenizer."""
    config, general = mapping(raw, "config"), mapping(raw, "config_general")
    lighteval = mapping(general, "model_config")
    counts = (
        _task(task)[1],
        mapping(raw, "n-shot").get(task),
        mapping(raw, "configs", task).get("num_fewshot"),
        config.get("num_fewshot"),
    )
    shots = next((int(count) for count in counts if isinstance(count, int)), None)
    limits = [str(of[key]) for of, key in ((config, "limit"), (general, "max_samples")) if key in of]
    chosen = (lighteval.get(key) for key in ("override_chat_template", "use_chat_template"))
    applied = next((value for value in chosen if isinstance(value, bool)), None)
    if "chat_template" in raw:
        applied = bool(raw["chat_template"])
    arguments = _arguments(config.get("model_args")) | lighteval
    turns = raw.get("fewshot_as_multiturn") is True and shots != 0
    said = [of[key] for of, key in ((raw, "system_instruction"), (lighteval, "system_prompt")) if key in of]
    return Setting(
        shots=shots,
        limit=printable(limits[0][:20]) if limits else "",
        version=printable(str(mapping(raw, "versions").get(task, ""))[:20]),
        commit=printable((_first(config, "model_sha") or _first(general, "model_sha"))[:12]),
        chat={None: "", False: "none", True: "a chat template" + ", examples as turns" * turns}[applied],
        template=printable(_first(raw, "chat_template_sha")[:12]) if applied else "",
        system=_instruction(said[0]) if said else "",
        dtype=printable(
            (_first(config, "model_dtype") or _first(arguments, "dtype")).removeprefix("torch.")[:20]
        ),
        quantised=_quantised(arguments),
    )


def _quantised(arguments: Mapping[str, Any]) -> str:
    """How the weights were quantised when they were loaded: "none" where a model's arguments do not name it."""
    found = [f"{key}={arguments[key]}" for key in QUANTISED if str(arguments.get(key)) not in NOT_ASKED]
    return printable(", ".join(found)[:60]) if found else "none" * bool(arguments)


def _instruction(text: Any) -> str:
    """A system instruction as it is compared and shown: "none", or on one line and not too long."""
    if not text:
        return "none"
    line = printable(" ".join(str(text).split()))
    # What is cut off may differ.
    digest = hashlib.sha256(str(text).encode(errors="replace")).hexdigest()[:12]
    return line if len(line) <= 60 else f"{line[:48]}... ({digest})"


def _task(task: str) -> tuple[str, int | None]:
    """A task's name, and the number of few-shot examples that lighteval writes behind it: "leaderboard|arc:challenge|25"."""
    parts = task.split("|")
    if len(parts) < 2:
        return task, None
    numbers = [part for part in parts if part.isdecimal()]
    name = [part for part in parts if not part.isdecimal()][-1:] or [task]
    return re.sub(r":_?", "_", name[0]), int(numbers[0][:9]) if numbers else None


def items_of(raw: Mapping[str, Any], task: str) -> int:
    """The number of items a task was evaluated on, 0 where neither harness says it."""
    for count in (
        mapping(raw, "n-samples", task).get("effective"),
        # lighteval's, -1 where it does not know; before its 0.10 by the task's name without the few-shot number.
        *(
            mapping(raw, "config_tasks", at).get("effective_num_docs")
            for at in (task, task.rpartition("|")[0])
        ),
    ):
        if type(count) is int and 0 < count < 2**31:
            return count
    return 0


class _Number(NamedTuple):
    """A metric of a task; its value and standard error are NaN where they are missing.

    filter: by which answers were read, "" for none. others: filters by which it has another value.
    """

    value: float
    stderr: float
    filter: str
    others: tuple[str, ...] = ()


def _metrics(scores: Mapping[str, Any]) -> dict[str, _Number]:
    """A task's numbers by metric: "acc,none" and "acc" are acc without a filter, which goes before those by one."""
    found: dict[str, _Number] = {}
    for key, value in scores.items():
        metric, comma, chosen = key.partition(",")
        if "stderr" in metric or metric in NO_METRICS:
            continue
        value = _number(value)
        if value is None:
            continue
        error = _number(scores.get(f"{metric}_stderr{comma}{chosen}"))
        one = _Number(
            value, math.nan if error is None else error, "" if chosen == "none" else printable(chosen[:60])
        )
        before = found.setdefault(metric, one)
        if before.filter and not one.filter:
            found[metric] = one
        elif before.filter and before.value != one.value:
            found[metric] = before._replace(others=(*before.others, one.filter))
    return found


def _number(value: Any) -> float | None:
    """A number of a results file, NaN where it is missing; None for what is no number."""
    if value is None or (isinstance(value, str) and value.strip().lower() in MISSING):
        return math.nan
    # float takes 6_2 for 62
    if type(value) not in (int, float, str) or (type(value) is str and "_" in value):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None if isinstance(value, str) else math.inf
    return math.inf if abs(number) > 2**53 else number


def _groups(raw: Mapping[str, Any], known: Mapping[str, Known]) -> dict[str, set[str]]:
    """The groups of a results file and their members.

    Files before `group_subtasks` name the groups alone, and indent the names of the tasks that belong to any.
    """
    groups = mapping(raw, "groups")
    indented = [
        task
        for task in mapping(raw, "results")
        if task not in groups and str(mapping(raw, "results", task).get("alias", "")).startswith(" ")
    ]
    members = dict.fromkeys(groups, indented) | mapping(raw, "group_subtasks")
    return {
        benchmark_name(group, known): {benchmark_name(task, known) for task in tasks if isinstance(task, str)}
        for group, tasks in members.items()
        if isinstance(tasks, list)
    }
