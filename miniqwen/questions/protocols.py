"""How a question is asked in evaluation: question → prompt and the answers that are scored behind it → tokens.

Promises: `miniqwen` asks in the words and tokens of training (the templates saved beside the model, choices in an order
that depends on the question's id alone); `harness` makes the very strings, few-shot examples, tokens and truncation of
EleutherAI's lm-evaluation-harness 0.4.13 for SciQ and CommonsenseQA, so that its numbers are those of papers.
Costs: one or two calls of the tokenizer a choice; few-shot examples need the training split in memory.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from miniqwen.config.evaluating import EvalConfig
from miniqwen.errors import UserError
from miniqwen.questions.choices import LABELS
from miniqwen.questions.examples import encode_completions
from miniqwen.questions.rows import Question
from miniqwen.questions.templates import EVALUATION_SEED, Template, choice_order, shuffle_choices

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HARNESS_SEED = 1234  # of the harness's few-shot examples, unless it is told otherwise
BETWEEN_SHOTS = "\n\n"


@dataclass(frozen=True)
class Prompt:
    """A question as it is put. `question` has its choices in the order of presentation.

    `answers` are the texts that are scored behind `text` and a space, one a choice; `labels` are the letters that the
    choices have in the data set. `by_place`: of choices with the same text only one counts as right, as in the harness.
    """

    question: Question
    text: str
    answers: tuple[str, ...]
    labels: tuple[str, ...]
    by_place: bool = False

    def is_right(self, choice: int | None) -> bool:
        """Whether a choice is the right one, or says the same."""
        question = self.question
        if choice is None or self.by_place:
            return choice == question.answer_index
        return question.choices[choice].strip() == str(question.answer).strip()

    @property
    def hash(self) -> str:
        """SHA-256 of the prompt's text, as in the harness's records."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Request:
    """A question to score, as tokens: the prompt and each choice that may follow it.

    `characters` and `bytes` are the lengths of the answers' texts, without the space before them.
    """

    id: str
    prompt: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    characters: tuple[int, ...]
    bytes: tuple[int, ...]


def make_prompts(
    name: str, questions: Sequence[Question], train: Sequence[Question], template: Template, config: EvalConfig
) -> list[Prompt]:
    """The questions of data set `name` as `--protocol` puts them; `train` is needed for few-shot examples only.

    Raises `UserError` for templates that show no letters when letters are asked for, and for too few examples.
    """
    if len(train) <= config.num_fewshot > 0:
        raise UserError(
            f"--num_fewshot {config.num_fewshot}: the {config.train_split} split has {len(train)} questions"
        )
    if config.protocol == "harness":
        return _harness_prompts(name, questions, train, config.num_fewshot)
    if config.answer_format == "letter" and not template.shows_letters:
        raise UserError("--answer_format letter: the templates show no {choices} with {label}")
    return _miniqwen_prompts(questions, train, template, config)


def template_prompt(question: Question, template: Template, letters: bool = False) -> Prompt:
    """A question whose choices stand in the order of presentation, as the templates put it."""
    labels = tuple(LABELS[: len(question.choices)])
    answers = labels if letters else tuple(choice.strip() for choice in question.choices)
    return Prompt(question, template.render(question), answers, labels)


def _miniqwen_prompts(
    questions: Sequence[Question], train: Sequence[Question], template: Template, config: EvalConfig
) -> list[Prompt]:
    letters = config.answer_format == "letter"
    copies = Counter(shot.question for shot in train)

    def answered(shot: Question) -> str:
        shown = shuffle_choices(shot, EVALUATION_SEED)
        answer = LABELS[shown.answer_index] if letters and shown.answer_index is not None else str(shown.answer)
        return template.render(shown) + template.completion(answer) + BETWEEN_SHOTS

    prompts = []
    for question in questions:
        shots = _draw(train, copies, question, config.num_fewshot)
        prompt = template_prompt(shuffle_choices(question, EVALUATION_SEED), template, letters)
        text = "".join(map(answered, shots)) + prompt.text
        labels = tuple(LABELS[number] for number in choice_order(question, EVALUATION_SEED))
        prompts.append(dataclasses.replace(prompt, text=text, labels=labels))
    return prompts


