"""From checkpoints to the panel: axes in order, gaps named, impossible designs refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import planted
import pytest

from evalengine.analysis.data.panel import Cell, assemble, choose_stages, load_panel, natural_key, scale_key
from evalengine.analysis.explain.choices import read_choices
from evalengine.errors import UserError


def cell(scale, mixture, stage, value=0.5, benchmark="rte", checkpoint=None, category="NLI") -> Cell:
    name = checkpoint or f"{scale}-{mixture}-{stage}"
    return Cell(name, scale, mixture, stage, benchmark, category, {"accuracy": value}, 10)


def design(mixtures=5, scales=("240M", "1B"), stages=("pt", "sft")) -> list[Cell]:
    return [
        cell(s, f"m{m}", t, 0.1 * m + 0.01 * k)
        for s in scales
        for m in range(mixtures)
        for k, t in enumerate(stages)
    ]


def test_panel_of_a_store_equals_a_direct_reading(tmp_path: Path) -> None:
    planted.write_study(tmp_path, items=60)
    panel = load_panel(tmp_path)
    assert (
        panel.scales == ("240M", "1B")
        and panel.stages == ("pt", "sft")
        and panel.mixtures == planted.MIXTURES
    )
    assert panel.benchmarks == ("hellaswag", "piqa", "arc_easy", "sciq", "rte")
    from evalengine import store

    rows = store.load(tmp_path).to_pylist()
    chosen = [r for r in rows if r["checkpoint"] == "1B-V2P1-sft" and r["benchmark"] == "sciq"]
    accuracy = np.mean([int(np.argmax(r["loglik"])) == r["gold"] for r in chosen])
    confidence = np.mean([np.exp(max(r["loglik"])) / np.exp(r["loglik"]).sum() for r in chosen])
    at = (1, 1, panel.mixtures.index("V2P1"), panel.benchmarks.index("sciq"))
    assert panel.values["accuracy"][at] == pytest.approx(accuracy, abs=1e-12)
    assert panel.values["confidence"][at] == pytest.approx(confidence, abs=1e-6)
    assert panel.items[at[3]].checkpoints[panel.row[at]] == "1B-V2P1-sft"


def test_missing_twins_are_left_out_and_named() -> None:
    cells = [c for c in design() if c.checkpoint != "1B-m3-sft"]
    panel = assemble(cells, None)
    assert "scale 1B: no sft checkpoint for m3; left out, 4 mixtures remain" in panel.notes
    assert np.isnan(panel.values["accuracy"][1, :, 3]).all()
    assert np.isfinite(panel.values["accuracy"][0]).all()


@pytest.mark.parametrize(
    "stages",
    [("sft", "dpo"), ("pt", "dpo"), ("pt", "sft_emptied"), ("sft_emptied", "dpo+chat"), ("base", "sft")],
    ids=str,
)
def test_two_stages_are_compared_in_the_order_of_training(stages: tuple[str, str]) -> None:
    assert choose_stages(set(stages), None) == stages


def test_a_stage_called_as_what_correlates_both_stages_is_refused() -> None:
    for asked in (None, ("cross", "sft")):
        with pytest.raises(UserError, match="a stage is called cross"):
            choose_stages({"cross", "sft"}, asked)


def test_too_few_mixtures() -> None:
    with pytest.raises(UserError, match=r"at most 3 mixtures .*needs at least 4"):
        assemble(design(mixtures=3), None)


def test_a_category_called_as_the_mean_of_all_is_refused(tmp_path: Path) -> None:
    cells = [c._replace(category="All") for c in design()]
    with pytest.raises(
        UserError, match="rte: the category is called All, as the mean over all benchmarks is"
    ):
        assemble(cells, None)
    planted.write_study(tmp_path, {"rte": 0.5}, items=5, categories={"rte": "All"})
    with pytest.raises(UserError, match="rte: the category is called All"):
        read_choices(tmp_path)


def test_one_benchmark_in_two_categories_is_refused() -> None:
    cells = [*design(), cell("1B", "m9", "pt", category="Other"), cell("1B", "m9", "sft", category="Other")]
    with pytest.raises(UserError, match=r"rte is in category 'NLI' .* and 'Other' .1B-m9-pt.: give it one"):
        assemble(cells, None)


def test_twins_are_refused() -> None:
    with pytest.raises(UserError, match=r"(x and 1B-m0-pt|1B-m0-pt and x) both claim"):
        assemble([*design(), cell("1B", "m0", "pt", checkpoint="x")], None)


def test_stages() -> None:
    with pytest.raises(UserError, match="the only stage here is 'pt'"):
        assemble(design(stages=("pt",)), None)
    three = design(stages=("1000", "9000", "143000"))
    with pytest.raises(UserError, match=r"3 stages \(1000, 9000, 143000\)"):
        assemble(three, None)
    assert assemble(three, ("1000", "143000")).stages == ("1000", "143000")
    with pytest.raises(UserError, match="no checkpoint has the stage 'rl'"):
        assemble(three, ("1000", "rl"))
    assert assemble(design(stages=("9", "10")), None).stages == ("9", "10")


def test_unknown_mixture_or_stage() -> None:
    panel = assemble([*design(), cell(None, None, None, checkpoint="odd")], None)
    assert any("odd" in note for note in panel.notes)
    with pytest.raises(UserError, match="no checkpoint has a mixture and a stage"):
        assemble([cell(None, None, None, checkpoint="odd")], None)


def test_missing_value_is_named() -> None:
    cells = [*design(), *(c._replace(benchmark="cb") for c in design() if c.checkpoint != "1B-m2-pt")]
    assert any("cb has no value for 1B-m2-pt" in note for note in assemble(cells, None).notes)


def test_orders() -> None:
    assert sorted(["1B", "60M", "240M", "1.4B", "1m", "huge"], key=scale_key) == [
        "1m", "60M", "240M", "1B", "1.4B", "huge",
    ]  # fmt: skip
    assert sorted(["1B-base", "x", "240M-base", "240M", "pythia-70m", "12"], key=scale_key) == [
        "12", "pythia-70m", "240M", "240M-base", "1B-base", "x",
    ]  # fmt: skip
    assert sorted(["step10", "step9", "a"], key=natural_key) == ["a", "step9", "step10"]
    assert sorted(["10\u00b2", "9\u00b2", "\u00b2"], key=natural_key) == ["9\u00b2", "10\u00b2", "\u00b2"]
