"""Checkpoints as values, and the files in their folders: configuration, weights, tokenizer, and the hashes that identify them.

A checkpoint is a Hugging Face causal-LM directory: config.json, weights, tokenizer; or an adapter's (LoRA), which says what
changes in the weights of its base. Nothing heavy loads here; `fingerprint` reads every byte of the weights once (about
1.5 GB/s), which also warms the page cache for the load that follows.

resolve.py makes them of paths and URIs (remote.py); pretrained.py loads them, by weights.py and adapters.py.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evalengine.errors import UserError
from evalengine.untrusted import is_plain, printable, read_json, reason

# The files that some tokenizer of transformers, or of code that comes with a checkpoint, is built from.
TOKENIZER_FILES = (
    "*.model",  # sentencepiece's and tiktoken's, which every family names differently
    "*.spm", "*.tiktoken", "*vocab*.json", "*vocab*.txt", "added_tokens.json", "bpe.codes", "byte_maps.json", "dict.txt",
    "emoji.json", "merges.txt", "normalizer.json", "prophetnet.tokenizer", "special_tokens_map.json", "tekken.json",
    "token*.py", "tokenizer*.json", "tokenizer.model.*", "vocab.bpe", "word_*.json",
)  # fmt: skip
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
UNREADABLE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EISDIR, errno.ENOTDIR)


@dataclass(frozen=True)
class Checkpoint:
    """A directory to score. `scale`, `mixture`, `stage` and `seed` (of several runs of a mixture) are None if not stated.

    `source` is the URI of a remote checkpoint; `path` then holds its small files, and all files once it is identified.
    `base` is the folder of the model that an adapter belongs to; `path` is then the adapter's. `fingerprint` is "" until it is
    identified (resolve.py). What its files say is read when it is first asked for, and kept.
    """

    path: Path
    name: str
    scale: str | None = None
    mixture: str | None = None
    stage: str | None = None
    source: str | None = None
    remote_bytes: int | None = None  # of the weights, known of a remote one
    base: Path | None = None
    fingerprint: str = ""
    stamp: tuple[tuple[str, int, int, int], ...] = ()  # of the files that were hashed for the fingerprint
    seed: str | None = None
    blocks: tuple[tuple[str, str], ...] = ()  # factors of the study's design, and this mixture's label
    described: bool = False  # whether a manifest states all of these, so that what it leaves out is not so

    @property
    def model_folder(self) -> Path:
        """Where config.json and the whole weights are."""
        return self.base or self.path

    @cached_property
    def config(self) -> dict[str, Any]:
        """What config.json says. Raises UserError for what is no configuration, or that of a model that is not causal."""
        folder = self.model_folder
        config = read_json(folder / "config.json", COPY, constants=True)
        named = config.get("architectures")
        for architecture in named if isinstance(named, list) else []:
            if isinstance(architecture, str) and OTHER_TASK.search(architecture):
                raise UserError(
                    f"{folder} is a {printable(architecture[:80])}, not a causal language model: it does not predict the next"
                    " token, and is not scored"
                )
        if config.get("is_encoder_decoder") is True:
            raise UserError(
                f"{folder} is an encoder-decoder ({printable(str(config.get('model_type'))[:80])}), not a causal language"
                " model: it is not scored"
            )
        return config

    @cached_property
    def architecture(self) -> str:
        """What two checkpoints must share to share a module: the configuration without its names and versions, and code."""
        changing = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
        decides = {k: v for k, v in self.config.items() if k not in changing}
        return json.dumps(decides, sort_keys=True) + self.code_hash

    @cached_property
    def code_hash(self) -> str:
        """Identifies the code of its own that config.json names, "" where it names none."""
        if not self.config.get("auto_map"):
            return ""
        digest = hashlib.sha256()
        for file in sorted(path for path in self.model_folder.rglob("*.py") if path.is_file()):
            digest.update(str(file.relative_to(self.model_folder)).encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()[:16]

    @cached_property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer is: an adapter may bring its own, and not only what refines one."""
        own = self.base is None or any(file.name not in REFINING for file in tokenizer_files(self.path))
        return self.path if own else self.model_folder

    @cached_property
    def tokenizer_hash(self) -> str:
        """Identifies the tokenizer: a hash of its files, and of what config.json says that decides its class.

        Equal files make different tokenizers under different model types. Raises UserError where there are no files.
        """
        folder = self.tokenizer_folder
        files = tokenizer_files(folder)
        if not files:
            raise UserError(
                f"{folder.name} has no tokenizer: {folder} holds neither tokenizer.json nor any other file of one; copy the"
                " tokenizer's files into it"
            )
        kind = [self.config.get("model_type"), self.config.get("tokenizer_class")]
        digest = hashlib.sha256(json.dumps(kind).encode())
        for file in files:
            digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()[:16]

    @cached_property
    def chat_template_hash(self) -> str:
        """Identifies the chat template, where it is a file of its own: tokenizer_hash covers those of tokenizer_config.json."""
        file = self.tokenizer_folder / "chat_template.jinja"
        return hashlib.sha256(file.read_bytes() if file.is_file() else b"").hexdigest()[:16]

    def weight_files(self, allow_pickle: bool = False) -> list[Path]:
        """The files that hold the model's weights, those that transformers would take. Raises UserError if none may be read."""
        folder = self.model_folder
        if is_adapter(folder):
            raise UserError(
                f"{folder} is an adapter, without the weights of its base: merge it into them first"
            )
        named = self.config.get("transformers_weights")  # by name, before those that are looked for
        if named is not None:
            if not str(named).endswith((".safetensors", ".safetensors.index.json")):
                raise UserError(
                    f"{folder}: transformers_weights of config.json must name a safetensors file: mend it"
                )
            return files_of(folder, str(named))
        for name in WHOLE_WEIGHTS:
            if (folder / name).is_file():
                if name not in SAFE:
                    check_pickle(folder, name, allow_pickle)
                return files_of(folder, name)
        raise UserError(
            f"{folder} has no weights that transformers reads: "
            + (other_format(folder) or f"model.safetensors is missing; {COPY}")
        )


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


