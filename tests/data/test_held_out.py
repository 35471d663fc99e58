"""What is held out: documents from all over a source, never more of it than said, kept by file and row."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import article, metrics, run_script, write_parquet

from miniqwen.config.data import DataFlags
from miniqwen.config.training import TrainConfig
from miniqwen.data import windows
from miniqwen.data.held_out import PLACES, HeldOut, hold_out
from miniqwen.data.repositories import resolve
from miniqwen.data.windows import TextWindows
from miniqwen.errors import UserError


def text_of(folder: Path, **flags: str) -> TextWindows:
    found = DataFlags(dataset_name=str(folder), cache_dir=str(folder.parent / "cache"), **flags)  # type: ignore[arg-type]
    return TextWindows(resolve(str(folder), found).source("train", ("text",)))


def written(folder: Path, name: str, texts: list[str]) -> TextWindows:
    folder.mkdir(exist_ok=True)
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"text": texts}), folder / name, row_group_size=20)
    else:
        (folder / name).write_text("".join(json.dumps({"text": text, "other": "z" * 50}) + "\n" for text in texts))
    return text_of(folder)


def letters(texts: list[str]) -> list[list[int]]:
    return [list(range(len(text))) for text in texts]


@pytest.mark.parametrize("name", ["train.parquet", "train.jsonl"])
def test_it_comes_from_all_over_a_source_and_is_never_more_than_said(tmp_path: Path, name: str) -> None:
    texts = [article(number) for number in range(800)]
    source = written(tmp_path / "data", name, texts)
    total = sum(len(text.encode()) for text in texts)
    small, large = (hold_out(source, letters, wanted) for wanted in (4000, 10**9))
    for found in (small, large):
        kept = [texts[at] for at in rows_in_file(found.held_out, source)]
        held = sum(len(text.encode()) for text in kept)
        assert 0 < held <= 0.05 * total
        assert found.text_bytes == pytest.approx(total - held, rel=0.05)
        assert sum(map(len, found.kept)) == sum(map(len, kept))
        assert found.bytes_per_token == pytest.approx(1.0)
        places = np.array(rows_in_file(found.held_out, source)) * PLACES // len(texts)
        assert len(set(places.tolist())) >= PLACES - 4
    assert 4000 <= sum(map(len, small.kept)) < 4000 + PLACES * max(map(len, texts))


@pytest.mark.parametrize("name", ["train.parquet", "train.jsonl", "train.json", "train.txt"])
@pytest.mark.parametrize("wanted", [60, 500, 4000])
def test_a_few_blocks_too_come_from_places_all_over_and_from_as_many_as_they_have_documents(
    tmp_path: Path, name: str, wanted: int
) -> None:
    """One document more than was asked for at the most, whatever the format, and the file's first ones are not it."""
    texts = [article(number).replace("\n", " ") for number in range(800)]
    folder = tmp_path / "data"
    if name.endswith(".txt"):
        folder.mkdir()
        (folder / name).write_text("\n".join(texts) + "\n")
        source = text_of(folder)
    else:
        source = written(folder, name, texts)
    found = hold_out(source, letters, wanted)
    rows = rows_in_file(found.held_out, source)
    lengths = [len(texts[row]) for row in rows]
    assert sum(lengths[:-1]) < wanted <= sum(lengths) <= 0.05 * sum(map(len, texts))
    places = sorted({row * PLACES // len(texts) for row in rows})
    assert len(places) >= min(len(rows), PLACES - 4)
    assert rows[0] >= len(texts) // (2 * PLACES) - 20


def rows_in_file(held: HeldOut, source: TextWindows) -> list[int]:
    starts = np.cumsum([0, *(source.starts(unit)[-1] for unit in range(len(source.units())))])
    return [
        int(starts[unit]) + row
        for unit, ranges in held.ranges.items()
        for start, stop in ranges
        for row in range(start, stop)
    ]


def test_the_book_that_is_most_of_the_text_is_not_the_one_that_is_held_out(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    for name, length in (("a", 71_000), ("b", 10_000), ("c", 9_000), ("d", 6_000), ("e", 4_000)):
        (folder / f"{name}.txt").write_text(name * length)
    source = text_of(folder, sample_by="document")
    found = hold_out(source, letters, 10**6)
    assert found.held_out.to_json(source) == [["e.txt", 0, 0, 1]]  # 4 % of the text, alone within the 5 %
    assert hold_out(source, letters, 0).held_out.count == 0


def test_of_a_file_that_is_fetched_whole_windows_of_the_first_one_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "LARGE_BYTES", 1000)
    monkeypatch.setattr("miniqwen.data.cuts.WINDOW_BYTES", 2000)
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        lines = [json.dumps([{"text": article(number * 200 + row)} for row in range(200)])]
        (folder / f"{number}.json").write_text("\n".join(lines))
    source = text_of(folder)
    found = hold_out(source, letters, 3000)
    assert {path for path, *_ in found.held_out.to_json(source)} == {"0.json"}
    assert len(found.held_out.ranges[0]) > 8
    total = sum(len(article(number)) for number in range(600))
    assert found.text_bytes == pytest.approx(total, rel=0.1)
    assert not list((tmp_path / "cache").glob("**/*.tmp"))


def test_it_is_kept_by_file_and_row_also_where_the_data_has_changed(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    source = written(folder, "b.parquet", [article(number) for number in range(200)])
    before = hold_out(source, letters, 2000)
    stored = json.loads(json.dumps(before.held_out.to_json(source)))
    assert HeldOut.from_json(stored, source) == before.held_out
    grown = written(folder, "a.parquet", [article(number) for number in range(500, 700)])
    after = hold_out(grown, letters, 2000, stored=stored)
    assert after.held_out.to_json(grown) == stored != hold_out(grown, letters, 2000).held_out.to_json(grown)
    assert [tokens.tolist() for tokens in after.kept] == [tokens.tolist() for tokens in before.kept]
    (folder / "b.parquet").unlink()
    assert hold_out(text_of(folder), letters, 2000, stored=stored).held_out.count == 0


def test_a_free_row_is_one_that_no_range_holds() -> None:
    held = HeldOut({3: [(2, 4), (6, 7)]})
    assert held.free(3, np.arange(9)).tolist() == [0, 1, 4, 5, 7, 8]
    assert held.free(2, np.arange(3)).tolist() == [0, 1, 2]


FLAGS = (
    "--task pretrain --block_size 32 --per_device_train_batch_size 4 --max_steps 4 --save_steps 4 --report_to none "
    "--logging_steps 4 --sample_prompts none"
).split()


def test_one_document_trains_without_evaluation_and_is_refused_with_advice_where_one_is_asked_for(
    model: Path, tmp_path: Path
) -> None:
    (tmp_path / "one.txt").write_text("\n".join(article(number) for number in range(30)))
    flags = [*FLAGS, "--model_path", model, "--dataset_name", tmp_path / "one.txt", "--sample_by", "document"]
    refused = run_script("train_loop.py", *flags, "--output_dir", tmp_path / "refused", "--do_train", "--do_eval")
    assert refused.returncode == 2
    assert "one.txt: no validation text: at most 5 % of its" in refused.stderr
    assert "--validation_split" in refused.stderr
    done = run_script("train_loop.py", *flags, "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "one.txt: 1 files; no validation text" in done.stdout
    assert (tmp_path / "run/checkpoint-4/manifest.json").is_file()


def test_files_that_are_empty_are_refused_before_a_run_begins_whatever_they_are(model: Path, tmp_path: Path) -> None:
    for name, data in (("a.jsonl", b""), ("b.txt", b""), ("c.txt", b"\n\n\n"), ("d.csv", b"text\n")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f"{name}: there is no text in it to train on"):
            hold_out(text_of(tmp_path / name), letters, 0)
    flags = [*FLAGS, "--model_path", model, "--dataset_name", tmp_path / "b.txt", "--output_dir", tmp_path / "run"]
    refused = run_script("train_loop.py", *flags)
    assert refused.returncode == 2
    assert "saved" not in refused.stderr
    assert not list((tmp_path / "run").glob("*.yaml"))


def test_what_breaks_before_the_first_update_is_not_told_to_be_saved(model: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": article(number)} for number in range(400)]
    rows[::3] = [{"text": 7}] * len(rows[::3])
    file = tmp_path / "mixed.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [*FLAGS, "--model_path", model, "--dataset_name", file, "--output_dir", tmp_path / "run"]
    failed = run_script("train_loop.py", *flags)
    assert failed.returncode == 2
    assert "7 is not text (int)" in failed.stderr
    assert "no update was made yet: the same command with --resume_from_checkpoint auto begins again" in failed.stderr


def test_an_evaluation_without_a_single_target_is_refused(tmp_path: Path) -> None:
    def problems(*names: str, **flags: Any) -> str:
        config = TrainConfig(dataset_name=names, task="pretrain", do_eval=True, **flags)
        return "\n".join(config.problems())

    assert "--max_eval_samples 1 is shared out over 2 data sets: give at least 2" in problems(
        "wikipedia", "arxiv", max_eval_samples=1
    )
    assert "--max_eval_samples" not in problems("wikipedia", "arxiv", max_eval_samples=2)
    assert "--block_size: a block of one token has none to predict" in problems("wikipedia", block_size=1)


def test_a_run_may_train_on_everything_and_says_before_how_often_it_will_read_each_source(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps({"text": article(n)}) + "\n" for n in range(5)))
    names = ["--dataset_name", "wikipedia", tmp_path / "notes.jsonl", "--mixture", "wikipedia=0.25,notes.jsonl=0.75"]
    flags = [*FLAGS, "--model_path", model, "--data_root", mirror, *names, "--output_dir", tmp_path / "run"]
    refused = run_script("train_loop.py", *flags, "--validation_blocks", 0, "--do_train", "--do_eval")
    assert refused.returncode == 2
    assert "--validation_blocks 0 leaves no text to evaluate on" in refused.stderr
    done = run_script("train_loop.py", *flags, "--max_steps", 40, "--validation_blocks", 0)
    assert done.returncode == 0, done.stderr
    (planned,) = (line for line in done.stdout.splitlines() if line.startswith("notes.jsonl: 75.0% of the tokens"))
    told = metrics(tmp_path / "run")[40]
    assert (told["tokens_wikipedia"], told["tokens_notes_jsonl"]) == pytest.approx((1280, 3840), abs=64)
    assert told["tokens_wikipedia"] + told["tokens_notes_jsonl"] == told["tokens"]
    size = sum(len(article(number).encode()) for number in range(5))
    assert told["passes_notes_jsonl"] > 1
    assert told["epoch"] == told["passes_notes_jsonl"] > told["passes_wikipedia"]
    assert float(planned.split("read ")[1].split(" times")[0]) == pytest.approx(told["passes_notes_jsonl"], rel=0.2)
    assert told["passes_notes_jsonl"] * size == pytest.approx(told["tokens_notes_jsonl"] * 5, rel=0.2)
    assert "all of the text of notes_jsonl was read; it repeats" in done.stdout


def test_passes_and_tokens_of_each_source_are_the_same_on_any_number_of_processes(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    flags = [
        *FLAGS, "--model_path", model, "--data_root", mirror, "--dataset_name", "both", "--mixture",
        "wikipedia=0.7,arxiv=0.3", "--max_steps", 12, "--do_train", "--do_eval", "--max_eval_samples", 6,
    ]  # fmt: skip
    found = {}
    for processes in (1, 2):
        own = ["--output_dir", tmp_path / str(processes), "--per_device_train_batch_size", 4 // processes]
        done = run_script("train_loop.py", *flags, *own, processes=processes)
        assert done.returncode == 0, done.stderr
        found[processes] = metrics(tmp_path / str(processes))[12]
    names = [f"{what}_{name}" for what in ("tokens", "passes") for name in ("wikipedia", "arxiv")]
    assert [found[1][name] for name in (*names, "epoch")] == [found[2][name] for name in (*names, "epoch")]
    for name in ("eval_loss", "eval_loss_wikipedia", "eval_loss_arxiv", "eval_bits_per_byte_arxiv"):
        assert found[1][name] == pytest.approx(found[2][name], abs=1e-5)
    assert len({found[1][f"eval_loss{name}"] for name in ("", "_wikipedia", "_arxiv")}) == 3
    between = sorted((found[1]["eval_loss_wikipedia"], found[1]["eval_loss_arxiv"]))
    assert between[0] < found[1]["eval_loss"] < between[1]
    assert found[1]["eval_perplexity_arxiv"] == pytest.approx(np.exp(found[1]["eval_loss_arxiv"]))


def test_a_column_without_text_is_refused_by_row(model: Path, tmp_path: Path) -> None:
    for name, value in (("numbers", 7), ("lists", ["a", "b"]), ("messages", [{"role": "user", "content": "a"}])):
        write_parquet(tmp_path / name, "train", [{"text": value} for _ in range(40)])
        flags = [*FLAGS, "--model_path", model, "--dataset_name", tmp_path / name, "--output_dir", tmp_path / "run"]
        refused = run_script("train_loop.py", *flags)
        assert refused.returncode == 2
        assert "is not text" in refused.stderr
        assert "train-00000-of-00001.parquet: row" in refused.stderr
    write_parquet(tmp_path / "nulls", "train", [{"text": None if n else ""} for n in range(40)])
    flags = [*FLAGS, "--model_path", model, "--dataset_name", tmp_path / "nulls", "--output_dir", tmp_path / "run"]
    assert "nulls: there is no text in it" in run_script("train_loop.py", *flags).stderr
    assert not list((tmp_path / "run").glob("*.yaml"))


def test_places_are_spread_evenly_also_over_units_of_unequal_size(tmp_path: Path) -> None:
    source = written(tmp_path / "data", "train.parquet", ["x" * (1 + 40 * (n // 100)) for n in range(400)])
    rows = rows_in_file(hold_out(source, letters, 2000).held_out, source)
    sizes = np.array([1 + 40 * (n // 100) for n in range(400)])
    shares = np.cumsum(sizes)[rows] / sizes.sum()
    assert len(list(itertools.groupby(shares * PLACES // 1))) >= PLACES - 4
