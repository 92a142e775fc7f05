"""A study file, typed and checked where it enters.

    sources x mixtures x scales x stages -> checkpoints named {scale}-{mixture}-{stage}

A YAML file states the tokenizer, the sources, the mixtures (token shares of sources), the scales (shape,
tokens, learning rate), the stages and the fine-tuning data. Every field below is a key of the file under the same name;
an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evalengine.errors import UserError, nearest
from evalengine.labels import TRAINED
from evalengine.training.arms import ARMS
from evalengine.training.typed import parse
from evalengine.untrusted import check_name, read_yaml

PARENTS: Mapping[str, str | None] = {  # stage -> the one that it starts from; sft is the arm `kept`
    **dict(zip(TRAINED, (None, *TRAINED), strict=False)),
    **{f"sft_{arm}": "pt" for arm in ARMS if arm != "kept"},
}


@dataclass(frozen=True)
class WorldSpec:
    """The embedded synthetic world, in place of a data folder."""

    seed: int = 0


@dataclass(frozen=True)
class TokenizerSpec:
    vocab: int = 0  # entries of a byte-level BPE trained on the sources
    sample_mb: float = 64.0  # text it is trained on, the same amount of each source
    path: str = ""  # or: the directory of an existing fast tokenizer, relative to the data folder


@dataclass(frozen=True)
class SourceSpec:
    path: str = ""  # text, JSONL, Parquet or a folder of them, relative to the data folder
    hub: str = ""  # or: a data set of the Hugging Face hub, streamed
    config: str | None = None
    split: str = "train"
    field: str = "text"  # the column that holds the text
    # of a hub data set:
    where: Mapping[str, str] | None = None  # only rows with these values, {meta.kind: book}
    shuffle: int = 0  # read its files in random order and shuffle rows in a buffer of so many; 0: in order
    files: tuple[str, ...] = ()  # only these of its files, such as [python/*.parquet]


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """AdamW on a cosine schedule."""

    lr: float
    micro_rows: int = 0  # rows in one forward; 0: all of them. Lower it when memory runs out
    warmup: float  # share of the steps
    min_lr: float = 0.0  # of lr, at the end of the cosine
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    z_loss: float = 0.0  # times the squared log-sum-exp of the logits, added to the loss; PaLM's is 1e-4


@dataclass(frozen=True, kw_only=True)
class Pretrain(Optimisation):
    tokens: int
    batch_rows: int = 16  # rows of `context` tokens in an optimiser step
    warmup: float = 0.05
    min_lr: float = 0.1
    weight_decay: float = 0.1


@dataclass(frozen=True, kw_only=True)
class FineTune(Optimisation):
    epochs: int
    batch_examples: int = 32  # conversations in an optimiser step, packed into rows
    warmup: float = 0.03


@dataclass(frozen=True, kw_only=True)
class Prefer(Optimisation):
    """Direct preference optimisation."""

    lr: float = 0.0  # 0: a tenth of that of fine-tuning
    micro_rows: int = 0  # 0: as in fine-tuning
    epochs: int = 1
    batch_pairs: int = 32  # pairs in an optimiser step, packed into rows
    warmup: float = 0.1


@dataclass(frozen=True)
class Scale:
    d_model: int
    layers: int
    heads: int
    head_dim: int
    ffn: int
    context: int
    pretrain: Pretrain
    sft: FineTune
    dpo: Prefer = Prefer()
    vocab: int = 0  # 0: the tokenizer's; larger: padded
    tied: bool = True
    checkpoint_activations: bool = False

    @property
    def pretraining_rows(self) -> int:
        """Rows of `context` tokens in whole steps of pretraining."""
        rows = self.pretrain.batch_rows
        return self.pretrain.tokens // (rows * self.context) * rows


@dataclass(frozen=True)
class ChatSource:
    # JSONL of {"messages": [...]}, or {"prompt": ..., "chosen": ..., "rejected": ...}, relative to the data folder
    path: str = ""
    hub: str = ""  # or: a hub data set with the same columns
    config: str | None = None
    split: str = "train"
    # or: `all`, or benchmarks whose train splits become conversations
    benchmarks_train: str | tuple[str, ...] = ""
    limit: int = 0  # at most so many conversations (of each benchmark), 0: all


@dataclass(frozen=True)
class Select:
    """Fine-tuning on the conversations whose score under a pretrained model lies between two quantiles."""

    score: str  # loss, ifd or r_ifd (frontier.py)
    keep: tuple[float, ...]  # the two quantiles, [0, 0.5] for the lower half
    by: str = ""  # the scale whose pretrained model scores, of the same mixture; "": each run's own
    control: bool = False  # random conversations in their place, with as many tokens that carry loss


@dataclass(frozen=True)
class SftData:
    data: tuple[ChatSource, ...]
    select: Select | None = None  # fine-tune on some of the conversations; None: on all

    @property
    def share(self) -> float:
        """Of the conversations, that are fine-tuned on."""
        return self.select.keep[1] - self.select.keep[0] if self.select else 1.0


@dataclass(frozen=True)
class DpoData:
    # of train items, the gold choice against the wrong one that the fine-tuned model finds likeliest
    data: tuple[ChatSource, ...] = (ChatSource(benchmarks_train="all"),)
    beta: float = 0.1  # how much a difference of log-probabilities to the fine-tuned model counts


@dataclass(frozen=True)
class Study:
    name: str
    tokenizer: TokenizerSpec
    sources: Mapping[str, SourceSpec]
    mixtures: Mapping[str, Mapping[str, float]]
    scales: Mapping[str, Scale]
    sft: SftData
    dpo: DpoData = DpoData()
    about: str = ""
    # of every mixture and scale, each after the one it starts from
    stages: tuple[str, ...] = ("pt", "sft")
    seed: int = 0
    threads: int = 0  # of a worker on the CPU; 0: cores divided by jobs. A fixed number gives the same bits
    save_dtype: str = "float32"
    world: WorldSpec | None = None


@dataclass(frozen=True)
class Run:
    """One checkpoint to make."""

    scale: str
    mixture: str
    stage: str

    @property
    def name(self) -> str:
        return f"{self.scale}-{self.mixture}-{self.stage}"

    @property
    def parent(self) -> Run | None:
        """The run whose checkpoint this one starts from."""
        stage = PARENTS[self.stage]
        return None if stage is None else dataclasses.replace(self, stage=stage)

    @property
    def ancestors(self) -> tuple[Run, ...]:
        """The runs that come before this one, the first of them first."""
        return () if self.parent is None else (*self.parent.ancestors, self.parent)

    @property
    def arm(self) -> str:
        """What the run's fine-tuning changes (arms.py)."""
        return self.stage.removeprefix("sft_") if self.stage.startswith("sft_") else "kept"