def tokenizer_files(path: Path) -> list[Path]:
    """The tokenizer's files, sorted by name."""
    return [
        file
        for file in sorted(path.iterdir())
        if any(file.match(pattern) for pattern in TOKENIZER_FILES) and file.is_file()
    ]


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
        shards = read_json(path / name, COPY).get("weight_map")
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


def fingerprint(
    checkpoint: Checkpoint, allow_pickle: bool = False, progress: Callable[[], None] = lambda: None
) -> str:
    """Identifies what is scored: a hash of config.json and of every byte of the weights, of an adapter with those of its base.

    `progress` is called on the way. Raises UserError where evalengine.json has the sum of a file and the file has another.
    """
    path = checkpoint.path
    own = path / "evalengine.json"
    expected = read_json(own, COPY, constants=True).get("crc32") if own.is_file() else None
    sums: dict[str, Any] = expected if isinstance(expected, dict) else {}
    if checkpoint.base is None:
        digest = hashlib.sha256((path / "config.json").read_bytes())
        weights = checkpoint.weight_files(allow_pickle)
    else:
        digest = hashlib.sha256((path / ADAPTER_CONFIG).read_bytes())
        base = Checkpoint(checkpoint.base, checkpoint.name)
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


def stamp(checkpoint: Checkpoint, allow_pickle: bool = False) -> tuple[tuple[str, int, int, int], ...]:
    """Name, inode, size and time of every file that decides the fingerprint: they change when a file is written over."""
    paths = [checkpoint.model_folder / "config.json", *checkpoint.weight_files(allow_pickle)]
    if checkpoint.base is not None:
        paths += [checkpoint.path / ADAPTER_CONFIG, adapter_file(checkpoint.path, allow_pickle)]
    found = [(path, path.stat()) for path in paths]
    return tuple((str(path), about.st_ino, about.st_size, about.st_mtime_ns) for path, about in found)


def check_unchanged(checkpoint: Checkpoint, allow_pickle: bool = False) -> None:
    """Raises UserError where a file was written over since the checkpoint was identified.

    Called after the weights are read: they would be stored under the fingerprint of others, or be partly of each.
    """
    with reading(checkpoint):
        now = stamp(checkpoint, allow_pickle)
    if now != checkpoint.stamp:
        raise UserError(
            f"{checkpoint.path} changed while it was scored: run the same command again when nothing writes to it"
        )


@contextlib.contextmanager
def reading(checkpoint: Checkpoint) -> Iterator[None]:
    """A file of a checkpoint that is gone or cannot be read is that checkpoint's failure: a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        at = f" ({error.filename})" if error.filename else ""
        raise UserError(
            f"{checkpoint.path} cannot be read: {reason(error)}{at}; if it was moved or removed, put it back or leave it out"
        ) from None


def emulated_fingerprint(members: Sequence[str], beta: float) -> str:
    """Identifies what is emulated by the fingerprints of its base, tuned and ref, and the strength."""
    return hashlib.sha256("\n".join([*members, f"{beta!r}"]).encode()).hexdigest()


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
