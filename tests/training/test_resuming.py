"""What a checkpoint says of its data is what a run writes, or it is not gone on from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from miniqwen.checkpoints.checkpoint import Progress, write_checkpoint
from miniqwen.data.documents import ORDER
from miniqwen.data.packing import Cursor
from miniqwen.data.strands import SourceCursor, Strand
from miniqwen.errors import UserError
from miniqwen.training.record import result
from miniqwen.training.resuming import opened

TEXT: dict[str, Any] = {
    "order": ORDER, "sources": {"a": {"repository": "a"}}, "held_out": {"a": [["a.parquet", 0, 3, 4]]},
    "unreadable": {"a": {}}, "layout": {"a": {"strands": 2, "stripes": 3}}, "shares": {"a": 1.0}, "lanes": 2,
    "blocks_per_update": 2, "block_size": 8, "seed": 1,
}  # fmt: skip
LANE = Cursor(3, {"a": SourceCursor(0, 2, 5, (Strand(1, 0, 4, 7, 2), None), 24, 90, {"documents": 3}, {})}, "abcd")
LANES = {"0": LANE.to_json(), "1": Cursor().to_json()}


def written(folder: Path, identity: dict[str, Any], cursor: dict[str, Any]) -> Path:
    weights = [("model.a", torch.zeros(1))]
    return write_checkpoint(folder, Progress(step=3, cursor=cursor), identity, None, weights, lambda _: None)


def test_what_runs_write_is_opened(tmp_path: Path) -> None:
    assert opened(written(tmp_path / "text", TEXT, LANES)).identity == TEXT
    assert opened(written(tmp_path / "changed", {**TEXT, "data_changes": [{"step": 1, "changes": []}]}, LANES))
    assert opened(written(tmp_path / "new", TEXT, {}))
    assert opened(written(tmp_path / "older", {**TEXT, "order": 6}, {"any": "thing"})), "refused later, by its number"
    questions = {"examples_per_update": 4, "examples": "x", "seed": 1}
    assert opened(written(tmp_path / "questions", questions, {"epoch": 1, "update": 2}))


@pytest.mark.parametrize(
    ("change", "cursor"),
    [
        ({"held_out": {"a": [["a.parquet", 0, 3]]}}, LANES), ({"held_out": []}, LANES), ({"lanes": 0}, LANES),
        ({"lanes": "2"}, LANES), ({"lanes": 3}, LANES), ({"blocks_per_update": -1}, LANES), ({"sources": None}, LANES),
        ({"layout": {"a": {"strands": 2}}}, LANES), ({"layout": {"a": 3}}, LANES), ({"data_changes": {}}, LANES),
        ({"unreadable": {"a": []}}, LANES), ({}, {"0": LANES["0"]}), ({}, {"0": LANES["0"], "x": LANES["1"]}),
        ({}, {**LANES, "1": None}), ({}, {**LANES, "1": {"block": "3", "sources": {}, "digest": ""}}),
        ({}, {**LANES, "1": {"block": 3, "sources": {"a": {"strands": [[1, 2, "x"]]}}, "digest": ""}}),
    ],
)  # fmt: skip
def test_anything_else_is_refused_in_words(tmp_path: Path, change: dict[str, Any], cursor: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="cannot be resumed from"):
        opened(written(tmp_path, TEXT | change, cursor))


@pytest.mark.parametrize(
    ("identity", "cursor"),
    [({}, {}), ({"examples_per_update": 4}, {"epoch": -1}), ({"examples_per_update": None}, {}), ({"seed": 1}, LANES)],
)
def test_so_are_questions(tmp_path: Path, identity: dict[str, Any], cursor: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="cannot be resumed from"):
        opened(written(tmp_path, identity, cursor))


def test_a_pipe_that_has_the_name_of_results_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "sciq.json")
    assert result(tmp_path / "sciq.json") is None
