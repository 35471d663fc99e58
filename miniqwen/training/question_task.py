"""Fine-tuning: questions with their answers masked in, a finite number of them.

Promises: what is too long is cut, left out or refused as `--truncation` says, and counted. Costs: all questions of both
splits are tokenised at the start.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from miniqwen.config.training import TrainConfig
from miniqwen.data.repositories import Repository
from miniqwen.errors import UserError
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
from miniqwen.questions.templates import Template, shuffle_choices
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
from miniqwen.training.task import Task, plain, shared_out


def question_task(config: TrainConfig, repository: Repository, tokenizer: PreTrainedTokenizerBase, plan: Plan) -> Task:
    name = str(config.dataset_name)
    template = Template().with_flags(config.prompt_template, config.choices_template)
    train, validation = training_questions(repository, name, config)
    if config.max_eval_samples:
        validation = validation[: config.max_eval_samples]
    train = [shuffle_choices(question, config.seed) for question in train]
    validation = [shuffle_choices(question, config.seed) for question in validation]

    def encode(questions: Sequence[Question]) -> list[Example]:
        if config.do_qa_format:
            return [training_example(tokenizer, template, question) for question in questions]
        return [plain_example(tokenizer, question) for question in questions]

    def fitted(questions: Sequence[Question], split: str) -> Fitted:
        ids = [f"question {question.id}" for question in questions]
        return fit_examples(encode(questions), ids, config.length, config.truncation, f"{name}, {split}")

    fits, held = fitted(train, "training"), fitted(validation, "validation")
    examples = fits.examples
    if not examples:
        raise UserError(f"{name}: no training example fits --max_seq_length {config.length}")
    notes = [f"{name}: {len(examples)} examples to train on, {len(held.examples)} to validate on"]
    notes += [repository.note] if repository.note else []
    notes += [
        line for split, part in (("training", fits), ("validation", held)) for line in _too_long(part, split, config)
    ]
    batch: Callable[[Sequence[Sequence[Example]]], MicroBatch]
    if config.packing:
        epoch_rows = block_rows(examples, config.length, config.seed)
        batch = functools.partial(packed, length=config.length, size=config.per_device_train_batch_size)
    else:
        epoch_rows, batch = single_rows(examples, config.seed), padding_free
    per_epoch = updates_per_epoch(len(epoch_rows(0)), plan)
    if config.packing:
        blocks, tokens = len(epoch_rows(0)), sum(len(example.input_ids) for example in examples)
        notes.append(
            f"{name}: packed into {blocks} blocks of {config.length} tokens, {tokens / blocks / config.length:.1%} "
            f"full; the batch counts blocks, and an epoch has {per_epoch} updates"
        )
    identity = {
        "source": repository.source(config.train_split, ()).identity(), "examples": len(examples),
        "examples_cut": fits.cut, "examples_left_out": fits.left_out, "truncation": config.truncation,
        "validation_examples_cut": held.cut, "validation_examples_left_out": held.left_out,
        "packing": config.packing, f"{'blocks' if config.packing else 'examples'}_per_update": plan.rows_per_update,
        "max_seq_length": config.length, "seed": config.seed,
        "template": vars(template) if config.do_qa_format else None,
    }  # fmt: skip
    chosen_by = [question for question in validation if question.choices] if config.do_qa_format else []
    prompts = [template_prompt(question, template) for question in chosen_by]
    return Task(
        updates=lambda cursor: prefetched(example_updates(epoch_rows, batch, plan, cursor)),
        validation=shared_out(held.examples, plan, config.per_device_eval_batch_size, example_batch),
        identity=plain(identity),
        notes=notes,
        tokenizer=tokenizer,
        updates_per_epoch=per_epoch,
        prompts=prompts,
        requests=[encode_prompt(tokenizer, prompt) for prompt in prompts],
        template=template if config.do_qa_format else None,
        rows_are="blocks" if config.packing else "examples",
    )


def _too_long(fits: Fitted, split: str, config: TrainConfig) -> list[str]:
    """What became of examples that are too long, for the user."""
    counts = {"lost the beginning of their prompts": fits.cut, "are left out": fits.left_out}
    return [
        f"{config.dataset_name}: {count} {split} examples longer than --max_seq_length {config.length} {what} "
        f"(--truncation {config.truncation})"
        for what, count in counts.items()
        if count
    ]
