"""Two files of results against each other, by hand and by scipy's numbers."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from scipy.optimize import minimize_scalar

from miniqwen.errors import UserError
from miniqwen.eval.comparison import compare, paired_interval, told


def write(path: Path, correct: str, **other: Any) -> Path:
    """Results whose questions are right where `correct` has a 1."""
    samples = [
        {"id": str(i), "question": f"Q{i}", "prediction": "red" if mark == "1" else "blue", "answer": "red",
         "correct": mark == "1"}
        for i, mark in enumerate(correct)
    ]  # fmt: skip
    path.write_text(json.dumps({"dataset": "sciq", "samples": samples, **other}))
    return path


def test_counts_test_and_changed_questions_are_those_of_the_pairs(tmp_path: Path) -> None:
    first = write(tmp_path / "a.json", "1100000000")
    second = write(tmp_path / "b.json", "1011111100")
    found = compare(first, second)
    assert (found["both"], found["only_first"], found["only_second"], found["neither"]) == (1, 1, 6, 2)
    assert found["accuracies"] == [0.2, 0.7]
    assert found["difference"] == pytest.approx(0.5)
    assert found["p_value"] == pytest.approx(2 * (1 + 7) / 2**7)  # 1 of 7 or fewer, two-sided
    low, high = found["confidence_interval"]
    assert -0.03 < low < 0 < 0.5 < high < 1  # it holds zero, as the test does not reject it
    assert [one["id"] for one in found["lost"]] == ["1"]
    assert [one["id"] for one in found["gained"]] == ["2", "3", "4", "5", "6", "7"]
    assert found["gained"][0]["predictions"] == ["blue", "red"]
    text = told(found)
    assert "B - A: +50.0%" in text
    assert "only A 1, only B 6" in text
    assert "  1: 'Q1'  A 'red', B 'blue', right 'red'" in text


def test_a_file_equals_itself(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", "10101")
    found = compare(file, file)
    assert (found["difference"], found["p_value"]) == (0, 1.0)
    z2 = 1.959963984540054**2
    assert found["confidence_interval"] == pytest.approx([-z2 / (5 + z2), z2 / (5 + z2)])  # Tango 1998, closed form
    assert found["gained"] == found["lost"] == []


def test_the_interval_turns_round_with_the_files(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.json", "1100" * 20), write(tmp_path / "b.json", "1010" * 15 + "1111" * 5)
    low, high = compare(first, second)["confidence_interval"]
    assert compare(second, first)["confidence_interval"] == pytest.approx([-high, -low], abs=1e-9)


def test_files_of_other_questions_or_without_answers_are_refused(tmp_path: Path) -> None:
    good = write(tmp_path / "good.json", "10")
    longer = write(tmp_path / "longer.json", "100")
    with pytest.raises(UserError, match="1 are in one file only"):
        compare(good, longer)
    renamed = json.loads(good.read_text())
    renamed["samples"][1]["question"] = "Another?"
    (tmp_path / "renamed.json").write_text(json.dumps(renamed))
    with pytest.raises(UserError, match="1 differ under the same id"):
        compare(good, tmp_path / "renamed.json")
    renamed["samples"][1]["correct"] = None
    (tmp_path / "secret.json").write_text(json.dumps(renamed))
    with pytest.raises(UserError, match="no right answers"):
        compare(good, tmp_path / "secret.json")
    (tmp_path / "combined.json").write_text(json.dumps({"datasets": {}}))
    with pytest.raises(UserError, match="no file of results with samples"):
        compare(good, tmp_path / "combined.json")
    (tmp_path / "torn.json").write_text('{"samples": [')
    with pytest.raises(UserError, match="cannot be read as JSON"):
        compare(tmp_path / "torn.json", good)


def score(gained: int, lost: int, count: int, difference: float) -> float:
    """Tango's statistic, the nuisance share found by search among those that are possible, instead of by formula."""
    same = count - gained - lost

    def unlikely(share: float) -> float:  # `share` of lost, share + difference of gained
        parts = ((lost, share), (gained, share + difference), (same, 1 - 2 * share - difference))
        return -sum(number * math.log(max(part, 1e-300)) for number, part in parts)

    low, high = max(0.0, -difference), (1 - difference) / 2
    share = minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
    variance = count * (2 * share + difference * (1 - difference))
    return float((gained - lost - count * difference) / math.sqrt(max(variance, 1e-300)))


