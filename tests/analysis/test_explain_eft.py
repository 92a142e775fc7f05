"""Emulated fine-tuning in the analysis: both levels against brute force, effects of scale in a planted world, ratios."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import planted
import pytest
from scipy.special import log_softmax, softmax

import tiny_models
from evalengine import store
from evalengine.analysis.claims import SUPPORTED, UNSUPPORTED
from evalengine.analysis.estimates.groups import ALL
from evalengine.analysis.explain import decomposition, eft, eft_decisions, proxies, ranking
from evalengine.analysis.explain.choices import read_choices
from evalengine.analysis.explain.corners import SEQUENCE, TOKEN
from evalengine.analysis.explain.design import design_of
from evalengine.analysis.explain.explainer import ExplainOptions, Findings, StudyScores
from evalengine.checkpoints import emulated_fingerprint
from evalengine.cli import main
from evalengine.errors import UserError

MIXTURES = ("a", "b", "c", "d", "e")
BENCHMARKS = {"hellaswag": "Commonsense", "winogrande": "Commonsense", "rte": "NLI"}
CELLS = tuple(itertools.product(("1B", "7B"), MIXTURES, ("pt", "sft")))


def study_of(folder: Path) -> StudyScores:
    scores = read_choices(folder)
    return StudyScores(scores, design_of(scores), ExplainOptions())


def write(
    folder: Path, who: str, benchmark: str, loglik: np.ndarray, gold: np.ndarray, **metadata: str
) -> None:
    scale, mixture, stage = who.split("-")
    about = {"checkpoint": who, "scale": scale, "mixture": mixture, "stage": stage}
    about |= {"benchmark": benchmark, "category": BENCHMARKS[benchmark]}
    table = planted.item_table(about, loglik.astype(np.float32), gold)
    store.write(folder / who / f"{benchmark}.arrow", table, planted.metadata(**metadata))


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[tuple[str, str], np.ndarray], np.ndarray]:
    """One-token choices: log-probabilities over a vocabulary of 30, of which the first four are the choices. Emulated checkpoints
    by the definition."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("world")
    items, z, gold = 50, {}, rng.integers(0, 4, 50)
    for benchmark in BENCHMARKS:
        shared = rng.normal(size=(items, 30))
        for scale, mixture, stage in CELLS:
            name = f"{scale}-{mixture}-{stage}"
            z[name, benchmark] = shared + rng.normal(size=(items, 30))
            write(folder, name, benchmark, log_softmax(z[name, benchmark], axis=1)[:, :4], gold)
        for mixture, beta in itertools.product(MIXTURES, (0.5, 1.0)):
            for base, other in (("7B", "1B"), ("1B", "7B")):
                whose = (f"{base}-{mixture}-pt", f"{other}-{mixture}-sft", f"{other}-{mixture}-pt")
                shifted = z[whose[0], benchmark] + beta * (z[whose[1], benchmark] - z[whose[2], benchmark])
                name = f"{base}-{mixture}-eft@{beta:g}"
                z[name, benchmark] = shifted
                about = dict(zip(("eft_base", "eft_tuned", "eft_ref"), whose, strict=True))
                write(
                    folder,
                    name,
                    benchmark,
                    log_softmax(shifted, axis=1)[:, :4],
                    gold,
                    eft_beta=f"{beta:g}",
                    checkpoint_fingerprint=emulated_fingerprint("fff", beta),  # planted.metadata()
                    **about,
                )
    return folder, z, gold


