"""Laws of the model: stock Qwen3 outside, documents that do not see each other inside, a loss that adds up."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3ForCausalLM

from miniqwen.errors import UserError
from miniqwen.model.modeling_miniqwen import (
    MiniQwen2ForCausalLM,
    MiniQwenConfig,
    MiniQwenForCausalLM,
    count_parameters,
    load_model,
    new_model,
    save_model,
)
from miniqwen.model.sizes import SIZES, size_parameters
from miniqwen.questions.examples import Example
from miniqwen.training.batches import block_rows, example_batch, packed

SHAPE = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "tie_word_embeddings": True,
    "eos_token_id": 0,
}  # fmt: skip
IGNORED = -100


def small_model(seed: int = 0) -> MiniQwenForCausalLM:
    """Weights ten times the usual, so that tokens matter to each other."""
    return new_model(MiniQwenConfig(**SHAPE, initializer_range=0.2), seed).eval()


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 96, shape, generator=torch.Generator().manual_seed(seed))


def shifted(tokens: torch.Tensor) -> torch.Tensor:
    """Targets of rows of text: the next token, and none for the last."""
    return torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], IGNORED)], dim=1)


def end_to_end(documents: list[torch.Tensor]) -> dict[str, Any]:
    """Documents [length] laid into one row, positions reset."""
    return {
        "input_ids": torch.cat(documents)[None],
        "targets": torch.cat([shifted(document[None])[0] for document in documents])[None],
        "position_ids": torch.cat([torch.arange(len(document)) for document in documents])[None],
        "cu_seqlens": np.array([0, *itertools.accumulate(map(len, documents))], dtype=np.int32),
    }


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_the_loss_is_the_sum_of_stock_cross_entropies() -> None:
    model, tokens = small_model(), random_tokens(3, 20)
    targets = shifted(tokens)
    targets[1, :10] = IGNORED
    logits = model(tokens).logits
    expected = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    loss = model(input_ids=tokens, targets=targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert model(tokens, labels=tokens).loss.ndim == 0  # the library's own loss still works


def test_noise_in_one_document_changes_the_next_ones_logits_by_exactly_nothing() -> None:
    model = small_model()
    first, second = random_tokens(9, seed=1), random_tokens(7, seed=2)

    def hidden(*documents: torch.Tensor) -> torch.Tensor:
        """Last hidden states of a packed row, caught where the loss takes them."""
        caught = []
        handle = model.model.register_forward_hook(lambda _, __, output: caught.append(output.last_hidden_state))
        model(**end_to_end(list(documents)))
        handle.remove()
        return caught[0][0]

    kept, noisy = hidden(first, second), hidden(random_tokens(9, seed=3), second)
    assert torch.equal(kept[9:], noisy[9:])
    assert (kept[:9] - noisy[:9]).abs().max() > 0.1
    row = torch.cat([first, second])[None]
    unmasked = model.model(row, use_cache=False).last_hidden_state[0]
    assert (unmasked[9:] - kept[9:]).abs().max() > 0.1  # not vacuous: without the mask they would see each other


def test_the_loss_of_a_packed_row_is_the_sum_over_the_documents_alone() -> None:
    model = small_model()
    documents = [random_tokens(length, seed=length) for length in (11, 1, 5, 17)]
    alone = sum(model(input_ids=document[None], targets=shifted(document[None])) for document in documents)
    alone.backward()
    expected = gradients(model)
    model.zero_grad()
    packed = model(**end_to_end(documents))
    packed.backward()
    torch.testing.assert_close(packed, alone.detach(), rtol=1e-6, atol=0)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_examples_have_the_same_loss_and_gradients_packed_padding_free_and_alone() -> None:
    drawn = torch.Generator().manual_seed(0)
    examples = []
    for _ in range(23):
        length, prompt = (int(torch.randint(low, 30, (1,), generator=drawn)) for low in (2, 0))
        ids = torch.randint(1, 96, (length,), generator=drawn).tolist()
        examples.append(Example(tuple(ids), min(prompt, length - 1)))
    rows = block_rows(examples, 40, seed=1)(0)
    assert len(rows) == 12  # two examples a row and more
    layouts = {
        "alone": [example_batch([example]) for example in examples],
        "padding-free": [example_batch(examples)],
        "packed": [packed(rows[:8], 40, 8), packed(rows[8:], 40, 8)],
    }
    found = {}
    for name, batches in layouts.items():
        model = small_model()
        count = sum(batch.num_targets for batch in batches)
        loss = sum(model(**vars(batch)) for batch in batches) / count
        loss.backward()
        found[name] = {"loss": loss.detach(), **gradients(model)}
    for name in ("padding-free", "packed"):
        for part, value in found["alone"].items():
            torch.testing.assert_close(found[name][part], value, rtol=1e-6, atol=1e-6)


def test_a_batch_without_targets_gives_zero_with_a_graph_and_zero_gradients() -> None:
    for ends, places in ((None, None), (np.array([0, 3, 8, 16]), torch.zeros(0, dtype=torch.int64))):
        model, tokens = small_model(), random_tokens(2, 8)
        nothing = torch.full_like(tokens, IGNORED)
        loss = model(input_ids=tokens, targets=nothing, cu_seqlens=ends, places=places)
        assert loss.item() == 0
        loss.backward()
        found = gradients(model)
        assert len(found) == len(list(model.parameters()))
        assert all(gradient.abs().max() == 0 for gradient in found.values())


def test_arguments_that_would_be_ignored_are_refused() -> None:
    model, tokens = small_model(), random_tokens(1, 4)
    with pytest.raises(ValueError, match="attention_mask"):
        model(tokens, attention_mask=torch.ones_like(tokens), targets=tokens)
    with pytest.raises(ValueError, match="targets"):
        model(tokens, cu_seqlens=np.array([0, 4]))


@pytest.mark.parametrize("packed", [False, True])
def test_gradient_checkpointing_changes_no_gradient(packed: bool) -> None:
    batch: dict[str, Any] = end_to_end([random_tokens(12), random_tokens(6)])
    batch = batch if packed else {"input_ids": random_tokens(2, 9), "targets": random_tokens(2, 9, seed=1)}
    found = []
    for checkpointing in (False, True):
        model, runs = small_model().train(), []
        model.model.layers[0].self_attn.q_proj.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(**batch).backward()
        assert len(runs) == 1 + checkpointing  # not vacuous: the layer was computed again
        found.append(gradients(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_one_whole_step_works_on_the_meta_device() -> None:
    """Every tensor is made on the model's device: nothing of the step assumes the CPU."""
    with torch.device("meta"):
        model = MiniQwenForCausalLM(MiniQwenConfig(**SHAPE))
        tokens = torch.zeros(2, 16, dtype=torch.long)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    loss = model(input_ids=tokens, position_ids=tokens, targets=tokens)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert loss.is_meta
    assert {gradient.device.type for gradient in gradients(model).values()} == {"meta"}


