"""Counts of items' n-grams against plain Python: word lists, slices and a dictionary."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalengine.benchmarks import BENCHMARKS, Item
from evalengine.cli import main
from evalengine.errors import UserError
from evalengine.training.data.contamination import WORD
from evalengine.training.exposure import counting, ngrams, table
from evalengine.training.exposure.ngrams import LEAST, MOST, K, gather
from evalengine.training.exposure.words import numbers, vocabulary
from evalengine.training.study import SourceSpec

NS = range(LEAST, MOST + 1)
Words = tuple[str, ...]


def words(text: str) -> Words:
    return tuple(WORD.findall(text.lower()))


def windows(text: Words, n: int) -> list[Words]:
    return [text[i : i + n] for i in range(len(text) - n + 1)]


class Plain:
    """What the counts mean, one choice at a time."""

    def __init__(self, items: Iterable[Item], documents: Sequence[str]) -> None:
        self.pairs = [
            (words(a), words(b)) for i in items for a, b in zip(i.contexts, i.continuations, strict=True)
        ]
        self.documents = [words(text) for text in documents]

    @cache  # noqa: B019
    def grams(self, n: int) -> Counter[Words]:
        return Counter(gram for document in self.documents for gram in windows(document, n))

    def occurrences(self, gram: Words) -> int:
        return self.grams(len(gram))[gram]

    def crossing(self, c: int, n: int) -> set[Words]:
        context, choice = self.pairs[c]
        starts = range(max(0, len(context) - n + 1), len(context))
        whole = context + choice
        return {whole[s : s + n] for s in starts if s + n <= len(whole) and s + n > len(context)}

    def cross(self, c: int, n: int) -> int:
        return sum(map(self.occurrences, self.crossing(c, n)))

    def context(self, c: int, n: int) -> int:
        return sum(map(self.occurrences, set(windows(self.pairs[c][0], n))))

    def task(self, c: int, n: int) -> int:
        context, choice = (set(windows(part, n)) for part in self.pairs[c])
        return sum(bool(context & some) and bool(choice & some) for some in self.held(n))

    @cache  # noqa: B019
    def held(self, n: int) -> list[set[Words]]:
        return [set(windows(document, n)) for document in self.documents]

    def longest(self, c: int) -> tuple[int, int]:
        for n in range(sum(map(len, self.pairs[c])), 1, -1):
            if count := self.cross(c, n):
                return n, count
        return 0, 0


def write_items(folder: Path, items: Sequence[Item], benchmark: str = "arc_easy") -> None:
    """As rows whose rendering is `Question: ...\\nAnswer:` and the choice."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for item in items:
        question = item.contexts[0].removeprefix("Question: ").removesuffix("\nAnswer:")
        labels = [chr(65 + i) for i in range(len(item.choices))]
        row = {
            "id": item.id,
            "question": question,
            "choices": {"text": list(item.choices), "label": labels},
            "answerKey": labels[item.gold],
        }
        lines.append(json.dumps(row))
    (folder / f"{benchmark}.jsonl").write_text("\n".join(lines) + "\n")


def item(id: str, question: str, *choices: str, gold: int = 0) -> Item:
    context = f"Question: {question}\nAnswer:"
    return Item(id, (context,) * len(choices), tuple(f" {c}" for c in choices), choices, gold)


FEW = ["the", "Cat", "sat", "on", "a", "ÉTÉ", "x_y", "ΟΔΟΣ", "don't", "42", "word\u0301s", "日本"]


def text(rng: random.Random, count: int, of: Sequence[str] = FEW) -> str:
    return "".join(rng.choice(of) + rng.choice([" ", "  ", ", ", "\n", "_", "-", "'"]) for _ in range(count))


def made(seed: int) -> tuple[list[Item], list[str]]:
    """Few words, so that n-grams repeat in items, among items and in documents, and overlap themselves."""
    rng = random.Random(seed)
    items = []
    for k in range(30):
        of = FEW if k % 3 else FEW[:2]
        choices = [text(rng, rng.choice([0, 1, 1, 2, 5, 12]), of) or "?" for _ in range(rng.randint(2, 4))]
        items.append(item(f"i{k}", text(rng, rng.choice([1, 6, 20]), of), *choices))
    items[3] = item("i3", "the cat sat", "on a mat", "On, a mat!", gold=1)  # gold and wrong choice are equal
    items[4] = items[3]._replace(id="i4")
    two = ("the cat sat on", "a cat sat on")
    items.append(Item("two", two, (" the a",) * 2, ("the a",) * 2, 0))  # a context of each choice's own
    documents = [text(rng, rng.choice([0, 1, 3, 40, 300]), FEW if k % 3 else FEW[:2]) for k in range(40)]
    # whole items, for long matches
    documents += [f"{text(rng, 3)} {i.contexts[0]}{i.continuations[-1]} {text(rng, 3)}" for i in items[::4]]
    return items, [d for d in documents if d.strip()]


