"""report.html: a page of every run, kept by the loop; its values are the metrics', and nothing from data runs in it.

What a browser makes of it is tested in headless Chromium, and skipped where there is none.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import TINY, command, lines, run_script, running, state, wait_until

from miniqwen.files import write_json
from miniqwen.training.curves import Curves
from miniqwen.training.history import final_history, read_lines
from miniqwen.training.record import Record, result
from miniqwen.training.report import LARGEST, PAGE, Report, page, safe_json

# npm's uplot 1.6.32: dist/uPlot.iife.min.js, dist/uPlot.min.css and LICENSE
UPLOT = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uPlot.LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
EVIL = (
    "<script>window.ran = 1</script>", "</script><img src=x onerror='window.ran = 2'>", "<!--<script>",
    "{{ 7 * 7 }} {% raw %}", "\u2028\"'`&lt;",
)  # fmt: skip
EVALUATES = "--eval_strategy steps --eval_steps 2 --save_steps 4".split()


def data_of(text: str) -> dict[str, Any]:
    """What the page's script gets."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return dict(json.loads(found))


def train(model: Path, output: Path, *flags: object) -> str:
    done = run_script("train_loop.py", "--model_path", model, "--output_dir", output, *flags)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def pretrained(model: Path, mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two lives."""
    output = tmp_path_factory.mktemp("report") / "pretrained"
    flags = ("--data_root", mirror, *TINY, *EVALUATES)
    train(model, output, *flags, "--max_steps", 6)
    train(model, output, *flags, "--max_steps", 8, "--learning_rate", "1e-3", "--resume_from_checkpoint", "auto")
    return output


@pytest.fixture(scope="module")
def evil(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data, prompts, names and folder are full of markup, and an evaluation of it."""
    folder = tmp_path_factory.mktemp("evil")
    texts = [f"{EVIL[n % len(EVIL)]} number {n}" for n in range(24)]
    rows = [
        {
            "id": f"{n}{EVIL[0]}",
            "ask": text,
            "a": f"{EVIL[1]} a",
            "b": f"{EVIL[2]} b",
            "c": f"c{EVIL[3]}",
            "right": n % 3,
        }
        for n, text in enumerate(texts)
    ]
    data = folder / "<b>quiz<!--.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = folder / "<img src=x onerror=window.ran=3>"
    columns = "--question_column ask --choices_column a,b,c --answer_column right --id_column id".split()
    flags = (
        "--max_steps 4 --max_seq_length 128 --per_device_train_batch_size 4 --logging_steps 1 --report_to none".split()
    )
    prompts = ("--sample_prompts", *EVIL, "--run_name", EVIL[1], "--prompt_template", "{question}")
    train(model, output, "--dataset_name", data, *columns, *flags, *EVALUATES, *prompts)
    done = run_script(
        "eval_loop.py", "--model_path", output, "--dataset_name", data, *columns, "--split", "train",
        "--output_dir", folder / "evaluation",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def compared(pretrained: Path, evil: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of three runs."""
    folder = tmp_path_factory.mktemp("compared")
    other = folder / "other"
    shutil.copytree(pretrained, other)
    flags = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump({**flags, "learning_rate": 0.5}))
    done = run_script("-m", "miniqwen.report", pretrained, other, evil, "--output", folder / "page.html")
    assert done.returncode == 0, done.stderr
    return folder / "page.html"


def test_the_values_in_the_page_are_those_of_the_metrics(pretrained: Path) -> None:
    found = data_of((pretrained / "report.html").read_text())
    lives = yaml.safe_load((pretrained / "config.yaml").read_text())["recorded"]["lives"]
    history = final_history(read_lines(pretrained / "metrics.jsonl"), lives)
    assert len(history) == 8 + 4
    drawn = {series["name"]: series for chart in found["charts"] for series in chart["series"]}
    assert {"loss", "eval_loss", "eval_loss_wikipedia", "learning_rate", "tokens_per_second", "tokens_arxiv"} <= set(
        drawn
    )
    for name, series in drawn.items():
        told = [(line["step"], line[name]) for line in history if name in line]
        assert list(zip(series["steps"], series["values"], strict=True)) == told
    assert found["runs"][0]["lives"] == [0, 6]
    best = min((line["eval_loss"], line["step"]) for line in history if "eval_loss" in line)
    marks = [mark for mark in found["charts"][0]["marks"] if mark.get("best")]
    assert [(mark["value"], mark["step"]) for mark in marks] == [best]
    assert sum("written at evaluations" in sample["from"] for sample in found["samples"]) == 4 * 4


def test_the_page_says_in_words_how_the_run_ended_what_changed_and_how_to_make_it_again(pretrained: Path) -> None:
    text = (pretrained / "report.html").read_text()
    assert len(text.encode()) < LARGEST
    assert '<dd class="status-finished">finished</dd>' in text
    assert "<code>learning_rate</code>: 0.01 → 0.001" in text
    assert re.search(r"git checkout [0-9a-f]{40}\n", text)
    assert "--resume_from_checkpoint</span> auto" in text
    assert "torch 2." in text
    assert "http:" not in re.sub(r"http://www\.w3\.org/2000/svg", "", text.replace("http-equiv", ""))


def test_nothing_from_data_is_markup(evil: Path) -> None:
    text = (evil / "report.html").read_text()
    for bad in EVIL[:3]:
        assert bad not in text.replace(safe_json(bad), "")
    assert "<img src=x" not in text
    assert text.count("<script") == text.count("</script>") == 3
    prompts = {sample["prompt"] for sample in data_of(text)["samples"] if "prompt" in sample}
    assert prompts == {bad.strip() for bad in EVIL}, "which are no templates either"


def test_results_of_an_evaluation_come_into_the_page_of_their_run(evil: Path, pretrained: Path) -> None:
    before = data_of((evil / "report.html").read_text())
    assert not any("question" in sample for sample in before["samples"])
    done = run_script("-m", "miniqwen.report", evil)
    assert done.returncode == 0, done.stderr
    text = (evil / "report.html").read_text()
    (file,) = (evil.parent / "evaluation").glob("*.json")
    found = json.loads(file.read_text())
    shown = [sample for sample in data_of(text)["samples"] if "question" in sample]
    assert [sample["id"] for sample in shown] == [sample["id"] for sample in found["samples"]]
    assert f"<strong>{found['accuracy']:.1%}</strong>" in text
    assert "Calibration" in text
    assert "Position bias" in text
    assert Record.read(pretrained).evaluations() == [], "they are of another model"


def test_three_runs_stand_side_by_side_and_what_differs_comes_first(compared: Path) -> None:
    text = compared.read_text()
    found = data_of(text)
    names = [run["name"] for run in found["runs"]]
    assert names[:2] == ["pretrained", "other"]
    (loss, *_) = found["charts"]
    assert {(series["run"], series["name"]) for series in loss["series"]} == {
        (run, name) for run in range(3) for name in ("loss", "eval_loss")
    }
    differs = re.findall(r'<th scope="row"><code>(\w+)</code></th><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>', text)
    assert ("learning_rate", "0.001", "0.5", "5e-05") in differs
    assert len(differs) > 5
    assert all(len(set(values)) > 1 for _, *values in differs)
    assert len(text.encode()) <= LARGEST


def test_the_page_of_a_run_that_was_killed_has_what_it_had_told(model: Path, mirror: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    flags = (
        "--model_path",
        model,
        "--data_root",
        mirror,
        "--output_dir",
        output,
        *TINY,
        *EVALUATES,
        "--max_steps",
        10**6,
    )

    def evaluated() -> bool:
        file = output / "report.html"
        return file.exists() and '"name":"eval_loss"' in file.read_text()

    with running(command(*flags), tmp_path / "log") as process:
        wait_until(evaluated, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = data_of((output / "report.html").read_text())
    told = {line["step"]: line["eval_loss"] for line in lines(output) if "eval_loss" in line}
    (series,) = [series for series in found["charts"][0]["series"] if series["name"] == "eval_loss"]
    assert series["values"] == [told[step] for step in series["steps"]] != []
    assert state(output)["status"] == "running"


def test_a_page_that_cannot_be_written_is_told_once_and_ends_nothing(
    model: Path, mirror: Path, pretrained: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(pretrained, output)
    (output / "report.html").unlink()
    (output / "report.html").mkdir()
    more = ("--max_steps", 12, "--resume_from_checkpoint", "auto")
    said = train(model, output, "--data_root", mirror, *TINY, *EVALUATES, *more)
    assert said.count("report.html cannot be written, the run goes on without it") == 1
    assert state(output)["status"] == "finished"


def test_a_page_takes_a_small_share_of_a_run_s_time(pretrained: Path, tmp_path: Path) -> None:
    shutil.copytree(pretrained, tmp_path / "run")
    report = Report(tmp_path / "run", {}, {})
    file = tmp_path / "run" / "report.html"
    began = time.monotonic()
    report.rewrite()
    took = time.monotonic() - began
    file.unlink()
    report.rewrite()
    assert not file.exists(), f"the last one took {took:.2f} s, so that it is too early for another"
    report.rewrite(last=True)
    assert file.exists()


def test_lines_are_read_once_and_an_added_one_is_seen(pretrained: Path, tmp_path: Path) -> None:
    shutil.copytree(pretrained, tmp_path / "run")
    record = Record.read(tmp_path / "run")
    before = record.lines
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": 1.25}\n{"step": 10, "lo')
    record.refresh()
    assert (record.lines, record.curves.named["loss"].last) == (before + 1, (9, 1.25))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('ss": 1.5}\n')
    record.refresh()
    assert (record.lines, record.curves.named["loss"].last) == (before + 2, (10, 1.5))


def test_what_is_too_much_for_a_page_is_thinned(pretrained: Path) -> None:
    record = Record.read(pretrained)
    record.curves = Curves()
    for step in range(1, 3000):
        record.curves.add({"step": step, **{f"gauge_{n}": (step * n) ** 0.5 for n in range(60)}})
    record.written = {step: [{"prompt": "x" * 3000, "completion": "y" * 3000}] * 10 for step in range(40)}
    text = page([record] * 3)
    assert LARGEST / 4 < len(text.encode()) <= LARGEST
    (series, *_) = data_of(text)["charts"][-1]["series"]
    assert (series["steps"][0], series["steps"][-1]) == (1, 2999)


def test_what_is_no_run_and_no_result_is_refused_and_so_is_a_file_that_is_no_page(
    pretrained: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    mine = tmp_path / "mine.html"
    mine.write_text("<p>my own</p>")
    done = run_script("-m", "miniqwen.report", tmp_path / "empty", tmp_path / "none", pretrained, "--output", mine)
    assert done.returncode == 2
    assert f"{tmp_path / 'empty'}: neither a run (no config.yaml) nor results of eval_loop.py are there" in done.stderr
    assert f"{tmp_path / 'none'}: no such file or folder" in done.stderr
    assert f"--output {mine}: is there, and no page of this command" in done.stderr
    assert mine.read_text() == "<p>my own</p>"
    assert run_script("-m", "miniqwen.report").returncode == 2


def test_a_file_that_only_looks_like_results_is_none(tmp_path: Path) -> None:
    whole = {"dataset": "sciq", "num_examples": 1, "model_path": "M", "accuracy": 0.5, "samples": []}
    write_json(tmp_path / "a.json", whole)
    assert (result(tmp_path / "a.json") or {})["accuracy"] == 0.5
    for change in (
        {"accuracy": "high"},
        {"samples": ["text"]},
        {"calibration": {"bins": []}},
        {"by_position": {"A": {}}},
    ):
        write_json(tmp_path / "a.json", {**whole, **change})
        assert result(tmp_path / "a.json") is None, change


def test_the_chart_library_is_the_one_that_was_taken_from_its_package() -> None:
    assert {name: hashlib.sha256((PAGE / name).read_bytes()).hexdigest() for name in UPLOT} == UPLOT
    assert "(v1.6.32)" in (PAGE / "uPlot.iife.min.js").read_text()[:100]


# ---- In a browser

TEXTS = """
const pen = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true}), known = new Map();
const rgb = (text) => {
  if (!known.has(text)) { pen.clearRect(0, 0, 1, 1); pen.fillStyle = text; pen.fillRect(0, 0, 1, 1);
    known.set(text, [...pen.getImageData(0, 0, 1, 1).data]); }
  return known.get(text); };
const light = (c) => c.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, n) => sum + v * [.2126, .7152, .0722][n], 0);
const ratio = (a, b) => { const [x, y] = [light(rgb(a)), light(rgb(b))].sort((p, q) => q - p);
  return (x + .05) / (y + .05); };
