"""What the runs of a study share, made once before the first run: world, tokenizer, token shards, conversations.

It all lies under OUT/.study (a leading dot keeps it out of `score OUT/*`); what is there and still fits is
reused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from evalengine import console
from evalengine import files as storage
from evalengine.benchmarks.load import folders_of
from evalengine.errors import UserError
from evalengine.store import sealed
from evalengine.training import arms
from evalengine.training.checked import crc, read_unchecked, stamp
from evalengine.training.data import contamination, preferences
from evalengine.training.data import conversations as sft
from evalengine.training.data import tokenizer as tokenizers
from evalengine.training.data.shards import TokenSource, build, is_complete
from evalengine.training.data.sources import check, documents, files, source_key
from evalengine.training.data.tokenizer import Tokenizer
from evalengine.training.decoder.model import Shape
from evalengine.training.study import ChatSource, Scale, SourceSpec, Study, runs, used_sources

BYTES_PER_TOKEN = 4  # a rough estimate, for progress bars and plans


class Prepared(NamedTuple):
    """What a worker opens. Paths only, so that it crosses process borders."""

    tokenizer: Path
    sources: Mapping[str, Path]  # folders of token shards
    conversations: Mapping[str, Path]  # of each arm of fine-tuning; `kept` is always there
    preferences: Path | None = None  # where there is a stage for them


def work_folder(out: Path) -> Path:
    return out / ".study"


def locked(work: Path, doing: str) -> contextlib.AbstractContextManager[Any]:
    """Refuses a second process on the same folder. `doing`: what the first one does there, for the error."""

    def refuse() -> None:
        raise UserError(f"another process is {doing}: wait for it, or name another --out")

    return storage.locked(work / "lock", refuse)


def clear_litter(out: Path) -> None:
    """Removes what killed processes were writing (`files.atomic`)."""
    for litter in [*out.glob(".*.tmp"), *work_folder(out).rglob(".*.tmp")]:
        storage.remove(litter)


def check_data(study: Study, data: Path | None, sources: Iterable[str]) -> None:
    """Raises UserError where the data folder, or one of these sources in it, is missing. Writes nothing."""
    if data is not None and not data.is_dir():
        raise UserError(f"there is no data folder {data}: give the folder that holds the study's sources")
    for name in sources:
        if not study.sources[name].hub and not (data is None and study.world):
            check(study.sources[name], data, name)


def prepare(study: Study, data: Path | None, out: Path) -> Prepared:
    """Makes or reopens what all runs share. Raises UserError for a source that cannot be read."""
    work = work_folder(out)
    data = data_of(study, data, work)
    tokenizer = _tokenizer(study, data, work / "tokenizer")
    folders = {name: _shards(study, name, data, tokenizer, work / "tokens") for name in used_sources(study)}
    conversations = _conversations(study, data, tokenizer, work)
    preferred = _preferences(study, data, tokenizer, work) if "dpo" in study.stages else None
    sources = {name: TokenSource(folder, name) for name, folder in folders.items()}
    contamination.report(work / "contamination.json", data, tokenizer, sources, conversations["kept"])
    return Prepared(tokenizer.path, folders, conversations, preferred)


def shape_of(scale: Scale, tokenizer_size: int) -> Shape:
    vocab = scale.vocab or tokenizer_size
    if vocab < tokenizer_size:
        raise UserError(
            f"a scale's vocab {vocab} is less than the tokenizer's {tokenizer_size}: raise it or leave it out"
        )
    names = ("d_model", "layers", "heads", "head_dim", "ffn", "context", "tied")
    return Shape(vocab=vocab, **{name: getattr(scale, name) for name in names})


def data_of(study: Study, data: Path | None, work: Path) -> Path | None:
    """The data folder: the one that is given, else the embedded world of the study, written to `work` once."""
    if data is not None or study.world is None:
        return data
    from evalengine.benchmarks import world

    folder = work / f"world-{study.world.seed}"
    if not (folder / "sft.jsonl").is_file():  # what is written last
        console.say(
            f"writing the embedded world to {folder}; score its checkpoints with --data {folder / 'bench'}"
        )
        world.write(folder, seed=study.world.seed)
    return folder


def _tokenizer(study: Study, data: Path | None, folder: Path) -> Tokenizer:
    spec = study.tokenizer
    keys, older = (
        {name: source_key(source, data, name, whole) for name, source in study.sources.items()}
        for whole in (True, False)
    )
    wanted: dict[str, Any] = {"spec": dataclasses.asdict(spec), "sources": keys if spec.vocab else {}}
    source = (data or Path(".")) / spec.path
    if spec.path and tokenizers.file_of(source).is_file():
        wanted["adopted"] = crc(tokenizers.file_of(source))
    made_from = folder / "made_from.json"
    made = read_unchecked(made_from)
    if made_from.is_file() and (made is None or made.pop("files", None) != _sums(folder)):
        console.warn(f"the study's tokenizer {folder} was damaged: made again")
        shutil.rmtree(folder)
    elif made is not None:
        made |= {"sources": keys} if made.get("sources") == older else {}
        if "adopted" not in made:  # by an earlier version
            wanted.pop("adopted", None)
        if all(made.get(key) == value for key, value in wanted.items()):
            return Tokenizer(folder)
        raise UserError(
            f"{folder} was made for another tokenizer setting or other sources: "
            "use --fresh to start again, or another --out"
        )
    if spec.path:
        tokenizer = tokenizers.adopt(source, folder)
    else:
        console.say(f"training a tokenizer of {spec.vocab:,} entries")
        each = int(spec.sample_mb * 2**20 / len(study.sources))
        samples = (_first_bytes(documents(s, data, n), each) for n, s in study.sources.items())
        tokenizer = tokenizers.train(chain.from_iterable(samples), spec.vocab, folder)
    storage.write(made_from, json.dumps({**wanted, "files": _sums(folder)}))
    return tokenizer


def _sums(folder: Path) -> dict[str, int]:
    """Checksums of the tokenizer's files."""
    names = ("tokenizer.json", "tokenizer_config.json")
    return {name: crc(folder / name) for name in names if (folder / name).is_file()}


