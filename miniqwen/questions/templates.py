"""How a question is put: templates for its prompt and choices, and the order in which choices are shown.

Promises: choices in an order that depends on (seed, id) alone; templates can name their fields and nothing else (they
are never given to `str.format`) and are saved beside the model, so that evaluation asks in the words of training.
Costs: nothing heavy is imported: flags are checked early.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from miniqwen.config.data import QA_DATASETS
from miniqwen.config.evaluating import EvalConfig
from miniqwen.config.training import TrainConfig
from miniqwen.errors import UserError
from miniqwen.files import read_json, write_json
from miniqwen.questions.choices import LABELS
from miniqwen.questions.rows import Question

TEMPLATE_FILE = "prompt_templates.json"
PROMPT_FIELDS = ("question", "choices", "support")
CHOICE_FIELDS = ("label", "text")
BLANK = "\0"  # stands for a question that is not known yet
EVALUATION_SEED = 0  # of the order in which evaluation presents choices, so that every evaluation asks the same


def choice_order(question: Question, seed: int) -> list[int]:
    """The numbers of the choices in an order that depends on (seed, id) alone."""
    order = list(range(len(question.choices)))
    random.Random(f"{seed}:{question.id}").shuffle(order)
    return order


def shuffle_choices(question: Question, seed: int) -> Question:
    """The same question with its choices in `choice_order`."""
    order = choice_order(question, seed)
    answer_index = None if question.answer_index is None else order.index(question.answer_index)
    return dataclasses.replace(question, choices=tuple(question.choices[i] for i in order), answer_index=answer_index)


def _fields(template: str) -> list[str]:
    """Names in braces, and stray braces as they are; `{{` and `}}` stand for braces."""
    return [found for found in re.findall(r"\{\{|\}\}|\{[^{}]*\}|[{}]", template) if found not in ("{{", "}}")]


def _substitute(template: str, values: Mapping[str, str]) -> str:
    """Fill in fields in one pass, so that braces inside a value stay text; no attribute can be reached."""

    def value(match: re.Match[str]) -> str:
        return match[0][0] if match[0] in ("{{", "}}") else values[match[0][1:-1]]

    return re.sub(r"\{\{|\}\}|\{[^{}]*\}", value, template)


def plain_chat_template() -> str:
    """As `Template.chat_template`, for questions and answers that were trained on as lines of plain text."""
    return _chat_template(["", "\n"], before_answer="")


def _chat_template(around_question: Sequence[str], before_answer: str) -> str:
    """Jinja as `apply_chat_template` takes it, with marks around what a model is trained to write.

    In one line, as what stands between blocks would be text in some engines. Every text in it is a quoted string.
    """
    question = " + message['content'] | trim + ".join(json.dumps(text, ensure_ascii=False) for text in around_question)
    answer = f"{json.dumps(before_answer)} + message['content'] | trim + eos_token"
    return (
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ " + question + " }}"
        "{% elif message['role'] == 'assistant' %}{% generation %}{{ " + answer + " }}{% endgeneration %}"
        "{% else %}{{ raise_exception('this model was trained on questions and answers: it takes the roles user and "
        "assistant, not ' + message['role']) }}{% endif %}{% endfor %}"
    )


def template_problems(prompt: str | None, choices: str | None) -> list[str]:
    """What is wrong with `--prompt_template` and `--choices_template` (None: not given); empty when they are fine."""
    found = []
    for name, template, known, needed in (
        ("prompt_template", prompt, PROMPT_FIELDS, "question"),
        ("choices_template", choices, CHOICE_FIELDS, "text"),
    ):
        if template is None:
            continue
        fields = _fields(template)
        if BLANK in template:
            found.append(f"--{name} {template!r}: has a NUL character")
        allowed = ", ".join(f"{{{field}}}" for field in known)
        if f"{{{needed}}}" not in fields:
            found.append(f"--{name} {template!r}: needs {{{needed}}} (it may contain {allowed})")
        for field in dict.fromkeys(fields):
            if field in ("{", "}"):
                found.append(f"--{name} {template!r}: stray {field!r}; write {field * 2} for a brace")
            elif field[1:-1] not in known:
                found.append(f"--{name} {template!r}: unknown field {field}; choose from {allowed}")
    if choices is not None and prompt is not None and "{choices}" not in _fields(prompt):
        found.append("--choices_template has no use: --prompt_template has no {choices}")
    return found


def template_flags(config: TrainConfig | EvalConfig) -> list[str]:
    """`template_problems` of a command's flags, and of {choices} asked of data without any: a check for `parse`."""
    found = template_problems(config.prompt_template, config.choices_template)
    pairs = not set(config.named.values()) & set(QA_DATASETS) and config.question_column and not config.choices_column
    if pairs and "{choices}" in _fields(config.prompt_template or ""):
        found.append("--prompt_template has {choices}, and the data none: give --choices_column or leave {choices} out")
    return found


