"""The house rules: a room imports only from rooms above it, and opens with a docstring."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = (
    "flags", "config", "eval_config", "zero", "backends", "shards", "peers", "runtime", "patience", "hub", "formats",
    "sources", "repositories", "windows", "bad_units", "documents", "tokenization_miniqwen", "questions", "qa",
    "protocols", "token_cache", "packing", "attention", "batches", "preemption", "tasks", "loss", "modeling_miniqwen",
    "causal_models", "optimizers", "scoring", "metrics", "generation", "answers", "comparison", "tensor_files",
    "background", "checkpoint", "result_files", "steps", "bad_updates", "output_folder", "tracking", "ending",
    "create_model", "demo",
)  # fmt: skip
LOOPS = ("train_loop.py", "eval_loop.py", "prepare_datasets.py")


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("miniqwen"):
            found |= {node.module.split(".")[1]} if "." in node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("miniqwen.")}
    return found


def test_the_list_of_rooms_is_the_list_of_files() -> None:
    files = {path.stem for path in (ROOT / "miniqwen").glob("*.py")} - {"__init__"}
    assert files == set(ROOMS)


def test_a_room_imports_only_from_rooms_above_it_and_never_from_a_loop() -> None:
    checked = 0
    for number, room in enumerate(ROOMS):
        imports = imported_rooms(ROOT / "miniqwen" / f"{room}.py")
        checked += len(imports)
        assert imports <= set(ROOMS[:number]), f"{room} imports {imports - set(ROOMS[:number])}"
        text = (ROOT / "miniqwen" / f"{room}.py").read_text()
        assert not any(f"import {loop.removesuffix('.py')}" in text for loop in LOOPS)
    assert checked > 20


def test_every_file_opens_with_a_docstring() -> None:
    files = [*(ROOT / "miniqwen").glob("*.py"), *(ROOT / loop for loop in LOOPS), *(ROOT / "tests").glob("*.py")]
    assert len(files) > 20
    missing = [
        path.name for path in files if path.stem != "__init__" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert missing == []


def test_the_training_loop_can_be_read_in_one_sitting() -> None:
    assert len((ROOT / "train_loop.py").read_text().splitlines()) <= 300