const ground = (e) => { for (; e; e = e.parentElement) { const b = getComputedStyle(e).backgroundColor;
  if (rgb(b)[3] === 255) return b; } return 'white'; };
const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const found = {texts: 0, bad: [], lines: []};
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const e = walk.currentNode.parentElement, style = getComputedStyle(e);
  if (!walk.currentNode.data.trim() || !e.checkVisibility() || e.closest('script, noscript')) continue;
  found.texts++;
  const size = parseFloat(style.fontSize), big = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  const shown = ratio(e.closest('svg') ? style.fill : style.color, ground(e));
  if (shown < (big ? 3 : 4.5)) found.bad.push(`${walk.currentNode.data.trim().slice(0, 40)}: ${shown.toFixed(2)}`);
}
for (let n = 0; n < 8; n++) found.lines.push(ratio(variable(`--c${n}`), variable('--panel')));
for (const name of ['--good', '--warn', '--bad']) found.lines.push(ratio(variable(name), variable('--panel')));
found.lines.push(ratio(variable('--control'), variable('--bg')));
found.ground = rgb(getComputedStyle(document.body).backgroundColor).slice(0, 3);
return found;
"""
PIXELS = """
return [...document.querySelectorAll('.plot canvas')].map(c => {
  const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
  let drawn = 0; for (let i = 3; i < d.length; i += 4) drawn += d[i] > 0; return drawn; });
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium, which keeps what its console says and what it asks the network for."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install -e '.[dev]'")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("needs Chromium and its driver: apt-get install -y chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        f"--disable-component-update --disable-sync --user-data-dir={tmp_path_factory.mktemp('chromium')}"
    ).split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


