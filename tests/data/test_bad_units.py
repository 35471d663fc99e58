"""Data that cannot be read is named, stops the run or is skipped alike everywhere; odd documents are counted."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import article, run_script
from transformers import AutoTokenizer

from miniqwen.config.data import DataFlags
from miniqwen.config.training import TrainConfig
from miniqwen.data.documents import Order
from miniqwen.data.formats import BadData
from miniqwen.data.held_out import HeldOut
from miniqwen.data.packing import data_report, lanes_together, stored_cursors
from miniqwen.data.repositories import resolve
from miniqwen.data.tokenizing import write_token_cache
from miniqwen.data.windows import TextWindows
from miniqwen.errors import UserError
from miniqwen.training.batches import Plan
from miniqwen.training.opening import list_data, make_task
from miniqwen.training.task import Task

ROWS = [article(number) for number in range(80)]
GROUP = 10  # rows of a row group


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def parquet(folder: Path, texts: list[Any], checksums: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.parquet"
    pq.write_table(
        pa.table({"text": texts}), path, row_group_size=GROUP, write_page_checksum=checksums, compression="NONE",
        use_dictionary=False,
    )  # fmt: skip
    return path


def middle_of_group(path: Path, group: int) -> int:
    column = pq.read_metadata(path).row_group(group).column(0)
    return int(column.data_page_offset) + int(column.total_compressed_size) // 2


def read(
    folder: Path, model: Path, updates: int, cursor: Mapping[str, Any] | None = None, world: int = 1,
    stored: Mapping[str, Any] | None = None, **flags: Any,
) -> tuple[list[np.ndarray], dict[str, Any]]:  # fmt: skip
    """The blocks of some updates over all ranks, in lane order, and the whole cursor after them.

    `stored`: the identity that the run began with.
    """
    blocks: list[list[np.ndarray]] = [[] for _ in range(updates)]
    after: dict[str, Any] = {}
    for rank in range(world):
        made = task_of(folder, model, Plan(4 // world, 1, rank, world), stored, **flags).updates(cursor or {})
        for number in range(updates):
            update = next(made)
            blocks[number] += [batch.input_ids.numpy() for batch in update.micro_batches]
        after |= stored_cursors(update.cursor)
    return [np.concatenate(parts) for parts in blocks], json.loads(json.dumps(after))


def task_of(folder: Path, model: Path, plan: Plan, stored: Mapping[str, Any] | None = None, **flags: Any) -> Task:
    given = {"dataset_name": str(folder), "task": "pretrain", "block_size": 32, "validation_blocks": 1, "data_lanes": 4}
    config, tokenizer = TrainConfig(**{**given, **flags}), AutoTokenizer.from_pretrained(model)
    return make_task(config, list_data(config, tokenizer, stored), tokenizer, plan, stored)


def report(cursors: Mapping[str, Any]) -> dict[str, int]:
    return data_report(lanes_together(cursors))


def broken(folder: Path, kind: str) -> str:
    """Write a data set with one unit that cannot be read; returns the name of that unit."""
    folder.mkdir(parents=True)
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in ROWS]
    if kind in ("page", "checksum"):
        path = parquet(folder, ROWS)
        flip(
            path,
            middle_of_group(path, 3)
            if kind == "checksum"
            else pq.read_metadata(path).row_group(3).column(0).data_page_offset,
        )
        return "train.parquet#3"
    if kind == "footer":
        parquet(folder, ROWS)
        bad = parquet(folder / "more", ROWS).rename(folder / "train-more.parquet")
        (folder / "more").rmdir()
        flip(bad, bad.stat().st_size - 10)
        return "train-more.parquet#0"
    if kind in ("gzip", "truncated"):
        (folder / "train-0.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[:40]), mtime=0))
        bad, packed = folder / "train-1.jsonl.gz", gzip.compress(b"".join(lines[40:]), mtime=0)
        bad.write_bytes(packed if kind == "gzip" else packed[: len(packed) // 2])
        if kind == "gzip":
            flip(bad, len(packed) // 2)
        return "train-1.jsonl.gz#0"
    (folder / "train-0.jsonl").write_bytes(b"".join(lines[:40]))
    wrong = lines[45].replace(b"Article", b"Art\xffcle") if kind == "utf8" else lines[45][:-4] + b"\n"
    (folder / "train-1.jsonl").write_bytes(b"".join([*lines[40:45], wrong, *lines[46:]]))
    return "train-1.jsonl#0"


@pytest.mark.parametrize("kind", ["page", "checksum", "footer", "gzip", "truncated", "utf8", "line"])
def test_a_unit_that_cannot_be_read_is_named_or_skipped_on_every_world_size_and_resume(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    folder = tmp_path / "data"
    unit = broken(folder, kind)
    with pytest.raises(BadData, match=unit.split("#")[0]):
        read(folder, model, 60)
    whole, after = read(folder, model, 60, on_bad_data="skip")
    assert capsys.readouterr().err.count(f"skipped {unit} (--on_bad_data skip)") == 1
    (read_of,) = lanes_together(after).values()
    assert set(read_of["skipped"]) == {unit}
    assert report(after)["skipped_units"] == 1
    for world in (2, 4):
        again, same = read(folder, model, 60, world=world, on_bad_data="skip")
        assert (same, len(again)) == (after, len(whole))
        np.testing.assert_array_equal(np.stack(again), np.stack(whole))
    half, cursor = read(folder, model, 23, on_bad_data="skip")
    rest, end = read(folder, model, 37, cursor=cursor, world=2, on_bad_data="skip")
    np.testing.assert_array_equal(np.stack([*half, *rest]), np.stack(whole))
    assert end == after


def test_what_was_skipped_stays_skipped_when_the_file_is_mended_and_a_new_run_reads_it(
    model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    path = parquet(folder, ROWS)
    good = path.read_bytes()
    flip(path, middle_of_group(path, 3))
    whole, after = read(folder, model, 80, on_bad_data="skip")
    half, cursor = read(folder, model, 40, on_bad_data="skip")
    began_with = task_of(folder, model, Plan(4, 1, 0, 1), on_bad_data="skip").identity
    assert report(cursor)["skipped_units"] == 1
    path.write_bytes(good)
    rest, end = read(folder, model, 40, cursor=cursor, stored=began_with, on_bad_data="skip")
    np.testing.assert_array_equal(np.stack([*half, *rest]), np.stack(whole))
    assert end == after
    fresh, mended = read(folder, model, 80, on_bad_data="skip")
    assert report(mended)["skipped_units"] == 0
    assert any((one != other).any() for one, other in zip(fresh, whole, strict=True))


@pytest.mark.parametrize("where", ["footer", "unit at a place of validation text"])
def test_a_mended_footer_refuses_a_resume_as_the_units_are_others_now_and_another_unit_stays_skipped(
    model: Path, tmp_path: Path, where: str
) -> None:
    data, output = tmp_path / "data", tmp_path / "run"
    good = parquet(data, ROWS).read_bytes()
    if where == "footer":
        bad = data / "train-more.parquet"
        bad.write_bytes(good)
        flip(bad, len(good) - 10)
    else:
        bad = data / "train.parquet"
        flip(bad, middle_of_group(bad, 0))
    flags = [
        "--model_path", model, "--output_dir", output, "--dataset_name", data, "--task", "pretrain", "--block_size", 32,
        "--per_device_train_batch_size", 4, "--validation_blocks", 2, "--save_steps", 2, "--report_to", "none",
        "--on_bad_data", "skip", "--resume_from_checkpoint", "auto",
    ]  # fmt: skip
    done = run_script("train_loop.py", *flags, "--max_steps", 2)
    assert done.returncode == 0, done.stderr
    assert f"skipped {bad.name}#0" in done.stderr
    same = run_script("train_loop.py", *flags, "--max_steps", 3)
    assert same.returncode == 0, same.stderr
    bad.write_bytes(good)
    again = run_script("train_loop.py", *flags, "--max_steps", 4)
    if where != "footer":
        assert again.returncode == 0, again.stderr
        stored = json.loads((output / "checkpoint-4/progress.json").read_text())["identity"]
        assert list(stored["unreadable"]["data"]) == [f"{bad.name}#0"]
        return
    assert again.returncode == 2
    assert "train-more.parquet" in again.stderr
    assert "--allow_data_change" in again.stderr
    assert json.loads((output / "trainer_state.json").read_text())["last_checkpoint"] == "checkpoint-3"


def test_flipped_bits_that_decode_are_seen_only_where_the_file_has_checksums(model: Path, tmp_path: Path) -> None:
    seen, unseen = parquet(tmp_path / "with", ROWS), parquet(tmp_path / "without", ROWS, checksums=False)
    for path in (seen, unseen):
        data = bytearray(path.read_bytes())
        data[middle_of_group(path, 3)] ^= 1  # a letter becomes another
        path.write_bytes(data)
    with pytest.raises(BadData, match=r"train.parquet, part 3: broken .parquet \(.*checksum"):
        read(seen.parent, model, 60)
    read(unseen.parent, model, 60)


HOSTILE = {
    "empty": ["", ""],
    "null": [None],
    "surrogates": ["half \ud83d of a pair and \udc00 another"],
    "special": ["an end <|endoftext|> that is none, a <|im_start|> and <|im_start|>"],
    "controls": ["\x00 nul \x01\x1b[31m \x7f \u0085 \ufeff"],
    "right to left": ["\u202eback \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627"],
    "emoji": ["\U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301\u0301\u0301 \U0010ffff"],
}  # fmt: skip


def test_hostile_documents_are_counted_alike_on_every_world_size_and_after_resumes(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    odd = [text for texts in HOSTILE.values() for text in texts]
    lines = [json.dumps({"text": text}) for text in [*ROWS[:20], *odd, *ROWS[20:30]]]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    tokenizer = AutoTokenizer.from_pretrained(model)
    whole, after = read(folder, model, 60, validation_blocks=0)
    met = report(after)
    assert all(read["epoch"] >= 2 for lane in after.values() for read in lane["sources"].values())
    assert met["skipped_units"] == 0
    assert met["null_documents"] >= 2
    assert met["empty_documents"] == pytest.approx(2 * met["null_documents"], abs=4)
    assert met["replaced_surrogates"] % 2 == 0
    assert met["replaced_surrogates"] >= 4
    assert met["special_token_strings"] % 3 == 0
    assert met["special_token_strings"] >= 6
    tokens = np.concatenate([block.ravel() for block in whole])
    control = set(tokenizer.all_special_ids) - {tokenizer.eos_token_id}
    assert not control & set(tokens.tolist()), "a string in the text became a control token"
    assert (tokens == tokenizer.eos_token_id).sum() <= met["documents"]  # one at the end of each, and no more
    cursor: dict[str, Any] = {}
    for updates, world in ((7, 1), (20, 2), (1, 4), (32, 1)):
        _, cursor = read(folder, model, updates, cursor=cursor, world=world, validation_blocks=0)
    assert cursor == after


def test_a_token_cache_knows_what_was_odd_in_the_text_and_its_cursors_are_those_of_streaming(
    model: Path, tmp_path: Path
) -> None:
    folder, cache = tmp_path / "data", tmp_path / "cache"
    folder.mkdir()
    odd = [text for texts in HOSTILE.values() for text in texts]
    rows = [text for number, row in enumerate(ROWS) for text in (row, *odd[number % 7 : number % 7 + number % 2])]
    for number in range(2):  # JSON can hold a half of a surrogate pair
        lines = [json.dumps({"text": text}) + "\n" for text in rows[number::2]]
        (folder / f"train-{number}.jsonl").write_text("".join(lines))
    config = TrainConfig(dataset_name=str(folder), task="pretrain")
    source = resolve(str(folder), config).source("train", ("text",))
    write_token_cache(cache, source, AutoTokenizer.from_pretrained(model), lambda *told: None)
    streamed, cursor = read(folder, model, 120)
    cached, same = read(folder, model, 120, world=2, token_cache=str(cache))
    np.testing.assert_array_equal(np.stack(cached), np.stack(streamed))
    assert same == cursor
    met = report(cursor)
    assert {name for name, count in met.items() if count} >= {
        "documents", "empty_documents", "null_documents", "replaced_surrogates", "special_token_strings",
    }  # fmt: skip


def test_rows_that_are_no_text_stop_the_run_or_are_counted(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    lines = [json.dumps({"text": text}) for text in [*ROWS[:30], 7, *ROWS[30:]]]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"train.jsonl: row 30: 7 is not text \(int\)"):
        read(folder, model, 80)
    _, after = read(folder, model, 80, on_bad_data="skip")
    assert report(after)["non_text_documents"] >= 1
    parquet(tmp_path / "numbers", list(range(40)))
    with pytest.raises(UserError, match=r"row \d+: \d+ is not text \(int\); choose a --text_column of texts"):
        read(tmp_path / "numbers", model, 5)


def test_the_loop_saves_before_bad_data_stops_it_and_goes_on_without_it(model: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "data", tmp_path / "out"
    path = parquet(folder, ROWS * 20)
    source = resolve(str(folder), DataFlags(dataset_name=str(folder))).source("train", ("text",))
    pieces = Order(TextWindows(source), HeldOut(), seed=42, lanes=2).pieces(0, 1)
    late = next(int(unit) for unit, *_ in pieces[12:] if unit % 10 != 5)  # validation text is of the others
    flip(path, middle_of_group(path, late))
    flags = (
        "--task pretrain --block_size 32 --per_device_train_batch_size 4 --data_lanes 2 --validation_blocks 2 "
        "--max_steps 90 --save_steps 1000 --logging_steps 30 --report_to tensorboard"
    ).split()
    given = ["--model_path", model, "--output_dir", output, "--dataset_name", folder, *flags]
    done = run_script("train_loop.py", *given)
    assert done.returncode == 2, done.stderr
    state = json.loads((output / "trainer_state.json").read_text())
    assert state["status"] == "failed"
    assert 0 < state["step"] < 90
    assert f"train.parquet, part {late}: broken .parquet" in done.stderr
    assert "--resume_from_checkpoint auto goes on from there; add --on_bad_data skip" in " ".join(done.stderr.split())
    done = run_script("train_loop.py", *given, "--resume_from_checkpoint", "auto", "--on_bad_data", "skip")
    assert done.returncode == 0, done.stderr
    assert f"skipped train.parquet#{late} (--on_bad_data skip)" in done.stderr
    told = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    reports = [line for line in told if "documents" in line]
    assert reports[-1]["step"] == 90
    assert reports[-1]["skipped_units"] == 1
    assert reports[-1]["documents"] > reports[0]["documents"] > 0
