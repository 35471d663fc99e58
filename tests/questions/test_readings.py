"""What answers mean, in every form that people's files have: read rightly, or refused; never guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miniqwen.config.data import DataFlags
from miniqwen.config.evaluating import EvalConfig
from miniqwen.config.flags import parse
from miniqwen.data.repositories import resolve
from miniqwen.errors import UserError
from miniqwen.questions.readings import Reading
from miniqwen.questions.splits import Read, Wanted, read_splits

METALS = ["copper", "iron", "zinc", "tin"]
FOUR = dict(zip(("a", "b", "c", "d"), METALS, strict=True))


def read_file(file: Path, choices: str | None, limit: int | None = None, skip: bool = False, **flags: Any) -> Read:
    given = {"question_column": "q", "answer_column": "key", **flags}
    saved = given.pop("saved", None)
    config = DataFlags(dataset_name=str(file), choices_column=choices, **given)
    wanted = [Wanted("train", limit=limit)]
    return read_splits(resolve(str(file), config), "own", config, wanted, saved=saved, skip_bad=skip)


def read_rows(folder: Path, rows: list[dict[str, Any]], choices: str | None = "o", **how: Any) -> Read:
    """The rows of a JSONL file with columns q, o (choices) and key."""
    file = folder / "own.jsonl"
    file.write_text("".join(json.dumps({"q": "Which?", **row}) + "\n" for row in rows), encoding="utf-8")
    return read_file(file, choices, **how)


def answers(read: Read) -> list[str | None]:
    return [question.answer for question in read.questions[0]]


def refusal(*arguments: Any, **how: Any) -> str:
    with pytest.raises(UserError) as raised:
        read_rows(*arguments, **how)
    return "\n".join(raised.value.problems)


# Two rows of our own in the form of each data set: (columns of question, choices, answer), rows, right texts.
LAYOUTS: dict[str, tuple[tuple[str, str, str], list[dict[str, Any]], list[str]]] = {
    "ARC": (("question", "choices", "answerKey"), [
        {"id": "M_1", "question": "Which is a metal?", "choices": {"text": ["wood", "iron"], "label": ["A", "B"]},
         "answerKey": "B"},
        {"id": "N_2", "question": "Which floats?", "choices": {"text": ["cork", "lead"], "label": ["1", "2"]},
         "answerKey": "1"}], ["iron", "cork"]),
    "OpenBookQA": (("question_stem", "choices", "answerKey"), [
        {"question_stem": "Snow is", "choices": {"text": ["hot", "cold"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question_stem": "Fire is", "choices": {"text": ["hot", "cold"], "label": ["A", "B"]}, "answerKey": "A"}],
        ["cold", "hot"]),
    "PIQA": (("goal", "sol1,sol2", "label"), [
        {"goal": "Open a jar", "sol1": "twist the lid", "sol2": "kick the lid", "label": 0},
        {"goal": "Dry a cup", "sol1": "fill it", "sol2": "wipe it", "label": 1}], ["twist the lid", "wipe it"]),
    "SWAG": (("startphrase", "ending0,ending1,ending2,ending3", "label"), [
        {"startphrase": "She sits", "ending0": "down.", "ending1": "up on air.", "ending2": "sky.", "ending3": "of.",
         "label": 0},
        {"startphrase": "He opens", "ending0": "the rain.", "ending1": "sleep.", "ending2": "noon.",
         "ending3": "the door.", "label": 3}], ["down.", "the door."]),
    "HellaSwag": (("ctx", "endings", "label"), [
        {"ctx": "A man lifts", "endings": ["a weight.", "the sea.", "Monday.", "no."], "label": "0"},
        {"ctx": "A dog runs", "endings": ["a bank.", "soup.", "after the ball.", "tea."], "label": "2"}],
        ["a weight.", "after the ball."]),
    "Social IQa": (("question", "answerA,answerB,answerC", "label"), [
        {"question": "How would Ann feel?", "answerA": "glad", "answerB": "blue", "answerC": "square", "label": "1"},
        {"question": "What will Bo do?", "answerA": "melt", "answerB": "fly", "answerC": "rest", "label": "3"}],
        ["glad", "rest"]),
    "Winogrande": (("sentence", "option1,option2", "answer"), [
        {"sentence": "The cup fell off the shelf, as the _ was steep.", "option1": "cup", "option2": "shelf",
         "answer": "2"},
        {"sentence": "Ann thanked Bo, for _ had helped.", "option1": "Bo", "option2": "Ann", "answer": "1"}],
        ["shelf", "Bo"]),
    "RACE": (("question", "options", "answer"), [
        {"question": "The text is about", "options": ["bees", "cars", "ice", "salt"], "answer": "A"},
        {"question": "It was written", "options": ["today", "in May", "at sea", "never"], "answer": "D"}],
        ["bees", "never"]),
    "MedMCQA": (("question", "opa,opb,opc,opd", "cop"), [
        {"question": "Bone of the arm", "opa": "ulna", "opb": "femur", "opc": "rib", "opd": "jaw", "cop": 0},
        {"question": "Organ of sight", "opa": "ear", "opb": "skin", "opc": "nose", "opd": "eye", "cop": 3}],
        ["ulna", "eye"]),
    "MMLU": (("question", "choices", "answer"), [
        {"question": "2 + 2", "subject": "s", "choices": ["3", "4", "5", "6"], "answer": 1},
        {"question": "A prime", "subject": "s", "choices": ["7", "8", "9", "10"], "answer": 0}], ["4", "7"]),
    "C-Eval": (("question", "A,B,C,D", "answer"), [
        {"question": "水的沸点是____。", "A": "0℃", "B": "50℃", "C": "100℃", "D": "200℃", "answer": "C"},
        {"question": "最大的行星是____。", "A": "木星", "B": "火星", "C": "水星", "D": "金星", "answer": "A"}],
        ["100℃", "木星"]),
    "CMMLU": (("Question", "A,B,C,D", "Answer"), [
        {"Question": "下列哪种是金属？", "A": "木", "B": "铁", "C": "冰", "D": "盐", "Answer": "B"},
        {"Question": "一年有几个月？", "A": "10", "B": "11", "C": "12", "D": "13", "Answer": "C"}], ["铁", "12"]),
    "MedQA": (("question", "options", "answer_idx"), [
        {"question": "Fever is treated with", "options": {"A": "salt", "B": "rest"}, "answer_idx": "B"},
        {"question": "A cut is", "options": {"A": "cleaned", "B": "read"}, "answer_idx": "A"}], ["rest", "cleaned"]),
    "SciQ in columns": (("question", "correct_answer,d1,d2", "correct_answer"), [
        {"question": "A gas", "correct_answer": "neon", "d1": "tin", "d2": "salt"},
        {"question": "A metal", "correct_answer": "tin", "d1": "neon", "d2": "tin"}], ["neon", "tin"]),
    "labelled items": (("question", "choices", "answer"), [
        {"question": "A gas", "choices": [{"key": "x", "value": "tin"}, {"key": "y", "value": "neon"}], "answer": "y"},
        {"question": "A metal", "choices": [{"key": "x", "value": "tin"}, {"key": "y", "value": "neon"}],
         "answer": "x"}], ["neon", "tin"]),
}  # fmt: skip


@pytest.mark.parametrize("form", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layouts_of_well_known_data_sets_are_read_rightly(name: str, form: str, tmp_path: Path) -> None:
    (question, choices, answer), rows, right = LAYOUTS[name]
    file = tmp_path / f"own{form}"
    if form == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_file(file, choices, question_column=question, answer_column=answer)
    assert answers(read) == right
    assert [q.choices[q.answer_index] for q in read.questions[0] if q.answer_index is not None] == right
    assert read.notes[0].startswith("own: answers are read as ")
    assert f"row 0: {rows[0][answer]!r} → {right[0]!r}" in read.notes[0]


SPELLINGS = [
    ("abcd", "label"), ("ABCD", "label"), (["a)", "b)", "c)", "d)"], "label"), (["(A)", "(B)", "(C)", "(D)"], "label"),
    (["[A]", "[B]", "[C]", "[D]"], "label"), (["A.", "B.", "C.", "D."], "label"), (["A:", "B:", "C:", "D:"], "label"),
    ([f"Answer: {x}" for x in "ABCD"], "label"), ([f"option {x}" for x in "abcd"], "label"),
    ([f"Choice ({x})" for x in "ABCD"], "label"), ([f"The answer is {x}." for x in "ABCD"], "label"),
    ([f"答案：{x}" for x in "ABCD"], "label"), ([f"选{x}" for x in "ABCD"], "label"), ("ＡＢＣＤ", "label"),
    ([f"（{x}）" for x in "ＡＢＣＤ"], "label"), ([f"{x}. {t}" for x, t in zip("ABCD", METALS, strict=True)], "label"),
    ([f"{x} - {t}" for x, t in zip("ABCD", METALS, strict=True)], "label"),
    ([f"{x} {t}" for x, t in zip("abcd", METALS, strict=True)], "label"),
    (["**A**", "*B*", "'C'", '"D"'], "label"), (["Answer=A", "answer = b", "`C`", "d-"], "label"),
    (["A\u200b", "\ufeffB", "C\u00a0", "D\t"], "label"), ("ⒶⒷⒸⒹ", "label"), ("①②③④", "number_from_1"),
    ([f"{x}. {t}" for x, t in enumerate(METALS)], "number"), (["01", "+2", "٣", "4)"], "number_from_1"),
    ([" a", "b ", " c ", "d"], "label"), ([["a"], ["b"], ["c"], ["d"]], "label"),
    ([0, 1, 2, 3], "number"), (["0", "1", "2", "3"], "number"), ([0.0, 1.0, 2.0, 3.0], "number"),
    (["0.0", "1.0", "2.0", "3.0"], "number"), ([1, 2, 3, 4], "number_from_1"), (["1", "2", "3", "4"], "number_from_1"),
    ([1.0, 2.0, 3.0, 4.0], "number_from_1"), (["1.0", "2.0", "3.0", "4.0"], "number_from_1"),
    (["(1)", "(2)", "(3)", "(4)"], "number_from_1"), ([f"option {x}" for x in range(1, 5)], "number_from_1"),
    (METALS, "text"), ([m.upper() for m in METALS], "text"), ([f"  {m.title()} " for m in METALS], "text"),
]  # fmt: skip


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("spelled", "kind"), SPELLINGS)
def test_an_answer_of_any_spelling_means_the_right_choice(
    spelled: Any, kind: str, several: bool, tmp_path: Path
) -> None:
    rows = [{**(FOUR if several else {"o": METALS}), "key": one} for one in spelled]
    read = read_rows(tmp_path, rows, "a,b,c,d" if several else "o")
    assert (answers(read), read.reading.kind) == (METALS, kind)
    assert [q.answer_index for q in read.questions[0]] == [0, 1, 2, 3]


@pytest.mark.parametrize("spelled", [["answerA", "answerB"], ["ANSWERA", "answerb "]])
def test_a_columns_own_name_is_its_choice(spelled: list[str], tmp_path: Path) -> None:
    rows = [{"answerA": "tin", "answerB": "neon", "key": key} for key in spelled]
    read = read_rows(tmp_path, rows, "answerA,answerB")
    assert (answers(read), read.reading.kind) == (["tin", "neon"], "column")
    rows = [{"1": "tin", "2": "neon", "3": "salt", "key": key} for key in "12"]
    assert answers(read_rows(tmp_path, rows, "1,2,3")) == ["tin", "neon"]


@pytest.mark.parametrize(
    ("choices", "spelled", "right"),
    [(["no", "yes"], [True, False], ["yes", "no"]), (["Yes", "No"], [True, False], ["Yes", "No"]),
     (["True", "False"], ["true", "FALSE"], ["True", "False"]), (["false", "true"], [False], ["false"])],
)  # fmt: skip
def test_booleans_are_words_and_not_numbers(choices: list[str], spelled: Any, right: list[str], tmp_path: Path) -> None:
    assert answers(read_rows(tmp_path, [{"o": choices, "key": key} for key in spelled])) == right


def test_booleans_without_words_are_numbers_only_when_that_is_said(tmp_path: Path) -> None:
    rows = [{"o": ["tin", "neon"], "key": True}, {"o": ["tin", "neon"], "key": False}]
    assert "key True is none of the choices 'tin', 'neon'" in refusal(tmp_path, rows)
    assert answers(read_rows(tmp_path, rows, answer_is="number")) == ["neon", "tin"]


@pytest.mark.parametrize(
    "choices",
    [json.dumps(METALS), str(METALS), json.dumps(dict(zip("ABCD", METALS, strict=True))),
     json.dumps({"label": list("ABCD"), "text": METALS}), [*METALS, None, None],
     {"label": ["A", "B", "C", "D", "E"], "text": [*METALS, None]},
     {**dict(zip("ABCD", METALS, strict=True)), "E": None}],
    ids=["JSON", "Python", "JSON of letters", "JSON labelled", "padded list", "padded labels", "padded letters"],
)  # fmt: skip
def test_choices_of_any_form_are_those_that_are_there(choices: Any, tmp_path: Path) -> None:
    read = read_rows(tmp_path, [{"o": choices, "key": "b"}])
    assert (read.questions[0][0].choices, answers(read)) == (tuple(METALS), ["iron"])


@pytest.mark.parametrize(
    ("choices", "told"),
    [("tin; neon", "should be a list of texts"), ("['tin' 'neon']", "at least two choices"),
     ({"label": "A", "text": "x"}, "should be a list"), ({"A": ["x"], "B": ["y"]}, "should be text"),
     ({"label": ["A", "a"], "text": ["x", "y"]}, "two choices with the same label"), (7, "should be a list"),
     ({"label": ["A"], "text": ["x", "y"]}, "2 texts and 1 labels"), ([None, None], "has 0 choices")],
)  # fmt: skip
def test_choices_that_could_be_taken_in_two_ways_are_refused(choices: Any, told: str, tmp_path: Path) -> None:
    assert told in refusal(tmp_path, [{"o": choices, "key": "A"}])


def test_an_empty_column_keeps_the_letters_and_numbers_of_those_behind_it(tmp_path: Path) -> None:
    rows = [{"a": "x", "b": None, "c": "z", "key": "C"}, {"a": "u", "b": "v", "c": "w", "key": "B"}]
    read = read_rows(tmp_path, rows, "a, b, c")
    assert [(q.choices, q.answer) for q in read.questions[0]] == [(("x", "z"), "z"), (("u", "v", "w"), "v")]
    rows = [{"o": ["x", None, "z"], "key": 2}, {"o": ["u", "v", "w"], "key": 0}]
    assert answers(read_rows(tmp_path, rows)) == ["z", "u"]


@pytest.mark.parametrize("hidden", [-1, "-1", -1.0, "", None, "  "])
def test_hidden_answers_are_none_and_where_they_are_needed_refused(hidden: Any, tmp_path: Path) -> None:
    rows = [{**FOUR, "key": hidden}] * 3
    assert "train split of own has no answers" in refusal(tmp_path, rows, "a,b,c,d")
    assert "row 1: key is empty" in refusal(tmp_path, [{**FOUR, "key": "a"}, *rows[1:]], "a,b,c,d")


def test_minus_one_is_an_answer_where_it_is_a_choices_text(tmp_path: Path) -> None:
    rows = [{"o": ["-1", "1"], "key": "-1"}, {"o": ["7", "8"], "key": "8"}]
    assert answers(read_rows(tmp_path, rows)) == ["-1", "8"]


@pytest.mark.parametrize("several", [["a", "c"], "A, C", "AC", "a and c", ["copper", "iron"]])
def test_several_right_answers_are_refused(several: Any, tmp_path: Path) -> None:
    told = refusal(tmp_path, [{"o": METALS, "key": ["a"]}, {"o": METALS, "key": several}])
    assert "own.jsonl, row 1: key" in told


def test_where_two_readings_fit_all_rows_the_user_is_asked(tmp_path: Path) -> None:
    """The README's own example: numbers from 0, the answer is 2; the text is 1."""
    file = tmp_path / "quiz.csv"
    file.write_text("q,a,b,c,key\nWhat is 1 + 1?,1,2,3,1\n")
    with pytest.raises(UserError) as raised:
        read_file(file, "a,b,c")
    (told,) = raised.value.problems
    assert "in quiz.csv, row 0, '1' means '1' with --answer_is text, or '2' with --answer_is number" in told
    for kind, right in {"text": "1", "number": "2", "number_from_1": "1"}.items():
        assert answers(read_file(file, "a,b,c", answer_is=kind)) == [right]


