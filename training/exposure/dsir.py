"""The importance weight of DSIR: how well a source's words and pairs of words describe a text.

Xie et al. (2023), "Data Selection for Language Models via Importance Resampling", section 4: a text is a bag of
hashed unigrams and bigrams z (10,000 buckets), a data set the multinomial of its summed counts, and the weight of a
text x is log p(x) - log q(x) = sum_j z_j (log p_j - log q_j) with p of the target and q of the raw data. As in
the authors' code, 1e-8 is added to the probabilities. Two departures: words are runs of letters and digits, as everywhere in
this package, and the hash is one of machine integers.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

BUCKETS = 10_000
ADDED = 1e-8
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def buckets(words: Sequence[str]) -> np.ndarray:
    """The buckets of a text's unigrams, then of its bigrams: 2 words - 1 integers, equal on any machine."""
    word_N = np.array([zlib.crc32(word.encode()) for word in words], np.uint64)
    pair_N = word_N[:-1] * _FACTOR + word_N[1:] + np.uint64(1)
    mixed = np.concatenate([word_N, pair_N]) * _FACTOR  # wraps; upper bits depend on all of the lower ones
    return ((mixed >> np.uint64(32)) % np.uint64(BUCKETS)).astype(np.intp)


def log_probabilities(count_SB: np.ndarray) -> np.ndarray:
    """Log probability of every bucket in each source, from its counts."""
    return np.log(count_SB / count_SB.sum(axis=1, keepdims=True) + ADDED)


def value(bucket_N: np.ndarray, log_q_SB: np.ndarray) -> np.ndarray:
    """Minus the log importance weight of a text, the text itself as the target, for each source: shape [S], in nats.

    sum_j z_j (log q_j - log p_j), which is -N KL(p, q): 0 where the source has the text's own distribution, less the less
    likely the source is to yield it. Another target p would add the same number for all sources.
    """
    _, count = np.unique(bucket_N, return_counts=True)
    own = (count * np.log(count / max(len(bucket_N), 1))).sum()
    return np.asarray(log_q_SB[:, bucket_N].sum(axis=1) - own)
