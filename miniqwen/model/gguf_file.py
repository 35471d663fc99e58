"""A model's folder as one file that llama.cpp, and what is built on it (Ollama, LM Studio), opens: GGUF.

Promises: the same tokens and the same model, or a refusal: what llama.cpp would read in another way is not written. The
file appears whole or not at all. The layout is that of llama.cpp's own converter, which refuses vocabularies that it
does not know by a hash; all it lacks is their pre-tokenizer's name.
Costs: the weights in memory twice, in fp32 and as they are written. The package `gguf` is imported here only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from miniqwen.errors import UserError
from miniqwen.files import sync
from miniqwen.model.modeling_miniqwen import load_model, read_config
from miniqwen.model.tokenization_miniqwen import PATTERN, check_vocabulary, load_tokenizer

Q8_BLOCK = 32  # values that share a scale; rows of other lengths stay in f16
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # kinds of tokens, as llama.cpp numbers them


def write_gguf(folder: Path, target: Path, kind: str) -> None:
    """Write the Qwen3 or Qwen2 model in `folder` to `target`, its matrices as `kind`: f32, f16 or q8_0.

    Vectors stay in f32. Raises `UserError` for a model or a tokenizer that llama.cpp would read as another one, and
    where the package is missing; `OSError` where the file cannot be written.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError("the package gguf is missing: pip install -c constraints.txt gguf")
    import gguf

    config, tokenizer = read_config(folder), load_tokenizer(folder)
    _check(folder, config, tokenizer)
    model = load_model(folder)
    temporary = target.with_name(f".{target.name}.tmp")
    writer = gguf.GGUFWriter(temporary, config.model_type)
    try:
        _describe(writer, folder, config, kind)
        _add_tokens(writer, tokenizer, config.vocab_size)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[config.model_type.upper()], config.num_hidden_layers)
        for name, parameter in model.named_parameters():  # a tied output matrix comes once
            written = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert written, f"{name} has no name in llama.cpp"
            quantised, stored_as = _quantised(parameter.detach(), kind)
            writer.add_tensor(written, quantised, raw_dtype=stored_as)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _check(folder: Path, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """What has no place in the file, or another meaning there."""
    check_vocabulary(tokenizer, config.vocab_size, folder)
    problems = []
    if (rope := config.rope_parameters.get("rope_type", "default")) != "default":
        problems.append(f"positions are scaled ({rope})")
    if getattr(config, "use_sliding_window", False):
        problems.append("attention reaches back a window only")
    if config.hidden_act != "silu":
        problems.append(f"its activation is {config.hidden_act}")
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    splits = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    before = described["pre_tokenizer"] or {}
    if described["model"].get("type") != "BPE" or splits not in before.get("pretokenizers", ()):
        problems.append(
            "its tokenizer splits texts in another way than Qwen's, which is the one that is named in the file"
        )
    if problems:
        raise UserError(*(f"{folder}: {problem}: not written as GGUF" for problem in problems))


def _describe(writer: Any, folder: Path, config: Any, kind: str) -> None:
    import gguf

    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(folder.resolve().name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    types = gguf.LlamaFileType
    writer.add_file_type({"f32": types.ALL_F32, "f16": types.MOSTLY_F16, "q8_0": types.MOSTLY_Q8_0}[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_tokens(writer: Any, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """All tokens by their numbers; those that the model has room for and no text becomes are named [PAD...]."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    added: Mapping[int, Any] = tokenizer.added_tokens_decoder
    by_number = {number: token for token, number in tokenizer.get_vocab().items()}
    tokens, kinds = [], []
    for number in range(size):
        if number in added:
            tokens.append(added[number].content)
            kinds.append(CONTROL if added[number].special else USER_DEFINED)
        else:
            tokens.append(by_number.get(number, f"[PAD{number}]"))
            kinds.append(NORMAL if number in by_number else UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(
        [pair if isinstance(pair, str) else " ".join(pair) for pair in described["model"]["merges"]]
    )
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _quantised(values: torch.Tensor, kind: str) -> tuple[np.ndarray, Any]:
    import gguf

    whole = values.float().numpy()
    types = gguf.GGMLQuantizationType
    if values.dim() < 2 or kind == "f32":
        return whole, types.F32
    if kind == "f16" or whole.shape[-1] % Q8_BLOCK:
        return whole.astype(np.float16), types.F16
    return gguf.quants.quantize(whole, types.Q8_0), types.Q8_0
