"""Flags, YAML and templates that nobody meant: a clear error or what they say, never a traceback.

pytest -m hostile tests/hostile/test_words.py       # hypothesis; what it finds is kept in .hypothesis and tried first
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from miniqwen.config.creating import CreateConfig
from miniqwen.config.evaluating import EvalConfig
from miniqwen.config.flags import Flags, dump, parse
from miniqwen.config.preparing import PrepareConfig
from miniqwen.config.training import TrainConfig
from miniqwen.errors import UserError
from miniqwen.questions.rows import Question
from miniqwen.questions.templates import Template, template_flags

pytestmark = pytest.mark.hostile
KINDS: list[type[Flags]] = [TrainConfig, EvalConfig, PrepareConfig, CreateConfig]
often = settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

ODD = st.sampled_from(
    "0 -1 1 2 0.5 1e4 1e400 nan inf -0 007 0x10 1_000 ² ٤ true True no None null ~ ~/x ~nobody/x / . .. - -- --- = , "
    ",, a,b a=1 a=0.5,b=0.5 a=1,a=2 =1 a= both wikipedia sciq nobody/nothing http://x file:///etc/passwd ../../x steps "
    "epoch auto {question} {choices} {question.__class__} {{ }} { %s %(x)s $HOME `id` ;".split()
) | st.just("") | st.text(max_size=12)  # fmt: skip


def names(kind: type[Flags]) -> list[str]:
    fields = [f for f in dataclasses.fields(kind) if f.init]
    return [name for f in fields for name in (f.name, *f.metadata["aliases"])]


@st.composite
def commands(drawn: st.DrawFn) -> tuple[type[Flags], list[str]]:
    kind = drawn(st.sampled_from(KINDS))
    known = st.sampled_from([f"--{name}" for name in names(kind)])
    flag = (
        known | known.map(lambda name: name.replace("_", "-")) | st.just("--config") | ODD.map(lambda odd: f"--{odd}")
    )
    with_value = st.tuples(flag, ODD).map(lambda pair: [f"{pair[0]}={pair[1]}"])
    apart = st.tuples(flag, st.lists(ODD, max_size=3)).map(lambda pair: [pair[0], *pair[1]])
    parts = drawn(st.lists(with_value | apart | ODD.map(lambda odd: [odd]), max_size=8))
    return kind, [word for part in parts for word in part]


def taken(kind: type[Flags], words: list[str]) -> Flags | None:
    """What `words` mean; None for a clear error."""
    checks: list[Any] = [template_flags] if kind in (TrainConfig, EvalConfig) else []
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return parse(kind, words, program="x", description="", checks=checks)
    except UserError as error:
        problems = error.problems
    except SystemExit:  # --help
        return None
    assert problems
    assert all(problem.strip() for problem in problems)
    return None


@often
@given(command=commands())
@example(command=(TrainConfig, ["--mixture", "a=1"]))
def test_a_command_line_is_taken_or_refused_in_words(
    command: tuple[type[Flags], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kind, words = command
    taken(kind, words)
    assert list(tmp_path.iterdir()) == []


@st.composite
def needed(drawn: st.DrawFn) -> tuple[type[Flags], dict[str, Any]]:
    """Flags of a command that is right, but for a few."""
    kind = drawn(st.sampled_from(KINDS))
    base: dict[str, Any] = {
        TrainConfig: {"model_path": "m", "dataset_name": "both", "output_dir": "o", "max_steps": 3},
        EvalConfig: {"model_path": "m", "dataset_name": "sciq"},
        PrepareConfig: {"dataset_name": "sciq"}, CreateConfig: {"output_dir": "o"},
    }[kind]  # fmt: skip
    scalar = st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | ODD
    value = st.recursive(
        scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalar, inner, max_size=3), max_leaves=6
    )
    more = drawn(st.dictionaries(st.sampled_from(names(kind)) | ODD, value, max_size=3))
    return kind, {**base, **more}


@often
@given(asked=needed())
def test_a_file_is_taken_or_refused_in_words_and_what_was_taken_is_read_back(
    asked: tuple[type[Flags], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir(exist_ok=True)
    (tmp_path / "m/config.json").write_text('{"model_type": "qwen3", "max_position_embeddings": 1024}')
    kind, values = asked
    try:
        text = yaml.safe_dump(values, allow_unicode=True)
    except yaml.YAMLError:
        return
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8", errors="replace")
    config = taken(kind, ["--config", "c.yaml"])
    if config is None:
        return
    (tmp_path / "again.yaml").write_text(dump(config, {"a": 1}), encoding="utf-8")
    assert taken(kind, ["--config", "again.yaml"]) == config


@often
@given(data=st.binary(max_size=60) | st.text(alphabet="a:- {}[]&*!%|>'\"\n\t#?,=", max_size=40).map(str.encode))
@example(data=b"&a [*a]")
@example(data=b"a: &a {b: *a}")
@example(data=b"!!python/object/apply:os.system ['touch x']")
@example(data=b"[" * 5000)
@example(data=b"? [a]\n: 1")
@example(data=b"output_dir: 2026-01-01T00:00:00+99:99")
def test_any_bytes_are_a_file_of_flags_or_refused_in_words(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_bytes(data)
    taken(TrainConfig, ["--config", "c.yaml"])
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


texts = (
    st.text(max_size=20)
    | ODD
    | st.sampled_from(["{{x}}", "{% raw %}", "{{ self }}", "</s>", "a\nb", "\\n", "\\", '"', "'"])
)
pieces = st.lists(st.sampled_from(["{question}", "{choices}", "{support}", "\n", " "]) | texts, max_size=6)


@often
@given(prompt=pieces.map("".join), choices=pieces.map("".join), asked=texts, answer=texts, kept=texts)
def test_a_template_is_refused_or_puts_texts_in_as_they_are(
    prompt: str, choices: str, asked: str, answer: str, kept: str, tmp_path: Path
) -> None:
    question = Question("1", asked, (answer, kept), 0, answer, kept)
    try:
        template = Template(prompt, choices.replace("{question}", "{text}").replace("{support}", "{label}"))
    except UserError:
        return
    rendered = template.render(question)
    assert asked.strip() in rendered
    for brace in "{}":
        plain = prompt.replace("{question}", "").replace("{choices}", "").replace("{support}", "")
        if brace not in plain + template.choices + answer + kept:
            assert rendered.count(brace) == prompt.count("{question}") * asked.strip().count(brace)
    template.save(tmp_path)
    assert Template.load(tmp_path) == template


@often
@given(prompt=pieces.map("".join), asked=texts, answer=texts)
def test_the_chat_template_asks_what_the_template_asks(prompt: str, asked: str, answer: str) -> None:
    try:
        template = Template(prompt)
    except UserError:
        return
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    (rendered,), _ = render_jinja_template([messages], chat_template=template.chat_template(), eos_token="<end>")
    alone = Question("1", asked, (), None, None)
    if asked.strip():
        assert rendered == template.render(alone) + template.completion(answer) + "<end>", json.dumps([prompt, asked])