@pytest.mark.parametrize(
    ("choices", "keys"), [(["B", "A", "C"], "AB"), (["2", "1", "3"], "12"), (["b", "a"], "A"), (list("DCBA"), "AC")]
)
def test_texts_that_are_other_places_labels_or_numbers_are_asked_about(
    choices: list[str], keys: str, tmp_path: Path
) -> None:
    assert "ways, and all fit" in refusal(tmp_path, [{"o": choices, "key": key} for key in keys])


def test_readings_that_mean_the_same_are_no_question(tmp_path: Path) -> None:
    rows = [{"A": "tin", "B": "neon", "key": "A"}, {"A": "salt", "B": "ice", "key": "b"}]
    assert answers(read_rows(tmp_path, rows, "A,B")) == ["tin", "ice"]  # a letter, and a column's name
    rows = [{"o": ["1", "2", "3"], "key": "1"}, {"o": ["1", "2", "3"], "key": "3"}]
    assert answers(read_rows(tmp_path, rows)) == ["1", "3"]  # a text, and a number from 1


def test_where_readings_share_the_rows_none_is_taken(tmp_path: Path) -> None:
    rows = [{"o": METALS, "key": key} for key in ("a", "b", "iron", "4")]
    told = refusal(tmp_path, rows)
    assert "no one reading fits all 4 answers" in told
    assert "row 2: 'iron'; own.jsonl, row 3: '4'" in told
    told = refusal(tmp_path, rows, answer_is="label")
    assert "row 2: key 'iron' is none of the choices" in told
    assert "row 3: key '4' is none of the choices" in told


