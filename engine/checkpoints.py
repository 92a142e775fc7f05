"""Checkpoints: which directories they are, who they are (scale, mixture, stage), and what identifies their weights.

A checkpoint is a Hugging Face causal-LM directory: config.json, weights, tokenizer; or an adapter's (LoRA), which says what
changes in the weights of its base. Nothing heavy loads here; `fingerprint` reads every byte of the weights once (about
1.5 GB/s), which also warms the page cache for the load that follows.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
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
REFINING = ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
# Models that transformers can build as causal ones, but whose weights were trained for another task.
OTHER_TASK = re.compile(
    r"For(MaskedLM|Pre[Tt]raining|QuestionAnswering|MultipleChoice|\w*Classification)$|RewardModel$"
)
ADAPTER_CONFIG = "adapter_config.json"
COPY = "copy the checkpoint again"
# Whole weights, in the order in which transformers looks for them.
SAFE = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
WHOLE_WEIGHTS = (*SAFE, *PICKLED)
TRAINER_STATE = ("optimizer", "rng_state", "scheduler", "training_args")
# What else a folder may hold: pattern -> what it is, and what to do.
SAVE_AGAIN = "save the model with save_pretrained of transformers, and give that folder"
OTHER_FORMATS = {
    "adapter_model.*": "{}, an adapter's weights, without adapter_config.json: copy the adapter again",
    "*.gguf": "{}, weights in llama.cpp's format (GGUF): give the Hugging Face folder that they were made from",
    "model-*-of-*.safetensors": "{}, but not model.safetensors.index.json: copy that, too",
    "pytorch_model-*-of-*.bin": "{}, but not pytorch_model.bin.index.json: copy that, too",
    "model.*.safetensors": "{}, a variant of the weights: rename it to model.safetensors if it is to be scored",
    "consolidated*": "{}, weights in the format of their authors' own code: give the folder converted for transformers",
    "tf_model.h5": "{}, TensorFlow's weights: give a folder with safetensors",
    "*.msgpack": "{}, Flax's weights: give a folder with safetensors",
    "*.onnx": "{}, an ONNX export: give the folder that it was exported from",
    "onnx/*.onnx": "{}, an ONNX export: give the folder that it was exported from",
    "*.distcp": "{}, the shards of a training state: " + SAVE_AGAIN,
    "*/*.distcp": "{}, the shards of a training state: " + SAVE_AGAIN,
    "global_step*": "{}, DeepSpeed's training state: convert it with its zero_to_fp32.py",
    "*.safetensors": "{}, but not model.safetensors: rename it if it holds the whole weights",
    "*.bin": "{}, but not pytorch_model.bin: " + SAVE_AGAIN,
    "*.pt": "{}, PyTorch's own file: " + SAVE_AGAIN,
    "*.pth": "{}, PyTorch's own file: " + SAVE_AGAIN,
}
READ_AT_ONCE = 4 << 20  # bytes


class Checkpoint(NamedTuple):
    """A directory to score. `scale`, `mixture` and `stage` ("pt" or "sft") are None where nobody said.

    `source` is the URI of a remote one, of which `path` then holds the small files, or all of them once it is here.
    `base` is the folder of the model that an adapter belongs to; `path` is then the adapter's.
    """

    path: Path
    name: str
    scale: str | None
    mixture: str | None
    stage: str | None
    source: str | None = None
    weights: int | None = None  # bytes, known of a remote one
    base: Path | None = None

    @property
    def model_folder(self) -> Path:
        """Where config.json and the whole weights are."""
        return self.base or self.path

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer is: an adapter may bring its own."""
        return self.path if self.base is None or has_tokenizer(self.path) else self.base


def discover(
    paths: Sequence[Path | str], manifest: Path | None = None, base: Path | None = None
) -> list[Checkpoint]:
    """Checkpoints in the order given, directories or URIs. Raises UserError for one missing, no checkpoint, or named twice.

    The name is the last part of the path as it was given, even if that is a link. Metadata comes from `manifest` (YAML:
    name -> {scale, mixture, stage}), else from evalengine.json inside the directory, else from a name of the form
    {scale}-{mixture}-{stage}. `base` is the model of the adapters among them, where it is not the one that they name.
    """
    from evalengine import remote

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
        if name in found:
            raise UserError(
                f"two checkpoints are named {name} ({found[name].source or found[name].path} and {source or path}): "
                "rename one directory, give it by a link of another name, or score them into"
                " different stores with --out"
            )
        about = metadata(path, name, known)
        found[name] = Checkpoint(path, name, **about, source=source, weights=size, base=model)
    if base is not None and not any(checkpoint.base for checkpoint in found.values()):
        raise UserError("--base is the model of adapters, and none is among the checkpoints: leave it out")
    unused = sorted(set(known) - set(found))
    if unused:
        raise UserError(
            f"{manifest} describes {unused[0]!r}, which is not among the checkpoints given: remove it or add its path"
        )
    return list(found.values())


