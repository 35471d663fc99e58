"""Check the data sets before training: where they come from, what is in them, and a few rows; or fill a mirror.

    python prepare_datasets.py --all                       # can everything be read? reads only what it shows
    python prepare_datasets.py --all --download mirror     # copy the files, for --data_root mirror
    python prepare_datasets.py --demo runs/demo/mirror     # the generated demo data
    python prepare_datasets.py --wikipedia --tokenize tokens --model_path M   # for train_loop.py --token_cache tokens

Promises: every chosen data set is tried, whatever becomes of the others; what cannot be had is listed at the end, with
the reason and what to try, and the exit status is 2. A mirror is resumable: complete files are not fetched again.
Costs: a few requests and one row group (or one gzipped file) a data set; with --download or --tokenize, its files.
"""

from __future__ import annotations

from miniqwen.errors import check_python

check_python()

from miniqwen.config.flags import parse
from miniqwen.config.preparing import PrepareConfig
from miniqwen.errors import disk_refusal, interrupts_end, refused_by_disk, user_errors_exit_2

if __name__ == "__main__":
    IMPORTED = interrupts_end("complete files are kept, and the same command goes on")
    with user_errors_exit_2():  # before the heavy imports, so that --help and mistakes answer at once
        CONFIG = parse(
            PrepareConfig, program="prepare_datasets.py", description="Check, download or generate data sets."
        )

import functools
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from miniqwen.config.data import KNOWN, QA_DATASETS, DataFlags, is_local
from miniqwen.data.patience import patiently
from miniqwen.data.repositories import REPOSITORIES, Repository, repository_card, resolve, text_column
from miniqwen.data.sources import Source, open_file, readable
from miniqwen.data.tokenizing import write_token_cache
from miniqwen.data.units import DataFile
from miniqwen.demo import DemoSummary, write_demo
from miniqwen.errors import UserError, printable
from miniqwen.files import make_folder, sync, written_whole
from miniqwen.lock import FolderLock
from miniqwen.model.tokenization_miniqwen import load_tokenizer
from miniqwen.questions.splits import Wanted, read_splits

SHOWN_CHARACTERS = 100
COLUMNS = {
    "wikipedia": ("id", "url", "title", "text"),
    "arxiv": ("id", "text"),
    "sciq": ("question", "distractor1", "distractor2", "distractor3", "correct_answer", "support"),
    "commonsenseqa": ("id", "question", "question_concept", "choices", "answerKey"),
}


def prepare(name: str, config: PrepareConfig) -> None:
    """Resolve one data set, describe it, and download it if asked to. Raises `UserError` for what cannot be had."""
    flags = config.reading(name)
    repository = resolve(name, flags)
    print(
        f"\n{name}: {repository.path}" + (f", configuration {repository.config_name}" if repository.config_name else "")
    )
    on_hub = f"the hub, revision {repository.revision}"
    print(f"  from      {'this machine' if is_local(name) and name not in KNOWN else config.data_root or on_hub}")
    if repository.note:
        print(f"  note      {repository.note.removeprefix(f'{name}: ')}")
    for split, files in repository.splits.items():
        print(f"  split     {split}: {shape(repository, split, files)}")
    if name == config.dataset_name and config.asks:
        show_questions(name, repository, flags, config.num_samples)
    else:
        show_rows(name, repository, COLUMNS.get(name, (flags.text_column or "text",)), config.num_samples)
    if config.download:
        download(repository, Path(config.download))
    if config.tokenize and name not in QA_DATASETS:
        tokenize(repository, text_column(name, flags), Path(config.tokenize), str(config.model_path))


def show_questions(name: str, repository: Repository, flags: DataFlags, number: int) -> None:
    """How questions of one's own are read, all of them, as training does; raises `UserError` for what it refuses."""
    wanted = [Wanted(split, need_answers=False) for split in repository.splits]
    found = read_splits(repository, name, flags, wanted)
    for note in found.notes:
        print(f"  note      {note.removeprefix(f'{name}: ')}")
    for one, questions in zip(wanted, found.questions, strict=True):
        counts = Counter(len(question.choices) for question in questions)
        without = sum(question.answer is None for question in questions)
        told = ", ".join(f"{times:,} with {choices} choices" for choices, times in sorted(counts.items()))
        print(f"  questions {one.split}: {told}" + (f"; {without:,} without an answer" if without else ""))
        for place, question in enumerate(questions[:number]):
            marks = ("*" * (index == question.answer_index) for index in range(len(question.choices)))
            choices = [mark + shortened(choice) for mark, choice in zip(marks, question.choices, strict=True)]
            answer = choices or [f"*{shortened(question.answer)}"]
            print(f"  {one.split}[{place}]  {shortened(question.question)}  {' | '.join(answer)}")


def show_rows(name: str, repository: Repository, columns: tuple[str, ...], number: int) -> None:
    """The first rows of the first split."""
    print(f"  columns   {', '.join(columns)}")
    first = next(iter(repository.splits))
    source = repository.source(first, columns)
    rows = first_rows(source)
    for place in range(min(number, len(rows[columns[0]]))):
        print(f"  {first}[{place}]  {sample(name, {column: values[place] for column, values in rows.items()})}")


