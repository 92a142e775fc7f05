"""A sample of the sweep: one family of each kind of arithmetic, held to the contract in float32 and bfloat16.

A checkpoint with flat logits is scored first, then one with large ones, by the same backend: what the engine found out about the
first must hold for the second. How it runs them (packed or plain) is its own business.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import contract
import pytest
import tiny_configs
import torch

from evalengine.model import proof

FAMILIES = [
    *("mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma"),  # recurrent
    *("jamba", "bamba", "zamba2", "falcon_h1", "nemotron_h", "qwen3_next", "lfm2", "minimax"),  # hybrid
    *("bloom", "mpt", "falcon-alibi"),  # ALiBi
    *("mixtral", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss"),  # experts; gpt_oss has sinks
    *("deepseek_v2", "deepseek_v3", "deepseek_v32"),  # latent and indexed attention
    *("llama4_text", "mistral", "gemma2", "gemma3_text", "cohere2", "gpt_neo"),  # chunks, windows, soft-caps
    *("phi3-longrope", "llama-dynamic", "llama-yarn", "ministral3"),  # rotary embeddings that look at lengths
    *("diffllama", "hrm_text"),  # attention that runs twice in a layer, layers that run several times
    *("phimoe", "rembert"),  # a window in the mask alone; embeddings narrower than hidden states
    *("doge", "smollm3", "gptj", "codegen", "falcon", "gpt_bigcode", "granite"),
    *("opt", "xglm", "biogpt"),  # learned and sinusoidal positions
    *("gemma3", "mllama", "llama4"),  # the text part of multimodal models
]
NOT_CAUSAL = ["bert-encoder", "roberta-encoder", "xlnet"]


class Case(NamedTuple):
    """A checkpoint, what is scored with it, and what plain float32 forwards give."""

    path: Path
    few: contract.Items
    shots: contract.Items
    exact: contract.Exact


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small only lose time to threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def one_proof() -> Iterator[None]:
    """A proof is of a configuration, in float32 whatever the scores are made in: the two precisions take the same one."""
    made: dict[tuple[object, ...], proof.Proof] = {}
    prove = proof.prove

    def once(config: Any, length: int, tokens: int, model_class: Any = None) -> proof.Proof:
        about = re.sub('"(torch_)?dtype": "[a-z0-9]*"', "", config.to_json_string(use_diff=False))
        key = (about, length, tokens, model_class)
        if key not in made:
            made[key] = prove(config, length, tokens, model_class)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "prove", once)
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Two checkpoints of a family: flat logits, then large ones."""
    folder = tmp_path_factory.mktemp(request.param)
    return [
        case(tiny_configs.save(folder / "step1", request.param, seed=1, gain=0.1)),
        case(tiny_configs.save(folder / "step9000", request.param)),
    ]


def case(path: Path) -> Case:
    few, shots = contract.encoded(path, contract.few()), contract.encoded(path, contract.shots()[:3])
    return Case(path, few, shots, contract.plain(path, "float32", few.sequences, shots.sequences))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_are_those_of_a_plain_forward(family: list[Case], dtype: str) -> None:
    backend = contract.engine(dtype, batch_tokens=256)
    for case in family:
        parts = (case.few.sequences, case.shots.sequences)
        scores = contract.score(backend, case.path, *parts)
        assert scores.loglik is not None, scores.notes
        verdict = contract.verdict(
            scores.loglik, contract.truth(case.path, dtype, *parts, exact=case.exact), dtype
        )
        assert verdict.kept, (case.path.name, scores.path, scores.notes, verdict)


def test_the_truth_is_the_harness(family: list[Case]) -> None:
    """lm-evaluation-harness agrees with the plain forward that the engine is held to."""
    case = family[1]
    exact = case.exact.loglik[: len(case.few.sequences)]
    found = contract.verdict(
        contract.harness(case.path, "float32", case.few), contract.Truth(exact, exact), "float32"
    )
    assert found.kept, found


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_a_model_that_sees_the_answer_is_refused(name: str, tmp_path: Path) -> None:
    path = tiny_configs.save(tmp_path / name, name)
    assert contract.habits(path).ahead > 1, "it attends to later tokens"
    items = contract.encoded(path, contract.few())
    scores = contract.score(contract.engine("float32"), path, items.sequences)
    assert scores.path == "refused" and "causal" in scores.notes[0]


def test_every_registered_type_has_a_tiny_configuration() -> None:
    """The rule and its table cover what transformers registers, but for what needs more than text or another package."""
    missing = []
    for name in tiny_configs.names():
        try:
            tiny_configs.tiny(name)
        except Exception as error:
            missing.append((name, str(error)[:80]))
    assert len(missing) <= 3, missing