def opened(browser: Any, file: Path, theme: str = "light", width: int = 1280) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    # and no smooth scrolling, which a click would have to wait for
    features = {"prefers-color-scheme": theme, "prefers-reduced-motion": "reduce"}
    wanted = [{"name": name, "value": value} for name, value in features.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})
    browser.get(file.as_uri())
    browser.execute_script("localStorage.clear()")  # which theme was chosen is remembered
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(file.as_uri())


def test_charts_are_drawn_without_an_error_or_the_network(browser: Any, compared: Path) -> None:
    opened(browser, compared)
    pixels = browser.execute_script(PIXELS)
    assert len(pixels) == len(data_of(compared.read_text())["charts"]) > 10
    assert min(pixels) > 500
    said = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in said if one["method"] == "Network.requestWillBeSent"]
    assert asked == [compared.as_uri()]
    assert browser.get_log("browser") == []


def test_nothing_from_data_runs(browser: Any, compared: Path, evil: Path) -> None:
    for file in (compared, evil / "report.html"):
        opened(browser, file)
        asked = "return [typeof window.ran, document.images.length, document.scripts.length]"
        assert browser.execute_script(asked) == ["undefined", 0, 3]
        assert EVIL[0] in browser.find_element("id", "cards").text
        assert browser.get_log("browser") == []
        # and would not run either if it were markup: the policy stands
        browser.execute_script(
            "const s = document.createElement('script'); s.text = 'ran = 4'; document.body.append(s)"
        )
        browser.execute_script(
            "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 5\">')"
        )
        assert browser.execute_script("return typeof window.ran") == "undefined"
        assert "Content Security Policy" in str(browser.get_log("browser"))


