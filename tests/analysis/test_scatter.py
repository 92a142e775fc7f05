"""Scatters: the points are the panel's, the bars the noise of the items, and labels keep apart."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import planted
import pytest

from evalengine.analysis.data.mixtures import Mixtures
from evalengine.analysis.data.panel import load_panel
from evalengine.analysis.figure import Scatters, files, panels
from evalengine.analysis.protocols.noise import from_items
from evalengine.analysis.protocols.scatter import scatters
from evalengine.analysis.protocols.transfer import shown
from evalengine.analysis.report.scatter_drawing import labels, place_labels, scatter_drawing
from evalengine.analysis.report.style import styled
from evalengine.analysis.results import load_results
from evalengine.analysis.study import CorrelateOptions, analyse


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("scatter")
    planted.write_study(root / "scores", items=80, skip=["1B-V2P1-sft"])
    panel = load_panel(root / "scores")
    analyse(panel, CorrelateOptions("200")).write(root / "analysis")
    return panel, load_results(root / "analysis")


@pytest.mark.parametrize("quantity", ["accuracy", "confidence"])
def test_points_and_bars(study, quantity: str) -> None:
    panel, results = study
    found = scatters(results, quantity, "1B")
    assert [one.benchmark for one in found.rows] == list(panel.benchmarks)
    for b, one in enumerate(found.rows):
        x_TM = panel.values[quantity][1, :, :, b]
        keep = np.isfinite(x_TM).all(axis=0)
        assert keep.sum() == 8 and list(one.mixtures) == [m for m in panel.mixtures if m != "V2P1"]
        np.testing.assert_allclose([one.before, one.after], x_TM[:, keep], rtol=1e-9)
        items = panel.items[b]
        scores = items.correct_KI if quantity == "accuracy" else items.confidence_KI
        noise = from_items(*(scores[panel.row[1, t, keep, b]].astype(float) for t in range(2)))
        np.testing.assert_allclose(one.error, np.sqrt([noise.before, noise.after]), rtol=1e-6)
        assert one.row.estimate == pytest.approx(np.corrcoef(one.before, one.after)[0, 1])
        assert one.chance == 0.25 if quantity == "accuracy" else math.isnan(one.chance)


def test_bars_within_blocks_are_the_noise_within_blocks(study, tmp_path: Path) -> None:
    panel, _ = study
    labels = {m: m[:2] for m in panel.mixtures}
    options = CorrelateOptions("200", block="web_source")
    analyse(panel, options, Mixtures({}, {"web_source": labels})).write(tmp_path)
    block = np.array([int(m[1]) for m in panel.mixtures])
    for b, one in enumerate(scatters(load_results(tmp_path), "accuracy", "1B").rows):
        keep = np.isfinite(panel.values["accuracy"][1, :, :, b]).all(axis=0)
        before, after = (panel.items[b].correct_KI[panel.row[1, t, keep, b]].astype(float) for t in range(2))
        noise = from_items(before, after, block[keep])
        np.testing.assert_allclose(one.error, np.sqrt([noise.before, noise.after]), rtol=1e-6)


def test_chance_is_shown_where_it_is_known(study) -> None:
    _, results = study
    chance = [0.25, None, 0.5, None, None]
    known = results._replace(method={**results.method, "chance": chance})
    found = scatters(known, "accuracy", "1B")
    assert [None if math.isnan(one.chance) else one.chance for one in found.rows] == chance
    assert all(math.isnan(one.chance) for one in scatters(known, "confidence", "1B").rows)


def test_a_figure_for_each_quantity_and_scale(study) -> None:
    _, results = study
    found = {file.name: file.of for file in files(shown(results)) if file.name.startswith("scatter")}
    assert set(found) == {f"scatter_{q}_{s}" for q in ("accuracy", "confidence") for s in ("240M", "1B")}
    assert list(panels(found["scatter_accuracy_1B"])) == ["Commonsense", "Science", "NLI"]


def test_long_names_become_numbers_with_a_key_and_many_points_have_none() -> None:
    assert labels(["V1P0", "V1P1"]) == ({"V1P0": "V1P0", "V1P1": "V1P1"}, "")
    assert labels(["pythia-70m", "pythia-1b"]) == (
        {"pythia-70m": "1", "pythia-1b": "2"},
        "1\u00a0pythia-70m, 2\u00a0pythia-1b",
    )
    assert labels([str(k) for k in range(31)]) == ({}, "")


def test_labels_keep_apart_where_there_is_room() -> None:
    x, y = (v.ravel() for v in np.meshgrid([0.2, 0.6, 1.0], [0.2, 0.6, 1.0]))
    points = list(zip(x, y, strict=True))
    found = list(place_labels(points, [f"V{k}" for k in range(9)], (0.0, 0.0, 1.25, 1.25)))
    assert [mark.text for mark in found] == [f"V{k}" for k in range(9)]
    for k, one in enumerate(found):
        assert 0.0 < one.x < 1.25 and 0.0 < one.y < 1.25
        assert math.hypot(one.x - x[k], one.y - y[k]) < 0.2
        for other in found[:k]:
            assert abs(one.x - other.x) > 0.08 or abs(one.y - other.y) > 0.06
        assert one.line is None


@pytest.mark.parametrize(("count", "spread"), [(9, 0.03), (30, 0.1), (30, 0.25), (30, 0.0)])
def test_labels_of_a_crowd_are_led_to_their_points_or_left_out(count: int, spread: float) -> None:
    box = (0.0, 0.0, 1.4, 1.4)
    xy = np.random.default_rng(0).normal(0.7, spread, (count, 2)).clip(0.1, 1.3)
    points = [(float(x), float(y)) for x, y in xy]
    found = place_labels(points, [str(k) for k in range(1, count + 1)], box)
    assert len(found) > (count // 2 if spread else 0) and len({mark.text for mark in found}) == len(found)
    sides = [(0.5 * 0.62 * 5.5 / 72 * len(mark.text), 0.5 * 5.5 / 72) for mark in found]
    for mark, (half, tall) in zip(found, sides, strict=True):
        others = [(abs(x - mark.x) - half, abs(y - mark.y) - tall) for x, y in points]
        distance = [math.hypot(max(dx, 0.0), max(dy, 0.0)) for dx, dy in others]
        assert min(distance) > 0.02, "no dot is covered"
        own = distance[int(mark.text) - 1]
        if mark.line is None:
            assert own == min(distance) < 0.06 and sum(d < own + 0.045 for d in distance) == 1
        else:
            assert mark.line[:2] == points[int(mark.text) - 1]
    for k, (mark, (half, tall)) in enumerate(zip(found, sides, strict=True)):
        for other, (half2, tall2) in zip(found[:k], sides[:k], strict=True):
            assert (
                abs(mark.x - other.x) >= half + half2 - 1e-9 or abs(mark.y - other.y) >= tall + tall2 - 1e-9
            )


def test_labels_that_are_left_out_are_counted(study) -> None:
    _, results = study
    one = scatters(results, "accuracy", "1B").rows[0]
    crowd = [(0.5, 0.5)] * 29 + [(0.9, 0.9)]
    before, after = zip(*crowd, strict=True)
    names = [f"mixture {k}" for k in range(30)]
    crowded = one._replace(mixtures=names, before=before, after=after, error=(math.nan, math.nan))
    with styled():
        drawing = scatter_drawing(Scatters([crowded], ("pt", "sft"), 100.0))
    texts = [text.get_text() for text in (*drawing.axes[0].texts, *drawing.texts)]
    lost = 30 - len(set(texts) & set(map(str, range(1, 31))))
    assert f"labels without room are left out: {one.benchmark} {lost}" in " ".join(texts) and 0 < lost < 30
