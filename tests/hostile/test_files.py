"""Files that were damaged, or made to harm: a clear error or a right result, and nothing outside their folder.

    pytest -m hostile tests/hostile            # some hundred damages, each drawn from its number; minutes
    HOSTILE=2000 pytest -m hostile ...         # more of them

Each number is one damage: where, how, and to which of a run's files. A failing one is repeated by its number.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TINY, run_script
from safetensors.torch import load_file, save_file

from miniqwen.checkpoints.checkpoint import MANIFEST
from miniqwen.files import file_hash

pytestmark = pytest.mark.hostile
NUMBERS = range(int(os.environ.get("HOSTILE", "150")))
LIMIT = 120  # seconds that a command may take: one that hangs takes longer
MADE = ("--max_steps", 4, "--save_steps", 2, "--eval_strategy", "steps", "--eval_steps", 2, "--sample_prompts", "none")

Damage = Callable[[random.Random, Path], str]


@pytest.fixture(scope="module")
def left(model: Path, mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of 4 updates left: two checkpoints, its model, its lines."""
    output = tmp_path_factory.mktemp("hostile") / "run"
    done = run_script(
        "train_loop.py", *TINY, *MADE, "--model_path", model, "--data_root", mirror, "--output_dir", output
    )
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def evaluated(left: Path, mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an evaluation of its model left."""
    output = tmp_path_factory.mktemp("hostile") / "evaluation"
    done = run_script("eval_loop.py", *asked(left, mirror, output))
    assert done.returncode == 0, done.stderr
    return output


def asked(left: Path, mirror: Path, output: Path) -> tuple[object, ...]:
    return (
        "--model_path", left, "--dataset_name", "sciq", "--data_root", mirror, "--output_dir", output,
        "--max_eval_samples", 4,
    )  # fmt: skip


# ---- Damages: each says what it did


def flipped(drawn: random.Random, file: Path) -> str:
    data = bytearray(file.read_bytes())
    place = drawn.randrange(len(data)) if drawn.random() < 0.5 else drawn.randrange(min(len(data), 200))
    data[place] ^= 1 << drawn.randrange(8)
    file.write_bytes(data)
    return f"a bit of byte {place} flipped"


def cut(drawn: random.Random, file: Path) -> str:
    length = drawn.choice([0, 1, 7, 8, 9, drawn.randrange(file.stat().st_size)])
    os.truncate(file, length)
    return f"cut to {length} bytes"


def longer(drawn: random.Random, file: Path) -> str:
    with file.open("ab") as opened:
        opened.write(drawn.choice([b"\0" * 100, b"}\n", b"\n\n", b'{"step": 1', b"\xff\xfe"]))
    return "with something behind its end"


def swapped(drawn: random.Random, file: Path) -> str:
    other = drawn.choice([path for path in sorted(file.parent.iterdir()) if path.is_file() and path != file])
    data = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(data)
    return f"changed places with {other.name}"


def gone(drawn: random.Random, file: Path) -> str:
    file.unlink()
    kind = drawn.choice(["away", "folder", "loop", "dangling", "pipe", "endless"])
    if kind == "folder":
        file.mkdir()
    elif kind == "loop":
        file.symlink_to(file.name)
    elif kind == "dangling":
        file.symlink_to(file.with_name("nothing"))
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "endless":
        file.symlink_to("/dev/zero")
    return f"replaced by: {kind}"


ODD: list[Any] = [
    None, True, -1, 0, 10**30, 1e308, -0.5, float("nan"), float("inf"), "", "x", "²", "../../outside/secret.txt",
    "/etc/passwd", "\0", "\ud800", [], [[]], {}, {"": {}}, "checkpoint-2", "checkpoint-²", [1] * 50,
]  # fmt: skip


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from leaves(inner, (*path, key))


def rewritten(drawn: random.Random, file: Path) -> str:
    """A place in its JSON becomes something odd, is left out, or has another name."""
    whole = file.read_text()
    lines = whole.splitlines() if file.suffix == ".jsonl" else [whole]
    number = drawn.randrange(len(lines))
    value = json.loads(lines[number])
    value = {"": value}
    *above, last = drawn.choice(list(leaves(value))[1:])
    inner: Any = value
    for key in above:
        inner = inner[key]
    odd = drawn.choice(ODD)
    how = drawn.choice(["odd", "odd", "away", "renamed"])
    if how == "odd":
        inner[last] = odd
    elif isinstance(inner, list):
        del inner[last]
    else:
        kept = inner.pop(last)
        if how == "renamed":
            inner[str(odd)] = kept
    lines[number] = json.dumps(next(iter(value.values()), None))
    file.write_text("\n".join(lines) + "\n")
    return f"{'.'.join(map(str, (*above, last)))} {how} {odd!r}"


def retensored(drawn: random.Random, file: Path) -> str:
    """Other tensors in a whole safetensors file."""
    tensors = load_file(file)
    name = drawn.choice(sorted(tensors))
    kind = drawn.choice(["nan", "inf", "shape", "dtype", "away", "more", "empty", "all away"])
    change: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "nan": lambda t: t * float("nan"), "inf": lambda t: t + float("inf"), "shape": lambda t: t.flatten()[:-1],
        "dtype": lambda t: t.to(torch.int64), "empty": lambda t: t[:0],
    }  # fmt: skip
    if kind in change:
        tensors[name] = change[kind](tensors[name])
    elif kind == "more":
        tensors["../../outside/x"] = torch.zeros(3)
    else:
        tensors = {} if kind == "all away" else {key: value for key, value in tensors.items() if key != name}
    save_file(tensors, file, metadata={"format": "pt"})
    return f"{name}: {kind}"


def headed(drawn: random.Random, file: Path) -> str:
    """A safetensors file whose header lies."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    kind = drawn.choice(["huge", "beyond", "overlap", "negative", "no JSON", "deep"])
    name = drawn.choice([name for name in header if name != "__metadata__"])
    if kind == "huge":
        file.write_bytes(struct.pack("<Q", 2**62) + data[8:])
        return kind
    if kind == "beyond":
        header[name]["data_offsets"][1] = 2**40
    elif kind == "overlap":
        header[name]["data_offsets"] = [0, 8]
    elif kind == "negative":
        header[name]["shape"] = [-1, 4]
    text = {"no JSON": b"\xff" * length, "deep": b"[" * length}.get(kind) or json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return f"{name}: {kind}"


def damages_of(file: Path) -> list[Damage]:
    found: list[Damage] = [gone]
    if file.stat().st_size:
        found += [flipped, cut, longer, swapped]
        if file.suffix in (".json", ".jsonl"):
            found += [rewritten] * 4
        if file.suffix == ".safetensors":
            found += [retensored, headed] * 2
    return found


# ---- Laws


def outside(folder: Path) -> Path:
    """Files that no command has any business with."""
    other = folder / "outside"
    other.mkdir()
    (other / "secret.txt").write_text("not yours")
    return other


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def holds(done: subprocess.CompletedProcess[str], told: str) -> None:
    """A clear error, or success."""
    said = f"{told}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr, said
    assert done.returncode in (0, 1, 2), said
    assert done.returncode == 0 or "error: " in done.stderr or "WRONG: " in done.stdout, said


@pytest.mark.parametrize("number", NUMBERS)
def test_a_run_goes_on_rightly_from_damaged_files_or_says_what_is_wrong(
    number: int, left: Path, model: Path, mirror: Path, tmp_path: Path
) -> None:
    drawn = random.Random(number)
    output = tmp_path / "run"
    shutil.copytree(left, output)
    other = outside(tmp_path)
    before = contents(other)
    files = [path for path in sorted(output.rglob("*")) if path.is_file() and "events.out" not in path.name]
    in_newest = [path for path in files if path.parent.name == "checkpoint-4"]
    file = drawn.choice(in_newest if drawn.random() < 0.6 else files)
    what = drawn.choice(damages_of(file))
    told = f"number {number}: {file.relative_to(output)} {what(drawn, file)}"
    manifest = file.parent / MANIFEST
    signed = drawn.random() < 0.6 and manifest.is_file() and file.name not in (MANIFEST, "evaluation.json")
    if signed:  # as if whoever did it knew how
        entries = {p.name: file_hash(p) for p in manifest.parent.iterdir()
                   if p.is_file() and os.path.realpath(p).startswith(str(tmp_path)) and p.name != MANIFEST}  # fmt: skip
        manifest.write_text(json.dumps({"sha256": entries}))
        told += ", and the manifest agrees"
    audited = run_script("-m", "miniqwen.audit", output, limit=LIMIT)
    holds(audited, told)
    flags = [*TINY, *MADE, "--max_steps", 6, "--model_path", model, "--data_root", mirror, "--output_dir", output]
    done = run_script("train_loop.py", *flags, "--resume_from_checkpoint", "auto", limit=LIMIT)
    holds(done, told)
    assert contents(other) == before, told
    if done.returncode == 0 and file in in_newest and not signed and file.name not in (MANIFEST, "evaluation.json"):
        assert "checkpoint-4" not in str(done.stdout).split("continuing from")[-1].split("\n")[0], (
            f"{told}: taken unseen"
        )


@pytest.mark.parametrize("number", NUMBERS[: len(NUMBERS) // 2])
def test_a_damaged_result_is_refused_or_made_again(
    number: int, left: Path, evaluated: Path, mirror: Path, tmp_path: Path
) -> None:
    drawn = random.Random(number)
    output = tmp_path / "evaluation"
    shutil.copytree(evaluated, output)
    file = output / "sciq.json"
    what = drawn.choice([flipped, cut, longer, gone, rewritten, rewritten, rewritten, rewritten])
    if drawn.random() < 0.4:  # as if it had been killed before it ended
        found = json.loads(file.read_text())
        file = output / ".sciq.partial-0.jsonl"
        lines = [
            {"identity": found["identity"]},
            *({"index": n, "found": one["scores"]} for n, one in enumerate(found["samples"])),
        ]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        (output / "sciq.json").unlink()
    told = f"number {number}: {file.name} {what(drawn, file)}"
    compared = run_script("eval_loop.py", "--compare", evaluated / "sciq.json", output / "sciq.json", limit=LIMIT)
    holds(compared, told)
    done = run_script("eval_loop.py", *asked(left, mirror, output), limit=LIMIT)
    holds(done, told)


@pytest.mark.parametrize("number", NUMBERS[: len(NUMBERS) // 2])
def test_a_damaged_model_folder_is_refused_or_used_as_it_is(
    number: int, left: Path, mirror: Path, tmp_path: Path
) -> None:
    drawn = random.Random(number)
    folder = tmp_path / "model"
    folder.mkdir()
    for path in left.iterdir():
        if path.is_file() and path.name not in ("metrics.jsonl", "trainer_state.json") and "events" not in path.name:
            shutil.copy(path, folder)
    file = drawn.choice([path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".safetensors")])
    told = f"number {number}: {file.name} {drawn.choice(damages_of(file))(drawn, file)}"
    command = drawn.choice(["generate", "evaluate", "train"])
    if command == "generate":
        done = run_script(
            "-m", "miniqwen.generate", "--model_path", folder, "--max_new_tokens", 2, "stone", limit=LIMIT
        )
    elif command == "evaluate":
        done = run_script("eval_loop.py", *asked(folder, mirror, tmp_path / "evaluation"), limit=LIMIT)
    else:
        flags = [
            *TINY,
            "--max_steps",
            1,
            "--data_root",
            mirror,
            "--output_dir",
            tmp_path / "run",
            "--model_path",
            folder,
        ]
        done = run_script("train_loop.py", *flags, limit=LIMIT)
    holds(done, f"{command}, {told}")
