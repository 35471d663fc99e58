"""The card beside a final model says what the run was, and is nobody's but the run's to change."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from runs import TINY, run_script

from miniqwen.checkpoints.checkpoint import Progress
from miniqwen.config.training import TrainConfig
from miniqwen.questions.templates import Template
from miniqwen.training.card import card, write_card

CONFIG = TrainConfig(model_path="runs/base", dataset_name="wikipedia", output_dir="runs/mine", max_steps=9)
IDENTITY: dict[str, Any] = {
    "sources": {
        "wikipedia": {"repository": "wikimedia/wikipedia", "revision": "abc", "split": "train"},
        "no|tes`": {"repository": "/data/no|tes`", "revision": None, "split": "train"},
    },
    "shares": {"wikipedia": 0.9, "no|tes`": 0.1},
}
PROGRESS = Progress(step=9, tokens=123456)


def test_what_it_says_is_what_the_run_was() -> None:
    told = card(CONFIG, IDENTITY, PROGRESS, "checkpoint-6", {"eval_loss": 3.25, "eval_perplexity": float("inf")}, None)
    head, _, text = told.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(head) == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["miniqwen"],
        "datasets": ["wikimedia/wikipedia"],
    }  # fmt: skip
    assert "# mine\n\nPretrained on text with MiniQwen: checkpoint-6 of 9 updates, 123,456 tokens in all." in text
    assert "It began as `runs/base`." in text
    assert "| `wikipedia` | `wikimedia/wikipedia` | `abc` | `train` | 0.9 |\n" in text
    assert "| `no\\|tes'` | `/data/no\\|tes'` | `local files` | `train` | 0.1 |\n" in text, "a name breaks no table"
    assert "| eval_loss | 3.2500 |" in text
    assert "eval_perplexity" not in text
    assert "- `wikimedia/wikipedia`: CC BY-SA 4.0 and GFDL\n- of other data: see there\n" in text


def test_a_model_that_answers_says_how_it_is_asked_and_nothing_in_it_is_a_template() -> None:
    template = Template("{{{{ self }}}} {question}\x1b[31m ```\nAnswer:")
    config = replace(CONFIG, dataset_name="sciq")
    told = card(config, {"sources": {}}, PROGRESS, "checkpoint-9", {}, template)
    assert "Fine-tuned on questions" in told
    assert "````\n{{{{ self }}}} {question}\\x1b[31m '''\nAnswer:\n````" in told
    assert "## Evaluation" not in told


def test_a_card_of_ones_own_or_one_that_was_changed_stays(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    assert write_card(tmp_path, "one\n") is None
    assert write_card(tmp_path, "two\n") is None
    assert file.read_text().startswith("two\n<!-- This card was written by MiniQwen")
    for own in ("# Mine\n", file.read_text().replace("two", "changed"), file.read_text() + "more\n", ""):
        file.write_text(own)
        assert (
            write_card(tmp_path, "three\n")
            == f"{file} is left as it is: it was not written by a run, or was changed since"
        )
        assert file.read_text() == own
    file.unlink()
    os.mkfifo(file)
    assert "left as it is" in str(write_card(tmp_path, "four\n"))


def test_a_run_leaves_the_same_card_interrupted_or_not_and_never_overwrites_a_users(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    flags = (*TINY, "--model_path", model, "--data_root", mirror, "--sample_prompts", "none", "--save_steps", 2)
    more = ("--eval_strategy", "steps", "--eval_steps", 2)

    def run(name: str, steps: int, *how: object) -> str:
        output = tmp_path / name / "mine"
        done = run_script("train_loop.py", *flags, *more, "--output_dir", output, "--max_steps", steps, *how)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("undisturbed", 4)
    run("in two lives", 2)
    run("in two lives", 4, "--resume_from_checkpoint", "auto")
    told, same = ((tmp_path / name / "mine/README.md").read_text() for name in ("undisturbed", "in two lives"))
    assert told == same
    assert "checkpoint-4 of 4 updates, 512 tokens" in told
    assert re.search(r"\| eval_loss \| \d\.\d{4} \|", told)
    (tmp_path / "undisturbed/mine/README.md").write_text("# My notes\n")
    assert "README.md is left as it is" in run("undisturbed", 4, "--overwrite_output_dir")
    assert (tmp_path / "undisturbed/mine/README.md").read_text() == "# My notes\n"
