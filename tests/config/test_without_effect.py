"""A flag that would change nothing is refused; at its default it is always taken, as in a file that runs share."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from asked import QUESTIONS, TEXT, problems, train

from miniqwen.config.flags import dump
from miniqwen.config.schedule import SCHEDULES
from miniqwen.training.optimizers import make_schedule


@pytest.mark.parametrize(
    ("task", "words", "refused"),
    [
        (TEXT, "--lr_scheduler_type cosine --min_lr_ratio 0.1", "--min_lr_ratio has no use with --lr_scheduler_type"),
        (TEXT, "--min_lr_ratio 0.1", "choose one of cosine_with_min_lr, polynomial, warmup_stable_decay"),
        (TEXT, "--lr_scheduler_type constant --warmup_steps 10", "which does not warm up: constant_with_warmup does"),
        (TEXT, "--lr_scheduler_type constant --warmup_ratio 0.1", "--warmup_ratio has no use"),
        (TEXT, "--decay_ratio 0.3", "--decay_ratio has no use without --lr_scheduler_type warmup_stable_decay"),
        (TEXT, "--lr_scheduler_type polynomial --min_lr_ratio 1", "polynomial must end below its peak"),
        (TEXT, "--eval_steps 10", "--eval_steps has no use without --eval_strategy steps"),
        (QUESTIONS, "--eval_steps 10 --eval_strategy epoch", "--eval_steps has no use without --eval_strategy steps"),
        (TEXT, "--per_device_eval_batch_size 4", "--per_device_eval_batch_size has no use where nothing is evaluated"),
        (TEXT, "--max_eval_samples 4", "--max_eval_samples has no use where nothing is evaluated"),
        (QUESTIONS, "--metric_for_best_model accuracy", "--metric_for_best_model has no use where nothing is"),
        (TEXT, "--greater_is_better False", "--greater_is_better has no use where nothing is evaluated"),
        (TEXT, "--sample_prompts Once", "--sample_prompts has no use where nothing is evaluated"),
        (TEXT, "--do_qa_format False", "--do_qa_format has no use in pretraining"),
        (QUESTIONS, "--block_size 128", "--block_size has no use in fine-tuning: --max_seq_length"),
        (QUESTIONS, "--data_lanes 8", "--data_lanes has no use in fine-tuning"),
        (QUESTIONS, "--validation_blocks 8", "--validation_blocks has no use in fine-tuning"),
        (QUESTIONS, "--preprocessing_num_workers 4", "--preprocessing_num_workers has no use in fine-tuning"),
        (QUESTIONS, "--wikipedia_version 20231101.de", "Wikipedia is not among the data sets"),
        (QUESTIONS, "--sample_by document", "--sample_by document is for .txt files"),
        (QUESTIONS, "--do_eval --profile 3", "--profile has no use where nothing is trained"),
        (("--dataset_name", "own/text", "--task", "pretrain", "--max_steps", "5"), "--question_column q",
         "--question_column has no use in pretraining"),
        (TEXT, "--seed -1", "--seed -1: must be at least 0"),
        (TEXT, "--seed 4294967296", "must be at most 4294967295"),
        (TEXT, "--adam_beta1 1", "--adam_beta1 1.0: must be at least 0 and below 1"),
        (TEXT, "--warmup_steps -1", "--warmup_steps -1: must be at least 0"),
        (TEXT, "--save_steps 0", "--save_steps 0: must be at least 1"),
        (TEXT, "--save_steps 2.5", "--save_steps: expected a whole number of updates, or a fraction of all of them"),
        (TEXT, "--eval_strategy steps --eval_steps -0.1", "--eval_steps: expected a whole number of updates"),
        (TEXT, "--logging_steps nan", "--logging_steps: expected a whole number of updates"),
    ],
)  # fmt: skip
def test_what_would_change_nothing_is_one_problem(tmp_path: Path, task: list, words: str, refused: str) -> None:
    found = problems(tmp_path, *task, *words.split())
    assert any(refused in told for told in found), found
    assert len(found) == 1


@pytest.mark.parametrize("task", [TEXT, QUESTIONS], ids=["text", "questions"])
def test_every_flag_at_its_default_is_taken(tmp_path: Path, task: tuple[str, ...]) -> None:
    (tmp_path / "config.yaml").write_text(dump(config := train(tmp_path, *task), {}))
    assert train(tmp_path, "--config", str(tmp_path / "config.yaml")) == config


GUIDE = (
    "--dataset_name both --do_train --do_eval --per_device_train_batch_size 4 --per_device_eval_batch_size 4 "
    "--gradient_accumulation_steps 4 --learning_rate 5e-5 --weight_decay 0.01 --max_steps 10000 --warmup_steps 1000 "
    "--logging_steps 100 --save_steps 1000 --evaluation_strategy steps --eval_steps 1000 --load_best_model_at_end "
    "--streaming True --max_seq_length 1024 --block_size 1024 --preprocessing_num_workers 4 --overwrite_output_dir",
    *(f"--dataset_name {name} --do_train --do_eval --per_device_train_batch_size 4 --per_device_eval_batch_size 4 "
      "--gradient_accumulation_steps 4 --learning_rate 3e-5 --weight_decay 0.01 --num_train_epochs 5 "
      "--warmup_ratio 0.1 --logging_steps 100 --save_steps 500 --evaluation_strategy steps --eval_steps 500 "
      "--load_best_model_at_end --do_qa_format True --max_seq_length 512 --overwrite_output_dir"
      for name in ("sciq", "commonsenseqa")),
)  # fmt: skip


@pytest.mark.parametrize("words", GUIDE, ids=["pretraining", "sciq", "commonsenseqa"])
@pytest.mark.parametrize("more", ["", "--report_to tensorboard", "--bf16 True", "--streaming True"])
def test_every_command_of_the_guide_is_taken_as_it_is_written(tmp_path: Path, words: str, more: str) -> None:
    assert train(tmp_path, *words.split(), *more.split()).trains


def test_a_text_is_evaluated_on_alone_without_a_number_of_updates(tmp_path: Path) -> None:
    config = train(tmp_path, "--dataset_name", "both", "--do_eval")
    assert (config.trains, config.evaluates, config.max_steps) == (False, True, -1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_that_is_let_through_has_a_factor_for_every_update(tmp_path: Path, name: str) -> None:
    tried = 0
    for warmup, end, decay, total in itertools.product((0, 1, 5), (0.0, 0.1, 1.0), (0.0, 0.2, 1.0), (1, 2, 5, 9)):
        ends = name in ("cosine_with_min_lr", "polynomial", "warmup_stable_decay")
        if warmup > total or (name == "constant" and warmup) or (end and not ends) or (name, end) == ("polynomial", 1):
            continue
        if decay != 0.2 and name != "warmup_stable_decay":
            continue
        given = f"--lr_scheduler_type {name} --min_lr_ratio {end} --decay_ratio {decay} --warmup_steps {warmup}"
        config = train(tmp_path, *TEXT, *given.split())
        schedule = make_schedule(config, total, warmup)
        assert all(0 <= schedule(step) <= 1 for step in range(total))
        tried += 1
    assert tried >= 4
