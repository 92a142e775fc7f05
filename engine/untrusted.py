"""Untrusted text and names: parsed within bounds, or refused with one sentence.

Checkpoints, benchmark files, study files and results come from anywhere. Python's own parsers raise a dozen types of
exception on hostile input, recurse until the stack ends, or expand a kilobyte of YAML to gigabytes; these functions raise one.
A leaf: it imports nothing of evalengine but `errors`.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalengine.errors import UserError

if TYPE_CHECKING:
    import mmap

    import pyarrow as pa

DEPTH = 100  # levels of nesting
YAML_BYTES = 4 << 20
YAML_NODES = 1_000_000  # after aliases are expanded
NUMBER_DIGITS = 100
NAME_BYTES = 200
RESERVED = ("runs.jsonl",)  # files of a score store next to its checkpoints
FRAMES = (b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")  # how zstd and LZ4 frames begin
BAD_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Cn")  # control, format, surrogate, private, unassigned


class RepeatedKeyError(ValueError):
    """A JSON object has a key twice."""


def parse_json(text: str | bytes, *, constants: bool = False) -> Any:
    """The value of a JSON text. Raises ValueError, and nothing else, whatever the text is.

    `constants`: allow NaN and Infinity, which Python writes and JSON does not have.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    try:
        value = (_WITH_CONSTANTS if constants else _STRICT).decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check_depth(value)
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises RepeatedKeyError where a key appears twice: Python's parser takes the last value without a word."""
    value = dict(pairs)
    if len(value) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise RepeatedKeyError(f"the key {twice[:60]!r} appears twice in one object")
    return value


# made once: `json.loads` with a hook makes one for every text, which takes longer than the hook
_STRICT = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_object)
_WITH_CONSTANTS = json.JSONDecoder(object_pairs_hook=_object)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError("nested too deeply")


def read_json(path: Path, mend: str, *, constants: bool = False) -> dict[str, Any]:
    """The object of a JSON file. Raises UserError; `mend` says what to do about a bad one."""
    try:
        value = parse_json(path.read_bytes(), constants=constants)
    except RepeatedKeyError as error:
        raise UserError(f"{path}: {error}; remove one of the two") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {reason(error)}; {mend}") from None
    if not isinstance(value, dict):
        raise UserError(f"cannot read {path}: it must hold a JSON object; {mend}")
    return value


def check_keys(path: Path) -> None:
    """Raises UserError where an object of a JSON file that another library reads has a key twice; of bad JSON that will speak."""
    try:
        parse_json(path.read_bytes(), constants=True)
    except RepeatedKeyError as error:
        raise UserError(f"{path}: {error}; remove one of the two") from None
    except ValueError:
        pass


def read_yaml(path: Path, texts: bool = False) -> Any:
    """The value of a YAML file, safe-loaded. Raises UserError for what is no YAML, too deep, or too large once expanded.

    texts: values are taken as they are written, so that 1.10 stays "1.10" and no is "no"; null is None.
    """
    import yaml

    try:
        if path.stat().st_size > YAML_BYTES:
            raise UserError(f"{path} is larger than {YAML_BYTES >> 20} MB, the limit of a YAML file")
        parser = yaml.SafeLoader(path.read_bytes())  # not its C twin, whose recursion ends in a crash
        try:
            node = parser.get_single_node()
            if node is None:
                return None
            _count_nodes(node, {}, 0)
            if texts:
                _as_texts(node, set())
            return parser.construct_document(node)
        finally:
            parser.dispose()
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"there is no file {path}: give the path of a YAML file") from None
    except Exception as error:  # PyYAML raises whatever Python raises on a bad date, number or key
        raise UserError(f"{path} is not valid YAML ({reason(error)}): fix it") from None


def _count_nodes(node: Any, known: dict[int, int], depth: int) -> int:
    """Nodes below and with `node` once aliases are expanded. Raises ValueError before that could hurt."""
    from yaml import MappingNode, SequenceNode

    if depth > DEPTH:
        raise ValueError("nested too deeply, or an alias that holds itself")
    if node.tag.endswith((":int", ":float")) and len(node.value) > NUMBER_DIGITS:
        raise ValueError(f"a number of more than {NUMBER_DIGITS} digits")
    size = known.get(id(node))
    if size is None:
        children: list[Any] = []
        if isinstance(node, MappingNode):
            _refuse_twice([key for key, _ in node.value])
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, SequenceNode):
            children = node.value
        size = 1 + sum(_count_nodes(child, known, depth + 1) for child in children)
        if size > YAML_NODES:
            raise ValueError(f"more than {YAML_NODES:,} values once its aliases are expanded")
        known[id(node)] = size
    return size


def _as_texts(node: Any, seen: set[int]) -> None:
    """Makes every value below a node a text, but null and the key of a merge."""
    from yaml import MappingNode, ScalarNode

    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, ScalarNode):
        if not node.tag.endswith((":null", ":merge")):
            node.tag = "tag:yaml.org,2002:str"
        return
    for child in node.value:
        for part in child if isinstance(node, MappingNode) else (child,):
            _as_texts(part, seen)


