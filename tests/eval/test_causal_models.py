"""Any causal language model of the library scores as its own full logits say."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from miniqwen.errors import UserError
from miniqwen.eval.causal_models import SHARED, RowModel, SharedPrefixModel, load_causal_model, scorer
from miniqwen.eval.scoring import model_positions, score_rounds
from miniqwen.model.modeling_miniqwen import MiniQwen2ForCausalLM, MiniQwenForCausalLM
from miniqwen.questions.protocols import Request

COMMON: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 100, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SMALL_GPT2 = {"vocab_size": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 100, "initializer_range": 0.3}
GROUPED = COMMON | {"num_key_value_heads": 2}
LAYOUTS: dict[str, tuple[str, dict[str, Any], type]] = {
    "qwen2": ("qwen2", GROUPED, MiniQwen2ForCausalLM),
    "qwen3": ("qwen3", GROUPED | {"head_dim": 16}, MiniQwenForCausalLM),
    "llama": ("llama", GROUPED, SharedPrefixModel),
    "mistral": ("mistral", GROUPED | {"sliding_window": None}, SharedPrefixModel),
    "mistral with a window": ("mistral", GROUPED | {"sliding_window": 8}, RowModel),
    "gpt2": ("gpt2", SMALL_GPT2 | {"bos_token_id": 1, "eos_token_id": 2}, SharedPrefixModel),
    "gpt_neox": ("gpt_neox", COMMON, SharedPrefixModel),
    "olmo2": ("olmo2", GROUPED, SharedPrefixModel),
    "gemma2": ("gemma2", GROUPED | {"head_dim": 16}, RowModel),  # caps its logits
    "opt": ("opt", COMMON | {"ffn_dim": 96, "word_embed_proj_dim": 64}, RowModel),
    "bloom": ("bloom", {"vocab_size": 128, "hidden_size": 64, "n_layer": 2, "n_head": 4}, RowModel),  # has no positions
}


def requests() -> list[Request]:
    """Of one-token choices, longer ones, a prompt of one token, and one that is too long for most of its choices."""
    drawn = random.Random(0)

    def one(number: int, prompt: int, lengths: list[int]) -> Request:
        choices = tuple(tuple(drawn.choices(range(3, 120), k=length)) for length in lengths)
        own = tuple(drawn.choices(range(3, 120), k=prompt))
        return Request(str(number), own, choices, (1,) * len(lengths), (1,) * len(lengths))

    shapes = [(5, [1, 1, 1]), (40, [1, 3, 2, 5]), (1, [2, 2]), (70, [4, 60, 1]), (5, [1, 2])]
    return [one(number, prompt, lengths) for number, (prompt, lengths) in enumerate(shapes)]


def reference(model: torch.nn.Module, request: Request, positions: int) -> list[float]:
    sums = []
    for choice in request.choices:
        whole = (*request.prompt, *choice)[-positions - 1 :]
        with torch.no_grad():
            found = model(input_ids=torch.tensor([whole[:-1]])).logits[0].double().log_softmax(-1)
        sums.append(sum(float(found[len(whole) - 1 - len(choice) + i, token]) for i, token in enumerate(choice)))
    return sums


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_are_those_of_the_librarys_own_logits(layout: str, tmp_path: Path) -> None:
    kind, shape, served_by = LAYOUTS[layout]
    torch.manual_seed(0)
    stock = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape)).eval()
    stock.save_pretrained(tmp_path)
    model = scorer(load_causal_model(tmp_path))
    assert type(model) is served_by
    expected = [reference(stock, request, model_positions(stock.config)) for request in requests()]
    for batch_size in (1, 3, 100):
        rounds = score_rounds(model, requests(), batch_size, "cpu")
        found = {index: one for part in rounds for index, one in part.items()}
        for index, sums in enumerate(expected):
            assert list(found[index]) == pytest.approx(sums, rel=2e-7, abs=2e-5)
    values = {value for sums in expected for value in sums}
    assert len(values) == 14, "a model that tells nothing apart would pass vacuously"


def test_every_layout_that_shares_prefixes_is_tested() -> None:
    assert set(SHARED) == {kind for kind, _, served_by in LAYOUTS.values() if served_by is not RowModel}


def test_what_is_no_causal_language_model_is_refused(tmp_path: Path) -> None:
    shape = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    T5ForConditionalGeneration(T5Config(**shape)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no causal language model"):
        load_causal_model(tmp_path)


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=32, **shape)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the weights lack cls"):
        load_causal_model(tmp_path)


def test_code_and_pickles_in_a_folder_are_never_run(tmp_path: Path) -> None:
    described = {"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="auto_map"):
        load_causal_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="as a pickle only"):
        load_causal_model(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(UserError, match=r"no readable config\.json"):
        load_causal_model(tmp_path)
