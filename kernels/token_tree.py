"""What both kernels of `tree_attention` read: the tree of tokens.

Dims: N tokens, A ancestors, B blocks.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

WIDEST = 256  # head or value


class Tree(NamedTuple):
    """Tokens in depth-first order, in blocks; all tensors on the device of the queries.

    Query n sees the kept prefix, those ancestors of its block's first token and those tokens of its block for which
    key <= n < end_N[key].
    """

    ancestor_A: Tensor  # int32: of each block's first token, block after block
    offset_B: Tensor  # int32, (B + 1,): where a block's ancestors begin, and where the last one's end
    end_N: Tensor  # int32: where the token's subtree ends
    position_N: Tensor  # int32 or int64: number of ancestors, the kept prefix among them
    block: int  # tokens of a block; N is a multiple
