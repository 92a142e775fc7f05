"""Score stores at URIs: a working copy in the cache, every finished file uploaded at once, whole or not at all.

Only the working copy is locked: let one machine write to a remote store at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evalengine import store
from evalengine.files import atomic, cache_root
from evalengine.remote import as_user_error, filesystem, is_uri
from evalengine.untrusted import is_plain

if TYPE_CHECKING:
    import pyarrow as pa


class StorePlace(NamedTuple):
    """A store to write: the folder here, and what is to be done with each finished file."""

    folder: Path
    stored: Callable[[Path], None]
    remote: bool


def open_store(place: Path | str, names: list[str]) -> StorePlace:
    """A store at a path or a URI; of a remote one, the files of the checkpoints `names` are brought here first."""
    if not is_uri(place):
        return StorePlace(Path(place), lambda path: None, False)
    folder = copy_of(str(place), names)
    fs, root = filesystem(str(place))

    def upload(path: Path) -> None:
        put(fs, path, f"{root}/{path.resolve().relative_to(folder.resolve()).as_posix()}", str(place))

    return StorePlace(folder, upload, True)


def readable(place: Path | str) -> Path:
    """A store at a path or a URI, on this machine. Raises UserError."""
    return copy_of(str(place), None) if is_uri(place) else Path(place)


def load(place: Path | str = "scores") -> pa.Table:
    """All scores of a store (a folder or a URI) as one table, one row per (checkpoint, benchmark, item). Raises UserError."""
    return store.load(readable(place))


def copy_of(uri: str, names: list[str] | None) -> Path:
    """The working copy of a remote store, made equal to it for the checkpoints `names` (None: for all)."""
    fs, root = filesystem(uri)
    folder = cache_root() / "stores" / hashlib.sha256(uri.encode()).hexdigest()[:32]
    with store.lock(folder), as_user_error(uri):
        fs.invalidate_cache(root)
        stored = [str(path) for path in fs.find(root)] if fs.exists(root) else []
        wanted: dict[str, str] = {}
        for path in stored:
            parts = path[len(root) :].strip("/").split("/")
            if not all(is_plain(part) and not part.startswith(".") for part in parts):
                continue  # object keys may hold ".."
            mine = len(parts) == 2 and parts[1].endswith(".arrow") and (names is None or parts[0] in names)
            if mine or parts == ["runs.jsonl"]:
                wanted["/".join(parts)] = path
        for old in folder.glob("*/*.arrow"):
            if (names is None or old.parent.name in names) and f"{old.parent.name}/{old.name}" not in wanted:
                old.unlink()
        for name, path in wanted.items():
            with atomic(folder / name) as temporary:
                fs.get_file(path, str(temporary))
    return folder


def put(fs: Any, path: Path, target: str, uri: str) -> None:
    """Uploads one file: an object store shows it whole or not at all; elsewhere it is renamed when it is whole."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    with as_user_error(uri):
        if protocols & {"file", "local", "sftp", "ssh", "smb"}:
            fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            fs.put_file(str(path), f"{target}.tmp")
            fs.mv(f"{target}.tmp", target)
        else:
            fs.put_file(str(path), target)
