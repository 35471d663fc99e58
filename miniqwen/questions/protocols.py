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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from miniqwen.config.evaluating import EvalConfig
from miniqwen.errors import UserError
from miniqwen.questions.choices import LABELS
from miniqwen.questions.examples import encode_completions
from miniqwen.questions.rows import Question
from miniqwen.questions.templates import EVALUATION_SEED, Template, choice_order, shuffle_choices
from miniqwen.questions.texts import plain_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HARNESS_SEED = 1234  # of the harness's few-shot examples, unless it is told otherwise
BETWEEN_SHOTS = "\n\n"


@dataclass(frozen=True)
class Prompt:
    """A question as it is put. `question` has its choices in the order of presentation.

    `answers` are the texts that are scored behind `text` and `between`, one a choice; `labels` are the letters that the
    choices have in the data set. `by_place`: of choices with the same text only one counts as right, as in the harness.
    """

    question: Question
    text: str
    answers: tuple[str, ...]
    labels: tuple[str, ...]
    by_place: bool = False
    between: str = " "  # nothing where a chat template opens the answer
    is_chat: bool = False

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


Turns = list[dict[str, str]]  # {"role", "content"}, as chat templates take them


def make_prompts(
    name: str, questions: Sequence[Question], train: Sequence[Question], template: Template, config: EvalConfig,
    chat: Callable[[Turns], str] | None = None,
) -> list[Prompt]:  # fmt: skip
    """The questions of data set `name` as `--protocol` puts them; `train` is needed for few-shot examples only.

    `chat` renders a conversation, in which each few-shot example is a turn of the user's and its answer.

    Raises `UserError` for templates that show no letters when letters are asked for, and for too few examples.
    """
    if len(train) <= config.num_fewshot > 0:
        raise UserError(
            f"--num_fewshot {config.num_fewshot}: the {config.train_split} split has {len(train)} questions"
        )
    if config.protocol == "harness":
        return _harness_prompts(name, questions, train, config.num_fewshot, chat)
    if config.answer_format == "letter" and not template.shows_letters:
        raise UserError("--answer_format letter: the templates show no {choices} with {label}")
    return _miniqwen_prompts(questions, train, template, config, chat)


def chat_of(tokenizer: PreTrainedTokenizerBase, folder: str) -> Callable[[Turns], str]:
    """What renders a conversation by a tokenizer's chat template, up to where the answer begins; as in the harness."""
    if not tokenizer.chat_template:
        raise UserError(f"--apply_chat_template: the tokenizer in {folder} has no chat template")

    def rendered(turns: Turns) -> str:
        try:
            return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template is a program of its author's, and may raise anything
            raise UserError(f"--apply_chat_template: the chat template in {folder} fails ({error})") from None

    return rendered


def _put(prompt: Prompt, shots: Sequence[tuple[str, str]], chat: Callable[[Turns], str] | None) -> Prompt:
    """`prompt` behind its few-shot examples (question, answer): as one text, or as a conversation."""
    if chat is None:
        before = "".join(f"{asked} {answer}{BETWEEN_SHOTS}" for asked, answer in shots)
        return dataclasses.replace(prompt, text=before + prompt.text)
    said = [text for shot in shots for text in shot] + [prompt.text]
    turns = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(said)]
    return dataclasses.replace(prompt, text=chat(turns), between="", is_chat=True)


def template_prompt(question: Question, template: Template, letters: bool = False) -> Prompt:
    """A question whose choices stand in the order of presentation, as the templates put it."""
    labels = tuple(LABELS[: len(question.choices)])
    answers = labels if letters else tuple(choice.strip() for choice in question.choices)
    return Prompt(question, template.render(question), answers, labels)


