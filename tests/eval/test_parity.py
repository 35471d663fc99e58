"""Our numbers are lm-evaluation-harness's own, question by question, on the demo's questions and hard ones."""

from __future__ import annotations

import json
import random
import shutil
import string
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from runs import ROOT, run_script
from tokenizers import Tokenizer, models, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

import eval_loop
from miniqwen.config.evaluating import EvalConfig
from miniqwen.config.flags import parse
from miniqwen.demo import write_demo
from miniqwen.model.modeling_miniqwen import MiniQwenConfig, new_model, save_model
from miniqwen.model.tokenization_miniqwen import load_tokenizer, train_tokenizer

sys.path.insert(0, str(ROOT))
from benchmarks.evaluation_speed import TASKS, files_of, harness_results

POSITIONS = 128
ROWS = 24  # of each data set
METRICS = {"sciq": ("acc", "acc_norm"), "commonsenseqa": ("acc",)}


@dataclass(frozen=True)
class World:
    mirror: Path
    texts: list[str]


def long_text(seed: int) -> str:
    """Words that no tokenizer here knows."""
    drawn = random.Random(seed)
    return " ".join("".join(drawn.choices(string.ascii_lowercase, k=6)) for _ in range(120))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The demo's mirror with few rows, and in front of them some that are hard to agree on."""
    mirror = tmp_path_factory.mktemp("parity") / "mirror"
    write_demo(mirror)
    hard = {
        "sciq": [
            {"support": ""},
            {"support": "   Two spaces  before.\n", "question": "What is it?  "},
            {"support": long_text(1)},  # longer than the model's positions
            {"distractor1": "iron ore and other rather long answers of many words", "support": long_text(2)},
            {"distractor2": "twin", "distractor3": "twin"},
            {"distractor1": "Ω é naïve 北京"},
        ],
        "commonsenseqa": [{"question": "  Is it <|endoftext|> here? "}, {"question": long_text(3)}],
    }
    texts: list[str] = []
    for name, (_, folder) in TASKS.items():
        for split in ("train", "validation", "test"):
            (first, *others) = sorted((mirror / folder / "data").glob(f"{split}-*.parquet"))
            table = pq.read_table(first)
            rows = table.slice(0, 40 if split == "train" else ROWS).to_pylist()
            if split != "train":
                rows = [{**rows[i], **change} for i, change in enumerate(hard[name])] + rows[len(hard[name]) :]
            pq.write_table(pa.Table.from_pylist(rows, table.schema), first)
            for other in others:
                other.unlink()
            texts += [json.dumps(row, ensure_ascii=False) for row in rows]
    return World(mirror, texts)


def joining_tokenizer(texts: list[str]) -> PreTrainedTokenizerBase:
    """Byte pairs without a look at words: "Answer: red" may well have a token ": r" over the boundary."""
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.train_from_iterator([f"Question: what? Answer: {text}" for text in texts] * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def with_first_token(texts: list[str]) -> PreTrainedTokenizerBase:
    """As Llama's: every text begins with a token of its own."""
    from tokenizers.processors import TemplateProcessing

    plain = train_tokenizer(texts, 500).backend_tokenizer
    plain.add_special_tokens(["<s>"])
    first = plain.token_to_id("<s>")
    plain.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", first)])
    return PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="<|endoftext|>")


