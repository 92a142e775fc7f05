"""Checkpoints: which directories they are, who they are (scale, mixture, stage), and what identifies their weights.

A checkpoint is a Hugging Face causal-LM directory: config.json, weights, tokenizer. Nothing heavy loads here; `fingerprint`
reads every byte of the weights once (about 1.5 GB/s), which also warms the page cache for the load that follows.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evalengine.errors import UserError
from evalengine.untrusted import check_label, check_name, is_plain, printable, read_json, read_yaml

NAME = re.compile(r"^(?P<scale>[^-]+)-(?P<mixture>.+)-(?P<stage>pt|sft)$")
# The files that some tokenizer of transformers, or of code that comes with a checkpoint, is built from.
TOKENIZER_FILES = (
    "*.model",  # sentencepiece's and tiktoken's, which every family names differently
    "*.spm",
    "*.tiktoken",
    "*vocab*.json",
    "*vocab*.txt",
    "added_tokens.json",
    "bpe.codes",
    "byte_maps.json",
    "dict.txt",
    "emoji.json",
    "merges.txt",
    "normalizer.json",
    "prophetnet.tokenizer",
    "special_tokens_map.json",
    "tekken.json",
    "token*.py",
    "tokenizer*.json",
    "tokenizer.model.*",
    "vocab.bpe",
    "word_*.json",
)
COPY = "copy the checkpoint again"
READ_AT_ONCE = 4 << 20  # bytes


class Checkpoint(NamedTuple):
    """A directory to score. `scale`, `mixture` and `stage` ("pt" or "sft") are None where nobody said.

    `source` is the URI of a remote one, of which `path` then holds the small files, or all of them once it is here.
    """

    path: Path
    name: str
    scale: str | None
    mixture: str | None
    stage: str | None
    source: str | None = None
    weights: int | None = None  # bytes, known of a remote one


def discover(paths: Sequence[Path | str], manifest: Path | None = None) -> list[Checkpoint]:
    """Checkpoints in the order given, directories or URIs. Raises UserError for one missing, no checkpoint, or named twice.

    Metadata comes from `manifest` (YAML: directory name -> {scale, mixture, stage}), else from evalengine.json inside the
    directory, else from a name of the form {scale}-{mixture}-{stage}.
    """
    from evalengine import remote

    known = read_manifest(manifest) if manifest else {}
    found: dict[str, Checkpoint] = {}
    for place in (one for given in paths for one in remote.expand(given)):
        source, size = (str(place) if remote.is_uri(place) else None), None
        if source is not None:
            check_name(remote.name_of(source), "checkpoint")
            path, size = remote.fetch_small_files(source)
        else:
            check_directory(Path(place))
            path = Path(place).resolve()
        name = path.name
        check_name(name, "checkpoint")
        if name in found:
            raise UserError(
                f"two checkpoints are named {name} ({found[name].source or found[name].path} and {source or path}): "
                "rename one directory, or score them into"
                " different stores with --out"
            )
        found[name] = Checkpoint(path, name, **metadata(path, known), source=source, weights=size)
    unused = sorted(set(known) - set(found))
    if unused:
        raise UserError(
            f"{manifest} describes {unused[0]!r}, which is not among the checkpoints given: remove it or add its path"
        )
    return list(found.values())


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
        hint = (
            f"it holds {len(inside)} checkpoints: give {path}/*"
            if inside
            else "give a Hugging Face model directory"
        )
        raise UserError(f"{path} is not a checkpoint: it has no config.json; {hint}")


def read_manifest(path: Path) -> dict[str, dict[str, str | None]]:
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path} must map checkpoint names to {{scale, mixture, stage}}")
    return {str(name): fields(value, f"{path}: {printable(str(name)[:60])}") for name, value in raw.items()}


def fields(value: Any, where: str) -> dict[str, str | None]:
    """The three metadata fields of a mapping, as strings; other keys are the trainer's and are left alone."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a mapping with scale, mixture and stage")
    out: dict[str, str | None] = {}
    for key in ("scale", "mixture", "stage"):
        field = value.get(key)
        if field is not None and not isinstance(field, (str, int, float)):
            raise UserError(f"{where}: {key} must be a short text, not {type(field).__name__}")
        out[key] = None if field is None else check_label(str(field), f"{where}: {key}")
    if out["stage"] not in (None, "pt", "sft"):
        raise UserError(f"{where}: stage must be pt or sft, not {out['stage']!r}")
    return out


