"""What is evaluated: any causal language model of the library, behind one call that scores choices.

Promises: a folder of weights (safetensors only, no code of its own) becomes a model whose forward pass gives the
log-probabilities that `scoring` asks for. Layouts in `SHARED` compute a prompt once for all of its choices; every other
one is called as the library calls it, a row a choice, which is exact for windows, recurrence or capped logits too.
Costs: such a row holds its own copy of the prompt, and its logits `[choices, positions, vocabulary]` if the model
cannot leave some out.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from miniqwen.errors import UserError
from miniqwen.files import read_json
from miniqwen.model.attention import SHARED_PREFIX_ATTENTION, SharedPrefixes
from miniqwen.model.loss import Scored, log_probabilities
from miniqwen.model.modeling_miniqwen import MODELS, TargetLoss, load_model, read_model

# Tested: what they are given besides the row reaches their attention, and nothing but a matrix makes their logits.
SHARED = ("gpt2", "gpt_neox", "llama", "mistral", "olmo2", "qwen2", "qwen3")

SHORT_OF_MEMORY = (  # what to try when it runs out although batches are halved
    "--bf16 (--fp16 on GPUs before Ampere): half the memory of what is computed",
    "shorter texts, --max_new_tokens lower: less of the model's keys and values",
    "fewer processes on the machine: each holds the whole model",
    "CUDA_VISIBLE_DEVICES= before the command, where it is a GPU's memory: the machine's own is taken",
)


class SharedPrefixModel(torch.nn.Module):
    """A model of the library that computes what choices share once."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        model.set_attn_implementation(SHARED_PREFIX_ATTENTION)

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, shared: SharedPrefixes, scored: Scored
    ) -> torch.Tensor:
        """The scored tokens' log-probabilities [n] in fp32, of one row [1, length] laid out as `shared` says."""
        output = self.model.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False, shared=shared)
        head = self.model.get_output_embeddings()
        return log_probabilities(output.last_hidden_state, head.weight, scored, getattr(head, "bias", None))


class RowModel(torch.nn.Module):
    """A model of the library, called with a whole text a choice, as everybody calls it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self._can_leave_out = "logits_to_keep" in inspect.signature(model.forward).parameters

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, shared: SharedPrefixes, scored: Scored
    ) -> torch.Tensor:
        """The same as `SharedPrefixModel`'s."""
        row, start, rows = input_ids[0], 0, []
        for own, tails in shared.lengths:
            prompt, *behind = row[start : start + own + sum(tails)].split([own, *tails])
            start += own + sum(tails)
            rows += self._rows(prompt, [tail for tail in behind if len(tail)] or [prompt[:0]])
        logits = torch.cat(rows).float()  # in the order of the row, as the scored places are
        return logits.log_softmax(dim=-1)[scored.which, scored.tokens]

    def _rows(self, prompt: torch.Tensor, tails: list[torch.Tensor]) -> list[torch.Tensor]:
        """Logits behind the prompt [1, vocabulary] and behind each token of each tail [tail, vocabulary].

        Rows are padded on the right, which nothing before it can see.
        """
        longest = max(map(len, tails))
        ids = torch.stack([torch.cat([prompt, tail, tail.new_zeros(longest - len(tail))]) for tail in tails])
        kept = {"logits_to_keep": longest + 1} if self._can_leave_out else {}
        logits = self.model(input_ids=ids, use_cache=False, **kept).logits[:, -longest - 1 :]
        return [logits[0, :1], *(own[1 : len(tail) + 1] for own, tail in zip(logits, tails, strict=True))]


def scorer(model: PreTrainedModel) -> torch.nn.Module:
    """`model` with the forward pass that `scoring` calls."""
    if isinstance(model, TargetLoss):
        return model  # type: ignore[return-value]  # every model of ours is a module
    known = model.config.model_type in SHARED and window_of(model.config.to_dict()) is None
    return SharedPrefixModel(model) if known else RowModel(model)


def window_of(described: Mapping[str, Any]) -> int | None:
    """How far back a model's attention reaches, by its config.json; None: to the beginning."""
    # Qwen names a window that it does not use
    return described.get("sliding_window") if described.get("use_sliding_window", True) else None


def computing_in(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Around a computation in `precision` (no, bf16, fp16, as Accelerate names it)."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end what a model writes: its tokenizer's, and those of its generation_config.json.

    Raises `UserError` where these are no tokens.
    """
    own = model.generation_config.eos_token_id
    listed = own if isinstance(own, list) else [] if own is None else [own]
    if not all(isinstance(token, int) for token in listed):
        raise UserError(
            f"generation_config.json: eos_token_id is {own!r}, and must be a token's number or a list of them"
        )
    return {tokenizer.eos_token_id, *listed}


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Raises `UserError` when the folder's tokenizer has tokens that its model does not know."""
    vocabulary, tokens = model.get_input_embeddings().num_embeddings, max(tokenizer.get_vocab().values()) + 1
    if tokens > vocabulary:
        raise UserError(f"{folder}: the tokenizer has {tokens} tokens, the model only {vocabulary}")


def load_causal_model(folder: str | Path) -> PreTrainedModel:
    """The model in a folder, its weights in fp32.

    Raises `UserError` for models that are no causal language models, for code and pickles in the folder, for missing or
    broken weights.
    """
    path = Path(folder)
    try:
        described = read_json(path / "config.json")
        kind = described.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: no readable config.json ({error})") from None
    if kind in MODELS and window_of(described) is None:
        return load_model(path)
    if described.get("auto_map"):
        raise UserError(f"{path}: the model brings code of its own (auto_map), which is never run")
    failure = "no causal language model that can be loaded"
    model: PreTrainedModel = read_model(AutoModelForCausalLM, path, failure, dtype=torch.float32)
    return model
