"""The demo's world: hub layout, the same bytes every time, and questions that only the text answers."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from miniqwen.demo import CHOICES, COMMONSENSE, MEASURED, RELATIONS, SCIQ, DemoSummary, ask, write_demo

WIKIPEDIA, PAPERS = "wikimedia/wikipedia", "common-pile/arxiv_papers"


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoSummary]:
    root = tmp_path_factory.mktemp("demo")
    return root, write_demo(root)


def digests(root: Path) -> dict[str, str]:
    files = sorted(file for file in root.rglob("*") if file.is_file())
    return {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def rows(root: Path, dataset: str, split: str) -> list[dict[str, Any]]:
    files = sorted((root / dataset / "data").glob(f"{split}-*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def papers(root: Path) -> list[dict[str, Any]]:
    files = sorted((root / PAPERS).glob("*.jsonl.gz"))
    return [json.loads(line) for file in files for line in gzip.decompress(file.read_bytes()).splitlines()]


def texts(root: Path) -> dict[str, list[str]]:
    shards = sorted((root / WIKIPEDIA / "20231101.en").glob("*.parquet"))
    articles = [text for file in shards for text in pq.read_table(file, columns=["text"])["text"].to_pylist()]
    return {WIKIPEDIA: articles, PAPERS: [row["text"] for row in papers(root)]}


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(
    mirror: tuple[Path, DemoSummary], tmp_path: Path
) -> None:
    assert write_demo(tmp_path / "again") == mirror[1]
    assert digests(tmp_path / "again") == digests(mirror[0])
    write_demo(tmp_path / "other", seed=1)
    assert digests(tmp_path / "other") != digests(mirror[0])


def test_columns_are_the_hub_s(mirror: tuple[Path, DemoSummary]) -> None:
    def columns(pattern: str) -> list[tuple[str, str]]:
        (found,) = {tuple((f.name, str(f.type)) for f in pq.read_schema(file)) for file in mirror[0].glob(pattern)}
        return list(found)

    text = ["id", "url", "title", "text"]
    sciq = ["question", "distractor3", "distractor1", "distractor2", "correct_answer", "support"]
    assert columns(f"{WIKIPEDIA}/20231101.en/*.parquet") == [(name, "string") for name in text]
    assert columns(f"{SCIQ}/data/*.parquet") == [(name, "string") for name in sciq]
    assert columns(f"{COMMONSENSE}/data/*.parquet") == [
        ("id", "string"),
        ("question", "string"),
        ("question_concept", "string"),
        ("choices", "struct<label: list<element: string>, text: list<element: string>>"),
        ("answerKey", "string"),
    ]
    for paper in papers(mirror[0]):
        assert list(paper) == ["id", "text", "source", "created", "added", "metadata"]
        assert isinstance(paper["metadata"], dict)


def test_text_and_training_questions_come_in_several_files_of_several_row_groups(
    mirror: tuple[Path, DemoSummary],
) -> None:
    for pattern in (f"{WIKIPEDIA}/20231101.en/train-*", f"{SCIQ}/data/train-*", f"{COMMONSENSE}/data/train-*"):
        files = sorted(mirror[0].glob(pattern))
        assert len(files) > 1
        assert all(file.name.endswith(f"-{n:05}-of-{len(files):05}.parquet") for n, file in enumerate(files))
        assert all(pq.read_metadata(file).num_row_groups > 1 for file in files)
    assert len(list((mirror[0] / PAPERS).glob("*_arxiv-papers.jsonl.gz"))) > 1


def test_cards_name_files_that_exist_for_every_split(mirror: tuple[Path, DemoSummary]) -> None:
    for dataset in (WIKIPEDIA, PAPERS, SCIQ, COMMONSENSE):
        card = (mirror[0] / dataset / "README.md").read_text("utf-8")
        (config,) = yaml.safe_load(card.split("---")[1])["configs"]
        for data_file in config["data_files"]:
            assert list((mirror[0] / dataset).glob(data_file["path"])), (dataset, data_file)
    assert len(rows(mirror[0], SCIQ, "test")) == mirror[1].questions[SCIQ]["test"] >= 100
    assert len(rows(mirror[0], COMMONSENSE, "validation")) == mirror[1].questions[COMMONSENSE]["validation"] >= 100


def test_rows_say_which_choice_is_right_except_in_the_commonsense_test_split(mirror: tuple[Path, DemoSummary]) -> None:
    for split in ("train", "validation", "test"):
        for asked, row in zip(ask(SCIQ, 0)[split], rows(mirror[0], SCIQ, split), strict=True):
            offered = {row[f"distractor{n}"] for n in (1, 2, 3)} | {row["correct_answer"]}
            assert (row["question"], row["correct_answer"], row["support"]) == (asked.question, asked.fact.answer, "")
            assert offered == set(asked.choices)
        for asked, row in zip(ask(COMMONSENSE, 0)[split], rows(mirror[0], COMMONSENSE, split), strict=True):
            choices = dict(zip(row["choices"]["label"], row["choices"]["text"], strict=True))
            assert (row["question"], list(choices)) == (asked.question, list("ABCDE"))
            assert (row["answerKey"] == "") if split == "test" else (choices[row["answerKey"]] == asked.fact.answer)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dataset", [SCIQ, COMMONSENSE])
def test_no_two_splits_ask_the_same_question_or_the_same_fact(dataset: str, seed: int) -> None:
    owners: dict[Any, set[str]] = defaultdict(set)
    for split, questions in ask(dataset, seed).items():
        for asked in questions:
            owners[asked.question].add(split)
            owners[asked.fact.relation, asked.fact.entity].add(split)
    assert all(len(splits) == 1 for splits in owners.values())


def test_every_relation_is_trained_on_and_measured() -> None:
    for dataset in CHOICES:
        for split in ("train", MEASURED[dataset]):
            asked = {question.fact.relation for question in ask(dataset, 0)[split]}
            assert asked == {relation.name for relation in RELATIONS if relation.dataset == dataset}


@pytest.mark.parametrize("dataset", [SCIQ, COMMONSENSE])
def test_exactly_one_choice_of_a_question_is_right(dataset: str) -> None:
    true = defaultdict(set)
    for relation in RELATIONS:
        for fact in relation.facts():
            true[relation.name, fact.entity].add(fact.answer)
    assert all(len(answers) == 1 for answers in true.values())
    for questions in ask(dataset, 0).values():
        for asked in questions:
            assert len(set(asked.choices)) == len(asked.choices) == CHOICES[dataset]
            assert true[asked.fact.relation, asked.fact.entity] & set(asked.choices) == {asked.fact.answer}


def test_both_text_sets_state_every_fact_and_contain_no_question(mirror: tuple[Path, DemoSummary]) -> None:
    wordings = {relation.name: relation.statements for relation in RELATIONS}
    for documents in texts(mirror[0]).values():
        sentences = set(re.split(r"(?<=\.)\s+", " ".join(documents)))
        for relation in RELATIONS:
            for fact in relation.facts():
                stated = {wording.format(e=fact.entity, a=fact.answer) for wording in wordings[relation.name]}
                assert {text[0].upper() + text[1:] for text in stated} & sentences, fact
                assert all(fact.entity in text and fact.answer in text for text in stated)
        joined = "\n".join(documents)
        assert "?" not in joined
        for dataset in CHOICES:
            assert not [asked for part in ask(dataset, 0).values() for asked in part if asked.question in joined]


def test_the_summary_counts_what_was_written(mirror: tuple[Path, DemoSummary]) -> None:
    root, summary = mirror
    written = texts(root)
    assert (summary.articles, summary.papers) == (len(written[WIKIPEDIA]), len(written[PAPERS]))
    assert summary.facts == sum(len(relation.facts()) for relation in RELATIONS)
