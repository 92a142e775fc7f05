"""The learner's frontier: scores of conversations under a pretrained model, and the choice of some by their quantiles.

    loss   loss(y | x)                          x what is said before the response y
    ifd    exp(loss(y | x) - loss(y))           instruction-following difficulty (Li et al., 2024, arXiv 2308.12032)
    r_ifd  exp(loss(x | y') - loss(x))          y' asks to guess x from y (Li et al., 2024, arXiv 2402.10110)

A loss is the mean over the tokens that carry it, a response's closing token included, as fine-tuning takes it. Without
a context a text stands alone after <|endoftext|>, so that its first token has a probability; each response of a
conversation of several turns does. An ifd near 1 says that the instruction helps little; under 1, that it helps.

Cost: one forward over the conversations for `loss`, one more over what carries the loss for the other two, in batches
of similar length, and the output layer on those positions only; logits are never stored.

Dims: B rows, T positions, N positions that carry the loss, D hidden, M conversations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from evalengine.errors import UserError
from evalengine.kernels import target_logprobs
from evalengine.training.chat import ROLES, Conversation, Message
from evalengine.training.data.conversations import Example, cut, tokenise
from evalengine.training.data.packed import lay_out
from evalengine.training.data.rows import IGNORE
from evalengine.training.data.tokenizer import Tokenizer
from evalengine.training.decoder.attention import DocumentMask
from evalengine.training.decoder.model import Decoder
from evalengine.training.fitting.loop import autocast
from evalengine.training.fitting.state import Place

BATCH_TOKENS = 8192  # positions in a batch
GUESS = "Here is a response.\nResponse: {response}\nWhat instruction or question was it given to?"


def scores(
    model: Decoder, examples: Sequence[Example], score: str, tokenizer: Tokenizer, place: Place
) -> np.ndarray:
    """The `score` (loss, ifd or r_ifd) of every conversation under `model`, float64; NaN where it has none.

    Sequences are cut at the model's context. A conversation has no score where nothing that carries the loss is left
    within it: for r_ifd, too, where its instructions are empty or a response leaves no room for them.
    """
    if score == "r_ifd":
        examples = reverse(examples, tokenizer)
    examples = cut(examples, model.shape.context)
    token_M = np.array([example.learned_T.sum() for example in examples])
    given_M = loss_sums(model, examples, place)
    with np.errstate(invalid="ignore"):
        if score == "loss":
            return given_M / token_M
        return np.exp((given_M - _sums_alone(model, examples, tokenizer.end, place)) / token_M)


def reverse(examples: Sequence[Example], tokenizer: Tokenizer) -> list[Example]:
    """The conversations with the roles exchanged: asked by `GUESS`, the assistant says what the user said.

    A turn is what was said since the last response, and its response; one without an instruction is left out.
    """
    return tokenise([_guessing(turns_of(example, tokenizer)) for example in examples], tokenizer)


def _guessing(conversation: Conversation) -> Conversation:
    turned: list[Message] = []
    said: list[str] = []
    for role, content in conversation:
        if role != "assistant":
            said.append(content)
            continue
        instruction = "\n".join(filter(None, said))
        if instruction:
            turned += [Message("user", GUESS.format(response=content)), Message("assistant", instruction)]
        said = []
    return tuple(turned)


def turns_of(example: Example, tokenizer: Tokenizer) -> Conversation:
    """The conversation that a tokenised one was made of, its messages stripped."""
    role_of = {tokenizer.rust.token_to_id(f"<|{role}|>"): role for role in ROLES}
    begins = [at for at, token in enumerate(example.token_T.tolist()) if token in role_of]
    ends = [*begins[1:], len(example.token_T)]
    return tuple(
        Message(role_of[int(example.token_T[a])], _text(example.token_T[a + 1 : b], tokenizer))
        for a, b in zip(begins, ends, strict=True)
    )


def _text(token_T: np.ndarray, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(token for token in token_T.tolist() if token != tokenizer.end).strip()


def _sums_alone(model: Decoder, examples: Sequence[Example], end: int, place: Place) -> np.ndarray:
    """The summed loss of what carries it in each conversation, every stretch of it alone after <|endoftext|>."""
    owner: list[int] = []
    alone: list[Example] = []
    for number, example in enumerate(examples):
        for token_T in _stretches(example):
            owner.append(number)
            learned_T = np.arange(len(token_T) + 1) > 0
            alone.append(Example(np.concatenate([np.array([end], np.uint32), token_T]), learned_T))
    return np.bincount(np.array(owner, np.int64), loss_sums(model, alone, place), minlength=len(examples))


def _stretches(example: Example) -> Iterator[np.ndarray]:
    """The tokens of each response, its closing token included."""
    bounds = np.flatnonzero(np.diff(example.learned_T.astype(np.int8), prepend=0, append=0))
    for start, end in bounds.reshape(-1, 2):
        yield example.token_T[start:end]


@torch.no_grad()
def loss_sums(model: Decoder, examples: Sequence[Example], place: Place) -> np.ndarray:
    """Summed loss of every example's learned tokens, float64.

    Examples of similar length share a batch, one a row. The processes of a group divide the batches among them, and
    all get the same numbers.
    """
    model.to(place.device).eval()
    group, sum_M = place.group, np.zeros(len(examples))
    longest_first = np.argsort([-len(ids) for ids, _ in examples], kind="stable")
    at, number = 0, 0
    while at < len(longest_first):
        width = len(examples[longest_first[at]].token_T) - 1
        chosen = longest_first[at : at + max(1, BATCH_TOKENS // max(1, width))]
        at, number = at + len(chosen), number + 1
        if number % group.size == group.rank:
            sum_M[chosen] = _row_sums(model, [examples[i] for i in chosen], place)
    return group.sum(torch.from_numpy(sum_M).to(place.device)).cpu().numpy()


def _row_sums(model: Decoder, rows: list[Example], place: Place) -> np.ndarray:
    """Summed loss of each row's learned tokens; padding follows what is learned, where nothing attends to it."""
    batch = lay_out([[example] for example in rows], "")
    row, at = (batch.target_BT != IGNORE).nonzero()
    if not len(row):
        return np.zeros(len(rows))
    arrays = (batch.token_BT, batch.position_BT, row, at, batch.target_BT[row, at])
    token_BT, position_BT, row_N, at_N, target_N = (torch.from_numpy(a).to(place.device) for a in arrays)
    with autocast(place):  # one document a row: plain causal attention is exact
        h_BTD = model.hidden(token_BT, position_BT, DocumentMask())
    h_ND = h_BTD[row_N, at_N]
    index_N = torch.arange(len(row_N), device=place.device)
    scored = target_logprobs(h_ND, model.head.weight.to(h_ND.dtype), index_N, target_N)
    total_B = torch.zeros(len(rows), dtype=torch.float64, device=place.device)
    return total_B.index_add_(0, row_N, -scored.logprob_T.double()).cpu().numpy()


