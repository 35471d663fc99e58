"""Fractions of all updates, as transformers has them: the same numbers from the same words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerState, TrainingArguments

from miniqwen.config.flags import parse
from miniqwen.config.training import TrainConfig
from miniqwen.errors import UserError
from miniqwen.training.task import Steps, updates_in_all


def asked(*words: str) -> TrainConfig:
    """Flags with problems of files, which are not of interest here."""
    config = None

    def keep(given: TrainConfig) -> list[str]:
        nonlocal config
        config = given
        return []

    with pytest.raises(UserError):
        parse(TrainConfig, ["--dataset_name", "sciq", *words], program="", description="", checks=[keep])
    assert config is not None
    return config


def steps_of(config: TrainConfig, per_epoch: int | None) -> tuple[TrainConfig, Steps, list[str]]:
    task: Any = SimpleNamespace(updates_per_epoch=per_epoch)
    config, told = config.in_updates(updates_in_all(config, task))
    return config, Steps.of(config, task), told


@pytest.mark.parametrize("total", [1, 3, 7, 30, 100, 999, 10_000])
@pytest.mark.parametrize("share", [0.001, 0.05, 0.07, 0.1, 0.25, 1 / 3, 0.5, 0.999])
def test_fractions_are_rounded_as_transformers_rounds_them(total: int, share: float) -> None:
    words = [f"--{name} {share!r}" for name in ("warmup_steps", "save_steps", "eval_steps", "logging_steps")]
    words += ["--eval_strategy steps", f"--max_steps {total}"]
    config, steps, _ = steps_of(asked(*" ".join(words).split()), 11)
    theirs = TrainingArguments(
        output_dir="x", warmup_steps=share, save_steps=share, eval_steps=share, logging_steps=share,
        eval_strategy="steps", max_steps=total, use_cpu=True,
    )  # fmt: skip
    state = TrainerState()
    state.compute_steps(theirs, total)
    assert (steps.total, steps.warmup) == (total, theirs.get_warmup_steps(total))
    assert (config.save_steps, config.eval_steps, config.logging_steps) == (
        state.save_steps, state.eval_steps, state.logging_steps,
    )  # fmt: skip
    assert steps.between_evaluations == state.eval_steps


def test_fractions_are_of_all_epochs_and_what_they_are_is_said() -> None:
    given = "--num_train_epochs 2 --save_steps 0.25 --warmup_steps 0.1 --eval_strategy steps --logging_steps 0.05"
    config, steps, told = steps_of(asked(*given.split()), 50)
    assert (steps.total, steps.warmup, config.save_steps, config.logging_steps) == (100, 10, 25, 5)
    assert steps.between_evaluations == 5  # --logging_steps, where --eval_steps is not given
    assert told == ["--logging_steps 0.05 of 100 updates: every 5", "--save_steps 0.25 of 100 updates: every 25"]


def test_one_and_whole_numbers_are_updates() -> None:
    config, steps, told = steps_of(asked(*"--max_steps 40 --save_steps 1.0 --warmup_steps 1e1".split()), 50)
    assert (config.save_steps, steps.warmup, told) == (1, 10, [])


def test_text_that_is_only_evaluated_on_has_no_updates() -> None:
    config, steps, _ = steps_of(asked("--do_eval"), None)
    assert (steps.total, steps.warmup, steps.evaluates_at_end, config.trains) == (0, 0, True, False)