def settings_of(scale: Scale, stage: str) -> Optimisation:
    if stage == "dpo":
        return preferring(scale)
    return scale.pretrain if stage == "pt" else scale.sft


def preferring(scale: Scale) -> Prefer:
    """The settings of direct preference optimisation, with those that it takes from fine-tuning."""
    lr, micro_rows = scale.dpo.lr or scale.sft.lr / 10, scale.dpo.micro_rows or scale.sft.micro_rows
    return dataclasses.replace(scale.dpo, lr=lr, micro_rows=micro_rows)


def runs(study: Study) -> list[Run]:
    """Every run of the grid, each after those it needs, the costliest scale first."""
    order = sorted(study.scales, key=lambda s: -study.scales[s].pretrain.tokens * study.scales[s].d_model)
    found = [
        Run(scale, mixture, stage) for scale in order for mixture in study.mixtures for stage in study.stages
    ]
    if study.sft.select and study.sft.select.by:  # one scale's models choose for the others
        found.sort(key=lambda run: run.stage != "pt")
    return found


def used_sources(study: Study) -> list[str]:
    """The sources of which some mixture has a share."""
    return [name for name in study.sources if any(m.get(name, 0) > 0 for m in study.mixtures.values())]


def scorer(study: Study, run: Run) -> Run:
    """The pretraining whose model scores the conversations that `run` is fine-tuned on."""
    by = study.sft.select.by if study.sft.select else ""
    return Run(by or run.scale, run.mixture, "pt")


def needed(study: Study, run: Run) -> set[Run]:
    """The runs that come before this one: those it starts from, and the one whose model chooses its conversations."""
    return {*run.ancestors, scorer(study, run)} if run.stage != "pt" else set()