def _first_bytes(texts: Iterator[str], limit: int) -> Iterator[str]:
    left = limit
    for text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def tokens_needed(study: Study, name: str) -> int:
    """Tokens of a source that the largest run takes, and a little more."""
    share = max(shares.get(name, 0.0) for shares in study.mixtures.values())
    return int(share * max(scale.pretrain.tokens for scale in study.scales.values()) * 1.05)


def _shards(study: Study, name: str, data: Path | None, tokenizer: Tokenizer, folder: Path) -> Path:
    """A local source is tokenised whole; a hub source as far as its largest share needs it, without repetition."""
    spec = study.sources[name]
    need = tokens_needed(study, name) if spec.hub else 0
    place = folder / f"{name}-{source_key(spec, data, name)}-{tokenizer.hash[:8]}"
    texts = partial(documents, spec, data, name)
    if is_complete(place, need):
        build(place, texts, tokenizer, name=name, limit=need)
        return place
    size = need or sum(file.stat().st_size for file in files(spec, data, name)) // BYTES_PER_TOKEN
    with console.progress(f"tokenising {name}", size, "tokens") as line:
        made = build(place, texts, tokenizer, name=name, limit=need, on_tokens=line.update)
    if len(made.length_M) == 1:
        console.warn(
            f"source {name} is one document, so its validation loss is of the text that it is trained on: separate documents"
            " by lines that hold only <|endoftext|>"
        )
    return place


def _conversations(study: Study, data: Path | None, tokenizer: Tokenizer, work: Path) -> dict[str, Path]:
    """The file of each arm; the conversations are read once for all that have to be made."""
    read = cache(partial(sft.read, study.sft, data, study.seed))
    paths = {}
    for arm in dict.fromkeys(["kept", *(run.arm for run in runs(study) if run.stage.startswith("sft"))]):
        # as it was written when the arm and a share were settings: a file made then is still found
        settings = {"data": dataclasses.asdict(study.sft)["data"], "instructions": arm, "reach": 1.0}
        key = _key_of_chats(settings, study.sft.data, study, data, tokenizer)
        path = paths[arm] = work / f"{conversations_name(arm)}-{key}.npz"
        if not _is_whole(path, sft.load):
            changed = arms.changed(read(), arm, study.seed)
            if arm == "delusive" and (same := arms.unmoved(read(), changed)):
                of = ", ".join(f"{task} {count:,}" for task, count in same.items())
                console.warn(
                    f"sft_delusive: {same.total():,} responses stay, since one text is more than half of their task: {of}"
                )
            sft.save(path, sft.tokenise(changed, tokenizer))
    if len(paths) > 1:
        _say_what_differs(study, paths)
    return paths


def _preferences(study: Study, data: Path | None, tokenizer: Tokenizer, work: Path) -> Path:
    settings = {"preferences": dataclasses.asdict(study.dpo)["data"]}
    path = work / f"preferences-{_key_of_chats(settings, study.dpo.data, study, data, tokenizer)}.npz"
    if not _is_whole(path, preferences.load):
        questions = preferences.read(study.dpo, data, study.seed)
        preferences.save(path, preferences.tokenise(questions, tokenizer))
    return path


def _is_whole(path: Path, load: Callable[[Path], Any]) -> bool:
    """Whether the file is there; a damaged one is set aside."""
    try:
        if path.is_file():
            load(path)
    except UserError:
        console.warn(f"{path} was damaged: set aside as {sealed.set_aside(path).name} and made again")
    return path.is_file()


def _say_what_differs(study: Study, paths: Mapping[str, Path]) -> None:
    """Warns where arms do not learn the same number of tokens from as many conversations: some are cut at the context."""
    examples = {arm: sft.load(path) for arm, path in paths.items()}
    for name, scale in study.scales.items():
        learned = {arm: sft.learned_within(some, scale.context) for arm, some in examples.items()}
        count, tokens = learned["kept"]
        for arm, found in learned.items():
            if found != (count, tokens):
                console.warn(
                    f"scale {name}: sft_{arm} learns {found[1]:,} tokens of {found[0]:,} conversations and sft {tokens:,} of "
                    f"{count:,}, since some are cut at the context of {scale.context:,}; raise it, or shorten them, to compare "
                    "these arms"
                )


def conversations_name(arm: str) -> str:
    """How the name of an arm's file begins; a hyphen and twelve hexadecimal digits follow."""
    return "conversations" if arm == "kept" else f"conversations-{arm}"


def _key_of_chats(
    settings: dict[str, Any],
    sources: Iterable[ChatSource],
    study: Study,
    data: Path | None,
    tokenizer: Tokenizer,
) -> str:
    """Changes with the settings, the tokenizer and the files."""
    parts: list[Any] = [settings, study.seed, tokenizer.hash, 1]
    for chat in sources:
        if chat.path and data is not None and (data / chat.path).is_file():
            parts.append(source_key(SourceSpec(path=chat.path), data, chat.path))
        elif chat.benchmarks_train and data is not None:
            files_there = [p for folder in folders_of(data) for p in sorted(folder.glob("*_train.*"))]
            parts += map(stamp, files_there)
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:12]