@pytest.mark.parametrize("spelled", ["abcd", ["answerA"] * 4, ["e"] * 4, ["B)", "C)", "(D", "1st"]])
def test_an_answer_that_is_not_understood_never_becomes_one_more_choice(spelled: Any, tmp_path: Path) -> None:
    rows = [{"w1": "wrong", "w2": "worse", "key": key} for key in spelled]
    assert "is none of the choices" in refusal(tmp_path, rows, "w1,w2")


def test_wrong_choices_take_the_right_one_in_when_that_is_said(tmp_path: Path) -> None:
    rows = [{"w1": "wrong", "w2": "worse", "key": "right"}, {"w1": "tin", "w2": "", "key": "neon"}]
    read = read_rows(tmp_path, rows, "w1,w2", answer_is="added")
    assert [(q.choices, q.answer_index) for q in read.questions[0]] == [
        (("wrong", "worse", "right"), 2), (("tin", "neon"), 1),
    ]  # fmt: skip


def test_the_reading_is_found_on_the_whole_split_whatever_the_limit(tmp_path: Path) -> None:
    rows = [{"o": METALS, "key": key} for key in (1, 2, 3, 1, 2, 4)]
    for limit in (None, 1, 2, 5):
        assert (
            answers(read_rows(tmp_path, rows, limit=limit))
            == ["copper", "iron", "zinc", "copper", "iron", "tin"][:limit]
        )
    rows = [{"o": METALS, "key": key} for key in (1, 2, 3, 1, 2, 0)]
    assert answers(read_rows(tmp_path, rows, limit=2)) == ["iron", "zinc"]
    assert answers(read_rows(tmp_path, [*rows, {"o": METALS, "key": "gold"}], limit=2)) == ["iron", "zinc"]


