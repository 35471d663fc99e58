"""What is installed: the wheel holds every room, and nothing that the guide's commands write below `miniqwen/`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from runs import OFFLINE, ROOT

from miniqwen.cli import COMMANDS
from miniqwen.shipped import FOLDERS

LOOPS = ("train_loop.py", "eval_loop.py", "prepare_datasets.py")
WRITTEN_BY_THE_GUIDE = ("pretrained", "sciq_finetuned", "commonsenseqa_finetuned", "evaluation")


def done(*words: object, cwd: Path) -> str:
    found = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the project in which the guide's commands have written their models."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", *LOOPS):
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name)
    ignored = shutil.ignore_patterns("__pycache__", *WRITTEN_BY_THE_GUIDE)
    shutil.copytree(ROOT / "miniqwen", source / "miniqwen", ignore=ignored)
    for name in WRITTEN_BY_THE_GUIDE:
        (source / "miniqwen" / name).mkdir()
        (source / "miniqwen" / name / "config.json").write_text("{}")
        (source / "miniqwen" / name / "stray.py").write_text("raise SystemExit('this is no room')")
    done("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ".", cwd=source)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_every_room_and_nothing_else_below_miniqwen(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        held = {name for name in opened.namelist() if name.startswith("miniqwen/")}
    ignored = {path for name in WRITTEN_BY_THE_GUIDE for path in (ROOT / "miniqwen" / name).rglob("*.py")}
    rooms = {path.relative_to(ROOT).as_posix() for path in set((ROOT / "miniqwen").rglob("*.py")) - ignored}
    page = {f"miniqwen/training/page/{path.name}" for path in (ROOT / "miniqwen/training/page").iterdir()}
    assert len(rooms) > 60
    assert "miniqwen/training/page/uPlot.iife.min.js" in page
    assert held == rooms | page | {"miniqwen/py.typed"}
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    assert set(LOOPS) <= names
    for folder in FOLDERS:
        files = [path.name for path in (ROOT / folder).iterdir()]
        assert files
        assert all(any(name.endswith(f"/share/miniqwen/{folder}/{file}") for name in names) for file in files)


@pytest.fixture(scope="module")
def target(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is installed, away from the checkout."""
    folder = tmp_path_factory.mktemp("installed") / "here"
    done("-m", "pip", "install", "-q", "--no-deps", "--target", folder, wheel, cwd=folder.parent)
    return folder


def installed(target: Path, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`miniqwen ...` as its console script runs it, by nothing but what was installed."""
    environment = os.environ | OFFLINE | {"PYTHONPATH": str(target)}
    script = [sys.executable, str(target / "bin" / "miniqwen"), *map(str, words)]
    return subprocess.run(script, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_every_command_runs_from_the_wheel_in_any_folder(target: Path, mirror: Path, tmp_path: Path) -> None:
    told = installed(target, "--help", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert f"are in {target / 'share' / 'miniqwen'}" in told.stdout
    assert installed(target, "--version", cwd=tmp_path).stdout.strip() == "0.1.0"
    for name, (module, _) in COMMANDS.items():
        found = installed(target, name, "--help", cwd=tmp_path)
        assert found.returncode == 0, found.stderr
        assert f"  {name}" in told.stdout
        assert (target / f"{module.replace('.', '/')}.py").is_file()
    for words in ((), ("nothing",)):
        refused = installed(target, *words, cwd=tmp_path)
        assert (refused.returncode, "usage: miniqwen COMMAND" in refused.stderr) == (2, True)


def test_the_wheel_makes_trains_and_asks_a_model_by_its_own_recipes(target: Path, mirror: Path, tmp_path: Path) -> None:
    small = ("--max_steps", 2, "--warmup_steps", 1, "--block_size", 32, "--validation_blocks", 4)
    train = ("train", "--config", "recipes/demo_pretrain.yaml", "--model_path", "model", "--output_dir", "run", *small)
    asked = [
        ("create", "--config", "recipes/demo_model.yaml", "--data_root", mirror, "--output_dir", "model"),
        (*train, "--data_root", mirror, "--sample_prompts", "none"),
        ("generate", "--model_path", "run", "--max_new_tokens", 3, "stone"),
        ("audit", "run"),
    ]
    for words in asked:
        found = installed(target, *words, cwd=tmp_path)
        assert found.returncode == 0, (words, found.stdout, found.stderr)
    refused = installed(target, "train", "--config", "recipes/no.yaml", cwd=tmp_path)
    assert (refused.returncode, "--config recipes/no.yaml: No such file" in refused.stderr) == (2, True)


def test_every_room_is_imported_from_the_wheel_alone(target: Path, tmp_path: Path) -> None:
    program = f"""
import importlib, pathlib, sys
sys.path.insert(0, {str(target)!r})
rooms = [
    ".".join(path.relative_to({str(target)!r}).with_suffix("").parts)
    for path in sorted(pathlib.Path({str(target)!r}, "miniqwen").rglob("*.py"))
]
for room in rooms:
    found = importlib.import_module(room.removesuffix(".__init__"))
    assert found.__file__.startswith({str(target)!r}), found.__file__
print(len(rooms))
"""
    assert int(done("-c", program, cwd=tmp_path)) > 60
