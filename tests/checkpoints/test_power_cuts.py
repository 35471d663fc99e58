"""What a power cut may leave of a save, in every order that a disk is free to choose: the next start finds a whole one.

The way of ALICE (Pillai et al., 2014) and CrashMonkey (Mohan et al., 2018): operations on files are recorded, and the
states that may be on the disk are built after each of them. What a file holds is on the disk for certain once it was
synced; a name that was given, taken or moved, once its folder was. Until then each may be there or not. `kill -9` shows
nothing of this: the kernel keeps what was written.
"""

from __future__ import annotations

import builtins
import io
import itertools
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from miniqwen.checkpoints.checkpoint import (
    Progress,
    complete_checkpoints,
    delete,
    read_checkpoint,
    remove_half_written,
    verify,
    write_checkpoint,
)
from miniqwen.errors import UserError
from miniqwen.files import make_folder, publish, write_json

DRAWN = 6  # images after each operation in which each name and each file's content is drawn


class File:
    """What was synced of a file, None for nothing; what it holds besides stands in the real one, at `path`."""

    def __init__(self) -> None:
        self.synced: bytes | None = None


class Folder:
    """Names that are certain, {name: what has it}, and what was done to them since, oldest first.

    A change is of one name, or of two: within a folder, the old and the new name of what is moved change together.
    """

    def __init__(self) -> None:
        self.certain: dict[str, Any] = {}
        self.since: list[dict[str, Any]] = []  # {name: what has it then, or None}

    def now(self, takes: Callable[[], bool] = lambda: True) -> dict[str, Any]:
        found = dict(self.certain)
        for change in self.since:
            found |= change if takes() else {}
        return {name: node for name, node in found.items() if node is not None}


