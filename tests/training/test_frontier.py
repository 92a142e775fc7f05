"""The learner's frontier: scores against transformers, the choice by quantiles, its controls, and runs that use it."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_study import STUDY, TORCHRUN

from evalengine.cli import main
from evalengine.errors import UserError
from evalengine.training.chat import Conversation, Message, render
from evalengine.training.data.conversations import Example, tokenise
from evalengine.training.decoder import export
from evalengine.training.decoder.model import Decoder, Shape
from evalengine.training.fitting.parallel import ProcessGroup
from evalengine.training.fitting.state import Place
from evalengine.training.job import Job, fingerprint
from evalengine.training.prepare import prepare
from evalengine.training.runner import selected
from evalengine.training.selection import frontier, selection_report, selections
from evalengine.training.selection.frontier import between, random_control, scores, turns_of
from evalengine.training.selection.selections import Selection
from evalengine.training.study import Run, load, needed

SHAPE = Shape(d_model=32, layers=2, heads=1, head_dim=32, ffn=64, vocab=512, context=256)


def chat(*turns: str) -> Conversation:
    roles = ("user", "assistant") * len(turns)
    return tuple(Message(role, text) for role, text in zip(roles, turns, strict=False))


CHATS = [
    chat(f"question {i} " + "really " * (i % 7), "yes" if i % 2 else "no, it is not", "and then?", f"{i}")
    for i in range(23)
] + [chat("is it?", "yes"), (Message("system", "Be brief."), *chat("why {so}?", "because {x}"))]


@pytest.fixture(scope="module")
def examples(tokenizer) -> list[Example]:
    return tokenise(CHATS, tokenizer)


@pytest.fixture(scope="module")
def model() -> Decoder:
    made = Decoder(SHAPE).initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(4)
    return made


@pytest.fixture(scope="module")
def theirs(model: Decoder, tokenizer, tmp_path_factory: pytest.TempPathFactory):
    """Summed losses under transformers: text, and the character spans of it that carry loss, or all of it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("export") / "m"
    export.save(model, tokenizer, folder, {})
    llama = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    encode = AutoTokenizer.from_pretrained(folder)

    def loss_sum(text: str, spans: tuple[tuple[int, int], ...]) -> tuple[float, int]:
        encoding = encode(text, add_special_tokens=False, return_offsets_mapping=True)
        token = torch.tensor(encoding["input_ids"])[None]
        inside = [any(a <= start < b for a, b in spans) for start, _ in encoding["offset_mapping"]]
        labels = torch.where(torch.tensor(inside)[None], token, -100)
        with torch.no_grad():
            return float(llama(token, labels=labels).loss) * sum(inside), sum(inside)

    return loss_sum


def of_transformers(conversation: Conversation, score: str, theirs) -> float:
    """The formula written out: perplexities of what carries loss, with and without what was said before."""
    if score == "r_ifd":
        system = [m.content for m in conversation if m.role == "system"]
        turned: list[str] = []
        turns = [m.content for m in conversation if m.role != "system"]
        for said, response in zip(turns[::2], turns[1::2], strict=True):
            instruction = "\n".join([*system, said])
            system = []
            turned += [
                f"Here is a response.\nResponse: {response}\nWhat instruction or question was it given to?",
                instruction,
            ]
        conversation = chat(*turned)
    total, count = theirs(*render(conversation))
    if score == "loss":
        return total / count
    end = "<|endoftext|>"
    texts = [f"{end} {m.content.strip()}{end}" for m in conversation if m.role == "assistant"]
    alone = [theirs(text, ((len(end), len(text)),)) for text in texts]
    assert sum(n for _, n in alone) == count
    return math.exp(total / count) / math.exp(sum(loss for loss, _ in alone) / count)


@pytest.mark.parametrize("score", ["loss", "ifd", "r_ifd"])
def test_scores_are_those_of_a_plain_transformers_model(score: str, examples, model, theirs, tokenizer):
    found = scores(model, examples, score, tokenizer, Place())
    expected = [of_transformers(conversation, score, theirs) for conversation in CHATS]
    assert found == pytest.approx(expected, rel=1e-4)
    assert np.ptp(found) > 0.1


