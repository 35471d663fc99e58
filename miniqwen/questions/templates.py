"""What a question is to the model: `Question` → prompt, choices and completion → tokens; and which ones it may see.

Promises: choices in an order that depends on (seed, id) alone; templates can name their fields and nothing else (they
are never given to `str.format`) and are saved beside the model, so that evaluation asks in the words of training, which
encodes by the same function; a mask that would fall inside a token is an error. CommonsenseQA's validation split, whose
answers are the only public ones to be measured by, is never used to choose a model.
Costs: two calls of the tokenizer an example. Nothing heavy is imported until text is encoded: flags are checked early.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from miniqwen.config.data import QA_DATASETS
from miniqwen.config.evaluating import EvalConfig
from miniqwen.config.training import TrainConfig
from miniqwen.errors import UserError
from miniqwen.files import write_json
from miniqwen.questions.rows import LABELS, Question, read_questions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from miniqwen.data.repositories import Repository

TEMPLATE_FILE = "prompt_templates.json"
PROMPT_FIELDS = ("question", "choices", "support")
CHOICE_FIELDS = ("label", "text")
EVALUATION_SEED = 0  # of the order in which evaluation presents choices, so that every evaluation asks the same
HELD_OUT_SHARE, HELD_OUT_MAXIMUM = 0.05, 500
LISTED = 20  # examples that a message names one by one


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


def training_questions(repository: Repository, name: str, config: TrainConfig) -> tuple[list[Question], list[Question]]:
    """(questions to train on, questions to choose the best model by).

    The second are `--validation_split`, else the split called validation; where there is none, and for CommonsenseQA,
    whose validation split is what its models are measured by, they are held out of the training split.
    """
    train = read_questions(repository, config.train_split, name, config, need_answers=True)
    split = config.validation_split
    if split is None and name != "commonsenseqa" and "validation" in repository.splits:
        split = "validation"
    if split is None:
        return hold_out(train, config.seed)
    return train, read_questions(repository, split, name, config, need_answers=True)


def hold_out(
    questions: Sequence[Question], seed: int, share: float = HELD_OUT_SHARE, maximum: int = HELD_OUT_MAXIMUM
) -> tuple[list[Question], list[Question]]:
    """(train, validation), in the given order: the choice depends on (seed, ids), not on the order of the rows.

    Questions of the same text stay on the same side. Raises `UserError` if there are fewer than two texts.
    """
    groups: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        groups[" ".join(question.question.lower().split())].append(question)
    if len(groups) < 2:
        raise UserError("the training split is too small to hold validation questions out of it: it has one question")

    def draw(group: str) -> str:
        return hashlib.sha256(f"{seed}:{min(question.id for question in groups[group])}".encode()).hexdigest()

    wanted = max(1, min(maximum, round(share * len(questions))))
    held: set[str] = set()
    count = 0
    for group in sorted(groups, key=draw):
        if count and count + len(groups[group]) > wanted:
            break
        held.add(group)
        count += len(groups[group])
    held_ids = {id(question) for group in held for question in groups[group]}
    train = [question for question in questions if id(question) not in held_ids]
    return train, [question for question in questions if id(question) in held_ids]


def _fields(template: str) -> list[str]:
    """Names in braces, and stray braces as they are; `{{` and `}}` stand for braces."""
    return [found for found in re.findall(r"\{\{|\}\}|\{[^{}]*\}|[{}]", template) if found not in ("{{", "}}")]


def _substitute(template: str, values: Mapping[str, str]) -> str:
    """Fill in fields in one pass, so that braces inside a value stay text; no attribute can be reached."""

    def value(match: re.Match[str]) -> str:
        return match[0][0] if match[0] in ("{{", "}}") else values[match[0][1:-1]]

    return re.sub(r"\{\{|\}\}|\{[^{}]*\}", value, template)


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
    pairs = config.dataset_name not in QA_DATASETS and config.question_column and not config.choices_column
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
        lines = [
            _substitute(self.choices, {"label": label, "text": text.strip()})
            for label, text in zip(LABELS, question.choices, strict=False)
        ]
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
            described = json.loads(file.read_text(encoding="utf-8"))
            prompt, choices = described["prompt_template"], described["choices_template"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: expected prompt_template and choices_template as JSON ({error!r})") from None
        if not (isinstance(prompt, str) and isinstance(choices, str)):
            raise UserError(f"{file}: prompt_template and choices_template must be texts")
        try:
            return cls(prompt, choices)
        except UserError as error:
            raise UserError(*(f"{file}: {problem.removeprefix('--')}" for problem in error.problems)) from None


@dataclass(frozen=True)
class Example:
    """`input_ids` of prompt and completion; the first `prompt_length` of them are not trained on (nor scored)."""

    input_ids: tuple[int, ...]
    prompt_length: int

    def truncated(self, length: int) -> Example:
        """At most `length` tokens: the prompt loses its beginning (the support), the completion nothing."""
        if len(self.input_ids) - self.prompt_length > length:
            raise ValueError(f"the completion alone is longer than {length} tokens")
        cut = max(0, len(self.input_ids) - length)
        return Example(self.input_ids[cut:], self.prompt_length - cut)


@dataclass(frozen=True)
class Fitted:
    """The examples of one split that are used, and how many were longer: cut, or left out."""

    examples: list[Example]
    cut: int = 0
    left_out: int = 0


def fit_examples(examples: Sequence[Example], names: Sequence[str], length: int, truncation: str, where: str) -> Fitted:
    """What `--truncation` makes of examples longer than `length`; `names` are for messages.

    drop: they are left out. left: their prompt loses its beginning; where the completion alone is too long, they are
    left out. error: raises `UserError` that lists them.
    """
    too_long = [number for number, example in enumerate(examples) if len(example.input_ids) > length]
    if truncation == "error" and too_long:
        said = [f"{where}: {names[number]} has {len(examples[number].input_ids)} tokens" for number in too_long]
        more = [f"{where}: and {len(said) - LISTED} more"] if len(said) > LISTED else []
        count = f"{where}: {len(said)} of {len(examples)} examples are longer than --max_seq_length {length}"
        raise UserError(f"{count}: raise it, or choose --truncation drop or left", *said[:LISTED], *more)
    kept: list[Example] = []
    cut = 0
    for example in examples:
        if len(example.input_ids) <= length:
            kept.append(example)
        elif truncation == "left" and len(example.input_ids) - example.prompt_length <= length:
            kept.append(example.truncated(length))
            cut += 1
    return Fitted(kept, cut, len(examples) - len(kept))


def encode_example(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, where: str, *, eos: bool = True
) -> Example:
    """Encode both together, as one text; `eos` ends an example to train on, and is left out in scoring.

    Spaces at the end of the prompt move to the completion, where byte-level BPE wants them. Raises `UserError` naming
    `where` if the prompt's own tokens do not begin the whole's: the mask would fall inside a token.
    """
    prompt_ids, (completion_ids,) = encode_completions(tokenizer, prompt, [completion], where)
    end = (tokenizer.eos_token_id,) if eos else ()
    return Example((*prompt_ids, *completion_ids, *end), len(prompt_ids))


def encode_completions(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completions: Sequence[str], where: str
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """(the prompt's tokens, those of each completion), as `encode_example` encodes them; raises as it does."""
    from miniqwen.model.tokenization_miniqwen import encode_text  # heavy: only when there is text to encode

    kept = prompt.rstrip(" ")
    prompt_ids, found = encode_text(tokenizer, kept), []
    for text in completions:
        completion = prompt[len(kept) :] + text
        whole = encode_text(tokenizer, kept + completion)
        if whole[: len(prompt_ids)] != prompt_ids or len(whole) == len(prompt_ids):
            raise UserError(
                f"{where}: the tokenizer joins the end of the prompt {kept[-20:]!r} with the completion "
                f"{completion[:20]!r}; end --prompt_template in a word or a colon"
            )
        found.append(tuple(whole[len(prompt_ids) :]))
    return tuple(prompt_ids), found


def training_example(tokenizer: PreTrainedTokenizerBase, template: Template, question: Question) -> Example:
    """Prompt, right answer, eos."""
    if question.answer is None:
        raise UserError(f"question {question.id} has no answer to train on")
    return encode_example(
        tokenizer, template.render(question), template.completion(question.answer), f"question {question.id}"
    )


def plain_example(tokenizer: PreTrainedTokenizerBase, question: Question) -> Example:
    """Support, question and answer as lines of plain text, all of it trained on (`--do_qa_format False`)."""
    from miniqwen.model.tokenization_miniqwen import encode_text

    parts = (part.strip() for part in (question.support, question.question, question.answer or ""))
    text = "\n".join(part for part in parts if part)
    return Example((*encode_text(tokenizer, text), tokenizer.eos_token_id), prompt_length=0)