def test_the_cards_names_of_classes_are_the_answers(tmp_path: Path) -> None:
    folder = tmp_path / "mirror/some/quiz"
    folder.mkdir(parents=True)
    rows = [{"q": "Which?", "o": METALS, "key": number} for number in (1, 2, 2)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    names = "".join(f"          '{number}': {name}\n" for number, name in enumerate("DCBA"))
    card = "---\ndataset_info:\n  features:\n  - name: q\n    dtype: string\n  - name: o\n    list: string\n"
    card += f"  - name: key\n    dtype:\n      class_label:\n        names:\n{names}---\n"
    (folder / "README.md").write_text(card)
    flags = DataFlags(
        dataset_name="some/quiz", data_root=str(tmp_path / "mirror"), question_column="q", choices_column="o",
        answer_column="key",
    )  # fmt: skip
    read = read_splits(resolve("some/quiz", flags), "some/quiz", flags, [Wanted("train")])
    assert (answers(read), read.reading.kind) == (["zinc", "iron", "iron"], "label")  # 1 is called C, 2 is called B
    (folder / "README.md").write_text(
        card.replace(names, "          '0': '0'\n          '1': '1'\n          '2': '2'\n")
    )
    assert answers(read_splits(resolve("some/quiz", flags), "q", flags, [Wanted("train")])) == ["iron", "zinc", "zinc"]


def test_names_of_classes_that_a_parquet_file_keeps_are_the_answers(tmp_path: Path) -> None:
    """As `datasets` writes its features into a file."""
    rows = [{"q": "Which?", "o": METALS, "key": number} for number in (1, 2, 2)]
    features = datasets.Features(
        {"q": datasets.Value("string"), "o": datasets.List(datasets.Value("string")),
         "key": datasets.ClassLabel(names=list("DCBA"))}
    )  # fmt: skip
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "own.parquet")
    read = read_file(tmp_path / "own.parquet", "o")
    assert (answers(read), read.reading.kind) == (["zinc", "iron", "iron"], "label")  # 1 is called C, 2 is called B
    assert "row 0: 'C' → 'zinc'" in read.notes[0]
    pq.write_table(pa.Table.from_pylist([{**row, "key": row["key"] + 2} for row in rows]), tmp_path / "plain.parquet")
    assert answers(read_file(tmp_path / "plain.parquet", "o", answer_is="number_from_1")) == ["zinc", "tin", "tin"]
    folder = tmp_path / "both"
    folder.mkdir()
    for number, names in enumerate(("DCBA", "ABCD")):
        features["key"] = datasets.ClassLabel(names=list(names))
        of_file = datasets.Dataset.from_list(rows, features=features)
        of_file.to_parquet(folder / f"train-0000{number}-of-00002.parquet")
    with pytest.raises(UserError, match=r"names differ: train-00000-of-00002\.parquet D, C, B, A; train-00001"):
        read_file(folder, "o")