def name_of(path: Path) -> str:
    """The last part of a path as it was given, a link's own name included; composed characters (NFC), as macOS has them apart."""
    given, folder = Path(os.path.abspath(path)), path.resolve()
    name = given.name if given.resolve() == folder else folder.name  # `link/..` is not where it seems to be
    return unicodedata.normalize("NFC", name)


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter and no whole weights. Raises UserError where it holds both."""
    if not (path / ADAPTER_CONFIG).is_file():
        return False
    whole = next((name for name in WHOLE_WEIGHTS if (path / name).is_file()), None)
    if whole is not None:
        raise UserError(
            f"{path} holds an adapter ({ADAPTER_CONFIG}) beside whole weights ({whole}): merge the adapter into them, or"
            " move one of the two to a folder of its own"
        )
    return True


def base_of(path: Path, given: Path | None) -> Path:
    """The folder of the model that an adapter belongs to: `given`, else the local one that its configuration names."""
    config = read_json(path / ADAPTER_CONFIG, COPY, constants=True)
    named = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    places = [given] if given is not None else []
    if given is None and isinstance(named, str) and named and is_plain_path(named):
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


def is_plain_path(text: str) -> bool:
    return len(text) < 4096 and text.isprintable() and "://" not in text


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
            else other_format(path) or "give a Hugging Face model directory"
        )
        raise UserError(f"{path} is not a checkpoint: it has no config.json; {hint}")


def read_manifest(path: Path) -> dict[str, dict[str, str | None]]:
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path} must map checkpoint names to {{scale, mixture, stage}}")
    return {
        unicodedata.normalize("NFC", str(name)): fields(value, f"{path}: {printable(str(name)[:60])}")
        for name, value in raw.items()
    }


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


def metadata(path: Path, name: str, manifest: dict[str, dict[str, str | None]]) -> dict[str, str | None]:
    if name in manifest:
        return manifest[name]
    own = path / "evalengine.json"
    if own.is_file():
        about = read_json(own, COPY, constants=True)
        if isinstance(about, dict) and not is_whole(about):
            raise UserError(
                f"{own} is damaged, or was changed by hand: copy the checkpoint again, or remove its crc32"
            )
        return fields(about, str(own))
    match = NAME.match(name)
    return {key: match[key] if match else None for key in ("scale", "mixture", "stage")}


def tokenizer_files(path: Path) -> list[Path]:
    """The tokenizer's files, sorted by name."""
    return [
        file
        for file in sorted(path.iterdir())
        if any(file.match(pattern) for pattern in TOKENIZER_FILES) and file.is_file()
    ]


def model_config(path: Path) -> dict[str, Any]:
    """What config.json says. Raises UserError for what is no configuration, or that of a model that is not causal."""
    config = read_json(path / "config.json", COPY, constants=True)
    if not isinstance(config, dict):
        raise UserError(f"{path / 'config.json'} is not a model configuration: copy the checkpoint again")
    named = config.get("architectures")
    for architecture in named if isinstance(named, list) else []:
        if isinstance(architecture, str) and OTHER_TASK.search(architecture):
            raise UserError(
                f"{path} is a {printable(architecture[:80])}, not a causal language model: it does not predict the next"
                " token, and is not scored"
            )
    if config.get("is_encoder_decoder") is True:
        raise UserError(
            f"{path} is an encoder-decoder ({printable(str(config.get('model_type'))[:80])}), not a causal language model:"
            " it is not scored"
        )
    return config


