"""Checkpoints and stores at URIs (s3://, gs://, hf://, whatever fsspec opens), copied to this machine's cache.

Of a checkpoint the driver takes the small files (configuration, tokenizer) at once, and whoever scores it the rest when its turn
comes. The cache holds whole checkpoints only, each under a name made of the URI and of what the listing says of its files; it
stays below EVALENGINE_CACHE_GB (default 100) by dropping those unused for longest, never one that a process is using.

    KEY.lock     held alone by who downloads or drops KEY, shared by those that use it
    evict.lock   held alone by who makes room, which skips what is in use

A store has a working copy in the cache; every finished file is uploaded at once, whole or not at all. Only the working copy is
locked: let one machine write to a remote store at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evalengine import store
from evalengine.checkpoints import TOKENIZER_FILES
from evalengine.errors import UserError
from evalengine.files import NO_ROOM, atomic, cache_root, locked, remove
from evalengine.untrusted import is_plain, reason

if TYPE_CHECKING:
    import pyarrow as pa

SMALL = (".json", ".txt", ".model", ".jinja", ".py")
WEIGHTS = (".safetensors",)
PICKLES = (".bin", ".pt", ".pth")
CACHE_GB = 100.0
SIGNS = ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "created", "blob_id", "md5Hash")
_used: dict[str, contextlib.ExitStack] = {}  # URI -> shared lock of the checkpoint that this process uses


class Listing(NamedTuple):
    """The files of a remote folder that a checkpoint consists of: name -> size, and a key that changes when they do."""

    fs: Any
    root: str
    files: dict[str, int]
    key: str

    @property
    def weights(self) -> int:
        return sum(size for name, size in self.files.items() if not is_small(name))


def is_uri(place: object) -> bool:
    return "://" in str(place)


def location(text: str) -> Path | str:
    """A path, or a URI as it is. For argparse: Path would swallow one of the slashes."""
    return text.rstrip("/") if is_uri(text) else Path(text)


def filesystem(uri: str) -> tuple[Any, str]:
    """fsspec's file system for a URI, and the path in it. Raises UserError."""
    try:
        import fsspec
    except ImportError:
        raise UserError(f"{uri} needs fsspec: pip install 'evalengine[remote]'") from None
    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        raise UserError(f"{uri} cannot be opened: {reason(error)}") from None
    except Exception as error:
        raise UserError(f"{uri} is not a URI that can be opened: {reason(error)}") from None
    return fs, str(path).rstrip("/")


@contextlib.contextmanager
def as_user_error(uri: str) -> Iterator[None]:
    """Errors of a remote file system as one sentence; errors of this machine's own disk stay what they are."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except FileNotFoundError:
        raise UserError(f"there is nothing at {uri}: check the URI and your access to it") from None
    except Exception as error:
        if isinstance(error, OSError) and (error.errno in NO_ROOM or (error.errno and error.filename)):
            raise
        raise UserError(f"{uri} cannot be reached: {reason(error)}") from None


def expand(place: Path | str) -> list[Path | str]:
    """A URI with * as the folders it matches, sorted; anything else as it is."""
    if not is_uri(place) or "*" not in str(place):
        return [place]
    fs, pattern = filesystem(str(place))
    with as_user_error(str(place)):
        found = sorted(path for path in fs.glob(pattern) if fs.isdir(path))
    if not found:
        raise UserError(f"there is no checkpoint at {place}: check the URI and your access to it")
    return [fs.unstrip_protocol(path) for path in found]


def listing(uri: str) -> Listing:
    """What of a remote folder belongs to the checkpoint. Pickled weights are left out where there are safetensors."""
    fs, root = filesystem(uri)
    with as_user_error(uri):
        fs.invalidate_cache(root)
        entries = {
            str(entry["name"]).rsplit("/", 1)[-1]: entry
            for entry in fs.ls(root, detail=True)
            if entry.get("type") == "file"
        }
    kinds = WEIGHTS if any(name.endswith(WEIGHTS) for name in entries) else PICKLES
    known = {name: e for name, e in sorted(entries.items()) if is_small(name) or name.endswith(kinds)}
    chosen = {name: e for name, e in known.items() if is_plain(name)}
    signs = [uri, *(f"{name} {[(s, str(e[s])) for s in SIGNS if s in e]}" for name, e in chosen.items())]
    key = hashlib.sha256("\n".join(signs).encode()).hexdigest()[:32]
    return Listing(fs, root, {name: int(e.get("size") or 0) for name, e in chosen.items()}, key)


def is_small(name: str) -> bool:
    """Whether a file is a configuration, a tokenizer's or code."""
    return name.endswith(SMALL) or any(fnmatch(name, pattern) for pattern in TOKENIZER_FILES)


def name_of(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]