def test_bf16_autocast_gives_an_fp32_loss_near_the_exact_one() -> None:
    model, tokens = small_model(), random_tokens(4, 30)
    expected = model(input_ids=tokens, targets=shifted(tokens))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=tokens, targets=shifted(tokens))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_folder_is_a_stock_qwen3_folder_with_equal_logits(tmp_path: Path, dtype: torch.dtype) -> None:
    model, tokens = small_model(), random_tokens(2, 12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_model(model, tmp_path, dtype)
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["architectures"] == ["Qwen3ForCausalLM"]
    assert (described["model_type"], described["dtype"]) == ("qwen3", str(dtype).removeprefix("torch."))
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 0
    stock = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(stock) is Qwen3ForCausalLM
    assert stock.dtype == dtype
    ours = load_model(tmp_path, dtype).eval()
    assert type(ours) is MiniQwenForCausalLM
    torch.testing.assert_close(stock(tokens).logits, ours(tokens).logits, rtol=0, atol=1e-5)
    if dtype == torch.float32:
        torch.testing.assert_close(stock(tokens).logits, model(tokens).logits, rtol=0, atol=1e-5)
    assert load_model(tmp_path).dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert oct((tmp_path / "model.safetensors").stat().st_mode) == oct((tmp_path / "config.json").stat().st_mode)


def test_generation_with_the_cache_equals_generation_without_it_and_the_stock_models(tmp_path: Path) -> None:
    model = small_model()
    save_model(model, tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    prompts = random_tokens(3, 10)
    prompts[0, :4] = 0  # padding on the left, which generate must mask
    mask = (prompts != 0).long()
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    cached = model.generate(prompts, attention_mask=mask, **settings)
    assert cached.shape == (3, 30)
    assert len(set(cached[:, 10:].flatten().tolist())) > 3
    assert torch.equal(cached, model.generate(prompts, attention_mask=mask, use_cache=False, **settings))
    assert torch.equal(cached, stock.generate(prompts, attention_mask=mask, **settings))
    alone = model.generate(prompts[:1, 4:], **settings)
    assert torch.equal(alone[0, 6:], cached[0, 10:])


def test_weights_depend_on_the_seed_alone_and_are_as_small_as_gpt_2s() -> None:
    config = MiniQwenConfig(**SHAPE | {"hidden_size": 64, "vocab_size": 2000})
    torch.manual_seed(1)
    first = new_model(config, 7).state_dict()
    drawn = torch.rand(1)
    second = new_model(config, 7).state_dict()
    other = new_model(config, 8).state_dict()
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))  # the generator of the program was left alone
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    for name, value in first.items():
        if value.ndim == 2:
            assert 0.018 < value.std() < 0.022, name
        else:
            assert torch.equal(value, torch.ones_like(value)), name


