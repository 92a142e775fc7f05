"""From paths and URIs to checkpoints: found, named, described, and then identified, one ahead of the one that is scored.

The one module that knows that a checkpoint may be remote (remote.py): what leaves it lies on this machine.
"""

from __future__ import annotations

import os
import re
import threading
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from evalengine import console
from evalengine.checkpoints import (
    ADAPTER_CONFIG,
    COPY,
    Checkpoint,
    check_unchanged,
    fingerprint,
    is_adapter,
    is_whole,
    other_format,
    reading,
    remote,
    stamp,
)
from evalengine.errors import UserError
from evalengine.labels import CHAT, TRAINED
from evalengine.untrusted import check_label, check_name, printable, read_json, read_yaml

NAMED = ("scale", "mixture", "stage", "seed")
NAME = re.compile(rf"^(?P<scale>[^-]+)-(?P<mixture>.+)-(?P<stage>{'|'.join(TRAINED)}|sft_[a-z_]+)$")


def discover(
    paths: Sequence[Path | str], manifest: Path | None = None, base: Path | None = None
) -> list[Checkpoint]:
    """Checkpoints in the order given, directories or URIs. Raises UserError for one missing, no checkpoint, or named twice.

    The name is the last part of the path as it was given, even if that is a link. Metadata comes from `manifest` (YAML:
    name -> {scale, mixture, stage, seed, blocks}), else from evalengine.json inside the directory, else from a name of the form
    {scale}-{mixture}-{stage}. The manifest may describe a whole study: entries of other checkpoints are not used, which is said;
    one that describes none of these is refused. `base` is the model of the adapters among them, where it is not the one that they
    name.
    """
    known = read_manifest(manifest) if manifest else {}
    found: dict[str, Checkpoint] = {}
    for place in (one for given in paths for one in remote.expand(given)):
        source, size, model = (str(place) if remote.is_uri(place) else None), None, None
        if source is not None:
            check_name(remote.name_of(source), "checkpoint")
            path, size = remote.fetch_small_files(source)
            name = path.name
        else:
            model = base_of(Path(place), base) if is_adapter(Path(place)) else None
            if model is None:
                check_directory(Path(place))
            path, name = Path(place).resolve(), name_of(Path(place))
        check_name(name, "checkpoint")
        if name in found and source is None and found[name].path == path:
            raise UserError(f"{place} is given twice: give each checkpoint once")
        if name in found:
            raise UserError(
                f"two checkpoints are named {name} ({found[name].source or found[name].path} and {source or path}): "
                "rename one directory, give it by a link of another name, or score them into"
                " different stores with --out"
            )
        about = metadata(path, name, known) | {"described": name in known}
        found[name] = Checkpoint(path, name, source=source, remote_bytes=size, base=model, **about)
    if base is not None and not any(checkpoint.base for checkpoint in found.values()):
        raise UserError("--base is the model of adapters, and none is among the checkpoints: leave it out")
    check_used(manifest, list(known), list(found))
    return list(found.values())


def check_used(manifest: Path | None, described: list[str], given: list[str]) -> None:
    """Says how many entries of a manifest are of no checkpoint given. Raises UserError where all are."""
    unused, without = ([n for n in a if n not in b] for a, b in ((described, given), (given, described)))
    if not unused:
        return
    if len(unused) == len(described):
        raise UserError(
            f"{manifest} describes {unused[0]!r}, which is not among the checkpoints given, and none of these: give the names of"
            " their folders in it, or leave --manifest out"
        )
    said = f"{manifest} describes {len(unused)} checkpoints that are not among those given, which is not used ({few(unused)})"
    if without:  # a name may be misspelt
        said += f"; it does not describe {few(without)}"
    console.warn(said)


