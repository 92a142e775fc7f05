"""Checkpoints and stores at URIs: file:// and memory:// stand for all, for fsspec opens them all alike."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import evalengine
from cluster.conftest import files, one_thread, score
from evalengine.checkpoints import TOKENIZER_FILES, remote, resolve, tokenizer_files
from evalengine.errors import UserError

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("EVALENGINE_CACHE", str(tmp_path / "cache"))
    with one_thread():
        yield tmp_path / "cache"


def test_remote_checkpoints_into_a_remote_store_and_on_again(
    ckpts: list[Path], bench: Path, reference: Path, tmp_path: Path, cache: Path
) -> None:
    uris = [f"file://{path}" for path in ckpts]
    out = tmp_path / "bucket" / "scores"
    assert score(uris[:2], bench, f"file://{out}") == 0
    assert len(files(out)) == 12
    shutil.rmtree(cache)  # another machine
    next(iter(out.glob("*/*.arrow"))).unlink()
    assert score([f"file://{ckpts[0].parent}/*"], bench, f"file://{out}") == 0
    assert files(out) == files(reference)
    assert len((out / "runs.jsonl").read_text().splitlines()) == 2
    assert evalengine.load(f"file://{out}").equals(evalengine.load(reference))


def test_new_labels_reach_a_remote_store(ckpts: list[Path], bench: Path, tmp_path: Path, cache: Path) -> None:
    out, manifest = tmp_path / "bucket" / "scores", tmp_path / "m.yaml"
    manifest.write_text(f"{ckpts[0].name}: {{scale: 1B, mixture: web, stage: pt}}")
    for more in ([], ["--manifest", manifest]):
        assert score(ckpts[:1], bench, f"file://{out}", *more) == 0
    assert '"scored": 0' in (out / "runs.jsonl").read_text().splitlines()[-1]
    shutil.rmtree(cache)  # another machine
    assert set(evalengine.load(f"file://{out}")["scale"].to_pylist()) == {"1B"}


def test_answer_formats_are_a_folder_of_a_remote_store(
    ckpts: list[Path], bench: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bucket" / "scores"
    for more in ([], ["--formats"]):
        assert score(ckpts[:1], bench, f"file://{out}", *more) == 0
    shutil.rmtree(cache)  # another machine
    capsys.readouterr()
    assert score(ckpts[:1], bench, f"file://{out}", "--formats") == 0
    said = capsys.readouterr().out
    assert "already there" in said and "mean acc" not in said, "of answers in several formats there is none"
    assert '"scored": 0' in (out / "formats" / "runs.jsonl").read_text().splitlines()[-1]
    plain, formats = f"file://{out}", remote.formats_of(f"file://{out}/")
    assert formats == f"file://{out}/formats" and remote.formats_of(out) == out / "formats"
    assert files(remote.readable(formats)) == files(out / "formats")
    assert set(files(remote.readable(plain))) == {f"{ckpts[0].name}/{p.name}" for p in out.glob("*/*.arrow")}


@pytest.mark.parametrize("more", [(), ("--fewshot", 2, "--pmi")], ids=["", "few-shot"])
def test_conversations_with_remote_checkpoints(
    more: tuple[object, ...], chats: list[Path], bench: Path, tmp_path: Path, cache: Path
) -> None:
    """The template comes with the small files; the scores are those of the folders, also into a store that is remote."""
    given = ("--chat", "--benchmarks", "copa,cb,piqa", "--limit", 12, *more)
    assert score(chats, bench, tmp_path / "local", *given) == 0
    shutil.rmtree(cache)  # another machine
    out = tmp_path / "bucket" / "scores"
    assert score([f"file://{chats[0].parent}/*"], bench, f"file://{out}", *given) == 0
    assert files(out) == files(tmp_path / "local") and len(files(out)) == 6
    shutil.rmtree(cache)
    assert score([f"file://{path}" for path in chats], bench, f"file://{out}", *given) == 0
    assert files(out) == files(tmp_path / "local")
    assert (out / "runs.jsonl").read_text().splitlines()[-1].count('"kept": 3') == 2


def test_a_store_in_memory(ckpts: list[Path], bench: Path, reference: Path) -> None:
    fs = fsspec.filesystem("memory")
    assert score(ckpts[:1], bench, "memory://bucket/scores") == 0
    stored = {path.removeprefix("/bucket/scores/"): fs.cat_file(path) for path in fs.find("/bucket/scores")}
    stored.pop("runs.jsonl")
    assert stored == {k: v for k, v in files(reference).items() if k.startswith(ckpts[0].name + "/")}


def test_the_cache_is_bounded_and_drops_what_was_unused_for_longest(
    ckpts: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = resolve.discover([f"file://{path}" for path in ckpts[:3]])
    size = sum(f.stat().st_size for f in ckpts[0].iterdir())
    monkeypatch.setenv("EVALENGINE_CACHE_GB", str(2.5 * size / 1e9))
    paths = []
    for i, checkpoint in enumerate(found[:2]):
        path = remote.fetch(checkpoint.source)
        os.utime(path.parent, (i, i))
        paths.append(path)
    remote.release(found[1].source)
    third = remote.fetch(found[2].source)
    assert third.is_dir() and paths[0].is_dir()  # the oldest, but in use
    assert not paths[1].exists()
    for checkpoint in found:
        remote.release(checkpoint.source)
    assert not list(cache.rglob("*.tmp"))


def test_all_files_that_a_tokenizer_may_have_are_small_ones(ckpts: list[Path], tmp_path: Path) -> None:
    source = Path(shutil.copytree(ckpts[0], tmp_path / "m-a-pt"))
    for pattern in TOKENIZER_FILES:
        (source / pattern.replace("*", "x")).touch()
    (checkpoint,) = resolve.discover([f"file://{source}"])
    mine, theirs = ([f.name for f in tokenizer_files(path)] for path in (checkpoint.path, source))
    assert mine == theirs and len(mine) >= len(TOKENIZER_FILES)
    assert checkpoint.remote_bytes == (source / "model.safetensors").stat().st_size


def test_a_checkpoint_is_copied_once_and_again_when_it_changed(
    ckpts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "m-a-pt"
    shutil.copytree(ckpts[0], source)
    copies = []
    download = remote.download
    monkeypatch.setattr(remote, "download", lambda *given: (copies.append(given[0]), download(*given)))
    (checkpoint,) = resolve.discover([f"file://{source}"])
    copies.clear()
    threads = [threading.Thread(target=remote.fetch, args=(checkpoint.source,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(copies) == 1 and not any(thread.is_alive() for thread in threads)
    before = remote.fetch(checkpoint.source)
    shutil.copy(ckpts[1] / "model.safetensors", source / "model.safetensors")
    after = remote.fetch(checkpoint.source)
    assert before != after and len(copies) == 2
    assert (after / "model.safetensors").read_bytes() == (ckpts[1] / "model.safetensors").read_bytes()
    remote.release(checkpoint.source)


def test_another_process_has_the_files_while_this_one_scores(ckpts: list[Path]) -> None:
    (checkpoint,) = resolve.discover([f"file://{ckpts[0]}"])
    mine = remote.fetch(checkpoint.source)
    code = (
        "import sys\n"
        "from evalengine.checkpoints import remote, resolve\n"
        "(checkpoint,) = resolve.discover([sys.argv[1]])\n"
        "print(remote.fetch(checkpoint.source))\n"
        "sys.stdin.read()\n"  # and scores for as long as it likes
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, checkpoint.source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        ended = threading.Timer(60, other.kill)
        ended.start()
        try:
            assert other.stdout.readline().strip() == str(mine)
            remote.release(checkpoint.source)
            assert remote.fetch(checkpoint.source) == mine  # nor does this one wait for the other
            remote.release(checkpoint.source)
            remote.evict(mine.parent.parent, wanted=1 << 60)
            assert mine.is_dir()  # the other uses it
        finally:
            ended.cancel()
            other.communicate("", timeout=60)
    remote.evict(mine.parent.parent, wanted=1 << 60)
    assert not mine.exists()


def test_what_one_thread_drops_another_has_whole_or_fetches_again(
    ckpts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that fetch and release more than the cache holds: each has the files whenever it uses them."""
    found = resolve.discover([f"file://{path}" for path in ckpts])
    size = sum(f.stat().st_size for f in ckpts[0].iterdir())
    monkeypatch.setenv("EVALENGINE_CACHE_GB", str(1.5 * size / 1e9))
    used: list[bool] = []

    def use(uri: str) -> None:
        for _ in range(10):
            path = remote.fetch(uri)
            used.append(len(list(path.iterdir())) == len(list(ckpts[0].iterdir())))
            remote.release(uri)

    threads = [threading.Thread(target=use, args=(checkpoint.source,)) for checkpoint in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert used == [True] * 40


def test_ctrl_c_does_not_wait_for_a_download_that_another_process_makes(ckpts: list[Path]) -> None:
    (checkpoint,) = resolve.discover([f"file://{ckpts[0]}"])
    path = remote.fetch(checkpoint.source).parent
    remote.release(checkpoint.source)
    with remote.locked(path.with_suffix(".lock")):  # as if it were still being downloaded
        ahead = resolve.ReadAhead(allow_pickle=False)
        with pytest.raises(KeyboardInterrupt), ahead:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            ahead.identified(checkpoint)


def test_what_is_not_there_or_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for uri, said in [
        (f"file://{tmp_path}/none", "there is nothing at"),
        (f"file://{tmp_path}/empty", "no config.json"),
        (f"file://{tmp_path}/n*", "there is no checkpoint at"),
        ("nothing://bucket/m", "not a URI that can be opened"),
    ]:
        with pytest.raises(UserError, match=said):
            resolve.discover([uri])


def test_a_file_that_breaks_off_is_never_used(
    ckpts: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint,) = resolve.discover([f"file://{ckpts[0]}"])
    listed = remote.listing(f"file://{ckpts[0]}")
    longer = listed._replace(files={name: size + 1 for name, size in listed.files.items()})
    monkeypatch.setattr(remote, "listing", lambda uri: longer)
    with pytest.raises(UserError, match="broke off"):
        remote.fetch(checkpoint.source)
    assert not [p for p in (cache / "checkpoints").iterdir() if p.is_dir()]