class Disk:
    """The operations of this process below `root`, which holds nothing yet, and the images that they allow."""

    def __init__(self, root: Path) -> None:
        self.root, self.tree = root, Folder()
        self.contents: dict[int, bytes] = {}  # of files, by the identity of their node, as the process sees them
        self.operations = 0
        self.after_each: Callable[[], None] = lambda: None

    def node(self, path: str) -> Any:
        found: Any = self.tree
        for part in Path(path).relative_to(self.root).parts:
            found = found.now().get(part)
            if found is None:
                return None
        return found

    def place(self, path: str) -> tuple[Folder, str]:
        return self.node(str(Path(path).parent)), Path(path).name

    def named(self, path: str, node: Any, before: str | None = None) -> None:
        folder, name = self.place(path)
        if before is None:
            folder.since.append({name: node})
        elif Path(before).parent == Path(path).parent:
            folder.since.append({name: node, Path(before).name: None})
        else:
            folder.since.append({name: node})
            self.named(before, None)

    def did(self) -> None:
        self.operations += 1
        self.after_each()

    def images(self) -> Iterator[dict[str, bytes | None]]:
        """{path: content, None for a folder}: nothing that is uncertain, all of it, names alone, contents alone; then
        drawn ones."""
        for names, contents in itertools.product((False, True), repeat=2):
            yield dict(self._image(self.tree, "", lambda n=names: n, lambda c=contents: c))
        drawn = random.Random(self.operations)
        for _ in range(DRAWN):
            yield dict(self._image(self.tree, "", lambda: drawn.random() < 0.5, lambda: drawn.random() < 0.5))

    def _image(
        self, folder: Folder, at: str, takes: Callable[[], bool], holds: Callable[[], bool]
    ) -> Iterator[tuple[str, bytes | None]]:
        for name, node in folder.now(takes).items():
            where = f"{at}{name}"
            if isinstance(node, Folder):
                yield where, None
                yield from self._image(node, f"{where}/", takes, holds)
            else:
                yield where, self.contents[id(node)] if holds() else node.synced or b""

    def install(self, patched: pytest.MonkeyPatch) -> None:
        """Record what this process does, until the patches are undone."""
        disk, real_open, real_fsync = self, io.open, os.fsync
        inside = lambda path: str(path).startswith(f"{disk.root}{os.sep}")  # noqa: E731

        def changed(path: str) -> None:
            node = disk.node(path)
            disk.contents[id(node)] = Path(path).read_bytes()
            disk.did()

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                written = super().write(data)
                changed(str(self.name))
                return written

        def created(path: str) -> None:
            if disk.node(path) is None:
                node = File()
                disk.contents[id(node)] = b""
                disk.named(path, node)
                kept.append(node)

        kept: list[File] = []  # so that no identity comes twice

        def opened(file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
            if not (set(mode) & set("wxa") and inside(file)):
                return real_open(file, mode, *more, **named)
            raw = Raw(os.fspath(file), mode.replace("b", "").replace("t", ""))
            created(str(file))
            disk.did()
            whole = io.BufferedWriter(raw)
            return whole if "b" in mode else io.TextIOWrapper(whole, named.get("encoding"))

        def fsync(handle: int) -> None:
            real_fsync(handle)
            path = os.readlink(f"/proc/self/fd/{handle}")  # noqa: PTH115
            if inside(path) or path == str(disk.root):
                node = disk.node(path)
                if isinstance(node, Folder):
                    node.certain, node.since = node.now(), []
                else:
                    node.synced = disk.contents[id(node)]
                disk.did()

        def moved(old: Any, new: Any, real: Callable[..., None]) -> None:
            node = disk.node(str(old)) if inside(old) else None
            real(old, new)
            if node is not None:
                disk.named(str(new), node, before=str(old))
                disk.did()

        def changing(real: Callable[..., None], node_of: Callable[[], Any]) -> Callable[..., None]:
            def call(path: Any, *more: Any, **named: Any) -> None:
                above = named.get("dir_fd")
                whole = path if above is None else Path(os.readlink(f"/proc/self/fd/{above}"), path)  # noqa: PTH115
                real(path, *more, **named)
                if inside(whole):
                    disk.named(str(whole), node_of())
                    disk.did()

            return call

        real_serialize = safetensors.torch.serialize_file

        def serialize(tensors: Any, path: Any, *more: Any, **named: Any) -> None:
            real_serialize(tensors, path, *more, **named)
            created(str(path))
            changed(str(path))

        patched.setattr(io, "open", opened)
        patched.setattr(builtins, "open", opened)
        patched.setattr(os, "fsync", fsync)
        real_rename, real_replace = os.rename, os.replace
        patched.setattr(os, "rename", lambda old, new: moved(old, new, real_rename))
        patched.setattr(os, "replace", lambda old, new: moved(old, new, real_replace))
        patched.setattr(os, "mkdir", changing(os.mkdir, Folder))
        for name in ("unlink", "remove", "rmdir"):
            patched.setattr(os, name, changing(getattr(os, name), lambda: None))
        patched.setattr(safetensors.torch, "serialize_file", serialize)


def laid_out(image: dict[str, bytes | None], folder: Path) -> Path:
    folder.mkdir()
    for path, content in image.items():
        if content is None:
            (folder / path).mkdir(parents=True, exist_ok=True)
        else:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
    return folder


def save(run: Path, step: int, value: float) -> None:
    tensors = [("model.a", torch.full((3,), value)), ("exp_avg.a", torch.full((3,), value))]
    write_checkpoint(run, Progress(step=step), {"seed": 1}, None, tensors, lambda _: None)


def found_in(run: Path) -> tuple[int, float] | None:
    """(step, weight) of the newest checkpoint that is whole, as the next start finds it."""
    remove_half_written(run)
    for folder in reversed(complete_checkpoints(run)):
        try:
            verify(folder)
        except UserError:
            continue
        return read_checkpoint(folder).progress.step, float(read_checkpoint(folder).weights["a"][0])
    return None


class Trial:
    """A recorded life, each image of which is looked at on the spot, outside of what is recorded."""

    def __init__(self, folder: Path, patched: pytest.MonkeyPatch, law: Callable[[Path], None]) -> None:
        self.disk, self._law, self._images = Disk(folder / "disk"), law, 0
        self._folder, self._patched = folder, patched
        (folder / "disk").mkdir()
        (folder / "images").mkdir()

    def of(self, life: Callable[[Path], None]) -> int:
        """How many images were looked at while `life(folder)` ran; nothing is asked of its beginning, `begin`."""
        self.disk.after_each = self._look
        with self._patched.context() as patched:
            self.disk.install(patched)
            life(self.disk.root)
        return self._images

    def _look(self) -> None:
        wanted, self.disk.after_each = self.disk.after_each, lambda: None
        for image in self.disk.images():
            self._images += 1
            self._law(laid_out(image, self._folder / "images" / str(self._images)))
        self.disk.after_each = wanted


def test_the_model_of_a_disk_loses_what_was_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would find nothing: a plain write and rename, as many programs save."""
    seen: set[str] = set()

    def law(image: Path) -> None:
        file = image / "state.json"
        seen.add(file.read_text() if file.exists() else "gone")

    def careless(folder: Path) -> None:
        (folder / "a.tmp").write_text("new")
        (folder / "a.tmp").rename(folder / "state.json")

    assert Trial(tmp_path, monkeypatch, law).of(careless) >= 30
    assert seen == {"gone", "", "new"}, "absent, empty or whole: a power cut may leave any of them"


def test_a_checkpoint_that_was_reported_saved_outlives_a_power_cut_and_another_is_whole_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed: set[tuple[int, float] | None] = {None}
    seen: set[tuple[int, float] | None] = set()

    def law(image: Path) -> None:
        found = found_in(image / "run") if (image / "run").exists() else None
        assert found in allowed, (found, allowed)
        seen.add(found)

    def life(folder: Path) -> None:
        run = folder / "run"
        make_folder(run)
        versions: list[tuple[int, float]] = [(2, 1.0), (4, 2.0), (4, 3.0), (6, 4.0)]  # one step is saved twice
        last: tuple[int, float] | None = None
        for step, value in versions:
            allowed.clear()
            allowed.update({last, (step, value)})
            save(run, step, value)
            last = (step, value)
            allowed.clear()
            allowed.add(last)  # it was reported
            trial.disk.did()
        delete(run / "checkpoint-2")
        delete(run / "checkpoint-4")

    trial = Trial(tmp_path, monkeypatch, law)
    assert trial.of(life) > 1000
    assert seen == {None, (2, 1.0), (4, 2.0), (4, 3.0), (6, 4.0)}


def test_a_file_that_is_written_whole_is_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed: list[object] = [None]
    seen: set[object] = set()

    def law(image: Path) -> None:
        file = image / "state.json"
        found = json.loads(file.read_text()) if file.exists() else None
        assert found in allowed
        seen.add(found)

    def life(folder: Path) -> None:
        for value in (1, 2, 3):
            allowed.append(value)
            write_json(folder / "state.json", value)
            allowed[:] = [value]
            trial.disk.did()

    trial = Trial(tmp_path, monkeypatch, law)
    assert trial.of(life) > 100
    assert seen == {None, 1, 2, 3}


def test_a_final_model_is_the_old_one_the_new_one_or_says_that_it_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`config.json` is what makes the files of a folder a model; one file of the old is none of the new."""
    seen: set[object] = set()
    old = {"config.json": b"1", "model.safetensors": b"1" * 9, "vocab.json": b"1"}
    new = {"config.json": b"2", "model.safetensors": b"2" * 9}

    def law(image: Path) -> None:
        folder = image / "model"
        if not (folder / "config.json").exists():
            seen.add("none")
            return
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert found in (old, new)
        seen.add(found["config.json"].decode())

    def life(folder: Path) -> None:
        make_folder(folder / "user")
        for files in (old, new):
            written = folder / ".model.tmp"
            written.mkdir()
            for name, content in files.items():
                (written / name).write_bytes(content)
            publish(written, folder / "model", "config.json", ["*.json", "*.safetensors"])

    assert Trial(tmp_path, monkeypatch, law).of(life) > 200
    assert seen == {"none", "1", "2"}
