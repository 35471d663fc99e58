"""What a question is to train on: prompt and completion as tokens; and which questions a model is chosen by.

Promises: evaluation, which encodes by the same function, asks in the words of training; a mask that would fall inside a
token is an error. CommonsenseQA's validation split, whose answers are the only public ones to be measured by, is never
used to choose a model. Costs: a prompt is encoded once, whatever follows it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from miniqwen.config.training import TrainConfig
from miniqwen.data.repositories import Repository
from miniqwen.errors import UserError
from miniqwen.model.tokenization_miniqwen import encode_endings, encode_text
from miniqwen.questions.rows import Question
from miniqwen.questions.splits import Read, Wanted, read_splits
from miniqwen.questions.templates import Template
from miniqwen.questions.texts import plain_text

HELD_OUT_SHARE, HELD_OUT_MAXIMUM = 0.05, 500
LISTED = 20  # examples that a message names one by one


def training_questions(repository: Repository, name: str, config: TrainConfig) -> Read:
    """Two lists: the questions to train on, and those to choose the best model by.

    The second are `--validation_split`, else the split called validation; where there is none, and for CommonsenseQA,
    whose validation split is what its models are measured by, they are held out of the training split.
    """
    split = config.validation_split
    if split is None and name != "commonsenseqa" and "validation" in repository.splits:
        split = "validation"
    wanted = [Wanted(one) for one in (config.train_split, split) if one]
    read = read_splits(repository, name, config, wanted, skip_bad=config.on_bad_data == "skip")
    return read if split else replace(read, questions=list(hold_out(read.questions[0], config.seed)))


def hold_out(
    questions: Sequence[Question], seed: int, share: float = HELD_OUT_SHARE, maximum: int = HELD_OUT_MAXIMUM
) -> tuple[list[Question], list[Question]]:
    """(train, validation), in the given order: the choice depends on (seed, ids), not on the order of the rows.

    Questions of the same text stay on the same side. Raises `UserError` if there are fewer than two texts.
    """
    groups: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        groups[plain_text(question.question)].append(question)
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
    kept = prompt.rstrip(" ")
    spaced = [prompt[len(kept) :] + text for text in completions]
    prompt_ids, *wholes = encode_endings(tokenizer, kept, ["", *spaced])
    found = []
    for completion, whole in zip(spaced, wholes, strict=True):
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
    parts = (part.strip() for part in (question.support, question.question, question.answer or ""))
    text = "\n".join(part for part in parts if part)
    return Example((*encode_text(tokenizer, text), tokenizer.eos_token_id), prompt_length=0)
