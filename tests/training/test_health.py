"""What is worth a look in a run's metrics: noticed where it begins, told once, and nothing of a run that is well."""

from __future__ import annotations

from typing import Any

import pytest

from miniqwen.training.health import Notice, Watch, healthy


def told(lines: list[dict[str, Any]]) -> list[Notice]:
    watch = Watch()
    return [notice for line in lines for notice in watch.see(line)]


def training(step: int, **values: Any) -> dict[str, Any]:
    usual = {
        "loss": 3.0 + 2 / step + 0.01 * (step % 3),
        "grad_norm": 1.0,
        "tokens_per_second": 1000.0,
        "data_wait": 0.01,
    }
    return {"step": step, **usual, "skipped_updates": 0, "max_memory_rss_gib": 2.0, **values}


def well(count: int) -> list[dict[str, Any]]:
    return [training(step) for step in range(1, count + 1)]


def test_a_run_that_is_well_says_nothing() -> None:
    lines = well(100)
    lines[50:50] = [{"step": 50, "eval_loss": 3.1}]
    assert told([*lines, {"step": 100, "eval_loss": 3.0}]) == []


@pytest.mark.parametrize(
    ("lines", "step", "metric", "what"),
    [
        ([training(41, loss=None)], 41, "loss", "loss is not a finite number"),
        ([{"step": 40, "eval_loss": None}], 40, "eval_loss", "eval_loss is not a finite number"),
        ([training(41, skipped_updates=3)], 41, "skipped_updates", "3 updates were skipped"),
        ([training(41, skipped_updates=1)], 41, "skipped_updates", "an update was skipped"),
        ([training(41, loss=4.0), training(42, loss=4.1)], 41, "loss", "the loss jumps to 4.000, where 3."),
        ([training(41, grad_norm=11.0)], 41, "grad_norm", "the gradient norm is 11, where 1 was usual"),
        ([training(n, data_wait=0.5) for n in range(41, 60)], 43, "data_wait", "50% of the time is waited for data"),
        ([training(n, tokens_per_second=400.0) for n in range(41, 50)], 43, "tokens_per_second", "400 tokens/s, "),
        ([training(n, max_memory_rss_gib=2 + n / 99) for n in range(41, 60)], 41, "max_memory_rss_gib", "from 2 to"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_each_trouble_is_told_once_where_it_begins(
    lines: list[dict[str, Any]], step: int, metric: str, what: str
) -> None:
    (notice,) = told([*well(40), *lines])
    assert (notice.step, notice.metric) == (step, metric)
    assert what in notice.what
    assert notice.look_at


def test_trouble_that_comes_again_is_told_again() -> None:
    lines = [*well(40), training(41, loss=None), training(42), training(43, loss=None)]
    assert [notice.step for notice in told(lines)] == [41, 43]


def test_an_evaluation_that_gets_worse_is_trouble_only_while_the_loss_falls() -> None:
    def run(falls: float, losses: list[float]) -> list[Notice]:
        lines: list[dict[str, Any]] = []
        for number, loss in enumerate(losses, 1):
            lines += [training(10 * number + n, loss=4.0 - falls * number) for n in range(10)]
            lines.append({"step": 10 * number + 9, "eval_loss": loss})
        return told(lines)

    (notice,) = run(0.2, [3.9, 3.5, 3.6, 3.7, 3.8, 3.9])
    assert (notice.step, notice.metric) == (59, "eval_loss")
    assert "the best was 3.500 at update 29" in notice.what
    assert run(0.0, [3.9, 3.5, 3.6, 3.7, 3.8, 3.9]) == []
    assert run(0.2, [3.9, 3.5, 3.6, 3.5, 3.6, 3.4]) == []


def test_what_is_healthy_stands_beside_the_metrics_that_have_it() -> None:
    assert healthy("eval_loss") == healthy("loss") != healthy("eval_loss_wikipedia")
    words, bound = healthy("data_wait") or ("", None)
    assert words.startswith("below 10%")
    assert bound == ("high", 0.1)
    assert healthy("a metric that nobody knows") is None