def with_stages(study: Study, chosen: Sequence[str]) -> Study:
    """The study with the stages `chosen` in place of its own, and those that they start from. Raises UserError."""
    stages: list[str] = []
    for name in chosen:
        if name not in PARENTS:
            raise UserError(f"there is no stage {name!r:.60}{nearest(name, PARENTS)}")
        line = [run.stage for run in (*Run("", "", name).ancestors, Run("", "", name))]
        stages += [stage for stage in line if stage not in stages]
    return dataclasses.replace(study, stages=tuple(stages))


def shipped() -> dict[str, Path]:
    """The studies that come with evalengine, by name."""
    from importlib.resources import files

    folder = Path(str(files("evalengine.studies")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load(where: str | Path) -> Study:
    """Reads a study file, or a shipped study by its name. Raises UserError naming the key at fault."""
    path = Path(where)
    if not path.is_file():
        known = shipped()
        if str(where) not in known:
            raise UserError(f"there is no study file {where}; shipped studies: {', '.join(known)}")
        path = known[str(where)]
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path} is empty or not a mapping: see docs/training.md for a study file")
    raw.setdefault("name", path.stem)
    if isinstance(raw.get("sft"), dict) and "reach" in raw["sft"]:
        raise UserError(f"{path}: sft.reach: R has become `select: {{score: loss, keep: [0, R]}}` under sft")
    if isinstance(raw.get("sft"), dict) and "instructions" in raw["sft"]:
        raise UserError(
            f"{path}: sft.instructions has become a stage: leave it out and write `stages: [pt, sft_emptied]`, or "
            "sft_shuffled; the stage sft keeps the instructions"
        )
    study: Study = parse(Study, raw, str(path))
    for name in (*study.mixtures, *study.scales, *study.sources):
        check_name(name, "mixture, scale or source")
    for fault in _faults(study):
        raise UserError(f"{path}: {fault}")
    return study


def _faults(study: Study) -> Iterator[str]:
    """What is wrong with a study that types cannot say."""
    for name, source in study.sources.items():
        if bool(source.path) == bool(source.hub):
            yield f"source {name} needs either `path` or `hub`"
        if source.shuffle < 0:
            yield f"source {name}: shuffle must not be negative"
        of_hub = (source.where, source.shuffle, source.config, source.files, source.split != SourceSpec.split)
        if source.path and any(of_hub):
            yield f"source {name}: config, split, files, where and shuffle are for `hub`"
    for name, shares in study.mixtures.items():
        for part in shares:
            if part not in study.sources:
                yield f"mixture {name} names the unknown source {part!r:.60}{nearest(part, study.sources)}"
        if min(shares.values()) < 0:
            yield f"mixture {name} has a negative share"
        total = sum(shares.values())
        if abs(total - 1.0) >= 1e-6:
            yield f"the shares of mixture {name} sum to {total:g}: make them sum to 1"
    for name, scale in study.scales.items():
        yield from (f"scale {name}: {fault}" for fault in _faults_of_scale(scale))
        rows = scale.pretraining_rows
        for mixture, shares in study.mixtures.items():
            few = [part for part, share in shares.items() if 0 < share * rows < 1]
            if few:
                yield (
                    f"scale {name}: the share of {few[0]} in mixture {mixture} is less than one of the {rows:,} rows that it "
                    "is pretrained on: raise tokens or the share, or leave the source out"
                )
    for name in (*study.mixtures, *study.scales):
        if "-" in name:
            yield f"the name {name!r} must not hold '-': checkpoints are {{scale}}-{{mixture}}-{{stage}}"
    if not study.stages:
        yield "stages is empty: name at least pt"
    for number, stage in enumerate(study.stages):
        if stage not in PARENTS:
            yield f"stages: there is no {stage!r:.60}{nearest(stage, PARENTS)}"
        elif stage in study.stages[:number]:
            yield f"stages: {stage} appears twice"
        elif (parent := PARENTS[stage]) is not None and parent not in study.stages[:number]:
            yield f"stages: {stage} starts from {parent}, so {parent} must come before it"
    if not 0 <= study.seed < 2**31:
        yield "seed must be between 0 and 2**31"
    if bool(study.tokenizer.path) == bool(study.tokenizer.vocab):
        yield "tokenizer needs either `vocab` or `path`"
    if study.tokenizer.sample_mb <= 0:
        yield "tokenizer.sample_mb must be positive: it is how much text the tokenizer is trained on"
    if study.threads < 0:
        yield "threads must not be negative; 0 divides the cores"
    if study.save_dtype not in ("float32", "bfloat16"):
        yield "save_dtype must be float32 or bfloat16"
    if study.sft.select:
        yield from (f"sft.select.{fault}" for fault in _faults_of_select(study.sft.select, study))
    for key, sources in (("sft.data", study.sft.data), ("dpo.data", study.dpo.data)):
        if not all(sum(map(bool, (s.path, s.hub, s.benchmarks_train))) == 1 for s in sources):
            yield f"each entry of {key} needs one of `path`, `hub` or `benchmarks_train`"
        if any((s.config or s.split != ChatSource.split) and not s.hub for s in sources):
            yield f"{key}: config and split are for `hub`"
        if any(s.limit < 0 for s in sources):
            yield f"{key}: limit must not be negative; 0 takes all"
    if not study.dpo.beta > 0:
        yield "dpo.beta must be positive, such as 0.1"


def _faults_of_select(select: Select, study: Study) -> Iterator[str]:
    if select.score not in ("loss", "ifd", "r_ifd"):
        yield f"score must be loss, ifd or r_ifd, not {select.score!r:.60}"
    if len(select.keep) != 2 or not 0 <= select.keep[0] < select.keep[1] <= 1:
        yield f"keep must be two quantiles, the lower one first, such as [0, 0.5], not {list(select.keep)!r:.60}"
    if select.by and select.by not in study.scales:
        yield f"by names the unknown scale {select.by!r:.60}{nearest(select.by, study.scales)}"


def _faults_of_scale(scale: Scale) -> Iterator[str]:
    sizes = (scale.d_model, scale.layers, scale.heads, scale.ffn, scale.context, scale.pretrain.tokens)
    if min(sizes) <= 0:
        yield "sizes and tokens must be positive"
    elif scale.d_model % scale.heads:
        yield (
            "d_model must be a multiple of heads, or transformers refuses the checkpoint (heads * head_dim may "
            "still be anything)"
        )
    elif scale.pretrain.batch_rows > 0 and not scale.pretraining_rows:
        step = scale.pretrain.batch_rows * scale.context
        yield f"pretrain.tokens must be a step or more, which is {step:,} tokens (batch_rows * context)"
    if scale.head_dim < 32 or scale.head_dim % 2:
        yield "head_dim must be even and at least 32"
    if min(scale.pretrain.batch_rows, scale.sft.batch_examples, scale.dpo.batch_pairs) <= 0:
        yield "batches must be positive"
    if min(scale.sft.epochs, scale.dpo.epochs) <= 0:
        yield "epochs must be positive"
    if min(scale.pretrain.lr, scale.sft.lr) <= 0 or scale.dpo.lr < 0:
        yield "lr must be positive"
    if scale.dpo.z_loss:
        yield "dpo has no z_loss: leave it out"
    if scale.vocab < 0:
        yield "vocab must not be negative; 0 is the tokenizer's"
    for stage, settings in (("pretrain", scale.pretrain), ("sft", scale.sft), ("dpo", scale.dpo)):
        yield from (f"{stage}: {fault}" for fault in _faults_of_settings(settings))


def _faults_of_settings(settings: Optimisation) -> Iterator[str]:
    for name, share in (("warmup", "the steps"), ("min_lr", "lr")):
        if not 0 <= getattr(settings, name) <= 1:
            yield f"{name} is a share of {share}, between 0 and 1, not {getattr(settings, name):g}"
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(settings, name) < 1:
            yield f"{name} must be at least 0 and less than 1, not {getattr(settings, name):g}"
    if settings.clip <= 0:
        yield "clip must be positive: to clip no gradient, give a large number, such as 1e9"
    for name in ("weight_decay", "z_loss", "micro_rows"):
        if getattr(settings, name) < 0:
            yield f"{name} must not be negative"