@pytest.mark.parametrize("seed", range(40))
def test_the_interval_of_a_difference_ends_where_the_score_test_begins_to_reject(seed: int) -> None:
    drawn = random.Random(seed)
    count = drawn.choice([1, 2, 7, 40, 500, 10_000])
    gained = drawn.choice([0, 1, count // 3, count, drawn.randint(0, count)])
    lost = drawn.choice([0, 1, (count - gained) // 2, count - gained]) if gained < count else 0
    lost = min(lost, count - gained)
    low, high = paired_interval(gained, lost, count)
    observed = (gained - lost) / count
    assert -1 <= low <= observed <= high <= 1
    assert high - low > 0
    for end, sign in ((low, 1), (high, -1)):
        if abs(end) < 1:
            assert score(gained, lost, count, end) == pytest.approx(sign * 1.959963984540054, rel=1e-3)
    assert paired_interval(lost, gained, count) == pytest.approx((-high, -low), abs=1e-9)


def test_intervals_of_nothing_and_of_one_question_that_differs_hold_zero() -> None:
    for gained, lost in ((0, 0), (1, 0), (0, 1)):
        low, high = paired_interval(gained, lost, 37)
        assert low < 0 < high
    assert paired_interval(40, 0, 40)[1] == 1.0
    assert paired_interval(0, 40, 40)[0] == -1.0


def test_where_interval_and_exact_test_disagree_it_is_said_which_is_which(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.json", "0" * 10), write(tmp_path / "b.json", "1" * 5 + "0" * 5)
    found = compare(first, second)
    assert found["p_value"] == pytest.approx(0.0625)  # 2 / 2^5
    assert found["score_p_value"] == pytest.approx(0.0253473)  # chi-squared of 5
    assert found["confidence_interval"][0] > 0
    text = told(found)
    assert "95 % score interval" in text
    assert "the interval leaves zero out, by a score test (p = 0.02535), and the exact test does not reject it" in text
    clear = told(compare(first, write(tmp_path / "c.json", "1" * 9 + "0")))
    assert "does not reject" not in clear


@pytest.mark.parametrize(("gained", "lost"), [(12, 5), (86, 150), (121, 59), (3, 3), (0, 0), (0, 1), (60, 0)])
def test_both_of_mcnemars_tests_are_the_textbooks(gained: int, lost: int, tmp_path: Path) -> None:
    """Agresti (Categorical Data Analysis, 10.1) has z² = 17.36 for 86 and 150."""
    differ = gained + lost
    exact = min(1.0, 2 * sum(math.comb(differ, k) for k in range(min(gained, lost) + 1)) / 2**differ)
    statistic = (gained - lost) ** 2 / differ if differ else 0.0
    score_test = math.erfc(math.sqrt(statistic / 2))
    assert differ != 236 or statistic == pytest.approx(17.36, abs=0.005)
    marks = [("0", "1")] * gained + [("1", "0")] * lost + [("1", "1")] * 30
    first, second = (write(tmp_path / f"{i}.json", "".join(mark[i] for mark in marks)) for i in (0, 1))
    found = compare(first, second)
    assert (found["p_value"], found["score_p_value"]) == pytest.approx((exact, score_test), rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_the_interval_holds_zero_where_the_score_test_does_not_reject_it(seed: int, tmp_path: Path) -> None:
    drawn = random.Random(seed)
    gained, lost, same = drawn.randrange(12), drawn.randrange(5), drawn.randrange(1, 40)
    marks = [("0", "1")] * gained + [("1", "0")] * lost + [("1", "1")] * same
    first, second = (write(tmp_path / f"{i}.json", "".join(mark[i] for mark in marks)) for i in (0, 1))
    found = compare(first, second)
    low, high = found["confidence_interval"]
    assert (low <= 0 <= high) is (found["score_p_value"] >= 0.05)
