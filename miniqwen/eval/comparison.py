"""Which of two evaluations of the same questions is better, and what changed: two files of results → one answer.

Promises: paired, so that it sees far smaller differences than two intervals do; by formula, without chance; files that
did not ask the same questions are refused.
Costs: nothing worth mentioning; scipy is imported here only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from miniqwen.errors import UserError
from miniqwen.eval.metrics import Z_95
from miniqwen.files import read_json

SIGNIFICANT = 0.05
SHOWN = 20  # questions that are listed of each kind


def compare(first: str | Path, second: str | Path) -> dict[str, Any]:
    """How the second file's answers differ from the first's.

    `p_value`: McNemar's exact test (1947, Psychometrika 12:153), the chance of so uneven a split of the questions that
    only one of the two answers, were both equally good. `score_p_value`: the same by the score statistic (gained -
    lost)² / (gained + lost), chi-squared, which is too sure of itself where few questions differ; the interval holds
    zero where it does not reject at 5 %. `difference` of the accuracies (second less first) with its
    95 % interval, see `paired_interval`. `gained` and `lost`: the questions that only the second, or only the first,
    answers. Raises `UserError` for files that are no results, have no right answers, or are of other questions.
    """
    results = [_read(file) for file in (first, second)]
    samples = [_by_id(one, file) for one, file in zip(results, (first, second), strict=True)]
    ids = _same_questions(samples, (first, second))
    correct = np.array([[bool(own[name]["correct"]) for name in ids] for own in samples])
    only_first, only_second = correct[0] & ~correct[1], correct[1] & ~correct[0]
    return {
        "files": [str(first), str(second)],
        "dataset": results[0]["dataset"],
        "num_examples": len(ids),
        "accuracies": correct.mean(axis=1).tolist(),
        "difference": float(correct[1].mean() - correct[0].mean()),
        "confidence_interval": list(paired_interval(int(only_second.sum()), int(only_first.sum()), len(ids))),
        "both": int((correct[0] & correct[1]).sum()),
        "only_first": int(only_first.sum()),
        "only_second": int(only_second.sum()),
        "neither": int((~correct[0] & ~correct[1]).sum()),
        "p_value": _mcnemar(int(only_first.sum()), int(only_second.sum())),
        "score_p_value": _mcnemar_score(int(only_first.sum()), int(only_second.sum())),
        "gained": [_change(ids[i], samples) for i in np.flatnonzero(only_second)],
        "lost": [_change(ids[i], samples) for i in np.flatnonzero(only_first)],
    }


def told(found: Mapping[str, Any]) -> str:
    """A comparison in words."""
    low, high = found["confidence_interval"]
    names = [f"{letter}: {file}" for letter, file in zip("AB", found["files"], strict=True)]
    lines = [
        *(f"{name}  {accuracy:.1%}" for name, accuracy in zip(names, found["accuracies"], strict=True)),
        f"{found['num_examples']} questions of {found['dataset']}: both right {found['both']}, only A "
        f"{found['only_first']}, only B {found['only_second']}, neither {found['neither']}",
        f"B - A: {found['difference']:+.1%} (95 % score interval {low:+.1%} to {high:+.1%}, Tango); McNemar's exact "
        f"test p = {found['p_value']:.4g}",
    ]
    if found["score_p_value"] < SIGNIFICANT <= found["p_value"]:
        lines.append(
            f"the interval leaves zero out, by a score test (p = {found['score_p_value']:.4g}), and the exact test "
            "does not reject it: too few questions differ to say which is better"
        )
    for kind, heading in (("gained", "right in B only"), ("lost", "right in A only")):
        lines += [f"{heading}:"] * bool(found[kind])
        lines += [
            f"  {one['id']}: {_short(one['question'])}  A {_short(one['predictions'][0])}, B "
            f"{_short(one['predictions'][1])}, right {_short(one['answer'])}"
            for one in found[kind][:SHOWN]
        ]
        more = len(found[kind]) - SHOWN
        lines += [f"  and {more} more"] * (more > 0)
    return "\n".join(lines)


def _short(text: str | None) -> str:
    words = " ".join(str(text).split())
    return repr(words if len(words) <= 80 else words[:79] + "…")


def _read(file: str | Path) -> dict[str, Any]:
    try:
        found = read_json(Path(file))
    except (OSError, ValueError) as error:
        raise UserError(f"--compare {file}: cannot be read as JSON ({error})") from None
    samples = found.get("samples") if isinstance(found, dict) and "dataset" in found else None
    if not samples or not isinstance(samples, list) or not all(map(_is_sample, samples)):
        raise UserError(f"--compare {file}: is no file of results with samples, as eval_loop.py writes for a data set")
    if any(one["correct"] is None for one in samples):
        raise UserError(f"--compare {file}: the questions have no right answers to compare by")
    return dict(found)


def _is_sample(one: Any) -> bool:
    return (
        isinstance(one, dict) and {"prediction", "answer"} <= one.keys()
        and isinstance(one.get("id"), str) and isinstance(one.get("question"), str)
        and one.get("correct", "") in (True, False, None)
    )  # fmt: skip


def _by_id(found: Mapping[str, Any], file: str | Path) -> dict[str, Mapping[str, Any]]:
    own = {one["id"]: one for one in found["samples"]}
    if len(own) != len(found["samples"]):
        raise UserError(f"--compare {file}: several questions have the same id")
    return own


def _same_questions(samples: Sequence[Mapping[str, Any]], files: Sequence[str | Path]) -> list[str]:
    """The ids, in the first file's order."""
    first, second = samples
    missing = [name for name in (first.keys() | second.keys()) if name not in first or name not in second]
    other = [
        name
        for name in first
        if name in second
        and (first[name]["question"], first[name]["answer"]) != (second[name]["question"], second[name]["answer"])
    ]
    if missing or other:
        raise UserError(
            f"--compare {files[0]} {files[1]}: not the same questions ({len(missing)} are in one file only, "
            f"{len(other)} differ under the same id, such as {sorted(missing + other)[0]}): evaluate both with the "
            "same data set, split and --max_eval_samples"
        )
    return list(first)