@pytest.mark.parametrize("batch_tokens", [1, 200, 10_000])
def test_conversations_batched_by_length_score_as_one_by_one(
    batch_tokens: int, examples, model, tokenizer, monkeypatch: pytest.MonkeyPatch
):
    alone = [scores(model, [example], "ifd", tokenizer, Place())[0] for example in examples]
    monkeypatch.setattr(frontier, "BATCH_TOKENS", batch_tokens)
    assert scores(model, examples, "ifd", tokenizer, Place()) == pytest.approx(alone, rel=1e-5)


def test_processes_of_a_group_divide_the_batches(examples, model, monkeypatch: pytest.MonkeyPatch):
    """Each of three alone has zeros for the batches of the others; their sum is what one process has."""
    monkeypatch.setattr(frontier, "BATCH_TOKENS", 200)
    parts = []
    for rank in range(3):
        group = ProcessGroup()
        group.rank, group.size = rank, 3
        parts.append(frontier.loss_sums(model, examples, Place(group=group)))
    assert all((part == 0).any() and (part > 0).any() for part in parts)
    assert sum(parts) == pytest.approx(frontier.loss_sums(model, examples, Place()), abs=0)


def test_a_conversation_is_read_back_from_its_tokens(examples, tokenizer):
    assert [turns_of(example, tokenizer) for example in examples] == [
        tuple(Message(role, content.strip()) for role, content in conversation) for conversation in CHATS
    ]


def test_what_has_nothing_to_score_has_no_score(model, tokenizer):
    long = chat("a " * 20, "word " * 300)
    examples = tokenise([chat("a", "b"), chat("", "b"), long, chat("word " * 300, "b")], tokenizer)
    expected = {"loss": [0, 0, 0, 1], "ifd": [0, 0, 0, 1], "r_ifd": [0, 1, 1, 0]}
    for score, missing in expected.items():
        found = scores(model, examples, score, tokenizer, Place())
        assert np.isnan(found).tolist() == [bool(m) for m in missing], score


def test_quantiles_share_nothing_and_leave_nothing_out_where_scores_tie():
    score_M = np.array([2.0, 1.0, 1.0, np.nan, 1.0, 0.5, 3.0, 1.0, 1.0])
    low, middle, high = (between(score_M, keep) for keep in ((0, 0.5), (0.5, 0.75), (0.75, 1)))
    # in order: 5, then the ties 1, 2, 4, 7, 8 as they stand in the file, then 0 and 6
    assert np.flatnonzero(low).tolist() == [1, 2, 4, 5]
    assert np.flatnonzero(middle).tolist() == [7, 8]
    assert np.flatnonzero(high).tolist() == [0, 6]
    assert np.flatnonzero(between(score_M, (0, 1))).tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    with pytest.raises(UserError, match=r"keeps none of 8 conversations .* 0\.5 and 0\.52: widen"):
        between(score_M, (0.5, 0.52))
    with pytest.raises(UserError, match="keeps none of 0 conversations"):
        between(np.full(3, np.nan), (0, 1))


def test_the_chosen_are_those_between_numpys_quantiles():
    """Without ties, on a count that the quantiles divide, the borders are those of numpy."""
    score_M = np.random.default_rng(0).normal(size=200)
    low, high = np.quantile(score_M, [0.25, 0.8])
    assert (between(score_M, (0.25, 0.8)) == ((score_M >= low) & (score_M <= high))).all()


def test_a_random_control_has_as_many_tokens_to_the_nearest_conversation():
    rng = np.random.default_rng(0)
    token_M = rng.integers(1, 200, 500)
    among_M = rng.random(500) < 0.8
    for tokens in (50, 3_000, 20_000):
        chosen_M = random_control(token_M, among_M, tokens, (1, 2))
        assert not (chosen_M & ~among_M).any()
        assert abs(token_M[chosen_M].sum() - tokens) <= 100  # half of the longest
        assert (chosen_M == random_control(token_M, among_M, tokens, (1, 2))).all()
    often = np.mean([random_control(token_M, among_M, 20_000, (0, k)) for k in range(200)], axis=0)
    assert abs(stats.spearmanr(often[among_M], token_M[among_M]).statistic) < 0.15  # long or short alike