def test_a_saved_reading_is_taken_for_its_columns_and_a_flag_goes_before_it(tmp_path: Path) -> None:
    rows = [{"o": METALS, "key": 1}, {"o": METALS, "key": 2}]
    assert "can be read in 2 ways" in refusal(tmp_path, rows)
    Reading("number_from_1", ("o",), "key").save(tmp_path)
    saved = Reading.load(tmp_path)
    assert answers(read_rows(tmp_path, rows, saved=saved)) == ["copper", "iron"]
    assert answers(read_rows(tmp_path, rows, saved=saved, answer_is="number")) == ["iron", "zinc"]
    assert "can be read in 2 ways" in refusal(tmp_path, rows, saved=Reading("number", ("o",), "other"))
    bad = [*rows, {"o": METALS, "key": 0}, {"o": METALS, "key": 4}]
    assert "read as the numbers of choices from 1" in refusal(tmp_path, bad, saved=saved)
    (tmp_path / "answer_reading.json").write_text('{"answer_is": "guess", "choices_column": [], "answer_column": ""}')
    with pytest.raises(UserError, match="'guess' is not one of text, label"):
        Reading.load(tmp_path)


@pytest.mark.parametrize("limit", [None, 1, 2])
def test_a_saved_reading_is_not_taken_for_data_that_only_another_one_fits(limit: int | None, tmp_path: Path) -> None:
    """Other data may have the same columns: what its last row shows, holds for the first."""
    saved = Reading("number", ("o",), "key")
    rows = [{"o": METALS, "key": key} for key in (1, 2, 4)]
    told = refusal(tmp_path, rows, saved=saved, limit=limit)
    assert "trained with answers that are the numbers of choices from 0 (answer_reading.json)" in told
    assert "own.jsonl, row 2, 4 is none; here all are the numbers of choices from 1: say so with --answer_is" in told
    assert answers(read_rows(tmp_path, rows, saved=saved, answer_is="number_from_1", limit=2)) == ["copper", "iron"]
    letters = [{"o": METALS, "key": key} for key in "ab"]
    assert "here all are the labels of choices" in refusal(tmp_path, letters, saved=saved, limit=limit)