def few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def asked_in_chat(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the name and stage that its scores in chat format have in a store, beside those without."""
    name = checkpoint.name + CHAT
    check_name(name, "checkpoint")
    stage = None if checkpoint.stage is None else check_label(checkpoint.stage + CHAT, f"{name}: stage")
    return replace(checkpoint, name=name, stage=stage)


def name_of(path: Path) -> str:
    """The last part of a path as it was given, a link's own name included; composed characters (NFC), as macOS has them apart."""
    given, folder = Path(os.path.abspath(path)), path.resolve()
    name = given.name if given.resolve() == folder else folder.name  # `link/..` is not where it seems to be
    return unicodedata.normalize("NFC", name)


def base_of(path: Path, given: Path | None) -> Path:
    """The folder of the model that an adapter belongs to: `given`, else the local one that its configuration names."""
    named = read_json(path / ADAPTER_CONFIG, COPY, constants=True).get("base_model_name_or_path")
    places = [given] if given is not None else []
    if given is None and isinstance(named, str) and 0 < len(named) < 4096 and named.isprintable():
        places = [path / named, Path(named)]
    base = next((place for place in places if (place / "config.json").is_file()), None)
    if base is None:
        what = f"{given} has no config.json" if given else f"its base model {named!r} is not a folder here"
        raise UserError(
            f"{path} is an adapter, and {printable(what[:300])}: give the folder of the base model with --base"
        )
    if is_adapter(base):
        raise UserError(f"the base {base} of {path} is an adapter itself: merge it into its own base first")
    return base.resolve()


def check_directory(path: Path) -> None:
    if not path.exists():
        raise UserError(
            f"no such checkpoint: {path} (give a Hugging Face model directory; download one with `hf download`)"
        )
    if not path.is_dir():
        raise UserError(
            f"{path} is a file, not a checkpoint directory: give the directory that holds config.json"
        )
    if not (path / "config.json").is_file():
        inside = sorted(child.name for child in path.iterdir() if (child / "config.json").is_file())
        hint = other_format(path) or "give a Hugging Face model directory"
        if inside:
            hint = f"it holds {len(inside)} checkpoint{'s' * (len(inside) > 1)}: give {path}/*"
        raise UserError(f"{path} is not a checkpoint: it has no config.json; {hint}")


def read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    raw = read_yaml(path, texts=True)
    if not isinstance(raw, dict):
        raise UserError(f"{path} must map checkpoint names to {{scale, mixture, stage}}")
    known: dict[str, dict[str, Any]] = {}
    for given, value in raw.items():
        name = unicodedata.normalize("NFC", str(given))
        if name in known:
            raise UserError(f"{path} describes {printable(name[:60])!r} twice: leave one of them out")
        known[name] = fields(value, f"{path}: {printable(name[:60])}")
    return known


def fields(value: Any, where: str) -> dict[str, Any]:
    """The metadata fields of a mapping; other keys are the trainer's and are left alone."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a mapping with scale, mixture and stage")
    out: dict[str, Any] = {key: label(value.get(key), f"{where}: {key}") for key in NAMED}
    blocks = value.get("blocks") or {}
    if not isinstance(blocks, dict):
        raise UserError(f"{where}: blocks must map factors to labels, such as {{web_source: dclm}}")
    known = {label(key, f"{where}: blocks"): label(of, f"{where}: {key}") for key, of in blocks.items()}
    out["blocks"] = tuple(sorted((str(factor), of) for factor, of in known.items() if of is not None))
    return out


def label(value: Any, where: str) -> str | None:
    """A short text of a manifest or of evalengine.json, where it may be an integer: of another number, 1.10 would become 1.1."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise UserError(f"{where} must be a short text, not {type(value).__name__}: put it in quotes")
    return None if value is None else check_label(str(value), where)


def metadata(path: Path, name: str, manifest: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if name in manifest:
        return manifest[name]
    own = path / "evalengine.json"
    if own.is_file():
        about = read_json(own, COPY, constants=True)
        if not is_whole(about):
            raise UserError(
                f"{own} is damaged, or was changed by hand: copy the checkpoint again, or remove its crc32"
            )
        return fields(about, str(own))
    match = NAME.match(name)
    return fields(match.groupdict() if match else {}, name)


# --- identity


def identify(
    checkpoint: Checkpoint, allow_pickle: bool, progress: Callable[[], None] = lambda: None
) -> Checkpoint:
    """The checkpoint with all its files on this machine and its fingerprint; a remote one is kept until `release`.

    Reads every byte of the weights. Raises UserError. progress: called on the way; what it raises stops the reading.
    """
    if checkpoint.source is not None:
        checkpoint = replace(checkpoint, path=remote.fetch(checkpoint.source, progress))
    with reading(checkpoint):
        before = stamp(checkpoint, allow_pickle)
        found = replace(checkpoint, fingerprint=fingerprint(checkpoint, allow_pickle, progress), stamp=before)
    check_unchanged(found, allow_pickle)
    return found


def release(checkpoint: Checkpoint) -> None:
    """The files of a remote checkpoint are no longer needed here, and may be dropped from the cache."""
    if checkpoint.source is not None:
        remote.release(checkpoint.source)


class ReadAhead:
    """Identifies checkpoints in the background: the next one's weights are in memory when its turn comes."""

    def __init__(self, allow_pickle: bool, progress: Callable[[], None] = lambda: None) -> None:
        self._allow_pickle, self._progress = allow_pickle, progress
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._reading: dict[str, tuple[Checkpoint, Future[Checkpoint]]] = {}  # by name
        self._stopped = threading.Event()

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()  # Ctrl-C does not wait for a checkpoint that nobody will score
        self._pool.shutdown(wait=True, cancel_futures=True)
        for name in list(self._reading):
            self.forget(name)

    def start(self, checkpoint: Checkpoint) -> None:
        if checkpoint.name not in self._reading:
            future = self._pool.submit(identify, checkpoint, self._allow_pickle, self._tick)
            self._reading[checkpoint.name] = (checkpoint, future)

    def identified(self, checkpoint: Checkpoint, wanted: Sequence[Checkpoint] = ()) -> Checkpoint:
        """A checkpoint, identified, while those that are `wanted` too are read next; all others are released. Raises
        UserError."""
        for one in (checkpoint, *wanted):
            self.start(one)
        for name in self._reading.keys() - {one.name for one in (checkpoint, *wanted)}:
            if self._reading[name][1].done():
                self.forget(name)
        try:
            return self._reading[checkpoint.name][1].result()
        except Exception:
            self.forget(checkpoint.name)
            raise

    def forget(self, name: str) -> None:
        """Releases a checkpoint, which is read anew when it is asked for again."""
        release(self._reading.pop(name)[0])

    def _tick(self) -> None:
        if self._stopped.is_set():
            raise CancelledError
        self._progress()
