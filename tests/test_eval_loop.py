"""`eval_loop.py` as a user runs it: on a small mirror made here, on one process and on two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from miniqwen.modeling_miniqwen import MiniQwenConfig, MiniQwenForCausalLM, save_model
from miniqwen.qa import EVALUATION_SEED, Template, shuffle_choices
from miniqwen.questions import Question
from miniqwen.scoring import score_questions
from miniqwen.tokenization_miniqwen import load_tokenizer, train_tokenizer

ROOT = Path(__file__).parents[1]
COLOURS = ("red", "green", "dark blue", "white", "yellow", "black")
KEYS = {"dataset", "split", "num_examples", "accuracy", "accuracy_norm", "stderr", "confidence_interval", "per_class",
        "calibration", "model_path", "config", "samples"}  # fmt: skip
SAMPLE_KEYS = {"id", "question", "choices", "scores", "prediction", "answer", "prediction_index", "answer_index",
               "correct"}  # fmt: skip


def sciq_row(number: int) -> dict[str, str]:
    turned = [COLOURS[(number + i) % 6] for i in range(4)]
    return {
        "question": f"What colour has stone {number}?", "distractor3": turned[2], "distractor1": turned[0],
        "distractor2": turned[1], "correct_answer": turned[3], "support": "Stones." * (number % 3),
    }  # fmt: skip


def commonsense_row(number: int, answered: bool = True) -> dict[str, Any]:
    texts = [COLOURS[(number + i) % 6] for i in range(5)]
    return {
        "id": f"c{number}", "question": f"Which colour is number {number}?", "question_concept": "colour",
        "choices": {"label": list("ABCDE"), "text": texts}, "answerKey": "ABCDE"[number % 5] if answered else "",
    }  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a mirror of both data sets and a tiny random model with templates of its own."""
    folder = tmp_path_factory.mktemp("world")
    splits = {
        "allenai/sciq": {"test": [sciq_row(i) for i in range(11)], "train": [sciq_row(90)]},
        "tau/commonsense_qa": {
            "validation": [commonsense_row(i) for i in range(7)],
            "test": [commonsense_row(i, answered=False) for i in range(3)],
        },
    }
    for name, rows in splits.items():
        (folder / "mirror" / name / "data").mkdir(parents=True)
        for split, values in rows.items():
            file = folder / "mirror" / name / "data" / f"{split}-00000-of-00001.parquet"
            pq.write_table(pa.Table.from_pylist(values), file, row_group_size=4)
    tokenizer = train_tokenizer([f"What colour has stone? {' '.join(COLOURS)}"] * 5, 300)
    torch.manual_seed(0)
    config = MiniQwenConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=256, initializer_range=0.3,
    )  # fmt: skip
    save_model(MiniQwenForCausalLM(config), folder / "model", torch.float32)
    tokenizer.save_pretrained(folder / "model")
    Template("{question}\n{choices}\nIt is", "- {text}").save(folder / "model")
    return folder


def run(*flags: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "eval_loop.py", *flags]
    if processes > 1:
        torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, "-m", *torchrun, "eval_loop.py", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.terminate()  # not kill: torchrun takes its workers with it
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def evaluate(world: Path, output: Path, *flags: str, processes: int = 1) -> str:
    given = ("--model_path", str(world / "model"), "--data_root", str(world / "mirror"), "--output_dir", str(output))
    done = run(*given, *flags, processes=processes)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def both(world: Path) -> tuple[Path, str]:
    """The folder and the output of an evaluation of both data sets."""
    return world / "one", evaluate(world, world / "one", "--dataset_name", "both", "--per_device_eval_batch_size", "3")


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def test_the_json_has_the_promised_keys_and_agrees_with_itself(both: tuple[Path, str]) -> None:
    folder, output = both
    result = read(folder / "sciq.json")
    assert set(result) == KEYS
    assert (result["dataset"], result["split"], result["num_examples"]) == ("sciq", "test", 11)
    assert read(folder / "commonsenseqa.json")["split"] == "validation"
    assert [sample["id"] for sample in result["samples"]] == [str(i) for i in range(11)]
    for sample in result["samples"]:
        assert set(sample) == SAMPLE_KEYS
        assert sample["prediction"] == sample["choices"][sample["prediction_index"]]
        assert sample["answer"] == sample["choices"][sample["answer_index"]]
        assert sample["prediction_index"] == max(range(4), key=sample["scores"].__getitem__)
        assert sample["correct"] is (sample["prediction"] == sample["answer"])
    correct = [sample["correct"] for sample in result["samples"]]
    assert result["accuracy"] == pytest.approx(sum(correct) / 11)
    assert result["confidence_interval"][0] < result["accuracy"] < result["confidence_interval"][1]
    assert sum(one["support"] for one in result["per_class"].values()) == 11
    assert str(folder / "sciq.json") in output
    assert "25.0%" in output