def _change(name: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first, second = (own[name] for own in samples)
    predictions = [first["prediction"], second["prediction"]]
    return {"id": name, "question": first["question"], "answer": first["answer"], "predictions": predictions}


def _mcnemar(only_first: int, only_second: int) -> float:
    from scipy.stats import binomtest

    discordant = only_first + only_second
    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def _mcnemar_score(only_first: int, only_second: int) -> float:
    from scipy.stats import chi2

    discordant = only_first + only_second
    return float(chi2.sf((only_second - only_first) ** 2 / discordant, 1)) if discordant else 1.0


def paired_interval(gained: int, lost: int, count: int) -> tuple[float, float]:
    """95 % score interval of (gained - lost) / count, the difference of two shares of the same `count` questions.

    Tango 1998 (Stat. Med. 17:891): the differences that a score test does not reject. Not of zero width where nothing
    differs, and never beyond -1 and 1.
    """
    from scipy.optimize import brentq

    observed = (gained - lost) / count

    def excess(difference: float) -> float:
        """The score statistic at a supposed difference, less its critical value."""
        a = 2 * count
        b = -gained - lost + (2 * count - gained + lost) * difference
        c = -lost * difference * (1 - difference)
        share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)  # of `lost`, the most likely one under it
        variance = count * (2 * share + difference * (1 - difference))
        return abs(gained - lost - count * difference) - Z_95 * math.sqrt(max(0.0, variance))

    def bound(end: float) -> float:
        near = observed + math.copysign(1e-9, end)  # where nothing differs, the statistic itself is 0 / 0
        return end if abs(near) >= 1 or excess(end) <= 0 else float(brentq(excess, near, end, xtol=1e-12))

    return bound(-1.0), bound(1.0)