def metadata(path: Path, manifest: dict[str, dict[str, str | None]]) -> dict[str, str | None]:
    if path.name in manifest:
        return manifest[path.name]
    own = path / "evalengine.json"
    if own.is_file():
        about = read_json(own, COPY, constants=True)
        if isinstance(about, dict) and not is_whole(about):
            raise UserError(
                f"{own} is damaged, or was changed by hand: copy the checkpoint again, or remove its crc32"
            )
        return fields(about, str(own))
    match = NAME.match(path.name)
    return {key: match[key] if match else None for key in ("scale", "mixture", "stage")}


def weight_files(path: Path, allow_pickle: bool = False) -> list[Path]:
    """The files that hold the weights, safetensors before anything else. Raises UserError if there are none that may be read."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index, COPY)
        files = shards.get("weight_map") if isinstance(shards, dict) else None
        names = sorted({str(name) for name in files.values()}) if isinstance(files, dict) else []
        for name in names:
            if not is_plain(name) or Path(name).name != name or not (path / name).is_file():
                raise UserError(
                    f"{path}: the weights' index names {name!r}, which is not there; copy the checkpoint again"
                )
        if names:
            return [path / name for name in names]
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    pickles = sorted(p for pattern in ("pytorch_model*.bin", "*.pt", "*.pth") for p in path.glob(pattern))
    if pickles and allow_pickle:
        return pickles
    if pickles:
        raise UserError(
            f"{path.name} has only pickled weights ({pickles[0].name}), which can run code when read: convert it to safetensors,"
            " or trust it with --allow-pickle"
        )
    raise UserError(f"{path.name} has no weights: model.safetensors is missing from {path}")


def tokenizer_files(path: Path) -> list[Path]:
    """The tokenizer's files, sorted by name."""
    return [
        file
        for file in sorted(path.iterdir())
        if any(file.match(pattern) for pattern in TOKENIZER_FILES) and file.is_file()
    ]


def tokenizer_hash(path: Path) -> str:
    """Identifies the tokenizer: a hash of its files, and of what config.json says that decides its class.

    Equal files make different tokenizers under different model types. Raises UserError where there are no files.
    """
    files = tokenizer_files(path)
    if not files:
        raise UserError(
            f"{path.name} has no tokenizer: {path} holds neither tokenizer.json nor any other file of one; copy the"
            " tokenizer's files into it"
        )
    config = read_json(path / "config.json", COPY, constants=True)
    if not isinstance(config, dict):
        raise UserError(f"{path / 'config.json'} is not a model configuration: copy the checkpoint again")
    digest = hashlib.sha256(json.dumps([config.get("model_type"), config.get("tokenizer_class")]).encode())
    for file in files:
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def fingerprint(path: Path, allow_pickle: bool = False, progress: Callable[[], None] = lambda: None) -> str:
    """Identifies what is scored: a hash of config.json and of every byte of the weights. `progress` is called on the way.

    Raises UserError where evalengine.json has the sum of a file and the file has another.
    """
    own = path / "evalengine.json"
    about = read_json(own, COPY, constants=True) if own.is_file() else None
    expected = about.get("crc32") if isinstance(about, dict) else None
    sums: dict[str, Any] = expected if isinstance(expected, dict) else {}
    digest = hashlib.sha256((path / "config.json").read_bytes())
    weights = weight_files(path, allow_pickle)
    small = [file for file in (path / "config.json", *tokenizer_files(path)) if file.name in sums]
    for file in (*weights, *small):
        hashed, crc = hashlib.sha256(), 0
        with file.open("rb", buffering=0) as stream:
            while chunk := stream.read(READ_AT_ONCE):
                hashed.update(chunk)
                crc = zlib.crc32(chunk, crc) if file.name in sums else 0
                progress()
        if file in weights:
            digest.update(b"\0" + file.name.encode() + b"\0" + hashed.digest())
        if file.name in sums and sums[file.name] != f"{crc:08x}":
            raise UserError(
                f"{file} is damaged (its checksum is not the one in evalengine.json): copy the checkpoint again, or delete"
                " it and train it again"
            )
    return digest.hexdigest()[:16]


def checksum_of(about: dict[str, Any]) -> str:
    """The sum that evalengine.json carries of its own content, beside those of the files."""
    return f"{zlib.crc32(json.dumps(about, sort_keys=True).encode()):08x}"


def is_whole(about: dict[str, Any]) -> bool:
    """Whether the content of an evalengine.json is what was written; one without sums is taken as it is."""
    sums = about.get("crc32")
    if not isinstance(sums, dict):
        return True
    others = {key: value for key, value in sums.items() if key != "evalengine.json"}
    return bool(sums.get("evalengine.json") == checksum_of({**about, "crc32": others}))