def fetch_small_files(uri: str) -> tuple[Path, int]:
    """The small files of a remote checkpoint in a folder here, and the size of its weights in bytes. Raises UserError."""
    listed = listing(uri)
    small = {name: size for name, size in listed.files.items() if is_small(name)}
    if "config.json" not in small:
        raise UserError(f"{uri} is not a checkpoint: it has no config.json")
    folder = cache_root() / "small_files" / listed.key
    with locked(folder.with_suffix(".lock"), waiting=lambda: None):
        if not folder.is_dir():
            download(uri, listed._replace(files=small), folder)
    return folder / name_of(uri), listed.weights


def fetch(uri: str, progress: Callable[[], None] = lambda: None) -> Path:
    """The folder with all files of a remote checkpoint; held against eviction until `release`. Raises UserError.

    progress: called after each file, and while another thread or process downloads the same checkpoint.
    """
    listed = listing(uri)
    folder = cache_root() / "checkpoints" / listed.key
    lock = folder.with_suffix(".lock")
    while True:
        with contextlib.ExitStack() as used:
            used.enter_context(locked(lock, progress, shared=True))
            if folder.is_dir():
                os.utime(folder)
                # of what the URI held before it changed; where nothing changed, `used` holds the same
                release(uri)
                _used[uri] = used.pop_all()
                return folder / name_of(uri)
        # Where another one has the lock, that one downloads it: the loop waits for it above.
        with contextlib.suppress(BlockingIOError), locked(lock):
            if not folder.is_dir():
                evict(folder.parent, sum(listed.files.values()))
                download(uri, listed, folder, progress)


def release(uri: str) -> None:
    """This process no longer needs the files of a remote checkpoint."""
    used = _used.pop(uri, None)
    if used is not None:
        used.close()


def download(uri: str, listed: Listing, folder: Path, progress: Callable[[], None] = lambda: None) -> None:
    """All files into `folder`/<name>, which appears whole or not at all."""
    with atomic(folder) as temporary, as_user_error(uri):
        inside = temporary / name_of(uri)
        inside.mkdir(parents=True)
        for name, size in listed.files.items():
            listed.fs.get_file(f"{listed.root}/{name}", str(inside / name))
            if (inside / name).stat().st_size != size:
                raise UserError(
                    f"{uri}/{name} changed or broke off while it was copied: run the same command again"
                )
            progress()


def evict(folder: Path, wanted: int) -> None:
    """Drops the checkpoints unused for longest until `wanted` more bytes fit; those in use stay."""
    text = os.environ.get("EVALENGINE_CACHE_GB", str(CACHE_GB))
    try:
        limit = float(text) * 1e9
    except ValueError:
        raise UserError(f"EVALENGINE_CACHE_GB must be a number of gigabytes, not {text!r}") from None
    with locked(folder / "evict.lock", waiting=lambda: None):
        folders = (p for p in folder.iterdir() if p.is_dir() and p.suffix != ".tmp")
        size = {
            path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            for path in sorted(folders, key=lambda path: path.stat().st_mtime)
        }
        total = sum(size.values())
        for path in size:
            if total + wanted <= limit:
                return
            with contextlib.suppress(BlockingIOError), locked(path.with_suffix(".lock")):
                gone = path.with_name(f"{path.name}.tmp")
                os.rename(path, gone)  # what is half removed must not look whole
                remove(gone)
                total -= size[path]


# --- stores


def open_store(place: Path | str, names: list[str]) -> tuple[Path, Callable[[Path], None]]:
    """The folder of a store at a path or a URI, and what is to be called with each of its files that is finished.

    Of a remote store, the files of the checkpoints `names` are brought here first.
    """
    if not is_uri(place):
        return Path(place), lambda path: None
    folder = copy_of(str(place), names)
    fs, root = filesystem(str(place))

    def upload(path: Path) -> None:
        put(fs, path, f"{root}/{path.resolve().relative_to(folder.resolve()).as_posix()}", str(place))

    return folder, upload


def formats_of(place: Path | str) -> Path | str:
    """Where a store keeps what `score --formats` writes: a store of its own in a folder, which its readers pass over."""
    return f"{str(place).rstrip('/')}/formats" if is_uri(place) else Path(place) / "formats"


def readable(place: Path | str) -> Path:
    """A store at a path or a URI, on this machine. Raises UserError."""
    return copy_of(str(place), None) if is_uri(place) else Path(place)


def load(place: Path | str = "scores") -> pa.Table:
    """All scores of a store as one table, one row per (checkpoint, benchmark, item).

    place: the store's folder, or a URI that fsspec opens (copied to this machine first). Columns: checkpoint, scale, mixture,
    stage, benchmark, category (null where unknown); item (its id); gold (index of the right choice); and lists with one entry
    per choice: loglik and loglik_uncond (natural log, summed over the choice's tokens; loglik_uncond, the score without
    context, is null unless scored with --pmi), tokens, chars and bytes (lengths of the choice, chars and bytes without the
    delimiter before it), greedy (every token was the argmax). Raises UserError for a store that is missing, empty or damaged.
    """
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
