"""The sizes that a new model can have.

Promises: the table of the README is made of them. Costs: nothing; parameters are counted without making weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from miniqwen.model.modeling_miniqwen import MiniQwenConfig, MiniQwenForCausalLM, count_parameters


@dataclass(frozen=True)
class Size:
    """The shape of a model, and the vocabulary it has unless told otherwise."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int

    def config(self, vocab_size: int, end: int | None = None) -> MiniQwenConfig:
        """The configuration with `vocab_size` entries, of which `end` ends a text.

        It names no padding token, as Qwen's own do not: torch never trains the embedding of one, and padding is the end
        token here, which stands in every block.
        """
        shape = {**vars(self), "vocab_size": vocab_size}
        return MiniQwenConfig(**shape, tie_word_embeddings=True, rope_parameters=ROPE, eos_token_id=end)


ROPE = {"rope_type": "default", "rope_theta": 1_000_000.0}  # Qwen3's
SIZES = {
    "tiny": Size(128, 4, 4, 2, 32, 384, 8_192, 1_024),
    "small": Size(384, 8, 6, 2, 64, 1_152, 16_384, 2_048),
    "medium": Size(640, 16, 10, 5, 64, 1_920, 32_768, 4_096),
    "base": Size(768, 24, 12, 4, 64, 2_304, 65_536, 8_192),
    "large": Size(1_024, 28, 16, 8, 128, 3_072, 151_936, 40_960),  # Qwen3-0.6B
}


def size_parameters(size: Size, vocab_size: int) -> int:
    """The parameters of a size with some vocabulary, without making its weights."""
    with torch.device("meta"):
        return count_parameters(MiniQwenForCausalLM(size.config(vocab_size)))


def size_table() -> str:
    """The sizes as a Markdown table, parameters counted in the models themselves."""
    rows = [
        ("size", "parameters", "width", "layers", "heads", "key-value heads", "vocabulary", "positions"),
        ("---", *["--:"] * 7),
    ]
    for name, size in SIZES.items():
        numbers = (
            size_parameters(size, size.vocab_size), size.hidden_size, size.num_hidden_layers, size.num_attention_heads,
            size.num_key_value_heads, size.vocab_size, size.max_position_embeddings,
        )  # fmt: skip
        rows.append((name, *(f"{number:,}" for number in numbers)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