def test_parameters_are_counted_in_the_model_and_tied_ones_once() -> None:
    model = small_model()
    layer = 32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 8 + 2 * 32
    assert count_parameters(model) == 96 * 32 + 2 * layer + 32
    assert size_parameters(SIZES["tiny"], 8192) == count_parameters(new_model(SIZES["tiny"].config(8192), 0))


def test_sizes_go_from_a_million_parameters_to_qwen3_0_6bs() -> None:
    counts = [size_parameters(size, size.vocab_size) for size in SIZES.values()]
    assert list(SIZES) == ["tiny", "small", "medium", "base", "large"]
    assert counts == sorted(counts)
    assert 1e6 <= counts[0] <= 3e6
    assert counts[-1] == 596_049_920  # as on Qwen3-0.6B's page
    tiny = SIZES["tiny"]
    assert (tiny.hidden_size >= 128, tiny.vocab_size >= 8192, tiny.max_position_embeddings >= 1024) == (True,) * 3


def test_the_layers_are_named_for_those_who_shard_them() -> None:
    assert "Qwen3DecoderLayer" in small_model()._no_split_modules
    assert {type(layer).__name__ for layer in small_model().model.layers} == {"Qwen3DecoderLayer"}


def test_the_end_tokens_embedding_is_trained_though_it_is_the_padding_too(tmp_path: Path) -> None:
    size = SIZES["tiny"]
    made = new_model(size.config(96, 5), 0)
    assert made.generation_config.pad_token_id == 5
    torch.manual_seed(0)
    save_model(
        MiniQwenForCausalLM(MiniQwenConfig(**SHAPE | {"pad_token_id": 0, "tie_word_embeddings": False})), tmp_path
    )
    for model, end in ((made, 5), (load_model(tmp_path), 0)):
        embeddings = model.get_input_embeddings().weight
        assert embeddings[end].abs().max() > 0 or end == 0
        model(input_ids=torch.tensor([[end, 7]]), targets=torch.tensor([[7, IGNORED]])).backward()
        assert embeddings.grad[end].abs().max() > 0


def test_a_qwen2_folder_stays_a_qwen2_model(tmp_path: Path) -> None:
    shape = {name: value for name, value in SHAPE.items() if name != "head_dim"}
    torch.manual_seed(0)
    stock, tokens = Qwen2ForCausalLM(Qwen2Config(**shape)).eval(), random_tokens(2, 9)
    stock.save_pretrained(tmp_path / "qwen2")
    ours = load_model(tmp_path / "qwen2").eval()
    assert type(ours) is MiniQwen2ForCausalLM
    torch.testing.assert_close(ours(tokens).logits, stock(tokens).logits, rtol=0, atol=1e-5)
    expected = cross_entropy(stock(tokens).logits.flatten(0, 1), tokens.flatten(), reduction="sum")
    torch.testing.assert_close(ours(input_ids=tokens, targets=tokens), expected, rtol=1e-6, atol=0)
    save_model(ours, tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert type(again) is Qwen2ForCausalLM
    assert torch.equal(again.eval()(tokens).logits, stock(tokens).logits)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(small_model(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}, "code of its own"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window"),
        ({"hidden_size": 40}, "cannot be loaded"),
        ({"num_hidden_layers": 3, "layer_types": None}, r"lack model.layers.2.*11 tensors"),
    ],
)
def test_a_config_that_cannot_be_trained_is_refused(folder: Path, change: dict[str, Any], said: str) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=said):
        load_model(folder)


def test_pickled_missing_and_broken_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(UserError, match="no weights"):
        load_model(folder)
    torch.save(small_model().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickle"):
        load_model(folder)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="no readable config"):
        load_model(folder)


def test_rotary_parameters_stand_where_transformers_4_looks_for_them_and_the_model_stays_the_same(
    tmp_path: Path,
) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    for number, rope in enumerate(({"rope_type": "default"}, yarn)):
        shape = SHAPE | {"rope_parameters": {**rope, "rope_theta": 1e6}}
        model = new_model(MiniQwenConfig(**shape, initializer_range=0.2), 0).eval()
        folder = tmp_path / str(number)
        save_model(model, folder)
        described = json.loads((folder / "config.json").read_text())
        assert described["rope_theta"] == 1e6
        assert described.get("rope_scaling") == (yarn if rope is yarn else None)
        tokens = random_tokens(1, 60)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(tokens).logits, model(tokens).logits)
        save_model(load_model(folder), tmp_path / "again")
        assert json.loads((tmp_path / "again" / "config.json").read_text()) == described