def test_a_selection_is_read_back_and_only_under_its_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one = selection([0.5, float("nan"), 2.0], [3, 0, 9], [True, False, False])
    path = tmp_path / "selected/S-m1.arrow"
    selections.write(path, one, "key")
    assert selections.read(path, "other") is None
    again = selections.read(path, "key")
    assert again is not None and again.bounds == one.bounds and again.tokens == one.tokens
    for name in ("score_M", "token_M", "response_M", "chosen_M"):
        assert np.array_equal(getattr(again, name), getattr(one, name), equal_nan=name == "score_M")
    assert capsys.readouterr().err == ""
    path.write_bytes(path.read_bytes()[:-9])
    assert selections.read(path, "key") is None
    assert "is damaged: the conversations are scored again" in capsys.readouterr().err


def selection(score, token, chosen, response=None) -> Selection:
    response_M = np.array(response if response is not None else range(len(score)), np.uint32)
    arrays = np.array(score, float), np.array(token, np.int32), response_M, np.array(chosen, bool)
    return Selection(*arrays, bounds=(0.0, 1.0), tokens=3)


def test_overlap_and_rank_correlation_of_two_runs():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 40))
    a[3] = b[7] = np.nan
    chosen_a, chosen_b = a < 0, b < 0.5
    known = ~np.isnan(a) & ~np.isnan(b)
    found = selection_report.pair(
        Run("S", "m1", "sft"),
        selection(a, np.ones(40), chosen_a),
        Run("S", "m2", "sft"),
        selection(b, np.ones(40), chosen_b),
    )
    sets = set(np.flatnonzero(chosen_a)), set(np.flatnonzero(chosen_b))
    assert found.overlap == len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    assert found.spearman == pytest.approx(stats.spearmanr(a[known], b[known]).statistic)


def test_the_overlap_of_random_sets_is_the_chance_that_is_told():
    rng, n, overlaps = np.random.default_rng(2), 400, []
    runs = Run("S", "m1", "sft"), Run("S", "m2", "sft")
    for _ in range(100):
        some = [rng.permutation(n) < size for size in (200, 100)]
        a, b = (selection(rng.normal(size=n), np.ones(n), chosen) for chosen in some)
        found = selection_report.pair(runs[0], a, runs[1], b)
        overlaps.append(found.overlap)
    assert np.mean(overlaps) == pytest.approx(found.chance, rel=0.03)


def test_the_share_of_the_response_is_that_of_a_one_way_analysis_of_variance():
    """Epsilon squared from F: 1 - (n - 1) / (n - k + (k - 1) F). Singletons do not count."""
    rng = np.random.default_rng(3)
    response = np.array([*rng.integers(0, 4, 60), 99, 98])
    score = rng.normal(size=62) + response
    ranks = stats.rankdata(score[:60])
    f = stats.f_oneway(*(ranks[response[:60] == g] for g in range(4))).statistic
    found = selection_report.response_share(score, response)
    assert found == pytest.approx(1 - 59 / (56 + 3 * f))
    assert found > 0.3
    assert selection_report.response_share(response.astype(float), response) == pytest.approx(1)
    free = [selection_report.response_share(rng.normal(size=62), response) for _ in range(100)]
    assert abs(np.mean(free)) < 0.02  # no response, no share
    assert np.isnan(selection_report.response_share(score[60:], response[60:]))


IFD = {"score": "ifd", "keep": [0.25, 0.75]}


def small(**change: object) -> dict[str, object]:
    """A second scale for `by`."""
    return {"scales.XS": {**STUDY["scales"]["S"], "ffn": 32, "context": 48}, **change}


def train(study: Path, data: Path, out: Path, *options: str) -> int:
    return main(["train", str(study), "--data", str(data), "--out", str(out), "--jobs", "1", *options])


def contents(out: Path) -> dict[str, bytes]:
    found = [*out.glob("*-*/*"), *out.glob(".study/selected/*"), *out.glob(".study/*.csv")]
    return {str(p.relative_to(out)): p.read_bytes() for p in found}


