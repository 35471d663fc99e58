"""What a run leaves, in the hands of programs that nobody here wrote: `python -m pytest -m handover -s`.

Each program gets an environment of its own, made of the package index: its packages stand before those of the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import OFFLINE, article, run_script
from transformers import AddedToken, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from miniqwen.model.tokenization_miniqwen import train_tokenizer

pytestmark = pytest.mark.handover
PROGRAMS = Path(__file__).parent / "programs"
QUESTIONS = [{"role": "user", "content": "Which word has number 7?"}]
CHAT = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

Environment = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Variables for a Python that finds these packages first."""
    made: dict[tuple[str, ...], Path] = {}

    def packages(*words: str) -> dict[str, str]:
        if words not in made:
            made[words] = tmp_path_factory.mktemp("packages")
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(made[words]), *words]
            subprocess.run(pip, check=True)
        return os.environ | OFFLINE | {"PYTHONPATH": str(made[words])}

    return packages


def imported(kind: str, folder: Path) -> Path:
    """A checkpoint as the hub has them, with a chat template and tokens that are not special, taken in by us."""
    tokenizer = train_tokenizer([article(n) for n in range(120)], 400)
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    tokenizer.chat_template = CHAT
    shape: dict[str, Any] = {
        "vocab_size": 448, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2,
        "eos_token_id": tokenizer.eos_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    }  # fmt: skip
    torch.manual_seed(3)
    if kind == "qwen3":
        model: Any = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=32, tie_word_embeddings=True))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=False))
    model.to(torch.bfloat16).save_pretrained(folder / "hub")
    tokenizer.save_pretrained(folder / "hub")
    flags = ("--from_pretrained", folder / "hub", "--output_dir", folder / "imported")
    done = run_script("-m", "miniqwen.create_model", *flags)
    assert done.returncode == 0, done.stderr
    return folder / "imported"


@pytest.fixture(scope="module")
def folders(model: Path, mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, a fine-tuned, a bf16 and two imported models, and one that was fine-tuned from an imported one."""
    root = tmp_path_factory.mktemp("folders")

    def trained(name: str, begin: Path, *flags: str) -> Path:
        common = ("--data_root", mirror, "--output_dir", root / name, "--report_to", "none", "--learning_rate", "1e-2")
        done = run_script("train_loop.py", "--model_path", begin, *common, *flags, "--max_steps", "6")
        assert done.returncode == 0, done.stderr
        return root / name

    base = trained("base", model, "--dataset_name", "both", "--block_size", "64")
    question = ("--dataset_name", "sciq", "--max_seq_length", "128")
    qwen2, qwen3 = imported("qwen2", root / "2"), imported("qwen3", root / "3")
    return {
        "base": base,
        "fine-tuned": trained("finetuned", base, *question),
        "bf16": trained("bf16", base, *question, "--bf16"),
        "imported Qwen2.5": qwen2,
        "imported Qwen3": qwen3,
        "fine-tuned Qwen3": trained("finetuned3", qwen3, *question),
    }


def program(name: str, *words: object, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, PROGRAMS / name, *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    return done.stdout


@pytest.fixture(scope="module")
def ours(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the transformers that the project is made for finds in the folders: tokens, logits, texts."""
    file = tmp_path_factory.mktemp("ours") / "answers.json"
    program("answers.py", *folders.values(), file, environment=os.environ | OFFLINE)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_transformers_4_computes_the_same_logits_tokens_and_texts(
    folders: dict[str, Path], ours: dict[str, Any], environment: Environment, tmp_path: Path
) -> None:
    program("answers.py", *folders.values(), tmp_path / "old", environment=environment("transformers==4.57.6"))
    old = json.loads((tmp_path / "old").read_text())
    assert (old["version"], ours["version"][0]) == ("4.57.6", "5")
    for name, folder in folders.items():
        one, other = ours[str(folder)], old[str(folder)]
        difference = (torch.tensor(one.pop("logits")) - torch.tensor(other.pop("logits"))).abs().max().item()
        print(
            f"{name}: largest difference of logits between transformers 4.57.6 and {ours['version']}: {difference:.2g}"
        )
        assert difference <= 1e-6
        assert one == other


def test_the_pipeline_of_transformers_5_asks_as_training_did(folders: dict[str, Path], ours: dict[str, Any]) -> None:
    for name, folder in folders.items():
        talk = run_script("-m", "miniqwen.generate", "--model_path", folder, "--max_new_tokens", "8", "stone river")
        assert talk.returncode == 0, talk.stderr
        found = ours[str(folder)]
        if name == "base":
            assert "asked" not in found, "a base model has no chat template"
            assert talk.stdout == f"stone river{found['written']}\n"
            continue
        talk = run_script(
            "-m", "miniqwen.generate", "--model_path", folder, "--max_new_tokens", "8", QUESTIONS[0]["content"]
        )
        assert talk.stdout.split("\n", 1)[1].rstrip("\n") == found["answered"].lstrip().rstrip("\n"), name


def test_ctranslate2_writes_the_same_texts(folders: dict[str, Path], environment: Environment) -> None:
    program("with_ctranslate2.py", *folders.values(), environment=environment("--no-deps", "ctranslate2==4.8.5"))


def test_peft_trains_an_adapter_and_merges_it(folders: dict[str, Path], environment: Environment) -> None:
    program("with_peft.py", *folders.values(), environment=environment("--no-deps", "peft==0.21.2"))


def test_trl_goes_on_with_answers_alone_trained_on(folders: dict[str, Path], environment: Environment) -> None:
    program("with_trl.py", *folders.values(), environment=environment("--no-deps", "trl==1.16.0"))


def test_llama_cpp_reads_the_same_tokens_and_writes_the_same_texts(
    folders: dict[str, Path], environment: Environment, tmp_path: Path
) -> None:
    for name, folder in folders.items():
        files = [tmp_path / f"{name}-{kind}.gguf" for kind in ("f32", "f16", "q8_0")]
        for file in files:
            kind = file.stem.rpartition("-")[2]
            done = run_script("-m", "miniqwen.export", "--model_path", folder, "--gguf", file, "--type", kind)
            assert done.returncode == 0, done.stderr
        program("with_llama_cpp.py", folder, *files, environment=environment("--no-deps", "xllamacpp==2026.10.11549"))
