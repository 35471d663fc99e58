"""Fine-tuning: questions with their answers masked in, a finite number of them.

Promises: what is too long is cut, left out or refused as `--truncation` says, and counted. Costs: all questions of both
splits are tokenised at the start.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from miniqwen.config.data import QA_DATASETS
from miniqwen.config.training import TrainConfig
from miniqwen.data.repositories import Repository
from miniqwen.errors import UserError
from miniqwen.model.tokenization_miniqwen import token_bytes
from miniqwen.questions.examples import (
    Example,
    Fitted,
    fit_examples,
    plain_example,
    training_example,
    training_questions,
)
from miniqwen.questions.protocols import encode_prompt, template_prompt
from miniqwen.questions.rows import Question
from miniqwen.questions.splits import Read
from miniqwen.questions.templates import Template, plain_chat_template, shuffle_choices
from miniqwen.training.batches import (
    MicroBatch,
    Plan,
    block_rows,
    example_batch,
    example_updates,
    packed,
    padding_free,
    single_rows,
    updates_per_epoch,
)
from miniqwen.training.prefetching import prefetched
from miniqwen.training.samples import SHOWN_QUESTIONS, SamplePrompt
from miniqwen.training.task import Task, plain, shared_out


def question_task(
    config: TrainConfig, repositories: Mapping[str, Repository], tokenizer: PreTrainedTokenizerBase, plan: Plan
) -> Task:
    """Fine-tuning on the questions of all `repositories`; raises `UserError` where none is left to train on, or to
    validate on where that is asked for."""
    template = Template().with_flags(config.prompt_template, config.choices_template) if config.do_qa_format else None
    flags = {config.named[name]: config.of_source(name) for name in repositories}
    repositories = {config.named[name]: repository for name, repository in repositories.items()}
    read = {name: _questions(flags[name], name, repository) for name, repository in repositories.items()}
    fits, held = (_fitted(read, split, config, tokenizer, template) for split in ("training", "validation"))
    names = ", ".join(repositories)
    if not fits.examples:
        raise UserError(f"{names}: no training example fits --max_seq_length {config.length}")
    if not held.examples and (config.do_eval or config.eval_strategy != "no"):
        raise UserError(
            f"{names}: there is no example to validate on: none of {held.left_out} fits --max_seq_length "
            f"{config.length}; raise it, choose --truncation left, or --eval_strategy no"
        )
    epoch_rows, batch = _laid_out(fits.examples, config)
    num_rows = len(epoch_rows(0))
    per_epoch = updates_per_epoch(num_rows, plan)
    bytes_of_tokens = token_bytes(tokenizer)
    validation = [question for one in read.values() for question in one.questions[1]]
    asked = validation if config.evaluates else []  # nobody else waits for them to be encoded
    prompts = [template_prompt(question, template) for question in asked if question.choices and template]
    own = [one.reading for name, one in read.items() if name not in QA_DATASETS]
    return Task(
        updates=lambda cursor: prefetched(
            update.with_bytes(bytes_of_tokens) for update in example_updates(epoch_rows, batch, plan, cursor)
        ),
        validation={"": shared_out(held.examples, plan, config.per_device_eval_batch_size, example_batch)},
        identity=plain(
            {
                "sources": {
                    name: repository.source(flags[name].train_split, ()).identity()
                    for name, repository in repositories.items()
                },
                "answers_are": {name: one.reading.kind for name, one in read.items()},
                **_rows_identity(config, fits, held, plan, template),
            }
        ),
        notes=[
            *(repository.note for repository in repositories.values() if repository.note),
            *(note for one in read.values() for note in one.notes),
            *_notes(names, config, fits, held, num_rows, per_epoch),
        ],
        tokenizer=tokenizer,
        updates_per_epoch=per_epoch,
        prompts=prompts,
        requests=[encode_prompt(tokenizer, prompt) for prompt in prompts],
        template=template,
        reading=own[0] if own else None,
        chat_template=template.chat_template() if template else plain_chat_template(),
        rows_are="blocks" if config.packing else "examples",
        samples=_samples(config, validation, tokenizer, template),
        token_bytes=bytes_of_tokens,
    )  # fmt: skip


def _rows_identity(
    config: TrainConfig, fits: Fitted, held: Fitted, plan: Plan, template: Template | None
) -> dict[str, Any]:
    """What rows depend on beside their questions, for a checkpoint to remember."""
    return {
        "examples": len(fits.examples), "examples_cut": fits.cut, "examples_left_out": fits.left_out,
        "truncation": config.truncation, "validation_examples_cut": held.cut,
        "validation_examples_left_out": held.left_out, "packing": config.packing,
        f"{'blocks' if config.packing else 'examples'}_per_update": plan.rows_per_update,
        "max_seq_length": config.length, "seed": config.seed, "template": vars(template) if template else None,
    }  # fmt: skip


def _questions(config: TrainConfig, name: str, repository: Repository) -> Read:
    """Questions to train on and to validate on, their choices in the order in which they are shown."""
    read = training_questions(repository, name, config)
    train, validation = read.questions
    shown = functools.partial(shuffle_choices, seed=config.seed)
    kept = validation[: config.max_eval_samples]
    return dataclasses.replace(read, questions=[list(map(shown, train)), list(map(shown, kept))])


def _fitted(
    read: Mapping[str, Read], split: str, config: TrainConfig, tokenizer: PreTrainedTokenizerBase,
    template: Template | None,
) -> Fitted:  # fmt: skip
    """The questions as examples: by `template`, or as plain text; what is too long as `--truncation` says."""
    found = []
    for name, one in read.items():
        questions = one.questions[split == "validation"]
        examples = [
            training_example(tokenizer, template, question) if template else plain_example(tokenizer, question)
            for question in questions
        ]
        names = [f"question {question.id}" for question in questions]
        found.append(fit_examples(examples, names, config.length, config.truncation, f"{name}, {split}"))
    return Fitted(
        [example for one in found for example in one.examples], sum(one.cut for one in found),
        sum(one.left_out for one in found),
    )  # fmt: skip


def _laid_out(
    examples: Sequence[Example], config: TrainConfig
) -> tuple[Callable[[int], list[list[Example]]], Callable[[Sequence[Sequence[Example]]], MicroBatch]]:
    """(each epoch's rows, what makes a micro-batch of some): blocks with `--packing`, else single examples."""
    if not config.packing:
        return single_rows(examples, config.seed), padding_free
    size = config.per_device_train_batch_size
    return block_rows(examples, config.length, config.seed), functools.partial(packed, length=config.length, size=size)


def _samples(
    config: TrainConfig, validation: Sequence[Question], tokenizer: PreTrainedTokenizerBase, template: Template | None
) -> list[SamplePrompt]:
    """The questions of `--sample_prompts`, or a few to validate on with their answers, put as in training."""
    asked = [Question("", text, (), None, None) for text in config.sample_prompts]
    if not asked:
        asked = list(validation[:SHOWN_QUESTIONS])
    elif config.sample_prompts == ("none",):
        asked = []
    return [
        SamplePrompt.of(
            tokenizer, question.question, template.render(question) if template else f"{question.question.strip()}\n",
            given=bool(config.sample_prompts), answer=question.answer,
        )
        for question in asked
    ]  # fmt: skip


def _notes(names: str, config: TrainConfig, fits: Fitted, held: Fitted, num_rows: int, per_epoch: int) -> list[str]:
    """What the user should know of the examples."""
    notes = [f"{names}: {len(fits.examples)} examples to train on, {len(held.examples)} to validate on"]
    notes += _too_long(names, fits, "training", config) + _too_long(names, held, "validation", config)
    if config.packing:
        full = sum(len(example.input_ids) for example in fits.examples) / num_rows / config.length
        notes.append(
            f"{names}: packed into {num_rows} blocks of {config.length} tokens, {full:.1%} full; the batch counts "
            f"blocks, and an epoch has {per_epoch} updates"
        )
    return notes


def _too_long(names: str, fits: Fitted, split: str, config: TrainConfig) -> list[str]:
    """What became of examples that are too long, for the user."""
    counts = {"lost the beginning of their prompts": fits.cut, "are left out": fits.left_out}
    return [
        f"{names}: {count} {split} examples longer than --max_seq_length {config.length} {what} "
        f"(--truncation {config.truncation})"
        for what, count in counts.items()
        if count
    ]