@pytest.fixture(scope="module")
def chosen(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small study, fine-tuned on the middle of its IFD scores."""
    import yaml

    folder = tmp_path_factory.mktemp("chosen")
    (folder / "study.yaml").write_text(yaml.safe_dump({**STUDY, "sft": {**STUDY["sft"], "select": IFD}}))
    assert train(folder / "study.yaml", data, folder / "ckpts") == 0
    return folder / "ckpts"


def test_a_run_is_fine_tuned_on_what_its_own_model_chose(chosen: Path, data: Path, write_study, capsys):
    study = load(write_study(sft__select=IFD))
    prepared = prepare(study, data, chosen)
    from evalengine.training.data import conversations
    from evalengine.training.data.tokenizer import Tokenizer
    from evalengine.training.prepare import shape_of

    tokenizer = Tokenizer(prepared.tokenizer)
    everything = conversations.load(prepared.conversations["kept"])
    shape = shape_of(study.scales["S"], tokenizer.size)
    for mixture in ("m1", "m2"):
        own = export.load(chosen / f"S-{mixture}-pt", shape)
        score_M = scores(own, everything, "ifd", tokenizer, Place())
        saved = selections.read(chosen / f".study/selected/S-{mixture}.arrow")
        assert saved is not None
        assert saved.score_M == pytest.approx(score_M, nan_ok=True)
        assert np.array_equal(saved.chosen_M, between(score_M, (0.25, 0.75)))
        about = json.loads((chosen / f"S-{mixture}-sft/evalengine.json").read_text())
        assert about["conversations"] == saved.chosen_M.sum()
        assert len(saved.chosen_M) == 40 and about["of"] == (~np.isnan(score_M)).sum()
        assert abs(about["conversations"] - about["of"] / 2) <= 1
        told = about["select"]
        assert (told["model"], told["score"], told["keep"]) == (f"S-{mixture}-pt", "ifd", [0.25, 0.75])
        assert told["bounds"] == [score_M[saved.chosen_M].min(), score_M[saved.chosen_M].max()]
        assert told["chosen_tokens"] == saved.token_M[saved.chosen_M].sum()
        log = (chosen / f".study/logs/S-{mixture}-sft.jsonl").read_text().splitlines()
        assert len(log) == saved.chosen_M.sum() // 8


def test_the_tables_say_what_was_selected(chosen: Path, write_study, capsys):
    capsys.readouterr()
    study = load(write_study(sft__select=IFD))
    selection_report.report(study, chosen)
    said = capsys.readouterr().out
    assert "selected by ifd, quantiles 0.25 to 0.75" in said and "mixtures at S" in said
    rows = [line.split(",") for line in (chosen / ".study/selection.csv").read_text().splitlines()]
    assert rows[0] == list(selection_report.SelectionRow._fields) and [r[:2] for r in rows[1:]] == [
        ["S", "m1"],
        ["S", "m2"],
    ]
    a, b = (selections.read(chosen / f".study/selected/S-{m}.arrow") for m in ("m1", "m2"))
    pairs = (chosen / ".study/selection_pairs.csv").read_text().splitlines()
    assert pairs[1].startswith("S,m1,S,m2,") and len(pairs) == 2
    assert a is not None and b is not None
    known = ~np.isnan(a.score_M) & ~np.isnan(b.score_M)
    r = stats.spearmanr(a.score_M[known], b.score_M[known]).statistic
    assert float(pairs[1].split(",")[-1]) == pytest.approx(r)


def test_the_lower_quantile_of_the_loss_is_what_reach_kept(data: Path, write_study, tmp_path: Path):
    """The mean loss of each conversation alone, the lower half of it, in the file's order."""
    from evalengine.training.data import conversations
    from evalengine.training.data.packed import pack
    from evalengine.training.data.tokenizer import Tokenizer
    from evalengine.training.fitting.loop import mean_loss
    from evalengine.training.prepare import shape_of

    study = load(write_study(sft__select={"score": "loss", "keep": [0, 0.5]}))
    assert train(tmp_path / "study.yaml", data, tmp_path / "out", "--only", "S-m1-*") == 0
    prepared = prepare(study, data, tmp_path / "out")
    shape = shape_of(study.scales["S"], Tokenizer(prepared.tokenizer).size)
    own = export.load(tmp_path / "out/S-m1-pt", shape)
    examples = conversations.load(prepared.conversations["kept"])
    losses = {
        number: mean_loss(own, pack([example], shape.context, ""), Place())
        for number, example in enumerate(conversations.cut(examples, shape.context))
        if example.learned_T.any()
    }
    lowest = sorted(sorted(losses, key=losses.__getitem__)[: round(len(losses) / 2)])
    saved = selections.read(tmp_path / "out/.study/selected/S-m1.arrow")
    assert saved is not None and np.flatnonzero(saved.chosen_M).tolist() == lowest


def test_the_choice_is_part_of_the_fingerprint(data: Path, write_study, tmp_path: Path):
    selects = [
        None,
        IFD,
        {**IFD, "score": "loss"},
        {**IFD, "keep": [0.25, 0.5]},
        {**IFD, "control": True},
        {**IFD, "by": "XS"},
    ]
    prints = {}
    for number, select in enumerate(selects):
        study = load(write_study(**small(sft__select=select)))
        prepared = prepare(study, data, tmp_path / "out")
        jobs = [
            Job(study, prepared, tmp_path / "out", Run("S", "m1", stage), Place()) for stage in ("pt", "sft")
        ]
        prints[number] = tuple(map(fingerprint, jobs))
    assert len({pt for pt, _ in prints.values()}) == 1
    assert len({sft for _, sft in prints.values()}) == len(selects)
    other = replace(study.scales["XS"], pretrain=replace(study.scales["XS"].pretrain, lr=0.02))
    moved = replace(study, scales={**study.scales, "XS": other})  # of the model that scores for S
    assert fingerprint(jobs[1]._replace(study=moved)) != prints[5][1]


def test_another_scale_scores(data: Path, write_study, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """S is fine-tuned on what XS chose, under a context of its own; the tables compare the two."""
    from evalengine.training.data import conversations
    from evalengine.training.data.tokenizer import Tokenizer
    from evalengine.training.prepare import shape_of

    study = load(write_study(**small(sft__select={**IFD, "by": "XS"})))
    names = [run.name for run in selected(study, "S-m1-sft")]
    assert names == ["S-m1-pt", "XS-m1-pt", "S-m1-sft"]
    assert train(tmp_path / "study.yaml", data, tmp_path / "out", "--only", "S-m1-sft") == 0
    assert "selected by ifd of the XS models" in capsys.readouterr().out
    prepared = prepare(study, data, tmp_path / "out")
    tokenizer = Tokenizer(prepared.tokenizer)
    small_model = export.load(tmp_path / "out/XS-m1-pt", shape_of(study.scales["XS"], tokenizer.size))
    expected = scores(
        small_model, conversations.load(prepared.conversations["kept"]), "ifd", tokenizer, Place()
    )
    saved = selections.read(tmp_path / "out/.study/selected/S-m1.arrow")
    assert saved is not None
    assert saved.score_M == pytest.approx(expected, nan_ok=True)
    about = json.loads((tmp_path / "out/S-m1-sft/evalengine.json").read_text())
    assert about["select"]["model"] == "XS-m1-pt" and about["base"] == "S-m1-pt"


def test_fresh_makes_nothing_again_that_only_leaves_out(data: Path, write_study, tmp_path: Path):
    """S needs the pretrained XS; what XS chose for itself and the state of its fine-tuning stay."""
    study, out = write_study(**small(sft__select={**IFD, "by": "XS"})), tmp_path / "out"
    assert train(study, data, out, "--only", "*-m1-sft") == 0
    own, state = out / ".study/selected/XS-m1.arrow", out / ".study/state/XS-m2-sft.pt"
    before, made = own.read_bytes(), own.stat().st_mtime_ns
    state.parent.mkdir(exist_ok=True)
    state.write_bytes(b"of an unfinished run")
    (out / ".study/state/S-m1-sft.pt").write_bytes(b"of a run that is chosen")
    assert train(study, data, out, "--fresh", "--only", "S-m1-sft") == 0
    assert own.read_bytes() == before and own.stat().st_mtime_ns == made
    assert [path.name for path in state.parent.iterdir()] == [state.name]
    assert needed(load(study), Run("S", "m1", "sft")) == {Run("S", "m1", "pt"), Run("XS", "m1", "pt")}


@pytest.mark.slow
def test_processes_of_torchrun_choose_what_one_process_does(
    chosen: Path, data: Path, write_study, tmp_path: Path
):
    """From the same pretrained weights the scores have the same bits, however the batches are divided."""
    out, name = tmp_path / "out", ".study/selected/S-m1.arrow"
    shutil.copytree(chosen, out)
    shutil.rmtree(out / "S-m1-sft")
    (out / name).unlink()
    options = [str(write_study(sft__select=IFD)), "--data", str(data), "--out", str(out), "--only", "S-m1-*"]
    done = subprocess.run(
        [*TORCHRUN, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert (out / name).read_bytes() == (chosen / name).read_bytes()
    ours, theirs = (json.loads((o / "S-m1-sft/evalengine.json").read_text()) for o in (out, chosen))
    assert ours["select"] == theirs["select"] and ours["conversations"] == theirs["conversations"]
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)


def test_a_control_trains_on_as_many_tokens_of_other_conversations(
    chosen: Path, data: Path, write_study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    study = write_study(sft__select={**IFD, "control": True})
    assert train(study, data, tmp_path / "out") == 0
    assert "random conversations, as many tokens as ifd" in capsys.readouterr().out
    for mixture in ("m1", "m2"):
        a, b = (
            selections.read(out / f".study/selected/S-{mixture}.arrow") for out in (chosen, tmp_path / "out")
        )
        assert a is not None and b is not None
        assert np.array_equal(a.score_M, b.score_M, equal_nan=True) and (a.chosen_M != b.chosen_M).any()
        assert b.tokens == a.token_M[a.chosen_M].sum()
        assert abs(b.token_M[b.chosen_M].sum() - b.tokens) < b.token_M.max()


def test_every_arm_learns_from_the_same_conversations(
    chosen: Path, data: Path, write_study, tmp_path: Path, capsys
):
    """The choice is made of the conversations with their instructions, once."""
    study = write_study(sft__select=IFD, stages=["pt", "sft_emptied", "sft"])
    assert train(study, data, tmp_path / "out", "--only", "S-m1-*") == 0
    name = ".study/selected/S-m1.arrow"
    assert (tmp_path / "out" / name).read_bytes() == (chosen / name).read_bytes()
    kept, emptied = (
        json.loads((tmp_path / f"out/S-m1-{stage}/evalengine.json").read_text())
        for stage in ("sft", "sft_emptied")
    )
    assert emptied["select"] == kept["select"] and emptied["conversations"] == kept["conversations"]
    assert (chosen / "S-m1-sft/model.safetensors").read_bytes() == (
        tmp_path / "out/S-m1-sft/model.safetensors"
    ).read_bytes()


def test_a_selection_that_is_empty_fails_the_run_in_one_sentence(data: Path, write_study, tmp_path, capsys):
    study = write_study(sft__select={"score": "loss", "keep": [0.5, 0.501]})
    assert train(study, data, tmp_path / "out", "--only", "S-m1-sft") == 1
    assert "S-m1-sft: sft.select keeps none of 35 conversations" in capsys.readouterr().err
    assert not (tmp_path / "out/S-m1-sft").exists() and (tmp_path / "out/S-m1-pt").is_dir()


@pytest.mark.slow
def test_a_study_killed_with_sigkill_selects_and_ends_with_the_same_bytes(
    chosen: Path, data: Path, write_study, tmp_path: Path
):
    """Killed once the first selection is on the disk, and again resumed by another process."""
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "evalengine", "train", str(write_study(sft__select=IFD))]
    command += ["--data", str(data), "--out", str(out), "--jobs", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 200
    while not (out / ".study/selected/S-m1.arrow").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)
    first = (out / ".study/selected/S-m1.arrow").stat().st_mtime_ns
    assert not (out / "S-m2-sft").exists()
    assert train(tmp_path / "study.yaml", data, out) == 0
    assert (out / ".study/selected/S-m1.arrow").stat().st_mtime_ns == first  # read, not made again
    assert contents(out) == contents(chosen)
