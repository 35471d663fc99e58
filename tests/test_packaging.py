"""What is installed: the wheel holds every room, and nothing that the guide's commands write below `miniqwen/`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from runs import ROOT

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
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
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
    assert held == rooms | page


def test_every_room_is_imported_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    done("-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel, cwd=tmp_path)
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