@dataclass(frozen=True)
class Template:
    """How a question is put. Completions are " " + the answer's text, so the prompt should not end in a space."""

    prompt: str = "{support}\nQuestion: {question}\n{choices}\nAnswer:"
    choices: str = "{label}. {text}"

    def __post_init__(self) -> None:
        shows_choices = "{choices}" in _fields(self.prompt)
        if problems := template_problems(self.prompt, self.choices if shows_choices else None):
            raise UserError(*problems)

    @property
    def shows_letters(self) -> bool:
        """Whether a prompt names its choices by letters."""
        return "{choices}" in _fields(self.prompt) and "{label}" in _fields(self.choices)

    def with_flags(self, prompt: str | None, choices: str | None) -> Template:
        """These templates unless flags gave others; `\\n` in a flag is a line break, which is hard to type there."""
        given = {name: text.replace("\\n", "\n") for name, text in (("prompt", prompt), ("choices", choices)) if text}
        template = dataclasses.replace(self, **given)
        if problems := template_problems(template.prompt, given.get("choices")):
            raise UserError(*problems)
        return template

    def render(self, question: Question) -> str:
        """The prompt: a line whose fields are all empty (no support, no choices) is left out."""
        named = zip(LABELS, question.choices if "{choices}" in _fields(self.prompt) else (), strict=False)
        lines = [_substitute(self.choices, {"label": label, "text": text.strip()}) for label, text in named]
        values = {
            "question": question.question.strip(),
            "choices": "\n".join(lines),
            "support": question.support.strip(),
        }
        shown = [
            line
            for line in self.prompt.split("\n")
            if not (fields := _fields(line)) or any(values[field[1:-1]] for field in fields)
        ]
        return _substitute("\n".join(shown), values).rstrip(" ")

    def completion(self, text: str) -> str:
        """What should follow the prompt when `text` is the answer."""
        return " " + text.strip()

    def chat_template(self) -> str:
        """Jinja that makes of a chat what was trained on: a user's turn is the {question} of a row without the rest."""
        prompt = self.render(Question("", BLANK, choices=(), answer_index=None, answer=None))
        return _chat_template(prompt.split(BLANK), before_answer=self.completion(""))

    def save(self, folder: str | Path) -> None:
        """Write the templates beside a model, so that evaluation asks as training did."""
        described = {"prompt_template": self.prompt, "choices_template": self.choices}
        write_json(Path(folder, TEMPLATE_FILE), described)

    @classmethod
    def load(cls, folder: str | Path) -> Template:
        """The templates saved beside a model, the built-in ones where there are none; `UserError` for a broken file."""
        file = Path(folder, TEMPLATE_FILE)
        if not file.exists():
            return cls()
        try:
            described = read_json(file)
            prompt, choices = described["prompt_template"], described["choices_template"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: expected prompt_template and choices_template as JSON ({error!r})") from None
        if not (isinstance(prompt, str) and isinstance(choices, str)):
            raise UserError(f"{file}: prompt_template and choices_template must be texts")
        try:
            return cls(prompt, choices)
        except UserError as error:
            raise UserError(*(f"{file}: {problem.removeprefix('--')}" for problem in error.problems)) from None