HIDDEN_SHUFFLES: list[tuple[list[dict[str, Any]], list[Any], tuple[str, ...]]] = [
    ([{"o": ["B. tin", "A. neon"]}] * 2, ["A", "B"], ("label",)),
    ([{"o": ["(2) tin", "(1) neon", "(3) salt"]}] * 3, [1, 2, 3], ("number_from_1",)),
    ([{"o": {"B": "tin", "A": "neon"}}] * 2, [0, 1], ("number",)),
    ([{"o": {"label": ["2", "1", "3"], "text": ["tin", "neon", "salt"]}}] * 3, [0, 1, 2], ("number",)),
]


@pytest.mark.parametrize(("choices", "keys", "said"), HIDDEN_SHUFFLES)
def test_choices_that_bear_marks_in_another_order_are_no_places_unless_that_is_said(
    choices: list[dict[str, Any]], keys: list[Any], said: tuple[str, ...], tmp_path: Path
) -> None:
    rows = [{**row, "key": key} for row, key in zip(choices, keys, strict=True)]
    refusal(tmp_path, rows)
    for kind in said:
        assert len(answers(read_rows(tmp_path, rows, answer_is=kind))) == len(rows)


def test_choices_that_bear_their_places_marks_or_others_are_read(tmp_path: Path) -> None:
    for choices in (["A. tin", "B. neon"], ["E. coli", "B. subtilis"], ["tin", "A. neon"], ["(1) tin", "(2) neon"]):
        rows = [{"o": choices, "key": key} for key in "AB"]
        assert answers(read_rows(tmp_path, rows)) == choices
    rows = [{"o": {"B": "tin", "A": "neon"}, "key": key} for key in "AB"]
    assert answers(read_rows(tmp_path, rows)) == ["neon", "tin"]


