"""The real loop, run as users run it: what it leaves, interruption and resume, both tasks, one and two processes."""

from __future__ import annotations

import gzip
import json
import math
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from runs import command, run_script, running, wait_for_updates, wandb_records
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from miniqwen.training.auditing import audit
from miniqwen.training.samples import BEGINNINGS, SAMPLE_TOKENS
from miniqwen.training.tracking import so_far

PRETRAIN = (
    "--dataset_name both --block_size 32 --per_device_train_batch_size 2 --gradient_accumulation_steps 2 "
    "--learning_rate 1e-2 --warmup_steps 2 --logging_steps 2 --save_steps 5 --validation_blocks 8 --max_steps 12"
).split()
FINETUNE = (
    "--max_seq_length 96 --per_device_train_batch_size 2 --gradient_accumulation_steps 3 --learning_rate 5e-3 "
    "--warmup_ratio 0.1 --logging_steps 4 --num_train_epochs 2 --eval_strategy epoch"
).split()


def train(model: Path, mirror: Path, output: Path, *flags: object, processes: int = 1) -> str:
    done = run_script(
        "train_loop.py",
        "--model_path",
        model,
        "--data_root",
        mirror,
        "--output_dir",
        output,
        *flags,
        processes=processes,
    )
    assert done.returncode == 0, done.stderr
    assert audit(output).faults == []
    return done.stdout + done.stderr


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path, atol: float = 0.0) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=atol, msg=name)


