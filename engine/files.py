"""What the operating system provides, asked for in one way: atomic writes, locks, the cache's folder, the number of cores.

A leaf: it imports nothing of evalengine.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import itertools
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # what is said where no more can be written
POLL_S = 0.1  # between two tries for a lock
HOST = f"{zlib.crc32(os.uname().nodename.encode()):08x}"  # machines that share a folder have processes of equal numbers
_numbers = itertools.count()


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path for a file or folder that takes the name `path` when the block ends, and is removed where the block raises.

    Two processes may write the same `path` at once: each has a path of its own, and the last one to end is what stays. The
    folder that holds it is made where it is missing. A file's bytes are on the disk before it is renamed. An existing file is
    replaced; an existing folder must be removed first. An error that there is no room names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # hidden, so that a glob such as ckpts/* does not match an incomplete folder
    ours = f".{path.name}.{HOST}-"
    for old in path.parent.glob(f"{glob.escape(ours)}*.tmp"):
        if not Path(
            "/proc", old.name.removeprefix(ours).partition("-")[0]
        ).exists():  # its process was killed
            remove(old)
    temporary = path.with_name(f"{ours}{os.getpid()}-{next(_numbers)}.tmp")
    try:
        yield temporary
        if temporary.is_file():
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        remove(temporary)
        if isinstance(error, OSError) and error.errno in NO_ROOM:  # which names nothing, or what was copied
            error.filename, error.filename2 = str(path), None
        raise


def write(path: Path, content: str | bytes) -> None:
    """Writes a whole file or nothing; a text is UTF-8."""
    with atomic(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def remove(path: Path) -> None:
    """Removes a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(
    path: Path, waiting: Callable[[], None] | None = None, *, shared: bool = False
) -> Iterator[IO[str]]:
    """Holds the lock file `path`, alone or `shared` with others that share it; the system frees it when its process ends.

    waiting: called between two tries while another process holds the lock. Without it, raises BlockingIOError at once.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as handle:
        while True:
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waiting is None:
                    raise
                waiting()
                time.sleep(POLL_S)
        yield handle


def cache_root() -> Path:
    """The folder of everything that can be made again: EVALENGINE_CACHE, else ~/.cache/evalengine."""
    given = os.environ.get("EVALENGINE_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "evalengine"


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
