"""The contamination report against a plain set of word tuples."""

from __future__ import annotations

import random
from pathlib import Path

from evalengine.training import checked
from evalengine.training.chat import Message
from evalengine.training.data import contamination
from evalengine.training.data.contamination import GRAM, WORD, overlap
from evalengine.training.data.conversations import save, tokenise
from evalengine.training.data.shards import build
from evalengine.training.data.sources import text_documents


def plain(items: list[str], documents: list[str]) -> int:
    def windows(text: str) -> set[tuple[str, ...]]:
        words = WORD.findall(text.lower())
        return {tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)}

    held = set().union(*map(windows, documents))
    return sum(bool(windows(item) & held) for item in items)


def test_overlap_is_that_of_plain_word_tuples():
    rng = random.Random(0)

    def text(words: int) -> str:
        return " ".join(rng.choice(["the", "Cat", "sat,", "on", "é", "42"]) for _ in range(words))

    documents = [text(200) for _ in range(20)]
    items = [text(rng.randint(5, 40)) for _ in range(40)]
    items += [" ".join(d.upper().split()[30 : 30 + n]) for d in documents for n in (12, 13, 20)]
    found = overlap({"b": items}, {"web": documents, "none": []})["b"]
    assert found.seen == {"web": plain(items, documents), "none": 0}
    assert 40 <= found.seen["web"] < 60 + 40
    assert found.short == sum(len(WORD.findall(i)) < GRAM for i in items)
    assert found.items == len(items)


def test_the_report_reads_shards_and_conversations(data: Path, tokenizer, tmp_path: Path):
    leak = (data / "bench/boolq.jsonl").read_text().splitlines()[0]
    import json

    passage = json.loads(leak)["passage"]
    texts = [*text_documents(data / "corpora/web_a.txt"), f"before {passage} after"]
    source = build(tmp_path / "web", lambda: iter(texts), tokenizer)
    chats = tmp_path / "conversations-x.npz"
    save(chats, tokenise([(Message("user", passage), Message("assistant", "yes"))], tokenizer))
    contamination.report(tmp_path / "report.json", data, tokenizer, {"web": source}, chats)
    found = checked.read(tmp_path / "report.json")
    assert found is not None and len(found["benchmarks"]) == 20
    seen = found["benchmarks"]["boolq"]["seen"]
    assert seen["web"] >= 1 and seen["conversations"] >= 1
    written = (tmp_path / "report.json").stat().st_mtime_ns
    contamination.report(tmp_path / "report.json", data, tokenizer, {"web": source}, chats)
    assert (tmp_path / "report.json").stat().st_mtime_ns == written


def test_other_items_are_looked_for_again(data: Path, tokenizer, tmp_path: Path):
    rows = (data / "bench/boolq.jsonl").read_text().splitlines()
    (tmp_path / "boolq.jsonl").write_text(rows[0])
    source = build(tmp_path / "web", lambda: iter(text_documents(data / "corpora/web_a.txt")), tokenizer)
    chats = tmp_path / "conversations-x.npz"
    save(chats, tokenise([(Message("user", "Is it?"), Message("assistant", "yes"))], tokenizer))
    for count in (1, 3):
        (tmp_path / "boolq.jsonl").write_text("\n".join(rows[:count]))
        contamination.report(tmp_path / "report.json", tmp_path, tokenizer, {"web": source}, chats)
        found = checked.read(tmp_path / "report.json")
        assert found is not None and found["benchmarks"]["boolq"]["items"] == count
    contamination.report(tmp_path / "report.json", tmp_path, tokenizer, {"crawl": source}, chats)
    found = checked.read(tmp_path / "report.json")
    assert found is not None and list(found["benchmarks"]["boolq"]["seen"]) == ["crawl", "conversations"]