def counted(items: Sequence[Item], documents: Sequence[str]) -> tuple[ngrams.Items, ngrams.Tally]:
    found = gather(items)
    into = ngrams.tally(found.grams)
    for start in range(0, len(documents), 7):
        ngrams.add(documents[start : start + 7], found, into)
    return found, into


@pytest.mark.parametrize("seed", range(4))
def test_words_are_those_of_the_regular_expression(seed: int):
    rng = random.Random(seed)
    alphabet = [
        "a",
        "B",
        "ß",
        "Σ",
        "ς",
        "İ",
        "_",
        " ",
        "'",
        "\u0301",
        "٣",
        "½",
        "中",
        "𝒜",
        "\U0001f600",
        "9",
        "\n",
    ]
    for _ in range(50):
        some = "".join(rng.choice(alphabet[:: rng.choice([1, 1, 2])]) for _ in range(200))
        expected = words(some)
        known = sorted(set(expected))[::2]
        place = {word: number for number, word in enumerate(known)}
        start, number = numbers([some, "", some[:9]], vocabulary(known))
        assert number.tolist() == [place.get(word, -1) for word in (*expected, *words(some[:9]))]
        assert start.tolist() == [0, len(expected), len(expected), len(number)]
    assert numbers([], vocabulary(["a"]))[1].tolist() == []
    assert numbers(["a b", "c"], vocabulary([]))[1].tolist() == [-1, -1, -1]


@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_plain_python(seed: int):
    items, documents = made(seed)
    found, into = counted(items, documents)
    plain = Plain(items, documents)
    C = len(plain.pairs)
    cross_CK = found.cross.sums(into.count_G[:, 0]).reshape(C, K)
    assert cross_CK.tolist() == [[plain.cross(c, n) for n in NS] for c in range(C)]
    assert into.task_CK.tolist() == [[plain.task(c, n) for n in NS] for c in range(C)]
    context_CK = found.of_context.sums(into.count_G[:, 0]).reshape(-1, K)[found.grams.context_of_C]
    assert context_CK.tolist() == [[plain.context(c, n) for n in NS] for c in range(C)]
    longest = [plain.longest(c) for c in range(C)]
    assert [tuple(row) for row in into.longest_C2.tolist()] == [
        pair if pair[0] > MOST else (0, 0) for pair in longest
    ]
    assert max(longest)[0] > 15 and (cross_CK[:, 6] > 0).any() and into.task_CK[:, 3].any()
    documents_words_bytes = (
        len(documents),
        sum(map(len, plain.documents)),
        sum(len(d.encode()) for d in documents),
    )
    assert tuple(into.read_3) == documents_words_bytes


def test_a_document_is_a_boundary_and_matches_overlap():
    items = [item("a", "go", "la la", "no")]  # question go answer | la la
    documents = ["answer la", "la answer", "answer la la la", "Answer: LA? answer_la"]
    _, into = counted(items, documents)
    found = gather(items)
    cross_CK = found.cross.sums(into.count_G[:, 0]).reshape(-1, K)
    assert cross_CK[0, :2].tolist() == [4, 1]  # answer la; answer la la, and go answer la nowhere
    assert cross_CK[1].tolist() == [0] * K


def test_a_copy_of_more_words_than_a_row_can_say():
    choice = " ".join(f"w{k}" for k in range(200))
    _, into = counted([item("a", "go", choice, "no")], [f"question go answer {choice}", choice])
    assert into.longest_C2.tolist() == [[127, 1], [0, 0]]


def test_more_documents_than_marks_last():
    """Marks of documents are bytes, which are used again after 255."""
    items = [item("a", "red green", "blue red", "red blue")]
    documents = [("red green", "blue red", "red green and blue red", "nothing")[k % 4] for k in range(1500)]
    _, into = counted(items, documents)
    assert into.task_CK[:, 0].tolist() == [375, 0]


