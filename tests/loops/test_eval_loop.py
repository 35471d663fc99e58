"""`eval_loop.py` as a user runs it: on a small mirror made here, on one process and on two."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from runs import copy_of, run_script, running, wait_until, warm_python
from safetensors.torch import load_file, save_file

import eval_loop
from miniqwen.config.evaluating import EvalConfig
from miniqwen.config.flags import parse
from miniqwen.eval.scoring import score_rounds
from miniqwen.model.modeling_miniqwen import MiniQwenConfig, MiniQwenForCausalLM, save_model
from miniqwen.model.tokenization_miniqwen import load_tokenizer, train_tokenizer
from miniqwen.questions.protocols import encode_prompt, make_prompts
from miniqwen.questions.rows import Question
from miniqwen.questions.templates import Template, template_flags

COLOURS = ("red", "green", "dark blue", "white", "yellow", "black")
KEYS = {"dataset", "split", "num_examples", "accuracy", "accuracy_norm", "stderr", "confidence_interval", "accuracies",
        "per_class", "balanced_accuracy", "macro_f1", "confusion_matrix", "by_position", "by_question_length",
        "calibration", "model_path", "config", "samples", "identity"}  # fmt: skip
SAMPLE_KEYS = {"id", "question", "choices", "scores", "prediction", "answer", "prediction_index", "answer_index",
               "correct", "prompt_hash"}  # fmt: skip


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
    return run_script("eval_loop.py", *flags, processes=processes, limit=120)


def evaluate(world: Path, output: Path, *flags: str, processes: int = 1) -> str:
    """What the command prints; on one process without the seconds that a start of Python takes."""
    given = ("--model_path", str(world / "model"), "--data_root", str(world / "mirror"), "--output_dir", str(output))
    if processes > 1:
        done = run(*given, *flags, processes=processes)
        assert done.returncode == 0, done.stderr
        return done.stdout
    config = parse(EvalConfig, [*given, *flags], program="", description="", checks=[template_flags])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        eval_loop.main(config)
    return printed.getvalue()


@pytest.fixture(scope="module")
def both(world: Path) -> tuple[Path, str]:
    """The folder and the output of an evaluation of both data sets."""
    done = run("--model_path", str(world / "model"), "--data_root", str(world / "mirror"), "--output_dir",
               str(world / "one"), "--dataset_name", "both", "--per_device_eval_batch_size", "3")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return world / "one", done.stdout


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
        questions.append(asked)
    prompts = make_prompts("sciq", questions, [], template, EvalConfig())
    requests = [encode_prompt(load_tokenizer(world / "model"), prompt) for prompt in prompts]
    expected = {i: one for part in score_rounds(model, requests, 2, "cpu") for i, one in part.items()}
    samples = read(both[0] / "sciq.json")["samples"]
    for i, (sample, prompt) in enumerate(zip(samples, prompts, strict=True)):
        assert tuple(sample["choices"]) == prompt.question.choices
        assert sample["prompt_hash"] == prompt.hash
        assert sample["scores"] == pytest.approx(expected[i], abs=1e-5)
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
    assert sorted(path.name for path in (world / "two").iterdir()) == [
        "combined.json",
        "commonsenseqa.json",
        "sciq.json",
    ]
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


def test_several_data_sets_are_evaluated_by_name_hub_id_and_file(
    world: Path, both: tuple[Path, str], tmp_path: Path
) -> None:
    rows = [{"q": f"Colour {i}?", "options": ["red", "green"], "key": i} for i in range(2)]
    file = tmp_path / "quiz.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ("--question_column", "q", "--choices_column", "options", "--answer_column", "key")
    evaluate(world, tmp_path / "ids", "--dataset_name", "tau/commonsense_qa", "allenai/sciq",
             "--per_device_eval_batch_size", "3")  # fmt: skip
    for name in ("sciq", "commonsenseqa"):
        one, two = read(both[0] / f"{name}.json"), read(tmp_path / "ids" / f"{name}.json")
        assert one["samples"] == two["samples"]
    combined = read(tmp_path / "ids" / "combined.json")
    assert combined["dataset"] == list(combined["datasets"]) == ["commonsenseqa", "sciq"]
    assert combined["accuracy"] == read(both[0] / "combined.json")["accuracy"]
    evaluate(world, tmp_path / "mixed", "--dataset_name", "allenai/sciq", str(file), "--split", "train", *own)
    assert [read(tmp_path / "mixed" / f"{name}.json")["split"] for name in ("sciq", "quiz")] == ["train", "train"]
    assert read(tmp_path / "mixed" / "combined.json")["num_examples"] > 2
    twin = tmp_path / "twin" / "quiz.jsonl"
    twin.parent.mkdir()
    twin.write_text(file.read_text())
    done = run("--model_path", str(world / "model"), "--output_dir", str(tmp_path / "out"), "--dataset_name", str(file),
               str(twin), *own)  # fmt: skip
    assert done.returncode == 2
    assert "quiz.json would be written 2 times" in done.stderr


def test_all_mistakes_of_flags_are_told_at_once_with_status_2(tmp_path: Path) -> None:
    done = run("--model_path", str(tmp_path / "none"), "--dataset_name", "sciqq", "--output_dir", str(tmp_path),
               "--max_eval_samples", "0", "--prompt_template", "{choice}")  # fmt: skip
    assert done.returncode == 2
    for told in ("no such folder", "did you mean sciq?", "--max_eval_samples", "needs {question}", "unknown field"):
        assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_four_processes_write_what_one_does(world: Path, both: tuple[Path, str]) -> None:
    evaluate(world, world / "four", "--dataset_name", "sciq", "--per_device_eval_batch_size", "3", processes=4)
    one, four = read(both[0] / "sciq.json"), read(world / "four" / "sciq.json")
    assert [one.pop("config")["dataset_name"], four.pop("config")["dataset_name"]] == ["both", "sciq"]
    assert one == four


def test_a_split_without_answers_gets_predictions_in_the_files_letters_and_no_accuracy(
    world: Path, tmp_path: Path
) -> None:
    output = evaluate(world, tmp_path, "--dataset_name", "commonsenseqa", "--split", "test", "--check_contamination",
                      "--train_split", "validation")  # fmt: skip
    result = read(tmp_path / "commonsenseqa.json")
    assert "accuracy" not in result
    assert result["contamination"]["count"] == 3
    assert {sample["correct"] for sample in result["samples"]} == {None}
    lines = (tmp_path / "commonsenseqa_predictions.csv").read_text().splitlines()
    assert len(lines) == 3
    for line, sample, row in zip(lines, result["samples"], (commonsense_row(i) for i in range(3)), strict=True):
        name, letter = line.split(",")
        assert name == sample["id"] == row["id"]
        assert row["choices"]["text"]["ABCDE".index(letter)] == sample["prediction"]
    assert "has no right answers" in output


def test_predictions_for_data_of_ones_own_are_lines_of_json(world: Path, tmp_path: Path) -> None:
    file = tmp_path / "quiz.jsonl"
    file.write_text(
        "".join(json.dumps({"q": f"Colour {i}?", "o": ["red", "green"], "key": None}) + "\n" for i in range(2))
    )
    evaluate(world, tmp_path / "out", "--dataset_name", str(file), "--split", "train", "--question_column", "q",
             "--choices_column", "o", "--answer_column", "key")  # fmt: skip
    found = [json.loads(line) for line in (tmp_path / "out" / "quiz_predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in found] == ["0", "1"]
    assert all(row["prediction"] == ["red", "green"]["AB".index(row["label"])] for row in found)


def test_a_split_of_which_only_some_rows_have_answers_is_refused(world: Path, tmp_path: Path) -> None:
    file = tmp_path / "quiz.jsonl"
    rows = [{"q": f"Colour {i}?", "o": ["red", "green"], "key": "red" if i else None} for i in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("--model_path", str(world / "model"), "--output_dir", str(tmp_path / "out"), "--dataset_name",
               str(file), "--split", "train", "--question_column", "q", "--choices_column", "o", "--answer_column",
               "key")  # fmt: skip
    assert done.returncode == 2
    assert "row 0: key is empty" in done.stderr
    assert not (tmp_path / "out").exists()


def test_results_of_another_evaluation_are_not_overwritten_unasked(world: Path, tmp_path: Path) -> None:
    flags = ("--dataset_name", "sciq", "--max_eval_samples")
    evaluate(world, tmp_path, *flags, "3")
    before = (tmp_path / "sciq.json").read_bytes()
    given = ("--model_path", str(world / "model"), "--data_root", str(world / "mirror"), "--output_dir", str(tmp_path))
    refused = run(*given, *flags, "4")
    assert refused.returncode == 2
    assert "another evaluation" in refused.stderr
    assert "--overwrite_output_dir" in refused.stderr
    assert (tmp_path / "sciq.json").read_bytes() == before
    assert "3 of 3 answers are there already" in evaluate(world, tmp_path, *flags, "3")
    assert (tmp_path / "sciq.json").read_bytes() == before
    evaluate(world, tmp_path, *flags, "4", "--overwrite_output_dir")
    assert read(tmp_path / "sciq.json")["num_examples"] == 4


def test_a_killed_evaluation_goes_on_where_it_was_and_ends_with_the_same_file(
    world: Path, both: tuple[Path, str], tmp_path: Path
) -> None:
    """Killed for real while it scores; then on two processes, after a torn last line."""
    flags = ["--dataset_name", "sciq", "--per_device_eval_batch_size", "3", "--output_dir", str(tmp_path)]
    slow = (
        "import os, sys, time, runpy\nsys.path.insert(0, os.getcwd())\nimport miniqwen.eval.result_files as files\n"
        "add = files.ResultFile.add\n"
        "files.ResultFile.add = lambda self, found: (add(self, found), time.sleep(1))\n"
        "sys.argv = ['eval_loop.py', *sys.argv[1:]]\n"
        "runpy.run_path('eval_loop.py', run_name='__main__')\n"
    )
    given = ["--model_path", str(world / "model"), "--data_root", str(world / "mirror")]
    partial, script = tmp_path / ".sciq.partial-0.jsonl", world / "slow.py"
    script.write_text(slow)
    with running([warm_python(), str(script), *given, *flags], world / "log") as process:
        wait_until(lambda: partial.exists() and partial.read_bytes().count(b"\n") >= 7, process, seconds=60)
        os.kill(copy_of(process.pid) or process.pid, signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
    assert not (tmp_path / "sciq.json").exists()
    known = partial.read_text().count('"index"')
    assert 6 <= known < 11
    partial.write_text(partial.read_text() + '{"index": 99, "fou')
    output = evaluate(world, tmp_path, *flags[:-2], processes=2)
    assert f"{known} of 11 answers are there already" in output
    whole, resumed = read(both[0] / "sciq.json"), read(tmp_path / "sciq.json")
    del whole["config"], resumed["config"]
    assert resumed == whole
    assert [path.name for path in tmp_path.iterdir()] == ["sciq.json"]


def test_written_answers_are_read_by_rules_and_counted(world: Path, tmp_path: Path) -> None:
    evaluate(world, tmp_path, "--dataset_name", "commonsenseqa", "--answer_mode", "generate", "--max_new_tokens", "4",
             "--extract", "letter", "text")  # fmt: skip
    result = read(tmp_path / "commonsenseqa.json")
    found = [sample["rule"] for sample in result["samples"]]
    assert result["unmatched"] == found.count(None)
    assert sum(result["rules"].values()) == len(found) - found.count(None)
    assert {"exact_match", "f1", "bleu", "chrf", "balanced_accuracy"} <= set(result)
    for sample in result["samples"]:
        assert isinstance(sample["generated"], str)
        assert (sample["prediction"] is None) is (sample["rule"] is None)
        assert sample["correct"] is (sample["prediction"] == sample["answer"])
    assert "7 of 7 answers are there already" in evaluate(
        world, tmp_path, "--dataset_name", "commonsenseqa", "--answer_mode", "generate", "--max_new_tokens", "4"
    )


def test_questions_without_choices_are_answered_in_writing(world: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"q": f"Colour {i}?", "a": "red"}) + "\n" for i in range(3)))
    evaluate(world, tmp_path / "out", "--dataset_name", str(file), "--split", "train", "--question_column", "q",
             "--answer_column", "a", "--answer_mode", "generate", "--max_new_tokens", "3")  # fmt: skip
    result = read(tmp_path / "out" / "pairs.json")
    assert result["accuracy"] == result["exact_match"]
    assert all(sample["prediction"] == sample["generated"] for sample in result["samples"])


def test_unconditional_scores_and_contamination_are_reported_when_asked_for(world: Path, tmp_path: Path) -> None:
    output = evaluate(world, tmp_path, "--dataset_name", "sciq", "--unconditional", "--check_contamination")
    result = read(tmp_path / "sciq.json")
    assert set(result["accuracies"]) == {"sum", "character", "byte", "token", "unconditional"}
    for sample in result["samples"]:
        assert len(sample["unconditional_scores"]) == 4
        assert sample["unconditional_scores"] != sample["scores"]
    colours = {}
    for sample in result["samples"]:
        for choice, value in zip(sample["choices"], sample["unconditional_scores"], strict=True):
            assert colours.setdefault(choice, value) == pytest.approx(value, abs=1e-5), "it depends on the choice alone"
    assert result["contamination"]["count"] == 0
    assert "no question stands in the train split" in output


def test_two_files_are_compared_in_words(world: Path, both: tuple[Path, str], tmp_path: Path) -> None:
    evaluate(world, tmp_path, "--dataset_name", "sciq", "--protocol", "harness")
    done = run("--compare", str(both[0] / "sciq.json"), str(tmp_path / "sciq.json"))
    assert done.returncode == 0, done.stderr
    assert "McNemar's exact test p =" in done.stdout
    assert "11 questions of sciq" in done.stdout
    refused = run("--compare", str(both[0] / "sciq.json"), str(both[0] / "commonsenseqa.json"))
    assert refused.returncode == 2
    assert "not the same questions" in refused.stderr


def test_a_model_without_tokenizer_with_too_many_tokens_or_broken_weights_is_told(world: Path, tmp_path: Path) -> None:
    def told(folder: Path) -> str:
        done = run("--model_path", str(folder), "--data_root", str(world / "mirror"), "--output_dir",
                   str(tmp_path / "out"), "--dataset_name", "sciq")  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    bare = shutil.copytree(world / "model", tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    assert "no tokenizer.json" in told(bare)
    other = shutil.copytree(world / "model", tmp_path / "other")
    train_tokenizer(
        ["stone river light metal cloud tower green amber north quiet heavy salt"] * 3, 340
    ).save_pretrained(other)
    assert "the model only" in told(other)
    broken = shutil.copytree(world / "model", tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    assert "gives nan for a log-likelihood" in told(broken)
    assert not (tmp_path / "out" / "sciq.json").exists()


def test_several_processes_that_the_launcher_did_not_start_are_noticed(world: Path, tmp_path: Path) -> None:
    """`accelerate launch --num_processes 2` without a file starts one, and says nothing."""
    command = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu", "eval_loop.py", "--model_path",
               str(world / "model"), "--data_root", str(world / "mirror"), "--output_dir", str(tmp_path / "out"),
               "--dataset_name", "sciq"]  # fmt: skip
    done = run_script(*command, limit=120)
    assert done.returncode != 0
    assert "asked for several processes and started one" in done.stderr


def test_a_chat_gets_the_same_sampled_texts_in_other_batches_and_stops_where_it_is_told(
    world: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "chat"
    shutil.copytree(world / "model", folder)
    flags = ("--dataset_name", "sciq", "--max_eval_samples", "8", "--answer_mode", "generate", "--max_new_tokens", "6",
             "--do_sample", "--temperature", "0.8", "--apply_chat_template")  # fmt: skip
    given = ("--model_path", str(folder), "--data_root", str(world / "mirror"), "--output_dir")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    refused = run(*given, str(tmp_path / "none"), *flags)
    assert (refused.returncode, "has no chat template" in refused.stderr) == (2, True)
    template = "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }}\n{% endfor %}assistant: "
    (folder / "chat_template.jinja").write_text(template)
    texts = []
    for batch, stop in (("3", ()), ("8", ()), ("8", ("--stop", " "))):
        output = tmp_path / f"out{batch}{len(stop)}"
        done = run(*given, str(output), *flags, *stop, "--per_device_eval_batch_size", batch)
        assert done.returncode == 0, done.stderr
        texts.append([sample["generated"] for sample in read(output / "sciq.json")["samples"]])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 3
    assert [text.partition(" ")[0] for text in texts[2]] == texts[2]