def weight_files(path: Path, allow_pickle: bool = False) -> list[Path]:
    """The files that hold the weights, those that transformers would take. Raises UserError if none of them may be read."""
    if is_adapter(path):
        raise UserError(f"{path} is an adapter, without the weights of its base: merge it into them first")
    config = model_config(path) if (path / "config.json").is_file() else {}
    named = config.get("transformers_weights")  # by name, before those that are looked for
    if named is not None:
        if not str(named).endswith((".safetensors", ".safetensors.index.json")):
            raise UserError(
                f"{path}: transformers_weights of config.json must name a safetensors file: mend it"
            )
        return files_of(path, str(named))
    for name in WHOLE_WEIGHTS:
        if (path / name).is_file():
            if name not in SAFE:
                check_pickle(path, name, allow_pickle)
            return files_of(path, name)
    raise UserError(
        f"{path} has no weights that transformers reads: "
        + (other_format(path) or f"model.safetensors is missing; {COPY}")
    )


def adapter_file(path: Path, allow_pickle: bool = False) -> Path:
    """The weights of an adapter. Raises UserError if there are none that may be read."""
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (path / name).is_file():
            if name.endswith(".bin"):
                check_pickle(path, name, allow_pickle)
            return path / name
    raise UserError(f"{path} is an adapter without weights: adapter_model.safetensors is missing; {COPY}")


def check_pickle(path: Path, name: str, allowed: bool) -> None:
    if not allowed:
        raise UserError(
            f"{path} has only pickled weights ({name}), which can run code when read: convert it to safetensors,"
            " or trust it with --allow-pickle"
        )


def files_of(path: Path, name: str) -> list[Path]:
    """A file of weights of the folder `path`, or the files that it names where it is an index."""
    names = [name]
    if name.endswith(".json"):
        check_beside(path, name)
        content = read_json(path / name, COPY)
        shards = content.get("weight_map") if isinstance(content, dict) else None
        names = sorted({str(shard) for shard in shards.values()}) if isinstance(shards, dict) else []
        if not names:
            raise UserError(f"{path / name} names no weights: {COPY}")
    for name in names:
        check_beside(path, name)
    return [path / name for name in names]


def check_beside(path: Path, name: str) -> None:
    if not is_plain(name) or Path(name).name != name or not (path / name).is_file():
        raise UserError(f"{path}: {name!r} is named as a file of weights, which is not there; {COPY}")


def other_format(path: Path) -> str | None:
    """What a folder without weights for transformers holds instead, and what to do about it."""
    for pattern, what in OTHER_FORMATS.items():
        for file in sorted(path.glob(pattern)):
            if file.name not in WHOLE_WEIGHTS and not file.name.startswith(TRAINER_STATE):
                return f"it has {what.format(printable(file.name[:80]))}"
    return None


def has_tokenizer(path: Path) -> bool:
    """Whether a folder holds what a tokenizer is built from, and not only what refines one."""
    return any(file.name not in REFINING for file in tokenizer_files(path))


def tokenizer_hash(path: Path, model: Path | None = None) -> str:
    """Identifies the tokenizer: a hash of its files, and of what config.json says that decides its class.

    Equal files make different tokenizers under different model types. `model` is the folder of config.json where that is
    another. Raises UserError where there are no files.
    """
    files = tokenizer_files(path)
    if not files:
        raise UserError(
            f"{path.name} has no tokenizer: {path} holds neither tokenizer.json nor any other file of one; copy the"
            " tokenizer's files into it"
        )
    config = model_config(model or path)
    digest = hashlib.sha256(json.dumps([config.get("model_type"), config.get("tokenizer_class")]).encode())
    for file in files:
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def fingerprint(
    path: Path,
    allow_pickle: bool = False,
    progress: Callable[[], None] = lambda: None,
    base: Path | None = None,
) -> str:
    """Identifies what is scored: a hash of config.json and of every byte of the weights, of an adapter with those of its base.

    `progress` is called on the way.

    Raises UserError where evalengine.json has the sum of a file and the file has another.
    """
    own = path / "evalengine.json"
    about = read_json(own, COPY, constants=True) if own.is_file() else None
    expected = about.get("crc32") if isinstance(about, dict) else None
    sums: dict[str, Any] = expected if isinstance(expected, dict) else {}
    if base is None:
        digest = hashlib.sha256((path / "config.json").read_bytes())
        weights = weight_files(path, allow_pickle)
    else:
        digest = hashlib.sha256((path / ADAPTER_CONFIG).read_bytes())
        digest.update(fingerprint(base, allow_pickle, progress).encode())
        weights = [adapter_file(path, allow_pickle)]
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