def between(score_M: np.ndarray, keep: tuple[float, ...]) -> np.ndarray:
    """Which conversations lie between the two quantiles `keep` of the scores: bool (M,).

    Quantiles count conversations in the order of their scores, equal ones in the file's order, so [0, q] and [q, 1]
    share none and leave none out. Raises UserError where the two hold none between them.
    """
    scored = np.flatnonzero(~np.isnan(score_M))
    order = scored[np.argsort(score_M[scored], kind="stable")]
    first, last = (round(quantile * len(order)) for quantile in keep)
    if first == last:
        raise UserError(
            f"sft.select keeps none of {len(order)} conversations that have a score between the quantiles "
            f"{keep[0]:g} and {keep[1]:g}: widen `keep`"
        )
    chosen_M = np.zeros(len(score_M), bool)
    chosen_M[order[first:last]] = True
    return chosen_M


def random_control(
    token_M: np.ndarray, among_M: np.ndarray, tokens: int, seed: tuple[int, ...]
) -> np.ndarray:
    """Random conversations `among_M` with as many tokens as `tokens`, to the nearest conversation: bool (M,)."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(among_M))
    count = int(np.abs(token_M[order].cumsum() - tokens).argmin()) + 1
    chosen_M = np.zeros(len(token_M), bool)
    chosen_M[order[:count]] = True
    return chosen_M
