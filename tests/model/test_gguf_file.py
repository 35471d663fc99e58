"""A model as a GGUF file: what is in it is the model, and what llama.cpp would read in another way is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from runs import article, run_script
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from miniqwen.errors import UserError
from miniqwen.model.gguf_file import write_gguf
from miniqwen.model.modeling_miniqwen import load_model
from miniqwen.model.tokenization_miniqwen import load_tokenizer, save_tokenizer, train_tokenizer
from miniqwen.questions.modelfile import modelfile
from miniqwen.questions.templates import Template

SHAPE: dict[str, Any] = {
    "vocab_size": 448, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
}  # fmt: skip
KINDS = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


def made(folder: Path, kind: str = "qwen3", tied: bool = True, **other: Any) -> Path:
    tokenizer = train_tokenizer([article(n) for n in range(60)], 400)
    config, model = KINDS[kind]
    torch.manual_seed(1)
    shape = {**SHAPE, "tie_word_embeddings": tied, "eos_token_id": tokenizer.eos_token_id, **other}
    model(config(**shape)).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the file says, {tensor's name: tensor})."""
    reader = gguf.GGUFReader(file)
    said = {name: field.contents() for name, field in reader.fields.items()}
    return said, {tensor.name: tensor for tensor in reader.tensors}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_file_holds_the_weights_and_the_shape_of_the_model(kind: str, tied: bool, tmp_path: Path) -> None:
    folder = made(tmp_path / "model", kind, tied)
    write_gguf(folder, tmp_path / "a.gguf", "f32")
    said, tensors = read(tmp_path / "a.gguf")
    assert said["general.architecture"] == kind
    assert said[f"{kind}.block_count"] == 2
    assert said[f"{kind}.rope.freq_base"] == 500_000.0
    assert (said[f"{kind}.attention.head_count"], said[f"{kind}.attention.head_count_kv"]) == (4, 2)
    parameters = dict(load_model(folder).named_parameters())
    assert len(tensors) == len(parameters)
    assert ("output.weight" in tensors) is not tied
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], 2)
    for name, parameter in parameters.items():
        found = tensors[str(names.get_name(name, try_suffixes=(".weight", ".bias")))]
        np.testing.assert_array_equal(found.data.reshape(parameter.shape), parameter.detach().numpy())


def test_the_tokens_are_those_of_the_tokenizer_by_their_numbers(tmp_path: Path) -> None:
    folder = made(tmp_path / "model")
    write_gguf(folder, tmp_path / "a.gguf", "f16")
    said, _ = read(tmp_path / "a.gguf")
    tokenizer = load_tokenizer(folder)
    tokens, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == 448
    for token, number in tokenizer.get_vocab().items():
        assert tokens[number] == token
        assert kinds[number] == (3 if token in tokenizer.all_special_tokens else 1)
    assert {kinds[number] for number in range(len(tokenizer), 448)} == {5}
    assert said["tokenizer.ggml.pre"] == "qwen2"
    assert said["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert said["tokenizer.ggml.add_bos_token"] is False
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert said["tokenizer.ggml.merges"] == [" ".join(pair) for pair in merges]


def test_fewer_bits_are_near_and_a_row_that_no_block_fits_stays_in_f16(tmp_path: Path) -> None:
    folder = made(tmp_path / "model", intermediate_size=80)
    weights = dict(load_model(folder).named_parameters())["model.layers.0.mlp.gate_proj.weight"].detach().numpy()
    found = {}
    for kind in ("f16", "q8_0"):
        write_gguf(folder, tmp_path / f"{kind}.gguf", kind)
        found[kind] = read(tmp_path / f"{kind}.gguf")[1]
    types = gguf.GGMLQuantizationType
    gate = found["q8_0"]["blk.0.ffn_gate.weight"]
    assert gate.tensor_type == types.Q8_0
    near = gguf.quants.dequantize(gate.data, gate.tensor_type)
    assert np.abs(near - weights).max() <= np.abs(weights).max() / 127
    assert found["q8_0"]["blk.0.ffn_down.weight"].tensor_type == types.F16, "80 is no multiple of 32"
    assert found["f16"]["blk.0.ffn_gate.weight"].tensor_type == types.F16
    assert found["f16"]["output_norm.weight"].tensor_type == types.F32


YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("change", "told"),
    [({"rope_parameters": YARN}, "positions are scaled (yarn)"), ({"hidden_act": "gelu"}, "its activation is gelu")],
)
def test_a_model_that_would_be_another_one_is_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "model", **change)
    with pytest.raises(UserError) as refused:
        write_gguf(folder, tmp_path / "a.gguf", "f16")
    assert told in str(refused.value)
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_tokenizer_that_splits_texts_in_another_way_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path / "model")
    described = json.loads((folder / "tokenizer.json").read_text())
    described["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    (folder / "tokenizer.json").write_text(json.dumps(described))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="splits texts in another way than Qwen's"):
        write_gguf(folder, tmp_path / "a.gguf", "f16")


def test_the_command_writes_both_files_and_replaces_none_unasked(tmp_path: Path) -> None:
    folder = made(tmp_path / "model")
    command = ("-m", "miniqwen.export", "--model_path", folder, "--gguf", tmp_path / "a.gguf")
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    assert "ollama create NAME -f" in done.stdout
    before = (tmp_path / "a.gguf").read_bytes()
    assert "FROM ./a.gguf" in (tmp_path / "a.Modelfile").read_text()
    again = run_script(*command, "--type", "q8_0")
    assert again.returncode == 2
    assert "add --overwrite to replace it" in again.stderr
    assert (tmp_path / "a.gguf").read_bytes() == before
    assert run_script(*command, "--type", "q8_0", "--overwrite").returncode == 0
    assert (tmp_path / "a.gguf").stat().st_size < len(before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.Modelfile", "a.gguf", "model"]
    shutil.rmtree(folder)
    assert "no such folder" in run_script(*command, "--overwrite").stderr


def test_a_modelfile_asks_as_in_training() -> None:
    said = modelfile("m.gguf", Template('He said "{{hi}}".\nQuestion: {question}\n{choices}\nAnswer:'), False)
    assert 'TEMPLATE """He said {{ "\\"" }}{{ "{" }}hi}{{ "\\"" }}.\nQuestion: {{ .Prompt }}\nAnswer:"""' in said
    assert "FROM ./m.gguf\n" in said
    assert "PARAMETER temperature 0" in said
    assert 'TEMPLATE """{{ .Prompt }}"""' in modelfile("m.gguf", None, False)
    assert "TEMPLATE" not in modelfile("m.gguf", None, True)
