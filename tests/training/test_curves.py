"""Curves stay small and keep what stands out; every metric has its place in a chart."""

from __future__ import annotations

import math

import numpy as np

from miniqwen.training.curves import KEPT, REST, Curve, charts

METRICS = (
    "learning_rate loss grad_norm eval_seconds tokens eval_loss tokens_wikipedia passes_wikipedia eval_loss_wikipedia "
    "eval_loss_arxiv tokens_per_second tokens_per_second_per_device data_wait time_data mfu goodput max_memory_rss_gib "
    "documents null_documents my_new_gauge elapsed bits_per_byte eval_bits_per_byte_arxiv eval_accuracy"
).split()


def test_a_thinned_curve_is_made_of_its_points_and_keeps_the_first_the_last_and_the_extremes() -> None:
    curve = Curve()
    values = [math.sin(n / 50) + (9 if n == 1234 else -9 if n == 2345 else 0) for n in range(5000)]
    for n, value in enumerate(values):
        curve.add(10 * n, value)
    steps, kept = curve.thinned(100)
    assert 50 < len(steps) <= 100
    assert all(values[step // 10] == value for step, value in zip(steps, kept, strict=True))
    assert {0, 12340, 23450, 49990} <= set(steps.tolist())
    assert sorted(steps.tolist()) == steps.tolist()
    assert curve.best(larger=True) == (12340, values[1234])


def test_a_long_run_takes_no_more_memory_and_keeps_its_extremes() -> None:
    curve = Curve()
    for n in range(3 * KEPT):
        curve.add(n, -5.0 if n == 777 else float(n % 7))
    steps, _ = curve.thinned(10**9)
    assert len(steps) <= KEPT
    assert curve.best(larger=False) == (777, -5.0)
    assert (steps[0], steps[-1]) == (0, 3 * KEPT - 1)
    assert np.all(np.diff(steps) > 0)


def test_what_is_not_finite_is_a_gap_and_never_the_best() -> None:
    curve = Curve()
    for n in range(10):
        curve.add(n, None if n % 2 else float(n))
    _, values = curve.thinned(100)
    assert [math.isnan(value) for value in values] == [False, True] * 5
    assert curve.best(larger=True) == (8, 8.0)
    never = Curve()
    never.add(1, None)
    assert never.best(larger=True) is None


def test_every_metric_has_one_chart_and_the_loss_comes_first() -> None:
    found = charts(METRICS)
    assert sorted(name for chart in found for name in chart.names) == sorted(set(METRICS) - {"elapsed"})
    assert found[0].names == ("loss", "eval_loss")
    assert list(dict.fromkeys(chart.group for chart in found)) == [
        "Loss and evaluation", "By source", "Learning rate and gradients", "Throughput and waits", "Memory", "Data",
        REST,
    ]  # fmt: skip
    groups = {name: chart.group for chart in found for name in chart.names}
    assert groups["eval_loss_arxiv"] == "By source"
    assert groups["time_data"] == groups["mfu"] == groups["tokens_per_second_per_device"] == "Throughput and waits"
    assert groups["tokens_wikipedia"] == "Data"
    assert groups["my_new_gauge"] == REST
