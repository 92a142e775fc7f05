"""Study files: what is accepted, and that every mistake is named with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalengine.checkpoints.resolve import NAME
from evalengine.errors import UserError
from evalengine.labels import TRAINED, stage_key
from evalengine.training import plan
from evalengine.training.fitting.state import Place
from evalengine.training.job import Job, tokens_of
from evalengine.training.prepare import prepare, shape_of
from evalengine.training.study import PARENTS, Run, load, runs, shipped, with_stages


def test_every_shipped_study_is_the_36_run_design():
    assert set(shipped()) == {"embedded", "embedded_quick", "h200", "local_text", "paper"}
    for name in set(shipped()) - {"embedded_quick"}:  # a part of `embedded`
        names = [run.name for run in runs(load(name))]
        mixtures = {f"v{v}p{p}" for v in (1, 2, 3) for p in (0, 1, 2)}
        assert len(names) == 36
        assert len({n.split("-")[0] for n in names}) == 2
        assert {n.split("-")[1] for n in names} == mixtures
        assert {n.split("-")[2] for n in names} == {"pt", "sft"}


def test_the_papers_study_states_its_scales():
    study = load("paper")
    for scale, billions, tokens in (("240M", 0.241, 12e9), ("1B", 1.15, 52e9)):
        assert shape_of(study.scales[scale], 100_864).params / 1e9 == pytest.approx(billions, rel=5e-3)
        assert study.scales[scale].pretrain.tokens == tokens
    web = {"v1": "refinedweb", "v2": "fineweb_edu", "v3": "dclm"}
    code = {"v1": "starcoder", "v2": "stack_v2", "v3": "stack_v2"}
    for name, shares in study.mixtures.items():
        expected = {"p0": (0.65, 0.25), "p1": (0.45, 0.35), "p2": (0.25, 0.45)}[name[2:]]
        assert (shares[web[name[:2]]], shares[code[name[:2]]]) == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mixtrues": {}}, "unknown key 'mixtrues': did you mean 'mixtures'"),
        (
            {"scales.S.pretrain.learning": 1},
            "scales.S: pretrain: unknown key 'learning': choose from lr, micro_rows",
        ),
        ({"scales.S.headdim": 1}, "scales.S: unknown key 'headdim': did you mean 'head_dim'"),
        (
            {"mixtures.m1": {"web": 0.5, "code": 0.4}},
            "the shares of mixture m1 sum to 0.9: make them sum to 1",
        ),
        ({"mixtures.m1": {}}, "mixtures.m1 is empty: name at least one"),
        ({"mixtures.m1": {"web": 1.5, "code": -0.5}}, "mixture m1 has a negative share"),
        ({"mixtures.m1": {"wed": 1.0}}, "unknown source 'wed': did you mean 'web'"),
        ({"scales.S.layers": "three"}, "scales.S: layers must be a whole number, not 'three'"),
        ({"scales.S.layers": 1.5}, "layers must be a whole number, not 1.5"),
        ({"scales.S.head_dim": 16}, "head_dim must be even and at least 32"),
        ({"scales.S.heads": 3}, "d_model must be a multiple of heads"),
        ({"scales.S.pretrain.lr": 0}, "lr must be positive"),
        ({"scales.S.pretrain.tokens": 255}, "pretrain.tokens must be a step or more, which is 256 tokens"),
        (
            {"mixtures.m1": {"web": 0.99, "code": 0.01}},
            "scale S: the share of code in mixture m1 is less than one of the 80 rows",
        ),
        (
            {"sources.web": {"path": "a.txt", "split": "test"}},
            "split, files, where and shuffle are for `hub`",
        ),
        ({"scales.S.pretrain.z_loss": -1}, "z_loss must not be negative"),
        (
            {"scales.S.pretrain.warmup": 100},
            "scale S: pretrain: warmup is a share of the steps, between 0 and 1",
        ),
        ({"scales.S.sft.warmup": -0.1}, "scale S: sft: warmup is a share of the steps"),
        ({"scales.S.sft.min_lr": 1e-6 - 1}, "scale S: sft: min_lr is a share of lr"),
        ({"scales.S.dpo": {"clip": 0}}, "scale S: dpo: clip must be positive"),
        ({"scales.S.pretrain.clip": -1}, "clip must be positive: to clip no gradient, give a large number"),
        ({"scales.S.pretrain.beta1": 1.5}, "beta1 must be at least 0 and less than 1, not 1.5"),
        ({"scales.S.pretrain.weight_decay": -1}, "weight_decay must not be negative"),
        ({"scales.S.pretrain.micro_rows": -1}, "micro_rows must not be negative"),
        ({"scales.S.vocab": -1}, "scale S: vocab must not be negative"),
        ({"threads": -1}, "threads must not be negative"),
        ({"tokenizer.sample_mb": 0}, "tokenizer.sample_mb must be positive"),
        ({"sft.data": [{"path": "sft.jsonl", "limit": -3}]}, "sft.data: limit must not be negative"),
        ({"dpo": {"data": [{"path": "p.jsonl", "limit": -3}]}}, "dpo.data: limit must not be negative"),
        ({"sft.data": [{"path": "sft.jsonl", "split": "test"}]}, "sft.data: config and split are for `hub`"),
        ({"sources.web": {}}, "source web needs either `path` or `hub`"),
        ({"tokenizer": {}}, "tokenizer needs either `vocab` or `path`"),
        ({"sft.reach": 0.5}, "sft.reach: R has become `select: {score: loss, keep: [0, R]}`"),
        (
            {"sft.select": {"score": "ppl", "keep": [0, 0.5]}},
            "sft.select.score must be loss, ifd or r_ifd, not 'ppl'",
        ),
        (
            {"sft.select": {"score": "ifd", "keep": [0.5, 0.5]}},
            "sft.select.keep must be two quantiles, the lower one first, such as [0, 0.5], not [0.5, 0.5]",
        ),
        ({"sft.select": {"score": "ifd", "keep": [0.5, 1.5]}}, "sft.select.keep must be two quantiles"),
        ({"sft.select": {"score": "ifd", "keep": [0.5]}}, "sft.select.keep must be two quantiles"),
        (
            {"sft.select": {"score": "ifd", "keep": [0, 1], "by": "s"}},
            "sft.select.by names the unknown scale 's': did you mean 'S'",
        ),
        (
            {"sft.instructions": "emptied"},
            "has become a stage: leave it out and write `stages: [pt, sft_emptied]`",
        ),
        ({"stages": []}, "stages is empty: name at least pt"),
        ({"stages": ["pt", "sft_empty"]}, "stages: there is no 'sft_empty': did you mean 'sft_emptied'"),
        ({"stages": ["sft", "pt"]}, "stages: sft starts from pt, so pt must come before it"),
        ({"stages": ["pt", "sft", "sft"]}, "stages: sft appears twice"),
        ({"sft.data": [{"limit": 3}]}, "needs one of `path`, `hub` or `benchmarks_train`"),
        ({"sources": {}}, "sources is empty: name at least one"),
        ({"sources": ["web"]}, "sources must be a mapping of names"),
    ],
)
def test_a_mistake_is_named(changes: dict[str, object], reason: str, write_study):
    with pytest.raises(UserError) as error:
        load(write_study(**changes))
    assert reason in str(error.value)


def test_a_missing_key_a_missing_file_and_no_yaml(write_study, tmp_path: Path):
    file = write_study()
    text = file.read_text()
    file.write_text(text.replace("  lr: 0.01", "").replace("      lr: 0.01\n", ""))
    with pytest.raises(UserError, match="the key 'lr' is missing"):
        load(file)
    with pytest.raises(UserError, match=r"no study file nowhere\.yaml; shipped studies: embedded"):
        load("nowhere.yaml")
    file.write_text("a: [1")
    with pytest.raises(UserError, match="is not valid YAML"):
        load(file)
    file.write_text(text.replace("mixtures:", "mixtures:\n  m1: {code: 1.0}"))
    with pytest.raises(
        UserError, match=r"is not valid YAML \(the key 'm1' appears twice, again in line \d+\)"
    ):
        load(file)
    file.write_text("")
    with pytest.raises(UserError, match="is empty"):
        load(file)


def test_the_plan_estimates_fine_tuning_from_local_conversations(write_study, data: Path, tmp_path: Path):
    study = load(write_study())
    planned = plan.make(study, data=data, out=tmp_path, only="S-m1-sft", jobs=1, rate=1e9)
    run, guessed = next((run, p.tokens) for run, p in planned.runs.items() if run.stage == "sft")
    prepared = prepare(study, data, tmp_path)
    counted = tokens_of(Job(study, prepared, tmp_path, run, Place()))
    assert guessed is not None and counted / 2 < guessed < counted * 2


def test_stages_bring_along_those_they_start_from(write_study):
    study = load(write_study(stages=["pt", "sft_shuffled", "sft"]))
    assert [r.name for r in runs(study)[:3]] == ["S-m1-pt", "S-m1-sft_shuffled", "S-m1-sft"]
    assert with_stages(study, ["sft_emptied", "sft"]).stages == ("pt", "sft_emptied", "sft")
    assert [r.arm for r in runs(study)[:3]] == ["kept", "shuffled", "kept"]
    with pytest.raises(UserError, match="there is no stage 'sft_empty': did you mean 'sft_emptied'"):
        with_stages(study, ["sft_empty"])


def test_numbers_may_be_written_with_an_exponent(write_study):
    file = write_study()
    file.write_text(file.read_text().replace("tokens: 5120", "tokens: 5e3").replace("lr: 0.01", "lr: 1e-2"))
    settings = load(file).scales["S"].pretrain
    assert (settings.tokens, settings.lr) == (5000, 0.01)


def test_the_plan_counts_flops_and_hours(write_study, tmp_path: Path):
    study = load(write_study())
    planned = plan.make(study, out=tmp_path, only=None, jobs=1, rate=1e9)
    matrices = 2 * (4 * 32 * 32 + 3 * 32 * 64) + 512 * 32
    one = 5120 * (6 * matrices + 12 * 2 * 32 * 32)
    assert planned.flops == 2 * one  # two mixtures; fine-tuning is unknown until its data is tokenised
    assert planned.hours == pytest.approx(2 * one / 1e9 / 3600)
    assert [p.tokens for p in planned.runs.values()] == [5120, None, 5120, None]


def test_every_stage_that_is_trained_is_ordered_and_read_from_a_name():
    """TRAINED in engine/labels.py is where the stages stand; arms start from the first of them."""
    assert [PARENTS[stage] for stage in TRAINED] == [None, *TRAINED[:-1]]
    assert {PARENTS[stage] for stage in PARENTS if stage not in TRAINED} == {TRAINED[0]}
    assert (
        sorted(PARENTS, key=stage_key)[0] == TRAINED[0] and sorted(PARENTS, key=stage_key)[-1] == TRAINED[-1]
    )
    for stage in PARENTS:
        found = NAME.match(Run("1B", "half-half", stage).name)
        assert found and (found["scale"], found["mixture"], found["stage"]) == ("1B", "half-half", stage)
