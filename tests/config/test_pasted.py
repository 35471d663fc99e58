"""Flags that are pasted from other programs: each is taken, or the error says what to write here or why it is not
needed; a hint is given only where a word is misspelt."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from asked import QUESTIONS, TEXT, problems, train
from transformers import TrainingArguments

from miniqwen.config.creating import CreateConfig
from miniqwen.config.evaluating import EvalConfig
from miniqwen.config.flags import parse
from miniqwen.config.generating import GenerateConfig
from miniqwen.config.pasted import CREATING, EVALUATING, GENERATING, OF_OTHERS, PREPARING, TRAINING, TRAINING_ARGUMENTS
from miniqwen.config.preparing import PrepareConfig
from miniqwen.config.training import TrainConfig
from miniqwen.errors import UserError


def flags_of(kind: type) -> dict[str, dataclasses.Field]:
    found = [f for f in dataclasses.fields(kind) if f.init and not f.metadata["positional"]]
    return {name: f for f in found for name in (f.name, *f.metadata["aliases"])}


def test_every_field_of_training_arguments_is_a_flag_or_is_explained() -> None:
    theirs = {f.name for f in dataclasses.fields(TrainingArguments) if f.init}
    assert len(theirs) > 100
    assert theirs - set(flags_of(TrainConfig)) == set(TRAINING_ARGUMENTS)


@pytest.mark.parametrize(
    ("kind", "table"),
    [(TrainConfig, TRAINING), (EvalConfig, EVALUATING), (GenerateConfig, GENERATING), (CreateConfig, CREATING),
     (PrepareConfig, PREPARING)],
)  # fmt: skip
def test_what_is_to_be_written_instead_is_a_flag_of_the_command(kind: type, table: dict) -> None:
    ours = flags_of(kind)
    assert not set(table) & set(ours)
    for name, pasted in table.items():
        instead = [word.strip(",;:()") for word in pasted.said.split("write ")[-1].split() if word.startswith("--")]
        if pasted.said.startswith("write "):
            assert instead, name
        elsewhere = ("launch", "hf download", "tensorboard", "eval_loop.py")
        if not any(word in pasted.said for word in elsewhere):
            assert {word.removeprefix("--") for word in instead} <= set(ours), (name, instead)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--ddp_timeout 1800", "--ddp_timeout: write --collective_timeout SECONDS"),
        ("--batch_size 8", "--batch_size: write --per_device_train_batch_size N, and --gradient_accumulation_steps M"),
        ("--save_strategy epoch", "--save_strategy: write --save_steps N"),
        ("--log_level info", "--log_level: what a run says does not depend on a level: leave it out"),
        ("--dataloader_num_workers 4", "--dataloader_num_workers: write --preprocessing_num_workers N"),
        ("--dtype bfloat16", "--dtype: write --bf16 or --fp16"),
        ("--torch_dtype=bfloat16", "--torch_dtype: write --bf16 or --fp16"),
        ("--attn_implementation flash_attention_2", "--attn_implementation: the fastest kernels"),
        ("--push_to_hub", "--push_to_hub: a run uploads nothing"),
        ("--gradient_checkpointing_kwargs {}", "--gradient_checkpointing_kwargs: --gradient_checkpointing recomputes"),
        ("--hub_model_id me/mine", "--hub_model_id: a run uploads nothing"),
        ("--min_lr 1e-5", "--min_lr: write --min_lr_ratio R"),
        ("--lora-r 8", "--lora-r: all parameters are trained"),
        ("--num_workers 2 3 4", "--num_workers: write --preprocessing_num_workers N"),
        ("--save_stratgy epoch", "--save_stratgy: no such flag; if --save_strategy is meant: write --save_steps N"),
        ("--no_streaming", "--no_streaming: write --streaming False"),
        ("--optim adafactor", "--optim: 'adafactor' is not one of adamw, muon"),
        ("--lr_scheduler_type cosine_with_restarts", "--lr_scheduler_type: 'cosine_with_restarts' is not one of"),
        ("--nonsense 1 2", "--nonsense: no such flag; see --help all"),
        ("--learnin_rate 3", "--learnin_rate: no such flag; did you mean --learning_rate?"),
        ("--learnin-rate 3", "--learnin-rate: no such flag; did you mean --learning_rate?"),
        ("--optim AdamW", "--optim: 'AdamW' is not one of adamw, muon; did you mean adamw?"),
        ("--config", "--config: needs a file"),
        ("-lr 3e-4", "'-lr' is not the value of any flag (flags begin with two dashes)"),
    ],
)  # fmt: skip
def test_a_pasted_flag_is_one_problem_that_says_what_to_do(tmp_path: Path, words: str, expected: str) -> None:
    found = problems(tmp_path, *TEXT, *words.split())
    assert found[0].startswith(expected), found
    assert len(found) == (2 if words.startswith("-lr") else 1)
    assert "did you mean" not in found[0] or "did you mean" in expected


@pytest.mark.parametrize("name", [*OF_OTHERS, *TRAINING_ARGUMENTS])
def test_no_flag_of_the_table_is_hinted_to_be_another_one(tmp_path: Path, name: str) -> None:
    (told,) = problems(tmp_path, *TEXT, f"--{name}", "something else")
    assert told.startswith(f"--{name}: ")
    assert "no such flag" not in told


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--lr 1e-4", "learning_rate", 1e-4), ("--learning-rate 1e-4", "learning_rate", 1e-4),
        ("--epochs 2", "num_train_epochs", 2.0), ("--optim adamw_torch", "optim", "adamw"),
        ("--optim adamw_torch_fused", "optim", "adamw"), ("--lr_scheduler_type cosine_with_min_lr", "lr_scheduler_type",
                                                          "cosine_with_min_lr"),
        ("--bf16 True", "bf16", True), ("--report_to none", "report_to", ("none",)),
        ("--per_gpu_train_batch_size 2", "per_device_train_batch_size", 2),
        ("--activation_checkpointing", "gradient_checkpointing", True), ("--full_determinism", "deterministic", True),
        ("--resume_from_checkpoint True", "resume_from_checkpoint", "auto"),
        ("--resume_from_checkpoint", "resume_from_checkpoint", "auto"),
        ("--resume_from_checkpoint False", "resume_from_checkpoint", "none"),
        ("--fsdp", "fsdp", "full_shard"), ("--fsdp True", "fsdp", "full_shard"),
        ("--save_strategy steps --save-steps=7", "save_steps", 7), ("--push_to_hub False", "hints", True),
        ("--dtype float32 --ddp_find_unused_parameters False", "bf16", False),
        ("--remove_unused_columns --logging_first_step true", "logging_steps", 10),
        ("--group_by_length false", "seed", 42), ("--do_train --do_eval --metric_for_best_model loss",
                                                  "metric_for_best_model", "eval_loss"),
    ],
)  # fmt: skip
def test_what_means_the_same_is_taken(tmp_path: Path, words: str, name: str, value: object) -> None:
    assert getattr(train(tmp_path, *TEXT, *words.split()), name) == value


def test_a_file_knows_the_same_words(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("learning-rate: 1e-3\noptim: adamw_torch\nresume_from_checkpoint: true\nsave_strategy: steps\n")
    config = train(tmp_path, *TEXT, "--config", str(file))
    assert (config.learning_rate, config.optim, config.resume_from_checkpoint) == (1e-3, "adamw", "auto")
    file.write_text("save_strategy: epoch\npush_to_hub: true\nbatch_size: 4\n")
    found = problems(tmp_path, *TEXT, "--config", str(file))
    assert [line.split(": ")[1] for line in found] == ["--save_strategy", "--push_to_hub", "--batch_size"]


def test_settings_that_say_what_is_done_anyway_are_taken(tmp_path: Path) -> None:
    given = ["--gradient_checkpointing_kwargs", '{"use_reentrant": false}']
    assert train(tmp_path, *TEXT, *given) == train(tmp_path, *TEXT)
    (tmp_path / "run.yaml").write_text("gradient_checkpointing_kwargs: {use_reentrant: false}\n")
    assert train(tmp_path, *TEXT, "--config", str(tmp_path / "run.yaml")) == train(tmp_path, *TEXT)
    (told,) = problems(tmp_path, *TEXT, *given[:1], '{"use_reentrant": true}')
    assert told.startswith("--gradient_checkpointing_kwargs: ")


def test_a_path_to_resume_from_is_still_a_path(tmp_path: Path) -> None:
    (tmp_path / "old/checkpoint-3").mkdir(parents=True)
    (tmp_path / "old/checkpoint-3/manifest.json").write_text("{}")
    given = str(tmp_path / "old/checkpoint-3")
    assert train(tmp_path, *TEXT, "--resume_from_checkpoint", given).resume_from_checkpoint == given


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--dataset_name wikpedia", "did you mean wikipedia?"),
        ("--dataset_name scqi --num_train_epochs 3 --packing", "did you mean sciq?"),
        ("--dataset_name sicq --eval_strategy epoch --max_seq_length 512", "did you mean sciq?"),
        ("--dataset_name commonsensqa --prompt_template {question}", "did you mean commonsenseqa?"),
        ("--dataset_name my.jsonl --question_column q --answer_column a", "no such data set or file"),
        ("--dataset_name wikpedia arxiv --mixture wikipedia=0.3,arxiv=0.7", "did you mean wikipedia?"),
        ("--dataset_name owner/name", "--task: say pretrain or finetune"),
    ],
)
def test_a_data_set_that_is_not_known_is_one_problem(tmp_path: Path, words: str, expected: str) -> None:
    (told,) = problems(tmp_path, *words.split())
    assert expected in told


def test_a_misspelt_data_set_is_one_problem_of_an_evaluation_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    given = ["--model_path", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--dataset_name", "sicq"]
    with pytest.raises(UserError) as caught:
        parse(EvalConfig, given, program="", description="")
    (told,) = caught.value.problems
    assert "did you mean sciq?" in told


@pytest.mark.parametrize(
    ("kind", "words", "expected"),
    [
        (EvalConfig, "--batch_size 8", "--batch_size: write --per_device_eval_batch_size N"),
        (EvalConfig, "--limit 8", "--limit: write --max_eval_samples N"),
        (GenerateConfig, "--max_tokens 8", "--max_tokens: write --max_new_tokens N"),
        (CreateConfig, "--hidden_size 8", "--hidden_size: write --size tiny"),
        (PrepareConfig, "--output_dir x", "--output_dir: write --download FOLDER"),
    ],
)
def test_the_other_commands_know_what_is_pasted_into_them(kind: type, words: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(kind, words.split(), program="", description="")
    assert caught.value.problems[0].startswith(expected)


def test_words_behind_an_unknown_flag_are_still_prompts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError) as caught:
        parse(GenerateConfig, ["--model_path", str(tmp_path), "--nonsense", "Hello"], program="", description="")
    assert list(caught.value.problems) == ["--nonsense: no such flag; see --help all"]


QUIET = "--dataset_name sciq --num_train_epochs 5"


def test_questions_are_asked_with_the_same_words(tmp_path: Path) -> None:
    assert train(tmp_path, *QUESTIONS, "--epochs", "5") == train(tmp_path, *QUIET.split())