def test_samples_are_filtered_by_words_and_by_being_right(browser: Any, evil: Path) -> None:
    assert run_script("-m", "miniqwen.report", evil).returncode == 0
    opened(browser, evil / "report.html")

    def shown() -> list[str]:
        return [card.text for card in browser.find_elements("css selector", ".card")]

    samples = data_of((evil / "report.html").read_text())["samples"]
    browser.find_element("css selector", "#verdict option[value=wrong]").click()
    wrong = sum(sample.get("correct") is False for sample in samples)
    assert 0 < wrong < 24
    assert [text.startswith("wrong") for text in shown()] == [True] * wrong
    browser.find_element("css selector", "#verdict option[value='']").click()
    browser.find_element("id", "words").send_keys("NUMBER 17")
    assert len(shown()) == 1
    assert "number 17" in shown()[0]
    assert browser.find_element("id", "count").text.startswith("1 of 1 shown")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_can_be_read_in_light_and_in_dark_and_the_switch_turns_them(
    browser: Any, compared: Path, theme: str
) -> None:
    opened(browser, compared, theme)
    browser.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true })")
    grounds = []
    for _ in range(2):
        found = browser.execute_script(TEXTS)
        assert found["texts"] > 300
        assert found["bad"] == []
        assert min(found["lines"]) >= 3
        grounds.append(sum(found["ground"]))
        browser.find_element("id", "theme").click()
    assert (grounds[0] > grounds[1]) == (theme == "light")