def _draw(train: Sequence[Question], copies: Counter[str], question: Question, count: int) -> list[Question]:
    """`count` examples for a question, other than itself, that depend on its id alone."""
    wanted = min(len(train), count + copies[question.question])  # as many more as may be the question itself
    drawn = random.Random(f"{EVALUATION_SEED}:{question.id}").sample(range(len(train)), wanted) if count else []
    shots = [train[index] for index in drawn if train[index].question != question.question][:count]
    if len(shots) < count:
        raise UserError(
            f"question {question.id}: there are only {len(shots)} other questions for --num_fewshot {count}"
        )
    return shots


def _harness_prompts(name: str, questions: Sequence[Question], train: Sequence[Question], count: int) -> list[Prompt]:
    """Examples are drawn by one generator, question after question, so they depend on where a question stands."""
    put, lettered = (_sciq, False) if name == "sciq" else (_commonsenseqa, True)
    generator = random.Random(HARNESS_SEED)
    prompts = []
    for question in questions:
        # CommonsenseQA's task has no test split, and the harness then draws one more, to leave the question itself out
        drawn = generator.sample(range(len(train)), count + lettered) if count else []
        shots = "".join(
            f"{put(shot)} {LABELS[shot.answer_index or 0] if lettered else shot.answer}{BETWEEN_SHOTS}"
            for shot in (train[index] for index in drawn[:count])
        )
        labels = tuple(LABELS[: len(question.choices)])
        prompts.append(Prompt(question, shots + put(question), labels if lettered else question.choices, labels, True))
    return prompts


def _sciq(question: Question) -> str:
    return f"{question.support.lstrip()}\nQuestion: {question.question}\nAnswer:"


def _commonsenseqa(question: Question) -> str:
    lines = [f"{label}. {text}" for label, text in zip(LABELS, question.choices, strict=False)]
    return "\n".join([f"Question: {question.question.strip()}", *lines, "Answer:"])


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, protocol: str = "miniqwen") -> Request:
    """The tokens of a prompt and its answers, which are encoded together.

    `miniqwen`: as in training, behind what the tokenizer puts before every text. `harness`: the tokenizer's own way,
    and what the whole text has beyond the number of the prompt's own tokens belongs to the answer, even where the
    tokenizer joins both. Raises `UserError` where an answer is left without tokens, and as `encode_completions` does.
    """
    where = f"question {prompt.question.id}"
    if protocol == "harness":
        kept = prompt.text.rstrip()
        behind = prompt.text[len(kept) :]
        own, *wholes = _encoded_by_itself(tokenizer, [kept, *(f"{kept}{behind} {text}" for text in prompt.answers)])
        choices = [whole[len(own) :] for whole in wholes]
    else:
        own, choices = encode_completions(tokenizer, prompt.text, [" " + text for text in prompt.answers], where)
        own = (*leading_tokens(tokenizer), *own)
    for text, choice in zip(prompt.answers, choices, strict=True):
        if not choice:
            raise UserError(f"{where}: the tokenizer leaves no token of its own to the answer {text[:60]!r}")
    return _request(prompt, own, choices)


def unconditional_request(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> Request:
    """The answers behind nothing but the token that begins a text, or ends one where none begins it."""
    from miniqwen.model.tokenization_miniqwen import encode_text

    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return _request(prompt, (first,), [tuple(encode_text(tokenizer, " " + text)) for text in prompt.answers])


def _request(prompt: Prompt, own: tuple[int, ...], choices: Sequence[tuple[int, ...]]) -> Request:
    characters, sizes = (
        tuple(map(len, texts)) for texts in (prompt.answers, [text.encode() for text in prompt.answers])
    )
    return Request(prompt.question.id, own, tuple(choices), characters, sizes)


@functools.lru_cache(maxsize=4)  # asked for each question
def leading_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What a tokenizer puts before every text: Llama's begins with <s>, Qwen's with nothing."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    marked = tokenizer("a")["input_ids"]
    return tuple(marked[: marked.index(plain[0])]) if plain[0] in marked else ()


def _encoded_by_itself(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """As the harness encodes a text: with the tokenizer's own first token, unless the text spells it already."""
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    spelt = texts[0].startswith(tokenizer.decode(first))
    encoded = tokenizer(list(texts), **({"add_special_tokens": False} if spelt else {}))
    return [tuple(ids) for ids in encoded["input_ids"]]
