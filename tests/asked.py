"""What train_loop.py makes of a command line, for the tests of its words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from miniqwen.config.flags import parse
from miniqwen.config.training import TrainConfig
from miniqwen.errors import UserError
from miniqwen.questions.templates import template_flags

TEXT = ("--dataset_name", "both", "--max_steps", "100")
QUESTIONS = ("--dataset_name", "sciq")


def train(folder: Path, *words: str) -> TrainConfig:
    """The configuration; `folder` is where there is as much of a model as the checks look at."""
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model/config.json").write_text(json.dumps({"model_type": "qwen3", "max_position_embeddings": 1024}))
    given = ["--model_path", str(folder / "model"), "--output_dir", str(folder / "out"), *words]
    return parse(TrainConfig, given, program="train_loop.py", description="", checks=[template_flags])


def problems(folder: Path, *words: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        train(folder, *words)
    return list(caught.value.problems)