def test_it_fits_a_phone_and_is_used_by_keys_alone(browser: Any, compared: Path) -> None:
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    opened(browser, compared, width=390)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    levels = browser.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3, h4')].filter(h => h.checkVisibility())"
        ".map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    nameless = browser.execute_script(
        "return [...document.querySelectorAll('button, select, input, summary, [role=img], [role=region]')]"
        ".filter(e => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).length"
    )
    assert nameless == 0
    browser.find_element("tag name", "body").send_keys(keys.TAB)
    assert browser.switch_to.active_element.text == "To the content"
    first = browser.find_element("css selector", ".legend button")
    first.send_keys(keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("aria-pressed") == "false"
    summary = browser.find_element("css selector", ".values summary")
    summary.send_keys(keys.ENTER)
    loss = data_of(compared.read_text())["charts"][0]["series"]
    wait_until(lambda: browser.find_elements("css selector", ".values table tbody tr"), seconds=10)
    cells = {cell.text for cell in browser.find_elements("css selector", ".values table td")}
    assert {str(loss[0]["values"][0]), str(loss[0]["values"][-1])} <= cells


def test_the_axis_can_be_tokens_and_a_chart_logarithmic(browser: Any, compared: Path) -> None:
    opened(browser, compared)
    before = browser.execute_script("return document.querySelector('.plot canvas').toDataURL()")
    browser.find_element("css selector", "#axis option[value=tokens]").click()
    tokens = browser.execute_script("return document.querySelector('.plot canvas').toDataURL()")
    browser.find_element("css selector", ".log").click()
    logarithmic = browser.execute_script("return document.querySelector('.plot canvas').toDataURL()")
    assert len({before, tokens, logarithmic}) == 3
    assert browser.get_log("browser") == []
