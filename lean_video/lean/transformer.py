"""SVD's transformers over a clip in pieces: their spatial half frame by frame, their temporal half position by position.

Shape suffixes: F frames of one chunk, T frames of the clip, P positions, C channels, N tokens of any arrangement, D channels of the context.
Tokens of a clip are chunks [F,P,C], in the order of the clip's chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pieces import Repeats

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel


_FUSED_WIDTH = 256  # of a head, in flash attention


def one_key_attention(attention: Any, context_11D: Tensor) -> Tensor:
    """What diffusers' `Attention` over a context gives every token when there is one key, [1,1,C]: softmax over one score is 1, so the query does not matter."""
    return attention.to_out[0](attention.to_v(context_11D))


def frame_positions(transformer: TransformerSpatioTemporalModel, frames: int, like: Tensor) -> Tensor:
    """The embedding [T,C] of each frame's place in the clip: the same for every clip of that length."""
    index_T = torch.arange(frames, device=like.device)
    return transformer.time_pos_embed(transformer.time_proj(index_T).to(like.dtype))


def mix_space(block: Any, tokens_FPC: Tensor, context_11C: Tensor, chunk_tokens: int) -> Tensor:
    """A `BasicTransformerBlock`, in place. `context_11C` is its folded cross-attention."""
    tokens_FPC += self_attention(block.attn1, block.norm1(tokens_FPC))
    tokens_FPC += context_11C
    add_feed_forward(block.norm3, block.ff, tokens_FPC, chunk_tokens)
    return tokens_FPC


def mix_time(block: Any, tokens_PTC: Tensor, context_11C: Tensor, chunk_tokens: int) -> Tensor:
    """A `TemporalBasicTransformerBlock`, in place. `context_11C` is its folded cross-attention."""
    add_feed_forward(block.norm_in, block.ff_in, tokens_PTC, chunk_tokens)
    tokens_PTC += self_attention(block.attn1, block.norm1(tokens_PTC))
    tokens_PTC += context_11C
    add_feed_forward(block.norm3, block.ff, tokens_PTC, chunk_tokens)
    return tokens_PTC


def self_attention(attention: Any, x_BNC: Tensor, chunk_queries: int | None = None) -> Tensor:
    """Multi-head self-attention of each row of tokens on its own; each query asks all keys, so that queries may go in pieces."""
    q, k, v = (to(x_BNC).unflatten(2, (attention.heads, -1)).transpose(1, 2) for to in (attention.to_q, attention.to_k, attention.to_v))
    y_BHNd = attend(q, k, v) if chunk_queries is None else torch.cat([attend(some, k, v) for some in q.split(chunk_queries, dim=2)], dim=2)
    del q, k, v
    return attention.to_out[0](y_BHNd.transpose(1, 2).flatten(2))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention [B,heads,N,d].

    On the meta device it allocates what real devices do: the result, and a score matrix where heads are too wide for the kernels without one.
    """
    if q.is_meta:
        scores = None if q.shape[-1] <= _FUSED_WIDTH else q.new_empty(*q.shape[:-1], k.shape[-2])
        result, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, compute_log_sumexp=False)
        del scores
        return result
    return F.scaled_dot_product_attention(q, k, v)


def add_feed_forward(norm: nn.LayerNorm, feed_forward: Any, x: Tensor, chunk_tokens: int) -> None:
    """Adds feed_forward(norm(x)) to the contiguous [..., C] in place: its inner width, 8 C, exists for `chunk_tokens` at a time."""
    geglu, _, out = feed_forward.net
    tokens_NC = x.view(-1, x.shape[-1])
    repeats = Repeats(x.device, len(tokens_NC))
    for rows_NC in tokens_NC.split(chunk_tokens):
        if repeats(len(rows_NC)):
            continue
        value_NI, gate_NI = geglu.proj(norm(rows_NC)).chunk(2, dim=-1)
        inner_NI = F.gelu(gate_NI).mul_(value_NI)
        del value_NI, gate_NI
        rows_NC += out(inner_NI)
        del inner_NI


def to_tokens(x_FCHW: Tensor) -> Tensor:
    return x_FCHW.flatten(2).transpose(1, 2)


def gather_tokens(tokens: list[Tensor], span: slice) -> Tensor:
    """A contiguous copy [P,T,C] of every frame's tokens at the positions of `span`."""
    return torch.cat([tokens_FPC[:, span].transpose(0, 1) for tokens_FPC in tokens], dim=1)


def split_frames(tokens_PTC: Tensor, tokens: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each chunk of the clip with its frames of `tokens_PTC` as [F,P,C]."""
    pieces = tokens_PTC.split([tokens_FPC.shape[0] for tokens_FPC in tokens], dim=1)
    return zip(tokens, (piece.transpose(0, 1) for piece in pieces), strict=True)