def test_scores_are_those_of_the_templates_saved_beside_the_model(world: Path, both: tuple[Path, str]) -> None:
    model = MiniQwenForCausalLM.from_pretrained(world / "model")
    template = Template.load(world / "model")
    assert template != Template()
    questions = []
    for number, row in enumerate(sciq_row(i) for i in range(11)):
        choices = (row["distractor1"], row["distractor2"], row["distractor3"], row["correct_answer"])
        asked = Question(str(number), row["question"], choices, 3, row["correct_answer"], row["support"])
        questions.append(shuffle_choices(asked, EVALUATION_SEED))
    expected = score_questions(model, load_tokenizer(world / "model"), template, questions, 2, "cpu")
    samples = read(both[0] / "sciq.json")["samples"]
    assert [tuple(sample["choices"]) for sample in samples] == [question.choices for question in questions]
    for sample, scores in zip(samples, expected, strict=True):
        assert sample["scores"] == pytest.approx(scores.log_likelihoods, abs=1e-5)
    assert read(both[0] / "sciq.json")["config"]["recorded"]["prompt_template"] == template.prompt


def test_both_is_pooled_over_the_data_sets(both: tuple[Path, str]) -> None:
    sciq, commonsense = read(both[0] / "sciq.json"), read(both[0] / "commonsenseqa.json")
    combined = read(both[0] / "combined.json")
    assert combined["num_examples"] == 18
    assert combined["accuracy"] == pytest.approx((11 * sciq["accuracy"] + 7 * commonsense["accuracy"]) / 18)
    assert combined["mean_accuracy"] == pytest.approx((sciq["accuracy"] + commonsense["accuracy"]) / 2)
    assert combined["datasets"]["sciq"]["calibration"] == sciq["calibration"]


def test_two_processes_write_what_one_does(world: Path, both: tuple[Path, str]) -> None:
    flags = ("--dataset_name", "both", "--per_device_eval_batch_size", "3")
    output = evaluate(world, world / "two", *flags, processes=2)
    assert output.count("combined.json") == 1, "one process tells"
    for name in ("sciq.json", "commonsenseqa.json", "combined.json"):
        one, two = read(both[0] / name), read(world / "two" / name)
        assert one["config"].pop("output_dir") != two["config"].pop("output_dir")
        assert one == two


def test_flags_choose_split_rows_and_templates(world: Path, tmp_path: Path) -> None:
    evaluate(world, tmp_path, "--dataset_name", "commonsenseqa", "--max_eval_samples", "2", "--bf16",
             "--prompt_template", "{question}\\nAnswer:")  # fmt: skip
    result = read(tmp_path / "commonsenseqa.json")
    assert [sample["id"] for sample in result["samples"]] == ["c0", "c1"]
    assert result["config"]["recorded"]["prompt_template"] == "{question}\nAnswer:"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["commonsenseqa.json"], "nothing unfinished is left"


def test_data_of_ones_own_is_named_after_its_file(world: Path, tmp_path: Path) -> None:
    rows = [{"q": f"Colour {i}?", "options": ["red", "green"], "key": "green"} for i in range(3)]
    file = tmp_path / "quiz.v2.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate(world, tmp_path / "out", "--dataset_name", str(file), "--split", "train", "--question_column", "q",
             "--choices_column", "options", "--answer_column", "key")  # fmt: skip
    assert read(tmp_path / "out" / "quiz.v2.json")["num_examples"] == 3


def test_all_mistakes_of_flags_are_told_at_once_with_status_2(tmp_path: Path) -> None:
    done = run("--model_path", str(tmp_path / "none"), "--dataset_name", "sciqq", "--output_dir", str(tmp_path),
               "--max_eval_samples", "0", "--prompt_template", "{choice}")  # fmt: skip
    assert done.returncode == 2
    for told in ("no such folder", "did you mean sciq?", "--max_eval_samples", "needs {question}", "unknown field"):
        assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_split_without_answers_ends_with_status_2_and_writes_nothing(world: Path, tmp_path: Path) -> None:
    done = run("--model_path", str(world / "model"), "--data_root", str(world / "mirror"), "--output_dir",
               str(tmp_path / "out"), "--dataset_name", "commonsenseqa", "--split", "test")  # fmt: skip
    assert done.returncode == 2
    assert "test split of commonsenseqa has no answers" in done.stderr
    assert not (tmp_path / "out").exists()