def test_emulated_scores_of_other_weights_are_refused(
    world: tuple[Path, dict[tuple[str, str], np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    """The tuned model was trained and scored again, and nothing emulated since."""
    folder = tmp_path / "scores"
    shutil.copytree(world[0], folder)
    for path in (folder / "1B-b-sft").glob("*.arrow"):
        store.write(
            path, store.read(path), {**(store.read_metadata(path) or {}), "checkpoint_fingerprint": "g"}
        )
    said = r"7B-b-eft@\S+ was emulated with other weights of 7B-b-pt, 1B-b-sft, 1B-b-pt than their own scores are of"
    with pytest.raises(UserError, match=said):
        read_choices(folder)
    for path in folder.glob("7B-b-eft@*/*.arrow"):
        about = store.read_metadata(path) or {}
        text = "\n".join(["f", "g", "f", repr(float(about["eft_beta"]))])
        about["checkpoint_fingerprint"] = hashlib.sha256(text.encode()).hexdigest()
        store.write(path, store.read(path), about)
    read_choices(folder)


def test_both_levels_are_the_definition(
    world: tuple[Path, dict[tuple[str, str], np.ndarray], np.ndarray],
) -> None:
    folder, z, gold = world
    rows = eft.eft_rows(study_of(folder))
    assert {(r.level, r.beta) for r in rows} == {
        (TOKEN, 0.5),
        (TOKEN, 1.0),
        *((SEQUENCE, b) for b in (0.25, 0.5, 1.0, 2.0)),
    }
    # contexts differ by choice
    assert not any(r.benchmark == "winogrande" for r in rows if r.level == SEQUENCE)
    found = {(r.direction, r.level, r.beta, r.mixture, r.benchmark): r for r in rows}
    for direction, base, mixture in (("up", "7B", "c"), ("down", "1B", "e")):
        four = z[f"{base}-{mixture}-eft@0.5", "rte"][:, :4]
        real = z[f"{base}-{mixture}-sft", "rte"][:, :4].argmax(1)
        for level in (TOKEN, SEQUENCE):
            row = found[direction, level, 0.5, mixture, "rte"]
            assert row.scale == base and row.category == "NLI"
            assert row.accuracy == pytest.approx((four.argmax(1) == gold).mean())
            assert row.p_gold == pytest.approx(softmax(four, axis=1)[np.arange(50), gold].mean(), abs=1e-6)
            assert row.confidence == pytest.approx(softmax(four, axis=1).max(1).mean(), abs=1e-6)
            assert row.same_picks == pytest.approx((four.argmax(1) == real).mean())
    # One token behind one context: the two levels pick alike, always.
    for key, row in found.items():
        if key[1] == SEQUENCE and key[2] in (0.5, 1.0):
            assert row.accuracy == found[(key[0], TOKEN, *key[2:])].accuracy


def test_what_emulate_scores_agrees_with_the_store_alone(small_world: Path, tmp_path: Path) -> None:
    """Of choices that are one token behind one context, which the definition of both levels makes the same."""
    names = [f"{scale}-a-{stage}" for scale in ("1M", "2M") for stage in ("pt", "sft")]
    paths = [
        tiny_models.save(tmp_path / name, seed=i, **({"hidden_size": 48} if i > 1 else {}))
        for i, name in enumerate(names)
    ]
    out = tmp_path / "scores"
    given = ["--data", small_world / "bench", "--benchmarks", "boolq,wic", "--limit", 40, "--beta", "0.5,2"]
    assert main(["emulate", *map(str, [*paths, *given, "--out", out])]) == 0
    study = study_of(out)
    assert all((choices.tokens_KC == 1).all() for choices in study.scores.benchmarks)
    found = {(r.level, r.direction, r.beta, r.benchmark): r for r in eft.eft_rows(study)}
    for direction, beta, benchmark in itertools.product(("up", "down"), (0.5, 2.0), ("boolq", "wic")):
        token, sequence = (found[level, direction, beta, benchmark] for level in (TOKEN, SEQUENCE))
        assert (token.accuracy, token.same_picks) == (sequence.accuracy, sequence.same_picks)
        assert (token.confidence, token.p_gold) == pytest.approx(
            (sequence.confidence, sequence.p_gold), abs=1e-5
        )


def test_means_go_from_the_base_to_the_fine_tuned(
    world: tuple[Path, dict[tuple[str, str], np.ndarray], np.ndarray],
) -> None:
    folder, z, gold = world
    rows = eft.mean_rows(study_of(folder))
    for level, (beta, stage) in itertools.product((TOKEN, SEQUENCE), ((0.0, "pt"), (np.nan, "sft"))):
        (row,) = (
            r
            for r in rows
            if (r.direction, r.level, r.category, r.benchmark, r.measure)
            == ("up", level, ALL, "", "accuracy")
            and (r.beta == beta or (np.isnan(beta) and np.isnan(r.beta)))
        )
        # At each level over the benchmarks of that level, as every strength is.
        there = [b for b in BENCHMARKS if level == TOKEN or b != "winogrande"]
        each = [(z[f"7B-{m}-{stage}", b][:, :4].argmax(1) == gold).mean() for b in there for m in MIXTURES]
        assert row.estimate == pytest.approx(np.mean(each)) and row.n == 5
    same = next(
        r
        for r in rows
        if (r.direction, r.level, r.beta, r.benchmark, r.measure) == ("up", TOKEN, 0.0, "rte", "same picks")
    )
    each = [
        np.equal(*(z[f"7B-{m}-{stage}", "rte"][:, :4].argmax(1) for stage in ("pt", "sft"))) for m in MIXTURES
    ]
    assert same.estimate == pytest.approx(np.mean(each))
    note = next(
        r.note for r in rows if r.level == SEQUENCE and r.category == "Commonsense" and not r.benchmark
    )
    assert note == "without winogrande (contexts differ by choice)"
    closed = [r for r in rows if r.measure == "gap closed" and np.isfinite(r.estimate)]
    assert all(r.low <= r.estimate <= r.high for r in closed)


def test_effects_of_scale_are_those_by_hand(
    world: tuple[Path, dict[tuple[str, str], np.ndarray], np.ndarray],
) -> None:
    folder, z, gold = world

    def accuracy(name: str) -> float:
        return float(
            np.mean(
                [(z[name.format(m), b][:, :4].argmax(1) == gold).mean() for b in BENCHMARKS for m in MIXTURES]
            )
        )

    ll, ss, ls, sl = map(accuracy, ("7B-{}-sft", "1B-{}-sft", "7B-{}-eft@1", "1B-{}-eft@1"))
    rows = {
        r.effect: r
        for r in decomposition.rows(study_of(folder))
        if (r.category, r.measure) == (ALL, "accuracy")
    }
    assert rows["pretraining scale"].estimate == pytest.approx(((ls - ss) + (ll - sl)) / 2)
    assert rows["fine-tuning scale"].estimate == pytest.approx(((sl - ss) + (ll - ls)) / 2)
    assert rows["interaction"].estimate == pytest.approx(ll - ls - sl + ss)
    assert rows["interaction"].level == TOKEN


def test_decisions_are_pairs_by_hand(
    world: tuple[Path, dict[tuple[str, str], np.ndarray], np.ndarray],
) -> None:
    folder, z, gold = world
    rows = {
        (r.predictor, r.minus, r.measure): r
        for r in eft_decisions.rows(study_of(folder))
        if r.benchmark == "rte"
    }

    def accuracies(name: str) -> np.ndarray:
        return np.array([(z[name.format(m), "rte"][:, :4].argmax(1) == gold).mean() for m in MIXTURES])

    target = accuracies("7B-{}-sft")
    for predictor, name in (
        ("emulated", "7B-{}-eft@1"),
        ("large base", "7B-{}-pt"),
        ("small fine-tuned", "1B-{}-sft"),
    ):
        x, right, count = accuracies(name), 0.0, 0
        for i, j in itertools.combinations(range(5), 2):
            dx, dy = (round(v[i] - v[j], 12) for v in (x, target))
            if dx or dy:
                count, right = count + 1, right + (0.5 if not (dx and dy) else float(dx * dy > 0))
        assert rows[predictor, "", "pair agreement"].estimate == pytest.approx(right / count)
        assert rows[predictor, "", "r"].estimate == pytest.approx(np.corrcoef(x, target)[0, 1])
    minus = rows["emulated", "large base", "r"]
    assert minus.estimate == pytest.approx(
        rows["emulated", "", "r"].estimate - rows["large base", "", "r"].estimate
    )


def made(folder: Path, right: dict[str, np.ndarray], scales: tuple[str, ...] = ("1B", "7B")) -> StudyScores:
    """A store in which checkpoint SCALE-MIXTURE-STAGE has right[SCALE-STAGE][its mixture, benchmark] of 20 items right."""
    gold = np.zeros(20, dtype=np.int64)
    for scale, (m, mixture), stage in itertools.product(scales, enumerate(MIXTURES), ("pt", "sft")):
        for b, benchmark in enumerate(BENCHMARKS):
            loglik = np.tile([-2.0, -1.0], (20, 1))
            loglik[: right[f"{scale}-{stage}"][m, b], 0] = 0.0
            write(folder, f"{scale}-{mixture}-{stage}", benchmark, loglik, gold)
    return study_of(folder)


def counts(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"{s}-{t}": rng.integers(4, 17, (5, 3)) for s in ("1B", "3B", "7B") for t in ("pt", "sft")}


def test_predictors_are_compared_over_the_same_benchmarks(tmp_path: Path) -> None:
    right = counts()
    right["1B-sft"][:, 0] = 7  # the small fine-tuned ties on hellaswag: it has no r there
    rows = {
        (r.predictor, r.minus): r
        for r in eft_decisions.rows(made(tmp_path, right))
        if (r.measure, r.category, r.benchmark) == ("r", ALL, "")
    }
    for key in (("large base", ""), ("small fine-tuned", "")):
        x = right["7B-pt" if key[0] == "large base" else "1B-sft"][:, 2]
        assert rows[key].estimate == pytest.approx(np.corrcoef(x, right["7B-sft"][:, 2])[0, 1])
    for other in ("large base", "small fine-tuned"):
        apart = rows["emulated", ""].estimate - rows[other, ""].estimate
        assert rows["emulated", other].estimate == pytest.approx(apart)
    assert (
        rows["emulated", ""].note
        == "without winogrande (contexts differ by choice); without hellaswag (mixtures tied)"
    )


@pytest.mark.parametrize("rows_of", [ranking.correlation, ranking.agreement])
def test_tied_mixtures_have_no_rank(rows_of: Callable[..., np.ndarray]) -> None:
    """Means of equal numbers differ from them in the last bit."""
    same = np.tile(np.arange(300) / 300, (9, 1))
    assert np.isnan(rows_of(same, same)).all()
    x = np.random.default_rng(0).normal(size=(9, 300))
    if rows_of is ranking.correlation:
        assert np.isnan(rows_of(same, x)).all() and np.isnan(rows_of(x, same)).all()
    else:
        assert (rows_of(same, x) == 0.5).all()


def test_an_agreement_that_no_mixture_moves_has_no_interval(tmp_path: Path) -> None:
    right = counts()
    for name in right:
        right[name][:, 2] = (4, 6, 8, 10, 12)
    rows = [r for r in eft_decisions.rows(made(tmp_path, right)) if r.benchmark == "rte"]
    base = next(r for r in rows if (r.predictor, r.minus, r.measure) == ("large base", "", "pair agreement"))
    assert base.estimate == 1.0 and np.isnan([base.low, base.high]).all()
    assert base.note == "the same without each mixture, so no interval"


def test_shares_near_one_have_intervals_below_it_or_none(tmp_path: Path) -> None:
    right = {name: np.full_like(x, 20) for name, x in counts().items()}
    right["7B-pt"][:, 2] = right["7B-sft"][:, 2] = (20, 20, 20, 20, 18)
    study = made(tmp_path, right)
    rows = {
        (r.beta, r.benchmark): r
        for r in eft.mean_rows(study)
        if (r.direction, r.measure) == ("up", "accuracy")
    }
    assert rows[0.0, "rte"].high == 1.0 and 0.0 < rows[0.0, "rte"].low < 1.0
    certain = rows[0.0, "hellaswag"]
    assert certain.estimate == 1.0 and np.isnan([certain.low, certain.high]).all()
    assert certain.note == "the same on every item and mixture, so no interval"
    effects = {(r.effect, r.benchmark): r for r in decomposition.rows(study) if r.measure == "accuracy"}
    none = effects["interaction", "hellaswag"]
    assert none.estimate == 0.0 and np.isnan([none.low, none.high, none.p, none.q]).all() and none.note


def test_what_is_not_compared_is_said(tmp_path: Path) -> None:
    study = made(tmp_path, counts(), scales=("1B", "3B", "7B"))
    rows = decomposition.rows(study)
    assert {(r.small, r.large) for r in rows} == {("1B", "7B")}
    note = next(r.note for r in rows if r.category == ALL)
    assert note == "without scale 3B; without winogrande (contexts differ by choice)"
    assert note in {r.note for r in eft.mean_rows(study)} & {r.note for r in eft_decisions.rows(study)}
    for stage in ("pt", "sft"):
        shutil.rmtree(tmp_path / f"7B-e-{stage}")
        (tmp_path / f"1B-b-{stage}" / "hellaswag.arrow").unlink()
    study = study_of(tmp_path)
    note = next(r.note for r in decomposition.rows(study) if r.category == "Commonsense" or r.category == ALL)
    assert note == (
        "without scale 3B; without e (no run at both 1B and 7B); without hellaswag (not on every checkpoint);"
        " without winogrande (contexts differ by choice)"
    )


def test_a_strength_that_one_benchmark_lacks_is_compared_over_the_others(
    world: tuple[Path, dict[tuple[str, str], np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    folder = shutil.copytree(world[0], tmp_path / "scores")
    (folder / "7B-c-eft@0.5" / "rte.arrow").unlink()
    for mixture in MIXTURES:
        shutil.rmtree(folder / f"1B-{mixture}-eft@0.5")
    rows = [r for r in eft.mean_rows(study_of(folder)) if r.level == TOKEN and r.measure == "accuracy"]
    up = {(r.beta, r.benchmark) for r in rows if r.direction == "up" and r.category != ALL}
    assert {b for _, b in up if b} == {"hellaswag", "winogrande"}
    assert all(
        r.note == "without rte (not on every checkpoint)"
        for r in rows
        if r.direction == "up" and r.category == ALL
    )
    assert {r.beta for r in rows if r.direction == "down" and r.beta == r.beta} == {0.0, 1.0}


def test_a_claim_about_a_category_is_no_part_of_what_is_not_supported() -> None:
    def row(category: str, low: float, high: float, q: float) -> decomposition.DecompositionRow:
        at = (TOKEN, "accuracy", decomposition.FINE_TUNING, "1B", "7B", category, "")
        return decomposition.DecompositionRow(*at, (low + high) / 2, low, high, 0.01, q, q, 9, "")

    rows = [row("Science", -0.1, 0.1, 0.9), row("NLI", 0.05, 0.15, 0.002), row(ALL, -0.02, 0.06, 0.2)]
    said = list(decomposition.claims(Findings({}, {"decomposition": rows})))
    assert [claim.kind for claim in said] == [UNSUPPORTED, SUPPORTED]
    assert "NLI" not in said[0].sentence and "NLI 10.0 [5.0, 15.0]" in said[1].sentence


def test_the_gap_is_claimed_closed_where_its_interval_says_so() -> None:
    def said(low: float, high: float) -> list[tuple[str, str]]:
        at = ("up", TOKEN, 1.0, "7B", ALL, "", "gap closed")
        row = eft.MeanRow(*at, (low + high) / 2, low, high, 0.1, 9, "")
        return [(c.kind, c.sentence) for c in eft.claims(Findings({}, {"eft_means": [row]}))]

    gap = "the gap from its base to its fine-tuned checkpoints"
    assert said(0.2, 0.6) == [
        (SUPPORTED, f"Emulated fine-tuning of 7B (up, beta 1) closes {gap}: 40.0 [20.0, 60.0]% of it, n = 9.")
    ]
    assert said(-0.6, -0.2)[0][1].startswith(f"Emulated fine-tuning of 7B (up, beta 1) widens {gap}")
    assert said(-0.2, 0.6)[0][0] == UNSUPPORTED and not said(np.nan, np.nan)


def test_fiellers_interval_holds_and_says_where_there_is_nothing_to_divide_by() -> None:
    rng, hits, defined = np.random.default_rng(3), 0, 0
    for _ in range(300):
        under = 0.3 + 0.05 * rng.normal(size=(9, 1)) + 0.5 * rng.normal(size=(9, 80))
        over = 0.5 * under + 0.03 * rng.normal(size=(9, 1)) + 0.5 * rng.normal(size=(9, 80))
        found, _ = eft.ratio([over], [under], 0.95)
        if np.isfinite(found.estimate):
            defined, hits = defined + 1, hits + (found.low <= 0.5 <= found.high)
    assert defined == 300 and 0.92 <= hits / defined <= 0.99
    half = rng.normal(size=(9, 80)) + 3.0
    exact, _ = eft.ratio([0.5 * half], [half], 0.95)
    assert (exact.low, exact.high) == pytest.approx((0.5, 0.5), abs=1e-6)
    nothing, why = eft.ratio([rng.normal(size=(9, 80))], [rng.normal(size=(9, 80))], 0.95)
    assert np.isnan(nothing.estimate) and "no difference that could be closed" in why


def test_planted_effects_of_scale_lie_in_their_intervals() -> None:
    """Correct answers with a mixture's, an item's and a scale's part: 95% intervals of the two effects hold the truth."""
    from evalengine.analysis.explain.student import two_way_mean

    rng, hits = np.random.default_rng(4), []
    for _ in range(150):
        value = {}
        mixture, item = 0.3 * rng.normal(size=(9, 1)), rng.normal(size=(1, 120))
        for pretrained, tuned in itertools.product((0, 1), (0, 1)):
            logit = mixture + item + 0.8 * pretrained + 0.4 * tuned + 0.2 * rng.normal(size=(9, 1))
            value[pretrained, tuned] = (rng.uniform(size=(9, 120)) < 1 / (1 + np.exp(-logit))).astype(float)
        x = [value[corner] for corner in ((1, 0), (1, 1), (0, 1), (0, 0))]  # LS, LL, SL, SS
        grid = rng.normal(size=100_000) * np.sqrt(1 + 0.09 + 0.04)
        p = {k: (1 / (1 + np.exp(-(grid + 0.8 * k[0] + 0.4 * k[1])))).mean() for k in value}
        truth = 0.5 * ((p[1, 0] - p[0, 0]) + (p[1, 1] - p[0, 1]))
        found = two_way_mean([decomposition.EFFECTS[decomposition.PRETRAINING](*x)])
        hits.append(found.low <= truth <= found.high)
    assert np.mean(hits) >= 0.91


def test_pmi_shifts_both_terms(tmp_path: Path) -> None:
    rng, items = np.random.default_rng(6), 30
    gold, x, u = rng.integers(0, 4, items), {}, {}
    for scale, mixture, stage in CELLS:
        name = f"{scale}-{mixture}-{stage}"
        x[name], u[name] = rng.normal(size=(2, items, 4))
        write(tmp_path, name, "rte", x[name], gold, default_score="acc_pmi")
        path = tmp_path / name / "rte.arrow"
        rows = store.read(path).to_pylist()
        for row, uncond in zip(rows, u[name].astype(np.float32), strict=True):
            row["loglik_uncond"] = uncond.tolist()
        table = type(store.read(path)).from_pylist(rows, schema=store.schema())
        store.write(path, table, store.read_metadata(path) or {})
    found = {(r.direction, r.beta, r.mixture): r.accuracy for r in eft.eft_rows(study_of(tmp_path))}
    for mixture in MIXTURES:
        base, tuned, ref = f"7B-{mixture}-pt", f"1B-{mixture}-sft", f"1B-{mixture}-pt"
        score = [v[base] + 2.0 * (v[tuned] - v[ref]) for v in (x, u)]
        assert found["up", 2.0, mixture] == pytest.approx(((score[0] - score[1]).argmax(1) == gold).mean())


def test_scales_without_a_size_are_left_out_and_said_to_be(tmp_path: Path) -> None:
    from evalengine.analysis.explain.findings import explain

    planted.write_study(tmp_path, items=20, mixtures=MIXTURES, scales=["small", "large"])
    assert not eft.eft_rows(study_of(tmp_path))
    assert "do not say their sizes" in explain(tmp_path, ExplainOptions()).method["notes"][-1]


def test_one_scale_has_nothing_to_emulate(tmp_path: Path) -> None:
    planted.write_study(tmp_path, items=20, mixtures=MIXTURES, scales=["1B"])
    study = study_of(tmp_path)
    assert not eft.eft_rows(study) and not eft.mean_rows(study)
    assert not decomposition.rows(study) and not eft_decisions.rows(study)


def test_a_proxy_that_no_mixture_moves_is_not_claimed(tmp_path: Path) -> None:
    """Accuracy before is tied, the margin before orders every pair: a difference of one half without each mixture too."""
    gold = np.zeros(20, dtype=np.int64)
    for m, mixture in enumerate(MIXTURES):
        before = np.tile([-1.0 - 0.2 * m, -3.0], (20, 1))
        after = np.tile([-2.0, -1.0], (20, 1))
        after[: 16 - 2 * m, 0] = 0.0
        write(tmp_path, f"1B-{mixture}-pt", "rte", before, gold)
        write(tmp_path, f"1B-{mixture}-sft", "rte", after, gold)
    study = study_of(tmp_path)
    rows = {(r.proxy, r.minus): r for r in proxies.rows(study) if not r.benchmark and r.category == ALL
            and r.measure == ranking.AGREEMENT}  # fmt: skip
    assert rows["accuracy", ""].estimate == 0.5 and rows["margin", ""].estimate == 1.0
    minus = rows["margin", "accuracy"]
    assert minus.estimate == 0.5 and np.isnan([minus.low, minus.high, minus.p, minus.q]).all()
    assert minus.note == "the same without each mixture, so no interval"
    findings = Findings({}, {"proxies": proxies.rows(study)})
    assert [c for c in proxies.claims(findings) if c.kind == SUPPORTED] == []