def rows_of(exposure: table.Exposure) -> Counter[tuple[object, ...]]:
    found: Counter[tuple[object, ...]] = Counter()
    for r in range(len(exposure.n_R)):
        names = (
            c.names[c.code_R[r]] for c in (exposure.source, exposure.benchmark, exposure.item, exposure.kind)
        )
        found[(*names, int(exposure.choice_R[r]), int(exposure.n_R[r]))] += int(exposure.count_R[r])
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sources and two benchmarks in a data folder."""
    items, documents = made(7)
    items = [i for i in items if i.id != "two"]
    write_items(tmp_path / "data/bench", items[:20])
    write_items(tmp_path / "data/bench", items[20:], "arc_challenge")
    (tmp_path / "data/one.txt").write_text("\n<|endoftext|>\n".join(documents[:25]))
    lines = [json.dumps({"body": text, "n": 1}) for text in documents[25:]]
    (tmp_path / "data/two.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def expose(folder: Path, *more: object) -> table.Exposure:
    two = f"two={folder / 'data/two.jsonl'}"
    given = ["--source", two, "--field", "body", "--data", folder / "data", "--out", folder / "out", *more]
    assert main(list(map(str, ["expose", *given]))) == 0
    return table.read(folder / "out" / table.NAME)


def test_the_table_says_what_plain_python_says(folder: Path):
    items, documents = made(7)
    items = [i for i in items if i.id != "two"]
    exposure = expose(folder)
    plain = Plain(items, documents[25:])
    found = rows_of(exposure)
    c = 0
    for place, i in enumerate(items):
        benchmark = "arc_easy" if place < 20 else "arc_challenge"
        for j in range(len(i.choices)):
            for n in NS:
                head = ("two", benchmark, i.id)
                assert found.pop((*head, "cross", j, n), 0) == plain.cross(c, n)
                assert found.pop((*head, "task", j, n), 0) == plain.task(c, n)
                if j == 0:
                    assert found.pop((*head, "context", j, n), 0) == plain.context(c, n)
            length, count = plain.longest(c)
            assert found.pop((*head, "longest", j, length), 0) == count
            c += 1
    assert not found
    assert exposure.items == {
        "arc_challenge": [i.id for i in items[20:]],
        "arc_easy": [i.id for i in items[:20]],
    }
    assert exposure.about.versions == {name: BENCHMARKS[name].version for name in exposure.items}
    size = exposure.about.sources["two"]
    assert size.documents == len(documents) - 25 and size.words == sum(map(len, plain.documents))
    assert size.tokens == size.bytes // 4 and size.tokens_estimated


def test_grams_of_none_are_unknown_and_not_zero(folder: Path):
    exposure = expose(folder)
    items, _ = made(7)
    plain = Plain([i for i in items if i.id != "two"], [])
    unknown = exposure.grams_R == 0
    assert (exposure.count_R[unknown] == 0).all() and (exposure.count_R[~unknown] > 0).all()
    kind = np.array(exposure.kind.names)[exposure.kind.code_R]
    C = len(plain.pairs)
    none = sum(not plain.crossing(c, n) for c in range(C) for n in NS)
    assert (unknown & (kind == "cross")).sum() == none > 0
    task = sum(not all(windows(part, n) for part in plain.pairs[c]) for c in range(C) for n in NS)
    assert (unknown & (kind == "task")).sum() == task


def test_any_number_of_threads_and_parts_gives_the_same_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    expose(folder, "--jobs", 1)
    expected = {p.name: p.read_bytes() for p in folder.glob("out/**/*") if p.is_file()}
    monkeypatch.setattr(counting, "BATCH", 500)
    monkeypatch.setattr(counting, "PART", 1500)
    for jobs in (1, 3):
        for path in folder.glob("out/**/*"):
            if path.is_file():
                path.unlink()
        expose(folder, "--jobs", jobs)
        assert {p.name: p.read_bytes() for p in folder.glob("out/**/*") if p.is_file()} == expected


def test_a_study_and_its_files_give_the_same_counts(folder: Path, write_study):
    sources = {
        "one": {"path": "one.txt"},
        "two": {"path": "two.jsonl", "field": "body"},
        "gone": {"path": "no"},
    }
    mixtures = {"m": {"one": 0.25, "two": 0.75}}
    study = write_study(sources=sources, mixtures=mixtures)
    command = ["expose", str(study), "--data", str(folder / "data"), "--out", str(folder / "study")]
    (folder / "none").mkdir()
    assert main([*command, "--ckpts", str(folder / "none")]) == 0
    of_study = table.read(folder / "study" / table.NAME)
    assert of_study.about.mixtures == mixtures and of_study.about.tokens == {"S": 5120}
    one = f"one={folder / 'data/one.txt'}"
    two = expose(folder, "--source", one)
    assert rows_of(two) == rows_of(of_study)
    assert dict(two.about.sources) == dict(of_study.about.sources)
    assert not two.about.mixtures and not two.about.tokens


def test_token_shards_of_the_study_say_its_tokens(data: Path, write_study, tmp_path: Path):
    from evalengine.training.data.rows import Stream
    from evalengine.training.data.shards import TokenSource
    from evalengine.training.prepare import prepare
    from evalengine.training.study import load

    named = {"web[1]": {"path": "corpora/web_a.txt"}, "code": {"path": "corpora/code.txt"}}
    study = write_study(sources=named, mixtures={"m": {"web[1]": 0.75, "code": 0.25}})
    made = prepare(load(study), data, tmp_path / "ckpts")
    folders = ["--data", str(data), "--out", str(tmp_path / "out"), "--ckpts", str(tmp_path / "ckpts")]
    assert main(["expose", str(study), "--benchmarks", "cb", *folders]) == 0
    sizes = table.read(tmp_path / "out" / table.NAME).about.sources
    for name, path in made.sources.items():
        source = TokenSource(path)
        epoch = Stream(source, np.arange(len(source.length_M)), 0, 0).epoch_tokens  # as training reads it
        assert sizes[name].tokens == epoch and not sizes[name].tokens_estimated


def test_a_hub_source_is_read_as_far_as_it_is_trained_on(folder: Path):
    pytest.importorskip("datasets")
    _, documents = made(7)
    hub = folder / "hub"
    hub.mkdir()
    pq.write_table(pa.table({"content": documents}), hub / "0.parquet")
    items = gather(made(7)[0])
    spec = SourceSpec(hub=str(hub), field="content")
    for k, (source, read) in enumerate(
        [
            (counting.Source("hub", spec, None), documents),
            (counting.Source("hub", spec, None, documents=5), documents[:5]),
            (counting.Source("hub", spec, None, bytes=len(documents[0].encode()) + 1), documents[:2]),
        ]
    ):
        counts = counting.count(source, items, folder / f"work{k}", 2, lambda some: None)
        _, into = counted(made(7)[0], read)
        assert (counts.count_G == into.count_G[:, 0]).all() and (counts.task_CK == into.task_CK).all()
        assert counts.read_3.tolist() == into.read_3.tolist()


def test_the_study_says_how_far_a_hub_source_is_read(data: Path, write_study, tmp_path: Path):
    """As many documents as its token shards hold; without shards, about the bytes that training needs."""
    pytest.importorskip("datasets")
    from evalengine.training.data.shards import TokenSource
    from evalengine.training.data.sources import documents
    from evalengine.training.exposure.expose import of_study
    from evalengine.training.prepare import prepare
    from evalengine.training.study import load

    texts = list(documents(SourceSpec(path="corpora/web_b.txt"), data, "web"))
    pq.write_table(pa.table({"text": texts}), tmp_path / "0.parquet")
    sources = {"web": {"hub": str(tmp_path)}, "code": {"path": "corpora/code.txt"}}
    study = load(write_study(sources=sources))
    ckpts, out = tmp_path / "ckpts", tmp_path / "out"

    def found():
        plan = of_study(study, data, out, ckpts)
        return sorted(plan.sources, key=lambda source: source.name, reverse=True), plan.tokens

    (web, code), tokens = found()
    assert (web.documents, web.bytes) == (0, 4 * int(0.75 * 5120 * 1.05)) and not tokens
    assert (code.documents, code.bytes) == (0, 0)
    shards = TokenSource(prepare(study, data, ckpts).sources["web"])
    (web, code), tokens = found()
    assert (web.documents, web.bytes) == (len(shards.length_M), 0)
    assert (code.documents, code.bytes) == (0, 0)
    assert tokens["web"] == (shards.length_M + 1).sum()


SLOWLY = """
import sys, time
from evalengine.cli import main
from evalengine.training.exposure import counting
counting.BATCH, counting.PART = 200, 600
read = counting.sources.documents
def slowly(*given):
    for text in read(*given):
        time.sleep(0.03)
        yield text