def test_one_and_nought_beside_yes_and_no_may_be_numbers_or_words(tmp_path: Path) -> None:
    rows = [{"o": ["no", "yes"], "key": key} for key in (0, 1)]
    assert answers(read_rows(tmp_path, rows)) == ["no", "yes"]
    rows = [{"o": ["yes", "no"], "key": key} for key in ("0", "1")]
    assert "'0' means 'no' with --answer_is text, or 'yes' with --answer_is number" in refusal(tmp_path, rows)
    assert answers(read_rows(tmp_path, rows, answer_is="number")) == ["yes", "no"]
    assert answers(read_rows(tmp_path, rows, answer_is="text")) == ["no", "yes"]


REFUSED = [  # never guessed: Cyrillic letters, Roman and Chinese numerals, decimals, hexadecimals, words, ranges
    "АВ", ["I", "II"], ["一", "二"], ["第1个"], ["1e0"], ["1,0"], ["0x1"], [1.5], ["nan", "a"], ["None", "a"],
    [float("inf")], [-2, 0], ["a", "1"], ["A?"], ["A/B", "C"], ["A|B"], ["A;B"], ["0,1"], ["E"], [5], ["1-2"], ["1:2"],
    [{"text": "iron"}], [[1, 0, 0, 0]], ["A) iron"], ["B copper"], ["2. copper"], ["none"], ["*"], ["()"], ["answer"],
    [True], ["ｉｒｏｎ"],
]  # fmt: skip


@pytest.mark.parametrize("spelled", REFUSED)
def test_what_may_mean_something_else_is_refused(spelled: Any, tmp_path: Path) -> None:
    assert "own.jsonl, row " in refusal(tmp_path, [{"o": METALS, "key": one} for one in spelled])


def test_a_decimal_is_no_number_with_a_text_behind_it(tmp_path: Path) -> None:
    for key in ("0.5", "0:5", "0-5", "0,5"):
        assert "is none of the choices" in refusal(tmp_path, [{"o": ["5", "7"], "key": key}])


def test_bad_rows_are_skipped_when_that_is_asked_for_counted_and_told(tmp_path: Path) -> None:
    rows = [{"o": METALS, "key": "a"}] * 3 + [{"o": METALS, "key": "e"}, {"o": [], "key": "a"}]
    assert "row 3: key 'e'" in refusal(tmp_path, rows)
    read = read_rows(tmp_path, rows, skip=True)
    assert answers(read) == ["copper"] * 3
    assert "2 bad rows are left out (--on_bad_data skip), the first of them own.jsonl, row 3: key 'e'" in read.notes[1]
    told = refusal(tmp_path, [*rows, {"o": METALS, "key": "x"}, {"o": METALS, "key": "y"}], skip=True)
    assert "4 of 7 rows are bad: --on_bad_data skip leaves out half at most" in told


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--dataset_name sciq --answer_is label", "--answer_is label is for questions of your own"),
        ("--dataset_name own/x --question_column q --answer_column a --answer_is text --answer_mode generate",
         "--answer_is text is for questions of your own with --choices_column"),
        ("--dataset_name own/x --question_column q --answer_column a --choices_column o --answer_is added",
         "--answer_is added needs several columns"),
        ("--dataset_name own/x --question_column q --answer_column a --choices_column o --answer_is letter",
         "'letter' is not one of text, label"),
    ],
)  # fmt: skip
def test_a_reading_that_cannot_be_is_refused_with_the_flags(flags: str, told: str) -> None:
    with pytest.raises(UserError) as raised:
        parse(EvalConfig, ["--model_path", "m", "--output_dir", "o", *flags.split()], program="", description="")
    assert told in "\n".join(raised.value.problems)
