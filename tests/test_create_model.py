"""Laws of create_model: a whole stock folder or nothing, from text or from a checkpoint, and refusals that say why."""

from __future__ import annotations

import gzip
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import ROOT, article, run_script
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen3ForCausalLM

from miniqwen.config.creating import CreateConfig
from miniqwen.config.flags import parse
from miniqwen.config.models import MODEL_FILES
from miniqwen.config.training import TrainConfig
from miniqwen.create_model import main
from miniqwen.data.tokenizer_text import training_texts
from miniqwen.errors import UserError
from miniqwen.model import folder
from miniqwen.model.sizes import SIZES, Size, size_parameters, size_table


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Size:
    """A `tiny` that is tinier: what is tested does not depend on the shape."""
    size = replace(SIZES["tiny"], hidden_size=32, intermediate_size=48, num_hidden_layers=1, vocab_size=320)
    monkeypatch.setitem(SIZES, "tiny", size)
    return size


def settings(mirror: Path, output: Path, **changes: object) -> CreateConfig:
    return CreateConfig(**{"data_root": str(mirror), "output_dir": str(output), **changes})  # type: ignore[arg-type]


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_command_makes_a_stock_folder_and_says_what_it_is_and_what_comes_next(mirror: Path, tmp_path: Path) -> None:
    output = tmp_path / "a model"
    flags = ("--data_root", mirror, "--vocab_size", 320, "--output_dir", output, "--wikipedia_version", "20220301.en")
    done = run_script("-m", "miniqwen.create_model", *flags)
    assert done.returncode == 0, done.stderr
    assert "using 20231101.en" in done.stdout
    model, tokenizer = AutoModelForCausalLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    assert type(model) is Qwen3ForCausalLM
    assert len(tokenizer) == model.config.vocab_size == 320
    assert f"tiny, {size_parameters(SIZES['tiny'], 320):,} parameters, vocabulary 320" in done.stdout
    prompt = tokenizer("Article 7", return_tensors="pt").input_ids
    assert model.generate(prompt, max_new_tokens=5, min_new_tokens=5).shape[1] == prompt.shape[1] + 5
    assert [path.name for path in tmp_path.iterdir()] == ["a model"]
    words = shlex.split(done.stdout.splitlines()[-1].removeprefix("next: "))
    assert words[:4] == ["accelerate", "launch", "-q", "train_loop.py"]
    parse(TrainConfig, words[4:], program="train_loop.py", description="")  # the next command is one that starts


def test_help_and_mistakes_answer_without_loading_torch() -> None:
    code = "import runpy, sys; sys.argv = ['create_model', *sys.argv[1:]]\n"
    code += "try: runpy.run_module('miniqwen.create_model', run_name='__main__')\n"
    code += "except SystemExit as end: print('status', end.code, 'torch' in sys.modules)"
    for flags, status in ((["--help"], 0), (["--size", "tinny"], 2)):
        done = subprocess.run(
            [sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == f"status {status} False", done.stderr


def test_the_same_flags_make_the_same_files_and_another_seed_other_weights(
    mirror: Path, tmp_path: Path, tiny: Size
) -> None:
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        main(settings(mirror, tmp_path / name, seed=seed))
    first, other = hashes(tmp_path / "first"), hashes(tmp_path / "other")
    assert first == hashes(tmp_path / "again")
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}
    config = json.loads((tmp_path / "first/config.json").read_text())
    assert (config["model_type"], config["vocab_size"], config["hidden_size"]) == ("qwen3", 320, 32)
    assert (config["eos_token_id"], config["pad_token_id"]) == (317, None)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first")
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (317, 317)
    assert tokenizer.model_max_length == tiny.max_position_embeddings


def test_both_reads_half_of_the_megabytes_from_each_to_the_byte(mirror: Path, tmp_path: Path) -> None:
    texts = list(training_texts(settings(mirror, tmp_path, tokenizer_megabytes=0.004)))
    wikipedia, arxiv = "".join(article(n) for n in range(120)), "".join(article(1000 + n) * 3 for n in range(60))
    assert "".join(texts) == wikipedia[:2000] + arxiv[:2000]
    everything = "".join(training_texts(settings(mirror, tmp_path, tokenizer_megabytes=50.0)))
    assert everything == wikipedia + arxiv


def test_the_last_text_may_be_cut_inside_a_character_which_is_then_left_out(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl.gz"
    rows = [{"body": text} for text in ("你好", "", None, "再见\ud800")]
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    config = CreateConfig(dataset_name=str(file), text_column="body", tokenizer_megabytes=8e-6)
    assert list(training_texts(config)) == ["你好", ""]
    assert list(training_texts(replace(config, tokenizer_megabytes=1.0))) == ["你好", "再见?"]


def test_a_text_too_small_for_the_vocabulary_is_said_in_a_line(
    tmp_path: Path, tiny: Size, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "to and fro"}\n' * 9)
    main(CreateConfig(dataset_name=str(tmp_path / "texts.jsonl"), output_dir=str(tmp_path / "model")))
    size = json.loads((tmp_path / "model/config.json").read_text())["vocab_size"]
    assert 259 < size < 275
    assert f"no more than {size} entries to learn, of the 320 asked for" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (['{"text": ""}'], "no text in its training split"),
        (['{"text": "a"}', '{"text": 7}'], "row 1: text is int, not text"),
        (['{"body": "a"}'], "no column text; its columns are body"),
    ],
)
def test_data_without_usable_text_is_an_error_and_writes_nothing(tmp_path: Path, rows: list[str], said: str) -> None:
    (tmp_path / "texts.jsonl").write_text("\n".join(rows))
    with pytest.raises(UserError, match=said):
        main(CreateConfig(dataset_name=str(tmp_path / "texts.jsonl"), output_dir=str(tmp_path / "model")))
    assert [path.name for path in tmp_path.iterdir()] == ["texts.jsonl"]