def _miniqwen_prompts(
    questions: Sequence[Question], train: Sequence[Question], template: Template, config: EvalConfig,
    chat: Callable[[Turns], str] | None,
) -> list[Prompt]:  # fmt: skip
    letters = config.answer_format == "letter"
    asked = [plain_text(shot.question) for shot in train] if config.num_fewshot else []
    copies = Counter(asked)

    def shown(question: Question) -> Question:
        return shuffle_choices(question, EVALUATION_SEED) if config.shuffle_choices else question

    def answered(shot: Question) -> tuple[str, str]:
        right = LABELS[shot.answer_index] if letters and shot.answer_index is not None else str(shot.answer)
        return template.render(shot), right.strip()

    prompts = []
    for question in questions:
        shots = [answered(shown(train[index])) for index in _draw(asked, copies, question, config.num_fewshot)]
        prompt = template_prompt(shown(question), template, letters)
        if config.shuffle_choices:
            labels = tuple(LABELS[number] for number in choice_order(question, EVALUATION_SEED))
            prompt = dataclasses.replace(prompt, labels=labels)
        prompts.append(_put(prompt, shots, chat))
    return prompts


def _draw(asked: Sequence[str], copies: Counter[str], question: Question, count: int) -> list[int]:
    """The numbers of `count` examples for a question that depend on its id alone.

    None is the question itself, however it is spelled: `asked` are plain texts.
    """
    if not count:
        return []
    own = plain_text(question.question)
    wanted = min(len(asked), count + copies[own])  # as many more as may be the question itself
    drawn = random.Random(f"{EVALUATION_SEED}:{question.id}").sample(range(len(asked)), wanted)
    shots = [index for index in drawn if asked[index] != own][:count]
    if len(shots) < count:
        raise UserError(
            f"question {question.id}: there are only {len(shots)} other questions for --num_fewshot {count}"
        )
    return shots


def _harness_prompts(
    name: str, questions: Sequence[Question], train: Sequence[Question], count: int,
    chat: Callable[[Turns], str] | None,
) -> list[Prompt]:  # fmt: skip
    """Examples are drawn by one generator, question after question, so they depend on where a question stands."""
    put, lettered = (_sciq, False) if name == "sciq" else (_commonsenseqa, True)
    generator = random.Random(HARNESS_SEED)
    prompts = []
    for question in questions:
        # CommonsenseQA's task has no test split, and the harness then draws one more, to leave the question itself out
        drawn = generator.sample(range(len(train)), count + lettered) if count else []
        shots = [
            (put(shot), LABELS[shot.answer_index or 0] if lettered else str(shot.answer))
            for shot in (train[index] for index in drawn[:count])
        ]
        labels = tuple(LABELS[: len(question.choices)])
        prompt = Prompt(question, put(question), labels if lettered else question.choices, labels, by_place=True)
        prompts.append(_put(prompt, shots, chat))
    return prompts


def _sciq(question: Question) -> str:
    return f"{question.support.lstrip()}\nQuestion: {question.question}\nAnswer:"


def _commonsenseqa(question: Question) -> str:
    lines = [f"{label}. {text}" for label, text in zip(LABELS, question.choices, strict=False)]
    return "\n".join([f"Question: {question.question.strip()}", *lines, "Answer:"])


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, protocol: str = "miniqwen", writes: bool = False
) -> Request:
    """The tokens of a prompt and its answers, which are encoded together.

    `miniqwen`: as in training, behind what the tokenizer puts before every text. `harness`, and chats, whose marks are
    single tokens: the tokenizer's own way, and what the whole text has beyond the number of the prompt's own tokens
    belongs to the answer, even where the tokenizer joins both. `writes`: the model goes on with all of a chat, also
    with the white space at its end. Raises `UserError` where an answer is left without tokens, and as
    `encode_completions` does.
    """
    where = f"question {prompt.question.id}"
    if prompt.is_chat and writes:
        (own,) = _encoded_by_itself(tokenizer, [prompt.text])
        return Request(prompt.question.id, own, (), (), ())
    if protocol == "harness" or prompt.is_chat:
        kept = prompt.text.rstrip()
        behind = prompt.text[len(kept) :] + prompt.between
        own, *wholes = _encoded_by_itself(tokenizer, [kept, *(f"{kept}{behind}{text}" for text in prompt.answers)])
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
    return _request(prompt, (first,), [tuple(encode_text(tokenizer, prompt.between + text)) for text in prompt.answers])


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
