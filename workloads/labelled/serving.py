"""A transformer as serving engines run it: the tokens of all sequences in one row, one attention operator.

vLLM-Ascend and its like put the new tokens of every sequence of a step behind each other, give the attention
operator the cumulative query lengths and the KV lengths as integer arrays, and keep keys and values in pages.
Random weights; the computation is real where the device computes.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

# torch_npu adds to torch what its types do not know.
torch: Any = importlib.import_module("torch")
torch_npu: Any = importlib.import_module("torch_npu")
Tensor = Any

HIDDEN, HEADS, HEAD, VOCABULARY = 64, 4, 16, 1000
BLOCK, BLOCKS_A_SEQUENCE = 16, 8
#: Keys that a sequence has room for.
ROOM = BLOCK * BLOCKS_A_SEQUENCE


class Model:
    """`layers` layers for at most `sequences` sequences, on the current NPU.

    `gathers`: rows of the table are picked by an operator that is not an embedding, as some engines do.
    """

    def __init__(self, layers: int, sequences: int, *, gathers: bool = False) -> None:
        self._gathers = gathers

        def weight(*shape: int) -> Tensor:
            return (torch.randn(*shape) * 0.05).to(torch.float16).npu()

        self.table = weight(VOCABULARY, HIDDEN)
        self.layers = [
            {"qkv": weight(HIDDEN, 3 * HIDDEN), "up": weight(HIDDEN, 128), "down": weight(128, HIDDEN)}
            for _ in range(layers)
        ]
        pages = sequences * BLOCKS_A_SEQUENCE
        self.caches = [(weight(pages, BLOCK, HIDDEN), weight(pages, BLOCK, HIDDEN)) for _ in range(layers)]
        self.tables = torch.arange(pages, dtype=torch.int32).reshape(sequences, BLOCKS_A_SEQUENCE).npu()

    def embed(self, ids: Tensor) -> Tensor:
        """(tokens,) ids to (tokens, HIDDEN)."""
        if self._gathers:
            return self.table.index_select(0, ids)
        return torch.nn.functional.embedding(ids, self.table)

    def before_attention(self, x: Tensor, layer: int) -> tuple[Tensor, ...]:
        """(tokens, HIDDEN) to q (tokens, HEADS, HEAD), k and v (tokens, HIDDEN)."""
        q, k, v = (x @ self.layers[layer]["qkv"]).split(HIDDEN, dim=-1)
        return q.reshape(-1, HEADS, HEAD).contiguous(), k, v

    def attention(
        self, q: Tensor, layer: int, tables: Tensor, ends: Sequence[int], keys: Sequence[int]
    ) -> Tensor:
        """`ends`: cumulative query lengths; `keys`: KV length of each sequence; `tables`: their pages."""
        made: Tensor = torch_npu.npu_fused_infer_attention_score(
            q,
            *self.caches[layer],
            block_table=tables,
            block_size=BLOCK,
            actual_seq_lengths=list(ends),
            actual_seq_lengths_kv=list(keys),
            num_heads=HEADS,
            num_key_value_heads=HEADS,
            input_layout="TND",
            scale=HEAD**-0.5,
        )[0]
        return made

    def after_attention(self, x: Tensor, made: Tensor, layer: int) -> Tensor:
        """Adds what attention made, and the feed-forward part, to `x`; its shape stays."""
        x = x + made.reshape(-1, HIDDEN)
        up: Tensor = torch.nn.functional.silu(x @ self.layers[layer]["up"])
        return x + up @ self.layers[layer]["down"]

    def choose(self, x: Tensor) -> Tensor:
        """(sequences, HIDDEN) to the (sequences,) most likely ids."""
        return (x @ self.table.t()).argmax(-1)

    def __call__(self, ids: Tensor, tables: Tensor, ends: Sequence[int], keys: Sequence[int]) -> Tensor:
        """The next token after each of `ids` [N]."""
        x = self.embed(ids)
        for layer in range(len(self.layers)):
            q, _, _ = self.before_attention(x, layer)
            x = self.after_attention(x, self.attention(q, layer, tables, ends, keys), layer)
        return self.choose(x)
