"""What can be seen of a model's folder before anything heavy is loaded.

Promises: a folder that holds no model, or another one than can be trained, is told at once. Costs: config.json is read.
"""

from __future__ import annotations

import json
from pathlib import Path

# What a model's folder holds; overwriting deletes these, and nothing else, of a model.
MODEL_FILES = (
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "prompt_templates.json",
)  # fmt: skip


def model_problems(model_path: str | None, length: int | None, *, any_kind: bool = False) -> list[str]:
    """What is wrong with a model folder, and whether blocks of `length` tokens fit its positions.

    Only Qwen models can be trained; `any_kind` of causal language model can be evaluated.
    """
    if not model_path:
        return []
    file = Path(model_path) / "config.json"
    if not file.is_file():
        why = "it has no config.json" if Path(model_path).is_dir() else "no such folder"
        return [
            f"--model_path {model_path}: {why}; make a model with "
            f"`python -m miniqwen.create_model --output_dir {model_path}`"
        ]
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        kind, positions = described.get("model_type"), described.get("max_position_embeddings")
    except (ValueError, AttributeError):
        return [f"{file}: is not a JSON object"]
    if kind not in ("qwen3", "qwen2") and not any_kind:
        return [f"{file}: model_type is {kind!r}; MiniQwen trains qwen3 and qwen2 models"]
    if length and isinstance(positions, int) and length > positions:
        return [
            f"blocks of {length} tokens are longer than the model's {positions} positions: "
            "lower --block_size or --max_seq_length"
        ]
    return []