def _refuse_twice(keys: list[Any]) -> None:
    """Raises ValueError where a key appears twice in a mapping: PyYAML takes the last value without a word.

    1 and "1" are one key, since all readers take keys as texts.
    """
    from yaml import ScalarNode

    seen: set[str] = set()
    for key in keys:
        if isinstance(key, ScalarNode) and not key.tag.endswith(":merge"):
            if key.value in seen:
                raise ValueError(
                    f"the key {key.value[:60]!r} appears twice, again in line {key.start_mark.line + 1}"
                )
            seen.add(key.value)


def read_arrow(content: bytes | mmap.mmap) -> pa.Table:
    """The table of an Arrow file that nobody compressed, in no more memory than the file has. Raises ValueError, or Arrow's.

    A kilobyte of zstd unpacks to any size, and a footer may name one batch of rows a million times.
    """
    import pyarrow as pa

    whole = pa.py_buffer(content)
    if all(content.find(frame) < 0 for frame in FRAMES):
        file = pa.ipc.open_file(whole)
        if file.num_record_batches > 1:
            raise ValueError("more than one batch of rows")
        # `read_all` takes longer for the same rows, which counts where 20,000 small files are read
        batches = [file.get_batch(k) for k in range(file.num_record_batches)]
        return pa.Table.from_batches(batches, file.schema if not batches else None)
    # the same messages one after another, without a footer; those bytes may be numbers, too
    stream = whole.slice(8)
    for message in pa.ipc.MessageReader.open_stream(pa.BufferReader(stream)):
        if message.type != "schema" and _is_compressed(message.metadata.to_pybytes(), message.type):
            raise ValueError("compressed")
    return pa.ipc.open_stream(pa.BufferReader(stream)).read_all()


def _is_compressed(message: bytes, kind: str) -> bool:
    """Whether the body of an Arrow message is: Message.header [-> DictionaryBatch.data] -> RecordBatch.compression.

    The message is a flatbuffer, which Arrow has verified.
    """

    def number(at: int, size: int) -> int:
        return int.from_bytes(message[at : at + size], "little")

    def field(table: int, n: int) -> int:
        vtable = table - int.from_bytes(message[table : table + 4], "little", signed=True)
        offset = number(vtable + 4 + 2 * n, 2) if 4 + 2 * n < number(vtable, 2) else 0
        return table + offset if offset else 0

    def table(at: int) -> int:
        return at + number(at, 4)

    batch = table(field(table(0), 2))
    if kind == "dictionary":
        batch = table(field(batch, 1))
    return bool(field(batch, 3))


def reason(error: BaseException, most: int = 200) -> str:
    """The first line of what an exception says, for a sentence."""
    said = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):  # which says the key and nothing else
        said = f"unknown: {said}"
    return printable(str(said))[:most].rstrip(".")


def printable(text: str) -> str:
    """`text` with what cannot be encoded, or would steer a terminal, written as escapes."""
    if text.isprintable():
        return text
    return "".join(
        c if c == " " or unicodedata.category(c) not in (*BAD_CATEGORIES, "Zl", "Zp") else ascii(c)[1:-1]
        for c in text
    )


def check_name(name: str, kind: str) -> None:
    """Refuses names that could leave the output folder or that two people would read as one."""
    fault = name_fault(name)
    if fault is not None:
        raise UserError(f"{printable(name[:60])!r} cannot be a {kind} name: {fault}; rename it")


def name_fault(name: str) -> str | None:
    if not name:
        return "it is empty"
    if is_text(name) and len(name.encode()) > NAME_BYTES:
        return f"it has more than {NAME_BYTES} bytes"
    if not is_plain(name):
        return "it holds characters that cannot be seen"
    if name.startswith("."):
        return "it begins with a dot"
    if "/" in name or "\\" in name:
        return "it holds a slash"
    if name in RESERVED:
        return "a score store keeps its own file under it"
    other = unicodedata.normalize("NFKC", name)
    if other != name:
        letter = next((c for c in name if unicodedata.normalize("NFKC", c) != c), None)
        if letter is not None:
            return f"{letter!r} looks like {unicodedata.normalize('NFKC', letter)!r}"
        return "its letters and their accents are separate characters (NFD)"
    return None


def is_plain(text: str) -> bool:
    """Whether a text is a short label of visible characters: what a table, a figure and a terminal can show."""
    visible = all(unicodedata.category(c) not in (*BAD_CATEGORIES, "Zl", "Zp") for c in text)
    return bool(text) and visible and len(text.encode()) <= NAME_BYTES


def is_text(text: str) -> bool:
    """Whether a text can be encoded: JSON may hold lone surrogates, which are no characters."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def check_label(text: str, where: str) -> str:
    """A scale, mixture, stage or category, which may hold any visible character. Raises UserError."""
    if not is_plain(text):
        raise UserError(
            f"{where}: {printable(text[:60])!r} must be 1 to {NAME_BYTES} bytes of visible characters"
        )
    return text