counting.sources.documents = slowly
main(sys.argv[1:])
"""


COMPILED = """
from evalengine.benchmarks import Item
from evalengine.training.exposure import ngrams, words
ngrams.compile_kernels()
kernels = [k for module in (ngrams, words) for k in vars(module).values() if hasattr(k, "signatures")]
before = {k.py_func.__name__: list(k.signatures) for k in kernels}
item = Item("", ("who wrote the very long book",) * 2, (" one of us", " two"), ("one of us", "two"), 0)
items = ngrams.gather([item])
into = ngrams.tally(items.grams)
ngrams.add(["They say: who wrote the very long book, one of us?", "no", "\u00e9t\u00e9 long book"], items, into)
ngrams.add(["who wrote the very long book one of us"], items, into)
assert before["_count"] and len(before["_numbers"]) == 2, before
assert before == {k.py_func.__name__: list(k.signatures) for k in kernels}
assert into.longest_C2[0].tolist() == [9, 2], into.longest_C2
"""


def test_all_that_counts_is_compiled_before_the_clock_starts(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    expose(folder)
    said = capsys.readouterr()
    assert said.out.startswith("loading the counting kernels; the first run compiles them")


def test_a_killed_run_continues_and_ends_with_the_same_bytes(folder: Path):
    expose(folder)
    expected = {p.name: p.read_bytes() for p in folder.glob("out/**/*") if p.is_file()}
    again = folder / "again"
    given = ["--source", f"two={folder / 'data/two.jsonl'}", "--field", "body", "--data", folder / "data"]
    command = [sys.executable, "-c", SLOWLY, "expose", *map(str, given), "--out", str(again)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while (
        not list(again.glob(".counts/[!.]*.npz")) and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (again / table.NAME).exists()
    with np.load(next(again.glob(".counts/*.npz"))) as saved:
        assert 0 < saved["read_3"][0] < 26 and not saved["whole"]
    assert main(["expose", *map(str, given), "--out", str(again)]) == 0
    assert {p.name: p.read_bytes() for p in again.glob("**/*") if p.is_file()} == expected


def test_damaged_counts_are_made_again(folder: Path):
    expose(folder)
    path = folder / "out" / table.NAME
    expected = path.read_bytes()
    part = next(folder.glob("out/.counts/*.npz"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    expose(folder)
    assert path.read_bytes() == expected
    path.write_bytes(expected[:-100])
    with pytest.raises(UserError, match="damaged"):
        table.read(path)
    with pytest.raises(UserError, match="make it with `evalengine expose`"):
        table.read(folder / "nowhere.arrow")


def test_other_items_or_text_are_counted_again(folder: Path):
    first = rows_of(expose(folder))
    fewer = expose(folder, "--limit", 3)
    assert all(len(ids) == 3 for ids in fewer.items.values())
    assert all(first[row] == count for row, count in rows_of(fewer).items())
    with (folder / "data/two.jsonl").open("a") as stream:
        stream.write(json.dumps({"body": "question the cat sat answer on a mat"}) + "\n")
    more = rows_of(expose(folder))
    row = ("two", "arc_easy", "i3", "cross", 0, 3)
    assert more[row] == first[row] + 2  # sat answer on, answer on a


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "name a study, or text files with --source NAME=PATH"),
        (["embedded", "--source", "a=b"], "and not both"),
        (["embedded", "--field", "body"], "--field is for --source"),
        (["--source", "a=b", "--ckpts", "data"], "--ckpts is for a study"),
        (["--source", "a"], "write it as NAME=PATH"),
        (["--source", "a=nowhere.txt"], "there is no text at"),
        (["--source", "../a=x"], "name"),
        (["--source", "t=data/empty.txt", "--data", "data"], "source t holds no text"),
        (["--source", "t=data/two.jsonl", "--data", "data"], "has no text field 'text'"),
        (["--source", "t=data/one.txt", "--source", "t=data/one.txt"], "twice"),
        (["--source", "t=data/one.txt", "--data", "data", "--benchmarks", "arc"], "no benchmark or category"),
        (
            ["--source", "t=data/one.txt", "--data", "."],
            ". holds no file of hellaswag, piqa, winogrande",
        ),
        (["--source", "t=data/one.txt", "--data", "data", "--jobs", "-1"], "--jobs must be"),
        (
            ["--source", "t=data/one.txt", "--data", "data", "--limit", "1", "--seed", "-1"],
            "--seed -1 must be 0 or more",
        ),
        (["embedded", "--data", "nowhere"], "there is no data folder nowhere"),
        (["embedded", "--ckpts", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_bad_input_is_one_sentence(
    given: list[str], reason: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(folder)
    (folder / "data/empty.txt").write_text("\n")
    assert main(["expose", *given]) == 1
    said = capsys.readouterr().err.strip()
    assert reason in said and said.count("\n") == 0
    assert not (folder / "exposure" / table.NAME).exists()