@pytest.fixture(scope="module")
def pretrained(model: Path, mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An uninterrupted run with everything on, and what it printed."""
    output = tmp_path_factory.mktemp("runs") / "pretrained"
    flags = "--do_train --do_eval --evaluation_strategy steps --eval_steps 4 --load_best_model_at_end --report_to all"
    return output, train(model, mirror, output, *PRETRAIN, *flags.split())


def test_a_run_leaves_what_is_promised_and_learns(pretrained: tuple[Path, str]) -> None:
    output, said = pretrained
    left = {path.name for path in output.iterdir()}
    assert {
        "config.yaml", "metrics.jsonl", "wandb", "trainer_state.json", "model.safetensors", "config.json",
        "tokenizer.json", "generation_config.json", "checkpoint-4", "checkpoint-5", "checkpoint-10", "checkpoint-12",
    } <= left  # fmt: skip
    assert not any(name.endswith(".tmp") for name in left)
    state = json.loads((output / "trainer_state.json").read_text())
    assert (state["status"], state["step"], state["last_checkpoint"]) == ("finished", 12, "checkpoint-12")
    assert state["best_checkpoint"] == f"checkpoint-{state['best_step']}"
    losses = [line["loss"] for line in lines(output) if "loss" in line]
    assert losses[-1] < losses[0] - 0.3
    shown = r"update 12/12  loss N \(N bits/byte\)  lr N  grad norm N  N tokens/s  0:00:00 left\n"
    assert re.search(shown.replace("N", r"[\d,.e-]+"), said)
    assert re.search(r"\nfinished: 12 updates, 1,536 tokens in \d\.\d minutes; best eval_loss \d\.\d{4}, at upd", said)
    assert f"\ncurves: tensorboard --logdir {output}\n" in said
    assert f"\nnext: talk to it, python -m miniqwen.generate --model_path {output}\n" in said
    assert "wikipedia: dump 20231101.en\n" in said, "nobody asked for another one"
    recorded = yaml.safe_load((output / "config.yaml").read_text())
    assert recorded["max_steps"] == 12
    assert recorded["recorded"]["validation"]["wikipedia"]["rows_held_out_of_training"] > 0
    assert recorded["recorded"]["data"]["held_out"]["wikipedia"][0][0].startswith("20231101.en/train-")
    assert "torch" in recorded["recorded"]["lives"][0]["versions"]


def test_the_model_s_samples_stand_beside_the_metrics_and_are_what_the_final_model_writes(
    pretrained: tuple[Path, str], model: Path, mirror: Path, tmp_path: Path
) -> None:
    output, said = pretrained
    rows = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4] * 4 + [8] * 4 + [12] * 4
    assert [row["prompt"] for row in rows[:4]] == list(BEGINNINGS)
    best = json.loads((output / "trainer_state.json").read_text())["best_step"]
    tokenizer, final = AutoTokenizer.from_pretrained(output), AutoModelForCausalLM.from_pretrained(output)
    for row in (row for row in rows if row["step"] == best):
        ids = tokenizer(row["prompt"], return_tensors="pt")
        written = final.generate(**ids, max_new_tokens=SAMPLE_TOKENS, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(written, skip_special_tokens=True) == row["completion"]
    assert f"    {BEGINNINGS[0]} » " in said
    reader = EventAccumulator(str(output))
    reader.Reload()
    assert [event.step for event in reader.Tensors("eval/completions/text_summary")] == [4, 8, 12]
    files = sorted(output.glob("wandb/offline-run-*/files/media/table/eval/completions_*.table.json"))
    assert [len(json.loads(file.read_text())["data"]) for file in files] == [4, 4, 4]

    flags = "--do_train --do_eval --evaluation_strategy steps --eval_steps 4 --load_best_model_at_end --report_to none"
    train(model, mirror, tmp_path / "out", *PRETRAIN, *flags.split(), "--sample_prompts", "none")
    assert_same_weights(output / "checkpoint-12", tmp_path / "out" / "checkpoint-12")
    assert (tmp_path / "out" / "samples.jsonl").read_text() == ""


def test_bits_per_byte_are_those_of_the_text(pretrained: tuple[Path, str], mirror: Path) -> None:
    """Of the documents that were held out, as config.yaml names them: their own bytes, not those of a token on average.

    Every token but the first of a block is predicted; the end of a document has no bytes.
    """
    output, _ = pretrained
    recorded = yaml.safe_load((output / "config.yaml").read_text())
    length, tokenizer = recorded["block_size"], AutoTokenizer.from_pretrained(output)
    targets = num_bytes = 0
    for name, folder in (("wikipedia", "wikimedia/wikipedia"), ("arxiv", "common-pile/arxiv_papers")):
        texts: list[str] = []
        for path, part, start, stop in recorded["recorded"]["data"]["held_out"].get(name, []):
            file = mirror / folder / path
            if path.endswith(".parquet"):
                rows = pq.ParquetFile(file).read_row_group(part)["text"].to_pylist()
            else:
                rows = [json.loads(line)["text"] for line in gzip.decompress(file.read_bytes()).splitlines()]
            texts += rows[start:stop]
        tokens = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
        tokens = tokens[: recorded["recorded"]["validation"].get(name, {"tokens": 0})["tokens"]]
        targets_here = [token for at, token in enumerate(tokens) if at % length]
        targets += len(targets_here)
        num_bytes += sum(bytes_of(tokenizer, token) for token in targets_here)
    evaluations = [line for line in lines(output) if "eval_loss" in line]
    assert targets > 50
    for line in evaluations:
        bits = line["eval_loss"] * targets / math.log(2)
        assert line["eval_bits_per_byte"] == pytest.approx(bits / num_bytes, rel=1e-9)


def bytes_of(tokenizer: Any, token: int) -> int:
    """By the library's own decoder; the texts here are ASCII, so that a token is whole characters."""
    return len(tokenizer.decode([token], skip_special_tokens=True).encode())


def test_the_clock_goes_on_over_the_starts_of_a_run(pretrained: tuple[Path, str]) -> None:
    output, _ = pretrained
    written = lines(output)
    for name in ("time", "elapsed"):
        values = [line[name] for line in written]
        assert values == sorted(values)
        assert values[-1] > values[0]
    for step, at_least in ((12, written[-1]["elapsed"]), (1, written[0]["elapsed"]), (0, 0.0)):
        assert so_far(lines(output), step, "elapsed") == at_least


def test_metrics_hold_every_event_and_the_best_evaluation_chose_the_model(pretrained: tuple[Path, str]) -> None:
    output, _ = pretrained
    written = lines(output)
    assert [line["step"] for line in written if "loss" in line] == [1, 2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in written if "eval_loss" in line] == [4, 8, 12]
    assert {"loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second"} <= written[0].keys()
    assert [line["learning_rate"] for line in written if "loss" in line][:3] == pytest.approx([0.0, 0.005, 0.009])
    assert written[-2]["tokens"] == 12 * 4 * 32
    best = min((line for line in written if "eval_loss" in line), key=lambda line: line["eval_loss"])
    state = json.loads((output / "trainer_state.json").read_text())
    assert (state["best_step"], state["best_metric"]) == (best["step"], best["eval_loss"])
    assert_same_weights(output, output / f"checkpoint-{best['step']}")


def test_tensorboard_and_wandb_give_back_the_logged_values(pretrained: tuple[Path, str]) -> None:
    output, _ = pretrained
    expected = {line["step"]: line for line in lines(output) if "loss" in line}
    reader = EventAccumulator(str(output))
    reader.Reload()
    shown = {event.step: event.value for event in reader.Scalars("train/loss")}
    assert shown == pytest.approx({step: line["loss"] for step, line in expected.items()})
    assert [event.step for event in reader.Scalars("eval/loss")] == [4, 8, 12]

    (file,) = output.glob("wandb/offline-run-*/*.wandb")
    logged = {}
    for record in wandb_records(file):
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if "train/loss" in items:
            logged[items["train/global_step"]] = items["train/loss"]
    assert logged == pytest.approx({step: line["loss"] for step, line in expected.items()})


def test_the_final_folder_is_a_stock_qwen3_that_generates(pretrained: tuple[Path, str]) -> None:
    output, _ = pretrained
    loaded = AutoModelForCausalLM.from_pretrained(output)
    assert type(loaded) is Qwen3ForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(output)
    prompt = tokenizer("Article 1\n\nstone", return_tensors="pt")
    made = loaded.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert made.shape[1] <= prompt["input_ids"].shape[1] + 5
    assert tokenizer.decode(made[0]).startswith("Article 1\n\nstone")


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_stopping_and_resuming_twice_gives_the_same_weights(
    model: Path, mirror: Path, tmp_path: Path, optim: str
) -> None:
    flags = [
        *PRETRAIN,
        "--optim",
        optim,
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "4",
        "--lr_scheduler_type",
        "constant_with_warmup",
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(model, mirror, whole, *flags)
    for steps in (3, 7, 12):
        train(model, mirror, parts, *flags, "--max_steps", steps, "--resume_from_checkpoint", "auto")
    assert_same_weights(whole, parts)
    assert_same_weights(whole / "checkpoint-12", parts / "checkpoint-12")


def test_a_terminated_run_saves_says_so_and_goes_on(model: Path, mirror: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    flags = [*PRETRAIN, "--max_steps", "150", "--save_steps", "1000", "--report_to", "none"]
    train(model, mirror, whole, *flags)
    given = ["--model_path", model, "--data_root", mirror, "--output_dir", stopped, *flags]
    with running(command(*given), tmp_path / "log") as process:
        wait_for_updates(process, stopped, more=4)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    state = json.loads((stopped / "trainer_state.json").read_text())
    assert state["status"] == "preempted"
    assert 0 < state["step"] < 150
    assert state["last_checkpoint"] == f"checkpoint-{state['step']}"
    train(model, mirror, stopped, *flags, "--resume_from_checkpoint", "auto")
    assert_same_weights(whole, stopped)
    last = {line["step"]: line["loss"] for line in lines(stopped)}  # of a repeated step the last line counts
    assert last == pytest.approx({line["step"]: line["loss"] for line in lines(whole)}, rel=1e-9)


def test_two_processes_train_as_one_does(model: Path, mirror: Path, tmp_path: Path) -> None:
    flags = [*PRETRAIN, "--eval_strategy", "steps", "--eval_steps", "6", "--max_steps", "6", "--document_masking"]
    train(model, mirror, tmp_path / "one", *flags)
    train(model, mirror, tmp_path / "two", *flags, "--gradient_accumulation_steps", "1", processes=2)
    assert_same_weights(tmp_path / "one", tmp_path / "two", atol=2e-6)
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    for first, second in zip(one, two, strict=True):
        names = {"loss", "grad_norm", "eval_loss", "tokens", "learning_rate"} & first.keys()
        assert len(names) in (1, 4)
        assert [second[name] for name in names] == pytest.approx([first[name] for name in names], rel=1e-5)


@pytest.mark.parametrize("name", ["sciq", "commonsenseqa"])
def test_fine_tuning_follows_pretraining_and_is_evaluated(
    pretrained: tuple[Path, str], mirror: Path, tmp_path: Path, name: str
) -> None:
    output = tmp_path / name
    said = train(
        pretrained[0], mirror, output, "--dataset_name", name, *FINETUNE, "--metric_for_best_model", "accuracy",
        "--report_to", "tensorboard", "wandb",
    )  # fmt: skip
    assert "examples to train on" in said
    evaluations = [line for line in lines(output) if "eval_loss" in line]
    per_epoch = 10 if name == "sciq" else 8
    assert [line["step"] for line in evaluations] == [per_epoch, 2 * per_epoch]
    assert all(0 <= line["eval_accuracy"] <= 1 for line in evaluations)
    losses = [line["loss"] for line in lines(output) if "loss" in line]
    assert losses[-1] < losses[0]
    assert (output / "prompt_templates.json").exists()
    tables_hold_the_first_questions(output, [line["step"] for line in evaluations])
    done = run_script(
        "eval_loop.py", "--model_path", output, "--dataset_name", name, "--data_root", mirror, "--output_dir",
        tmp_path / "e",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "e" / f"{name}.json").read_text())["num_examples"] == 15


def tables_hold_the_first_questions(output: Path, steps: list[int]) -> None:
    """A table of samples of each evaluation, in both trackers."""
    reader = EventAccumulator(str(output))
    reader.Reload()
    events = reader.Tensors("eval/samples/text_summary")
    assert [event.step for event in events] == steps
    rows = events[-1].tensor_proto.string_val[0].decode().splitlines()
    assert rows[0].startswith("| id | question | choices | scores | prediction | answer | correct |")
    files = sorted(output.glob("wandb/offline-run-*/files/media/table/eval/samples_*.table.json"))
    assert len(files) == len(steps)
    table = json.loads(files[-1].read_text())
    assert table["columns"] == ["id", "question", "choices", "scores", "prediction", "answer", "correct"]
    assert len(table["data"]) == len(rows) - 2
    assert len(table["data"]) in (2, 15), "all validation questions here, which are few"
    for identity, question, choices, scores, prediction, answer, correct in table["data"]:
        assert question.startswith("Which word")
        texts, values = choices.split("; "), [float(score) for score in scores.split("; ")]
        assert values[texts.index(prediction)] == max(values)
        assert (prediction == answer) is (correct == "True")
        assert any(identity in row for row in rows)


def test_packed_fine_tuning_counts_blocks_and_is_the_same_on_two_processes_and_after_a_resume(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    flags = (
        "--dataset_name sciq --packing --max_seq_length 64 --per_device_train_batch_size 2 --learning_rate 1e-3 "
        "--lr_scheduler_type constant --eval_strategy steps --eval_steps 500 --save_steps 500 --truncation left"
    ).split()
    one, parts = [*flags, "--gradient_accumulation_steps", "8"], tmp_path / "parts"
    said = train(model, mirror, tmp_path / "whole", *one, "--max_steps", "5")
    (per_epoch,) = map(int, re.findall(r"packed into .* blocks of 64 tokens, .* an epoch has (\d+) updates", said))
    assert 1 < per_epoch < 5
    assert f"--eval_steps 500 is lowered to {per_epoch}" in said
    assert f"--save_steps 500 is lowered to {per_epoch}" in said
    assert "updates of 16 blocks" in said
    evaluated = [line["step"] for line in lines(tmp_path / "whole") if "eval_loss" in line]
    assert evaluated == sorted({*range(per_epoch, 6, per_epoch), 5})
    recorded = yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())["recorded"]["data"]
    cut = recorded["examples_cut"]
    assert 0 < cut < recorded["examples"] == 60
    assert f"sciq: {cut} training examples longer than --max_seq_length 64 lost the beginning" in said
    train(model, mirror, parts, *flags, "--gradient_accumulation_steps", "4", "--max_steps", "3", processes=2)
    train(model, mirror, parts, *one, "--max_steps", "5", "--resume_from_checkpoint", "auto")
    assert_same_weights(tmp_path / "whole", parts, atol=5e-6)
    last = [[line for line in lines(tmp_path / run) if line["step"] == 5] for run in ("whole", "parts")]
    for name, number in (("grad_norm", 0), ("tokens", 0), ("eval_loss", 1)):
        assert last[1][number][name] == pytest.approx(last[0][number][name], rel=1e-6)
    done = run_script(
        "train_loop.py", "--model_path", model, "--data_root", mirror, "--output_dir", tmp_path / "listed", *flags,
        "--truncation", "error",
    )  # fmt: skip
    assert done.returncode == 2
    assert f"sciq, training: {cut} of 60 examples are longer than --max_seq_length 64" in done.stderr
    assert re.search(r"sciq, training: question \S+ has \d+ tokens", done.stderr)


def test_plain_text_fine_tuning_and_templates_of_ones_own(model: Path, mirror: Path, tmp_path: Path) -> None:
    train(model, mirror, tmp_path / "plain", "--dataset_name", "sciq", *FINETUNE, "--do_qa_format", "False")
    assert not (tmp_path / "plain" / "prompt_templates.json").exists()
    template = ["--prompt_template", r"{question}\n{choices}\nIt is", "--choices_template", "- {text}"]
    train(model, mirror, tmp_path / "own", "--dataset_name", "sciq", *FINETUNE, *template)
    saved = json.loads((tmp_path / "own" / "prompt_templates.json").read_text())
    assert saved == {"prompt_template": "{question}\n{choices}\nIt is", "choices_template": "- {text}"}


def test_data_of_ones_own_trains_from_local_files(model: Path, mirror: Path, tmp_path: Path) -> None:
    texts = tmp_path / "notes.jsonl"
    texts.write_text("".join(json.dumps({"body": f"note {n} stone river " * 5}) + "\n" for n in range(80)))
    flags = [flag for flag in PRETRAIN if flag not in ("--dataset_name", "both")]
    own = ["--dataset_name", texts, "--task", "pretrain", "--text_column", "body"]
    train(model, mirror, tmp_path / "text", *flags, *own)
    questions = tmp_path / "quiz.csv"
    rows = "".join(f"Which is {n}?,stone,river,light,{n % 3}\n" for n in range(40))
    questions.write_text("ask,a,b,c,right\n" + rows)
    columns = ["--question_column", "ask", "--choices_column", "a,b,c", "--answer_column", "right"]
    train(model, mirror, tmp_path / "qa", "--dataset_name", questions, *columns, *FINETUNE)
    assert any("eval_accuracy" in line for line in lines(tmp_path / "qa"))
    test = tmp_path / "test.csv"  # its own answers could be numbers from 1 as well: the model's reading decides
    test.write_text("ask,a,b,c,right\nWhich is it?,stone,river,light,1\n")
    given = ["--model_path", tmp_path / "qa", "--dataset_name", test, "--split", "train", *columns]
    done = run_script("eval_loop.py", *given, "--output_dir", tmp_path / "answers")
    assert done.returncode == 0, done.stderr
    assert "answers are read as the numbers of choices from 0, e.g. test.csv, row 0: '1' → 'river'" in done.stdout
    (sample,) = json.loads((tmp_path / "answers" / "test.json").read_text())["samples"]
    assert sample["answer"] == "river"
    (tmp_path / "qa" / "answer_reading.json").unlink()
    asked = run_script("eval_loop.py", *given, "--output_dir", tmp_path / "asked")
    assert (asked.returncode, "--answer_is number_from_1" in asked.stderr) == (2, True)


def test_half_precision_halves_the_final_model_and_keeps_fp32_checkpoints(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    train(model, mirror, tmp_path / "out", *PRETRAIN, "--bf16", "--max_steps", "3")
    assert {value.dtype for value in weights(tmp_path / "out").values()} == {torch.bfloat16}
    assert {value.dtype for value in weights(tmp_path / "out" / "checkpoint-3").values()} == {torch.float32}
    small = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert small < 0.6 * (tmp_path / "out" / "checkpoint-3" / "model.safetensors").stat().st_size


def test_early_stopping_ends_the_run(model: Path, mirror: Path, tmp_path: Path) -> None:
    flags = ["--eval_strategy", "steps", "--eval_steps", "1", "--early_stopping_patience", "2", "--learning_rate", "3"]
    train(model, mirror, tmp_path / "out", *PRETRAIN, *flags, "--max_steps", "60", "--max_grad_norm", "0")
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["status"] == "finished"
    assert state["step"] == state["best_step"] + 2 < 60


def test_only_the_newest_and_the_best_checkpoints_are_kept(model: Path, mirror: Path, tmp_path: Path) -> None:
    flags = ["--eval_strategy", "steps", "--eval_steps", "3", "--save_steps", "2", "--save_total_limit", "2"]
    train(model, mirror, tmp_path / "out", *PRETRAIN, *flags, "--learning_rate", "1e-9")
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    kept = {path.name for path in (tmp_path / "out").glob("checkpoint-*")}
    assert kept == {"checkpoint-10", "checkpoint-12", state["best_checkpoint"]}


def test_text_that_is_used_up_repeats_in_another_order_and_the_run_says_so(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    flags = [*PRETRAIN, "--dataset_name", "arxiv", "--block_size", "128", "--per_device_train_batch_size", "8"]
    said = train(model, mirror, tmp_path / "out", *flags)
    assert said.count("all of the text of arxiv was read; it repeats") == 1


def refused(*flags: object) -> str:
    done = run_script("train_loop.py", *flags)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_nothing_is_overwritten_without_being_asked_and_then_only_a_runs_own_files(
    pretrained: tuple[Path, str], model: Path, mirror: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(pretrained[0], output)
    (output / "notes.txt").write_text("mine")
    before = (output / "model.safetensors").read_bytes()
    given = ["--model_path", model, "--data_root", mirror, "--output_dir", output, *PRETRAIN]
    assert "--resume_from_checkpoint auto" in refused(*given)
    assert (output / "model.safetensors").read_bytes() == before
    train(model, mirror, output, *PRETRAIN, "--overwrite_output_dir", "--max_steps", "2")
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-2"]
    assert (output / "notes.txt").read_text() == "mine"


def test_changed_data_or_order_is_refused_on_resume(
    pretrained: tuple[Path, str], model: Path, mirror: Path, tmp_path: Path
) -> None:
    output, other = tmp_path / "out", tmp_path / "mirror"
    shutil.copytree(pretrained[0], output)
    given = ["--model_path", model, "--output_dir", output, *PRETRAIN, "--resume_from_checkpoint", "auto"]
    assert "seed: was 42, is 7" in refused(*given, "--data_root", mirror, "--seed", "7")
    said = refused(*given, "--data_root", mirror, "--per_device_train_batch_size", "4")
    assert "--gradient_accumulation_steps 1 keeps them" in said
    said = refused(*given, "--data_root", mirror, "--per_device_train_batch_size", "3")
    assert "--per_device_train_batch_size 2 --gradient_accumulation_steps 2 keeps them" in said
    shutil.copytree(mirror, other)
    next((other / "common-pile/arxiv_papers").glob("00001*")).unlink()
    assert "00001_arxiv-papers.jsonl.gz" in refused(*given, "--data_root", other)
    assert "already at update 12" in refused(*given, "--data_root", mirror, "--max_steps", "11")


def damage(file: Path) -> Path:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(
    pretrained: tuple[Path, str], model: Path, mirror: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(pretrained[0], output)
    damaged = damage(output / "checkpoint-12" / "optimizer.safetensors")
    flags = "--evaluation_strategy steps --eval_steps 4 --load_best_model_at_end".split()
    given = ["--model_path", model, "--data_root", mirror, "--output_dir", output, *PRETRAIN]
    named = refused(*given, "--resume_from_checkpoint", damaged.parent)
    assert f"{damaged} is damaged" in named
    said = train(model, mirror, output, *PRETRAIN, *flags, "--resume_from_checkpoint", "auto")
    assert f"{damaged} is damaged" in said
    assert f"continuing from {output / 'checkpoint-10'}, update 10" in said
    assert_same_weights(output, pretrained[0])
    for folder in output.glob("checkpoint-*"):
        damage(folder / "model.safetensors")
    assert "no checkpoint is whole" in refused(*given, "--resume_from_checkpoint", "auto")


def test_broken_rows_and_empty_splits_are_named(model: Path, mirror: Path, tmp_path: Path) -> None:
    given = ["--model_path", model, "--output_dir", tmp_path / "out", "--max_seq_length", "96"]
    broken = tmp_path / "texts.jsonl"
    broken.write_text('{"text": "a"}\n{"text": "b"\n')
    text = ["--task", "pretrain", "--max_steps", "3", "--block_size", "32"]
    assert "texts.jsonl: byte 0, line 1 is not JSON" in refused(*given, *text, "--dataset_name", broken)
    columns = ["--question_column", "q", "--answer_column", "a", "--choices_column", "c"]
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_text('{"q": "x?", "c": ["u", "v"], "a": "u"}\n{"q": "y?", "c": ["u", "v"], "a": null}\n')
    assert "row 1" in refused(*given, "--dataset_name", quiz, *columns)
    quiz.write_text("")
    assert "no rows" in refused(*given, "--dataset_name", quiz, *columns)
    assert "no split 'dev'" in refused(
        *given, *text, "--dataset_name", "arxiv", "--data_root", mirror, "--train_split", "dev"
    )
    assert "longer than the training" in refused(
        *given, "--data_root", mirror, "--dataset_name", "sciq", "--warmup_steps", "1000"
    )


def test_another_metric_on_resume_chooses_the_best_afresh_and_says_so(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    flags = ["--dataset_name", "sciq", *FINETUNE[:-4], "--eval_strategy", "steps", "--eval_steps", "2"]
    train(model, mirror, tmp_path / "out", *flags, "--max_steps", "4")
    before = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert before["best_metric"] > 1.5, "a loss, which no accuracy could ever beat"
    again = [*flags, "--max_steps", "8", "--resume_from_checkpoint", "auto", "--metric_for_best_model", "eval_accuracy"]
    told = train(model, mirror, tmp_path / "out", *again)
    assert "the best model so far has the smallest eval_loss, and is to have the largest eval_accuracy now" in told
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    found = {line["step"]: line["eval_accuracy"] for line in lines(tmp_path / "out") if "eval_accuracy" in line}
    assert state["best_metric"] == max(found[step] for step in (6, 8))
    assert state["best_step"] in (6, 8)


def test_a_fine_tuning_that_has_nothing_to_validate_on_is_refused(model: Path, mirror: Path, tmp_path: Path) -> None:
    source = tmp_path / "quiz.jsonl"
    rows = [{"q": f"Which {n}?", "c": ["stone", "river"], "a": "stone"} for n in range(30)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    long = tmp_path / "data" / "own" / "quiz"
    long.mkdir(parents=True)
    (long / "train.jsonl").write_text(source.read_text())
    (long / "validation.jsonl").write_text(json.dumps({**rows[0], "q": "stone river " * 80}) + "\n")
    given = [
        "--dataset_name",
        "own/quiz",
        "--data_root",
        tmp_path / "data",
        "--max_seq_length",
        "64",
        "--max_steps",
        "2",
    ]
    columns = ["--question_column", "q", "--choices_column", "c", "--answer_column", "a"]
    flags = ["--model_path", model, "--output_dir", tmp_path / "out", *given, *columns]
    assert "no example to validate on: none of 1 fits --max_seq_length 64" in refused(
        *flags, "--eval_strategy", "epoch"
    )


def test_bad_rows_of_questions_are_skipped_in_training_when_that_is_asked_for(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    file = tmp_path / "quiz.jsonl"
    rows = [{"q": f"Which {n}?", "c": ["stone", "river"], "a": "a" if n != 7 else "z"} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ["--question_column", "q", "--choices_column", "c", "--answer_column", "a"]
    flags = ["--dataset_name", file, *columns, *FINETUNE]
    given = ["--model_path", model, "--output_dir", tmp_path / "no"]
    assert "row 7: a 'z' is none of the choices" in refused(*given, *flags)
    told = train(model, mirror, tmp_path / "out", *flags, "--on_bad_data", "skip")
    assert "1 bad rows are left out (--on_bad_data skip)" in told
    assert "answers are read as the labels of choices, e.g. quiz.jsonl, row 0: 'a' → 'stone'" in told


def test_questions_of_two_data_sets_are_trained_on_together_by_short_names_or_hub_ids(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    for output, names in ("short", ("sciq", "commonsenseqa")), ("ids", ("allenai/sciq", "tau/commonsense_qa")):
        told = train(model, mirror, tmp_path / output, "--dataset_name", *names, *FINETUNE, "--num_train_epochs", "1")
        assert "sciq, commonsenseqa: 108 examples to train on, 17 to validate on" in told
    assert_same_weights(tmp_path / "short", tmp_path / "ids")
    settings = tmp_path / "settings.yaml"
    settings.write_text("sources:\n  sciq: {train_split: validation, validation_split: test}\n")
    flags = ("--dataset_name", "sciq", "commonsenseqa", "--config", settings, "--num_train_epochs", "1")
    told = train(model, mirror, tmp_path / "splits", *flags, *FINETUNE)
    assert "sciq, commonsenseqa: 108 examples" not in told
    done = run_script(
        "train_loop.py", "--model_path", model, "--output_dir", tmp_path / "no", "--dataset_name", "sciq", "other/data"
    )
    assert (done.returncode, "or on one other data set" in done.stderr) == (2, True)