def first_rows(source: Source) -> dict[str, list[Any]]:
    """The first few hundred rows, without reading the whole file."""
    unit = source.units()[0]
    file = source.files[unit.file]

    def first() -> dict[str, list[Any]]:
        return next(source.batches(unit), {name: [] for name in source.columns})

    found: dict[str, list[Any]] = readable(first, file, unit.part, source.cache_dir)
    return found


def shape(repository: Repository, split: str, files: tuple[DataFile, ...]) -> str:
    """Files, bytes and rows of a split; rows of files that are not parquet are unknown until they are read."""
    units = repository.source(split, ()).units()
    counts = [unit.rows for unit in units if unit.rows is not None]
    rows = f"{sum(counts):,} rows in {len(units)} row groups" if counts else "rows unknown until they are read"
    return f"{len(files)} files, {sum(file.size for file in files) / 1e6:,.1f} MB, {rows}"


def sample(name: str, row: dict[str, Any]) -> str:
    """A row on one line, the answer of a question marked with a star."""
    if name == "sciq":
        wrong = [row[f"distractor{number}"] for number in (1, 2, 3)]
        return (
            f"{shortened(row['question'])}  {' | '.join(map(shortened, wrong))} | *{shortened(row['correct_answer'])}"
        )
    if name == "commonsenseqa":
        pairs = zip(row["choices"]["label"], row["choices"]["text"], strict=True)
        choices = ("*" * (label == row["answerKey"]) + shortened(text) for label, text in pairs)
        return f"{shortened(row['question'])}  {' | '.join(choices)}"
    if name not in COLUMNS:
        return shortened(next(iter(row.values())))
    return shortened(f"{row.get('title') or row['id']}: {row['text']}")


def shortened(value: Any) -> str:
    text = printable(" ".join(str(value).split()))
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


def download(repository: Repository, root: Path) -> None:
    """Copy a data set's files and its card to ROOT/OWNER/NAME; each file appears whole or not at all."""
    folder = root / repository.path
    files = [*(file for found in repository.splits.values() for file in found), *repository_card(repository)]
    total = sum(file.size for file in files)
    bar = tqdm(total=total, unit="B", unit_scale=True, desc=f"  download {repository.name}", mininterval=1)
    with FolderLock(folder, "prepare_datasets.py", "--download"), bar:
        for file in files:
            target = folder / file.path
            if not (target.is_file() and target.stat().st_size == file.size):
                patiently(functools.partial(copy, file, target), f"{repository.name}: {file.path}", file.hub_timeout)
            bar.update(file.size)
    print(f"  mirrored  {len(files)} files, {total / 1e6:,.1f} MB in {folder}; use it with --data_root {root}")


def tokenize(repository: Repository, column: str, root: Path, model_path: str) -> None:
    """Write the token cache of a data set's training text, telling of each file."""
    source = repository.source("train", (column,))
    total = 0

    def told(path: str, rows: int, tokens: int) -> None:
        nonlocal total
        total += tokens
        print(f"  tokenized {path}: {rows:,} rows, {tokens:,} tokens", flush=True)

    with FolderLock(root / source.name, "prepare_datasets.py", "--tokenize"):
        folder = write_token_cache(root, source, load_tokenizer(model_path), told)
    print(f"  tokens    {total:,} in {folder}; train on them with --token_cache {root}")


def copy(file: DataFile, target: Path) -> None:
    """One file, under a temporary name until it is complete. A connection that is cut is tried again by the caller."""
    make_folder(target.parent)
    with open_file(file) as opened, written_whole(target) as written:
        shutil.copyfileobj(opened, written, 1 << 20)
        if written.tell() != file.size:
            raise ConnectionError(f"{written.tell()} of {file.size} bytes came")


def demo_in(folder: Path) -> DemoSummary:
    """Write the demo data; a new folder appears whole or not at all."""
    if folder.exists():
        with FolderLock(folder, "prepare_datasets.py", "--demo"):
            return write_demo(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        summary = write_demo(temporary)
        for inside in (temporary, *temporary.rglob("*")):
            sync(inside)
        temporary.rename(folder)
        sync(folder.parent)
    except OSError as error:
        raise disk_refusal(error, str(folder), "choose another place", "--demo") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return summary


def main(config: PrepareConfig) -> None:
    """Everything that was asked for; raises `UserError` with all that failed."""
    if config.demo:
        summary = demo_in(Path(config.demo))
        print(
            f"demo data in {config.demo}: {summary.facts} facts, {summary.articles} articles, {summary.papers} papers"
        )
        for name, questions in summary.questions.items():
            print(f"{name}: {', '.join(f'{count} {split}' for split, count in questions.items())} questions")
        if config.hints:
            print(f"use it with --data_root {config.demo}")
        return
    problems: list[str] = []
    for name in config.datasets:
        try:
            prepare(name, config)
        except UserError as error:
            print(f"\n{name}: {REPOSITORIES.get(name, name)}\n  FAILED    {error.problems[0]}", flush=True)
            problems += error.problems
        except OSError as error:
            if refused_by_disk(error) or isinstance(error, BrokenPipeError):
                raise
            problems.append(f"{name}: {error}")
    if problems:
        raise UserError(*problems)
    print(f"\nall of {', '.join(config.datasets)} can be read")


if __name__ == "__main__":
    IMPORTED()
    with user_errors_exit_2():
        main(CONFIG)
