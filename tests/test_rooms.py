"""The house rules: wings use the wings below them, rooms the rooms before them, and every file opens with why."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from runs import ROOT

HOUSE = ROOT / "miniqwen"
# From the ground up. A wing uses those of lower floors, a room also those before it in its own wing.
FLOORS: tuple[dict[str, str], ...] = (
    {"": "errors files lock shipped demo"},
    {"config": "values pasted helping flags watching data models precision task prompt schedule evaluation launch "
               "survival output training evaluating preparing creating generating auditing caching reporting "
               "exporting"},
    {
        "model": "tokenization_miniqwen attention loss modeling_miniqwen continuation sizes folder gguf_file",
        "distributed": "zero gradients shards peers ranks launches workarounds backends runtime",
        "checkpoints": "tensor_files background checkpoint",
    },
    {"data": "patience hub formats units sources repositories cuts windows held_out documents strands mixture "
             "token_cache tokenizing caches packing tokenizer_text "
             "pretrained"},
    {"questions": "texts choices spellings readings rows splits templates modelfile examples protocols"},
    {
        "training": "prefetching batches samples task text_task question_task preview optimizers preemption "
                    "bad_updates resuming lives history card memory health curves record wording exhibits report "
                    "output_folder auditing outlets.tensorboard outlets.wandb outlets.others outlets.opened tracking "
                    "flops tracing gauges ending opening",
        "eval": "causal_models choice_rows scoring metrics phrases mentions extraction generation dialogue answers "
                "comparison result_files",
    },
    {"": "create_model generate audit report caches export cli"},
)  # fmt: skip
COMMANDS = ("train_loop.py", "eval_loop.py", "prepare_datasets.py")
# What is loaded before the flags are parsed, and so imports nothing heavy.
LIGHT = {"errors", "files", "lock", "questions.splits", "questions.templates", "training.preemption"}
HEAVY = {"torch", "transformers", "accelerate", "deepspeed", "datasets", "wandb", "pyarrow", "tokenizers"}
# The libraries that spread a run over processes stand behind one wing; beside it, where they free a device's memory,
# and where Accelerate's own trackers are used.
SPREADING = {"accelerate", "deepspeed"}
MAY_SPREAD = {"eval.scoring", "training.outlets.others"}


def rooms_in_order() -> list[tuple[int, str, str]]:
    """(floor, wing, name) of every room, from the ground up; names as they are imported, without `miniqwen.`."""
    return [
        (floor, wing, f"{wing}.{room}" if wing else room)
        for floor, wings in enumerate(FLOORS)
        for wing, rooms in wings.items()
        for room in rooms.split()
    ]


def file_of(room: str) -> Path:
    return HOUSE.joinpath(*room.split(".")).with_suffix(".py")


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it; `from a import b` counts as a.b where that is a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: rooms are imported by their full names"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if (ROOT / f"{name.replace('.', '/')}.py").exists() else str(node.module) for name in whole}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_the_rooms_that_are_listed_are_the_files_there_are() -> None:
    files = {path.relative_to(HOUSE).with_suffix("").as_posix().replace("/", ".") for path in HOUSE.rglob("*.py")}
    rooms = [room for _, _, room in rooms_in_order()]
    assert len(rooms) == len(set(rooms)) > 50
    assert {name for name in files if not name.endswith("__init__")} == set(rooms)


def test_a_wing_uses_only_those_below_it_and_a_room_only_those_before_it() -> None:
    rooms = rooms_in_order()
    places = {f"miniqwen.{room}": (floor, wing, number) for number, (floor, wing, room) in enumerate(rooms)}
    checked = 0
    for number, (floor, wing, room) in enumerate(rooms):
        for name in imported(file_of(room)):
            if name.split(".")[0] != "miniqwen":
                assert f"{name}.py" not in COMMANDS, f"{room} imports the loop {name}"
                continue
            other_floor, other_wing, before = places[name]
            assert other_floor < floor or (other_wing == wing and before < number), f"{room} imports {name}"
            checked += 1
    assert checked > 150


def test_training_and_evaluation_stand_side_by_side() -> None:
    floor = next(set(wings) for wings in FLOORS if "training" in wings)
    assert floor == {"training", "eval"}  # one floor: the test above keeps them apart


def test_only_one_wing_knows_the_libraries_that_spread_a_run() -> None:
    knows = {
        room for _, _, room in rooms_in_order() if SPREADING & {name.split(".")[0] for name in imported(file_of(room))}
    }
    assert {room for room in knows if room.startswith("distributed.")} != set()
    assert {room for room in knows if not room.startswith("distributed.")} == MAY_SPREAD
    for command in COMMANDS:
        allowed = {"accelerate"} if command == "eval_loop.py" else set()
        assert {name.split(".")[0] for name in imported(ROOT / command)} & SPREADING <= allowed


def test_what_is_loaded_before_the_flags_are_parsed_is_light() -> None:
    light = {room for _, wing, room in rooms_in_order() if room in LIGHT or wing == "config"}
    assert light >= LIGHT
    program = f"import sys, {', '.join(f'miniqwen.{room}' for room in sorted(light))}\n"
    program += f"sys.exit(str({HEAVY!r} & set(sys.modules) or ''))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) in ((0, ""), (1, "")), done.stderr


def test_every_file_opens_with_a_docstring_and_a_wing_is_only_a_folder() -> None:
    files = [*HOUSE.rglob("*.py"), *(ROOT / loop for loop in COMMANDS), *(ROOT / "tests").rglob("*.py")]
    assert len(files) > 90
    missing = [path for path in files if path.stem != "__init__" and not ast.get_docstring(ast.parse(path.read_text()))]
    assert missing == []
    wings = list(HOUSE.rglob("__init__.py"))
    assert len(wings) == 10
    assert [path for path in wings if path.read_text()] == []


def test_tests_mirror_the_wings() -> None:
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders == {wing for wings in FLOORS for wing in wings if wing} | {"loops", "handover", "hostile"}


def test_the_training_loop_can_be_read_in_one_sitting() -> None:
    assert len((ROOT / "train_loop.py").read_text().splitlines()) <= 300