def qwen(folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int) -> Path:
    config = MiniQwenConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=POSITIONS, initializer_range=0.2,
        tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    save_model(new_model(config, seed), folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random model, the same one trained, one with a tokenizer that joins words, and a Llama with a first token."""
    root = tmp_path_factory.mktemp("models")
    lines = [f"Answer: {answer}" for answer in (*"ABCDE", "twin", "iron")]
    untrained = qwen(root / "random", train_tokenizer([*world.texts, *lines * 20], 900), seed=0)
    done = run_script(
        "train_loop.py", "--model_path", untrained, "--dataset_name", "sciq", "--data_root", world.mirror,
        "--output_dir", root / "trained", "--max_steps", 30, "--learning_rate", 3e-3,
        "--per_device_train_batch_size", 8,
        "--max_seq_length", POSITIONS, "--truncation", "left", "--report_to", "none", "--eval_strategy", "no",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    joining = qwen(root / "joining", joining_tokenizer(world.texts), seed=1)
    tokenizer = with_first_token(world.texts)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=POSITIONS, initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    llama = LlamaForCausalLM(shape)
    llama.save_pretrained(root / "llama")
    tokenizer.save_pretrained(root / "llama")
    return {"random": untrained, "trained": root / "trained", "joining": joining, "llama": root / "llama"}


def ours(name: str, folder: Path, world: World, output: Path, *flags: str) -> dict[str, Any]:
    given = ["--model_path", str(folder), "--data_root", str(world.mirror), "--output_dir", str(output)]
    asked = ["--dataset_name", name, "--protocol", "harness", *flags]
    eval_loop.main(parse(EvalConfig, [*given, *asked], program="", description=""))
    return json.loads((output / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    ("model", "shots"), [("random", 0), ("random", 2), ("trained", 0), ("joining", 0), ("joining", 1), ("llama", 0)]
)
def test_every_log_likelihood_and_metric_is_the_harnesss(
    name: str, model: str, shots: int, world: World, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = folders[model]
    stock, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), load_tokenizer(folder)
    samples, figures, _ = harness_results(
        name, files_of(name, world.mirror), stock, tokenizer, str(tmp_path / "cache"), batch_size=4, num_fewshot=shots,
        limit=ROWS - 3,
    )  # fmt: skip
    flags = ("--num_fewshot", str(shots), "--max_eval_samples", str(ROWS - 3))
    found = ours(name, folder, world, tmp_path / "out", *flags)
    assert found["num_examples"] == len(samples) == ROWS - 3
    for sample, own in zip(samples, found["samples"], strict=True):
        assert own["prompt_hash"] == sample["prompt_hash"]
        assert own["scores"] == pytest.approx(sample["lls"], abs=1e-4)
        assert own["correct"] is bool(sample["acc"])
    assert found["accuracy"] == figures["acc,none"]
    assert found["stderr"] == figures["acc_stderr,none"]
    if "acc_norm" in METRICS[name]:
        assert found["accuracy_norm"] == figures["acc_norm,none"]
        assert found["accuracies"]["character"]["stderr"] == figures["acc_norm_stderr,none"]
    assert len({value for own in found["samples"] for value in own["scores"]}) > ROWS, "scores differ by question"
    if name == "sciq" or shots:
        assert found["config"]["recorded"]["truncated_prompts"] > 0, "the long ones are longer than the model"


@pytest.mark.parametrize("name", TASKS)
def test_scores_without_the_question_and_by_byte_are_the_harnesss(
    name: str, world: World, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = folders["trained"]
    stock, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), load_tokenizer(folder)
    samples, figures, _ = harness_results(
        name, files_of(name, world.mirror), stock, tokenizer, str(tmp_path / "cache"), batch_size=4, limit=ROWS - 3,
        metrics=["acc_mutual_info", "acc_bytes"],
    )  # fmt: skip
    found = ours(name, folder, world, tmp_path / "out", "--unconditional", "--max_eval_samples", str(ROWS - 3))
    for sample, own in zip(samples, found["samples"], strict=True):
        assert [*own["scores"], *own["unconditional_scores"]] == pytest.approx(sample["lls"], abs=1e-4)
    assert found["accuracies"]["unconditional"]["accuracy"] == figures["acc_mutual_info,none"]
    assert found["accuracies"]["byte"]["accuracy"] == figures["acc_bytes,none"]


# Data of one's own, as the harness would be told of it: (its task, our flags).
FORMS = {
    "arc": (
        """
        task: arc_like
        doc_to_text: "Question: {{question}}\\nAnswer:"
        doc_to_target: "{{choices.label.index(answerKey)}}"
        doc_to_choice: "{{choices.text}}"
        """,
        ["--question_column", "question", "--choices_column", "choices", "--answer_column", "answerKey",
         "--prompt_template", "Question: {question}\\nAnswer:"],
    ),
    "piqa": (
        """
        task: piqa_like
        doc_to_text: "Question: {{goal}}\\nAnswer:"
        doc_to_target: label
        doc_to_choice: "{{[sol1, sol2]}}"
        """,
        ["--question_column", "goal", "--choices_column", "sol1,sol2", "--answer_column", "label",
         "--prompt_template", "Question: {question}\\nAnswer:"],
    ),
    "mmlu": (
        """
        task: mmlu_like
        doc_to_text: >-
          {{question}}{% for text in choices %}{{"\\n" + "ABCD"[loop.index0]}}. {{text}}{% endfor %}{{"\\n"}}Answer:
        doc_to_target: answer
        doc_to_choice: ["A", "B", "C", "D"]
        """,
        ["--question_column", "question", "--choices_column", "choices", "--answer_column", "answer",
         "--prompt_template", "{question}\\n{choices}\\nAnswer:", "--answer_format", "letter",
         "--shuffle_choices", "False"],
    ),
}  # fmt: skip


def rows_like(name: str, world: World) -> list[dict[str, Any]]:
    """Twenty rows in the form of a well-known data set, of words that the tokenizers know and some that they do not."""
    drawn = random.Random(name)
    sciq = [row for row in map(json.loads, world.texts) if "correct_answer" in row]
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(sciq[40:60]):
        row["question"] = row["question"].strip()  # as templates put it
        texts = list(
            dict.fromkeys([row["correct_answer"], *(row[f"distractor{k}"] for k in (1, 2, 3)), "Ω 北京", "none"])
        )
        texts, place = texts[:4], drawn.randrange(4)
        texts[0], texts[place] = texts[place], texts[0]
        if name == "arc":
            labels = list("1234" if number % 3 else "ABCD")
            choices = {"text": texts, "label": labels}
            rows.append({"question": row["question"], "choices": choices, "answerKey": labels[place]})
        elif name == "piqa":
            rows.append({"goal": row["question"], "sol1": texts[place], "sol2": texts[place - 1], "label": 0})
            if number % 2:
                rows[-1] |= {"sol1": texts[place - 1], "sol2": texts[place], "label": 1}
        else:
            rows.append({"question": row["question"], "choices": texts, "answer": place})
    return rows


@pytest.mark.parametrize("model", ["trained", "llama"])
@pytest.mark.parametrize("name", FORMS)
def test_files_in_the_form_of_other_data_sets_are_scored_as_the_harness_scores_them(
    name: str, model: str, world: World, folders: dict[str, Path], tmp_path: Path
) -> None:
    form, flags = FORMS[name]
    rows, folder = rows_like(name, world), folders[model]
    file, theirs = tmp_path / f"{name}.jsonl", tmp_path / "theirs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    theirs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    measured = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")]
    task = yaml.safe_load(form) | {
        "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice", "metric_list": measured,
    }  # fmt: skip
    stock, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), load_tokenizer(folder)
    samples, figures, _ = harness_results(
        name, {"test": str(theirs)}, stock, tokenizer, str(tmp_path / "cache"), batch_size=4, form=task
    )
    given = ["--model_path", str(folder), "--output_dir", str(tmp_path / "out"), "--dataset_name", str(file)]
    eval_loop.main(parse(EvalConfig, [*given, "--split", "train", *flags], program="", description=""))
    found = json.loads((tmp_path / "out" / f"{name}.json").read_text(encoding="utf-8"))
    assert found["num_examples"] == len(samples) == 20
    for row, sample, own in zip(rows, samples, found["samples"], strict=True):
        choices = row["choices"]["text"] if name == "arc" else row.get("choices") or [row["sol1"], row["sol2"]]
        assert own["prompt_hash"] == sample["prompt_hash"]
        scored = dict(zip(own["choices"], own["scores"], strict=True))
        assert [scored[text] for text in choices] == pytest.approx(sample["lls"], abs=1e-4)
        assert own["correct"] is bool(sample["acc"])
    assert found["accuracy"] == figures["acc,none"]
    assert found["accuracy_norm"] == figures["acc_norm,none"]
    assert 0 < found["accuracy"] < 1


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("shots", [0, 2])
def test_questions_put_by_a_chat_template_are_the_harnesss(
    name: str, shots: int, world: World, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "chat"
    shutil.copytree(folders["trained"], folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    samples, figures, _ = harness_results(
        name, files_of(name, world.mirror), stock, tokenizer, str(tmp_path / "cache"), batch_size=4, num_fewshot=shots,
        limit=ROWS - 3, apply_chat_template=True, fewshot_as_multiturn=True,
    )  # fmt: skip
    flags = ("--num_fewshot", str(shots), "--max_eval_samples", str(ROWS - 3), "--apply_chat_template")
    found = ours(name, folder, world, tmp_path / "out", *flags)
    for sample, own in zip(samples, found["samples"], strict=True):
        assert own["prompt_hash"] == sample["prompt_hash"]
        assert own["scores"] == pytest.approx(sample["lls"], abs=1e-4)
    assert found["accuracy"] == figures["acc,none"]
    own_words = ours(name, folder, world, tmp_path / "own", *flags, "--protocol", "miniqwen")
    assert own_words["samples"][0]["prompt_hash"] != found["samples"][0]["prompt_hash"]
    assert own_words["num_examples"] == ROWS - 3


def test_the_hard_cases_are_met(world: World, folders: dict[str, Path]) -> None:
    """Single- and multi-token answers, and a tokenizer that joins the prompt with the answer."""
    joining, usual = load_tokenizer(folders["joining"]), load_tokenizer(folders["random"])
    answers = [json.loads(text).get("correct_answer", "A") for text in world.texts]
    prompt = joining("Answer:")["input_ids"]
    assert any(joining(f"Answer: {answer}")["input_ids"][: len(prompt)] != prompt for answer in answers)
    lengths = {len(usual(f" {answer}")["input_ids"]) for answer in (*answers, "twin", "B")}
    assert 1 in lengths
    assert len(lengths) > 2