def test_overwriting_replaces_the_models_files_and_no_others(mirror: Path, tmp_path: Path, tiny: Size) -> None:
    output = tmp_path / "model"
    main(settings(mirror, output, seed=1))
    assert all(any(path.match(pattern) for pattern in MODEL_FILES) for path in output.iterdir())
    (output / "notes.txt").write_text("mine")
    (output / "model-00001-of-00002.safetensors").write_text("of another model")
    main(settings(mirror, output, seed=2, overwrite_output_dir=True))
    main(settings(mirror, tmp_path / "fresh", seed=2))
    fresh = hashes(tmp_path / "fresh")
    assert {name: found for name, found in hashes(output).items() if name in fresh} == fresh
    assert set(hashes(output)) == {*fresh, "notes.txt"}


def test_a_failure_while_writing_leaves_nothing_new_and_what_was_there_untouched(
    mirror: Path, tmp_path: Path, tiny: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model"
    main(settings(mirror, output))
    before, save = hashes(output), folder.save_model

    def full_disk(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "save_model", full_disk)
    for target in (output, tmp_path / "new"):
        with pytest.raises(UserError, match="No space left"):
            main(settings(mirror, target, overwrite_output_dir=True))
    assert hashes(output) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_imported_qwen3_keeps_its_weights_and_tokens_bit_for_bit(
    model: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    source = tmp_path / "source"
    shutil.copytree(model, source)
    Qwen3ForCausalLM.from_pretrained(model, dtype=dtype).save_pretrained(source, max_shard_size="10KB")
    (source / "model.safetensors").unlink(missing_ok=True)
    assert len(list(source.glob("model-*.safetensors"))) > 1
    main(CreateConfig(from_pretrained=str(source), output_dir=str(tmp_path / "model")))
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (source, tmp_path / "model"))
    assert type(after) is Qwen3ForCausalLM
    assert after.dtype == dtype
    for name, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[name]), name
    texts = ["Article 7\n\nstone river, 12 x", "<|im_end|> é"]
    ids = [AutoTokenizer.from_pretrained(folder)(texts)["input_ids"] for folder in (source, tmp_path / "model")]
    assert ids[0] == ids[1]


def test_an_imported_qwen2_stays_a_qwen2(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = {"vocab_size": 400, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    stock = Qwen2ForCausalLM(Qwen2Config(**shape, **heads)).eval()
    stock.save_pretrained(tmp_path / "source")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "source")
    main(CreateConfig(from_pretrained=str(tmp_path / "source"), output_dir=str(tmp_path / "model")))
    assert "as qwen2" in capsys.readouterr().out
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert type(after) is Qwen2ForCausalLM
    tokens = torch.arange(30)[None]
    assert torch.equal(after(tokens).logits, stock(tokens).logits)


def test_checkpoints_that_cannot_be_imported_are_refused_with_the_reason(model: Path, tmp_path: Path) -> None:
    def refused(name: str | Path, said: str) -> None:
        with pytest.raises(UserError, match=said):
            main(CreateConfig(from_pretrained=str(name), output_dir=str(tmp_path / "output")))
        assert not (tmp_path / "output").exists()

    def changed(name: str, **changes: object) -> Path:
        shutil.copytree(model, tmp_path / name)
        file = tmp_path / name / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return tmp_path / name

    refused(tmp_path / "nowhere", "neither a folder nor a hub id")
    refused("gpt2", "neither a folder nor a hub id")
    refused(changed("llama", model_type="llama"), "model_type is 'llama'")
    refused(changed("code", auto_map={"AutoConfig": "evil.Evil"}), "code of its own")
    (changed("pickle") / "model.safetensors").rename(tmp_path / "pickle/pytorch_model.bin")
    refused(tmp_path / "pickle", "pickle")
    (changed("empty") / "model.safetensors").unlink()
    refused(tmp_path / "empty", "no weights")
    (changed("speechless") / "tokenizer.json").unlink()
    refused(tmp_path / "speechless", "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["stranger"])
    tokenizer.save_pretrained(changed("mixed"))
    refused(tmp_path / "mixed", "do not belong together")


def test_a_hub_id_that_was_never_downloaded_is_refused_at_once_when_offline(tmp_path: Path) -> None:
    flags = ("--from_pretrained", "someone/something", "--output_dir", tmp_path / "model")
    done = run_script("-m", "miniqwen.create_model", *flags, environment={"HF_HOME": str(tmp_path / "home")})
    assert done.returncode == 2
    assert "someone/something: not downloaded yet" in done.stderr
    assert not (tmp_path / "model").exists()


def test_the_table_of_sizes_has_the_counts_of_the_models() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in size_table().splitlines()]
    assert rows[0][:2] == ["size", "parameters"]
    counts = {row[0]: int(row[1].replace(",", "")) for row in rows[2:]}
    assert counts == {name: size_parameters(size, size.vocab_size) for name, size in SIZES.items()}
    assert counts["large"] == 596_049_920
