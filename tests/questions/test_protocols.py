"""How questions are put: strings and tokens, few-shot examples, letters. The harness itself: test_parity.py."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
from transformers import PreTrainedTokenizerBase

from miniqwen.config.evaluating import EvalConfig
from miniqwen.errors import UserError
from miniqwen.model.tokenization_miniqwen import train_tokenizer
from miniqwen.questions.choices import LABELS
from miniqwen.questions.examples import training_example
from miniqwen.questions.protocols import encode_prompt, leading_tokens, make_prompts, unconditional_request
from miniqwen.questions.rows import Question
from miniqwen.questions.templates import EVALUATION_SEED, Template, shuffle_choices

ASKED = Question("q1", " Which gas?", ("neon", "oxygen", "a slow river"), 1, "oxygen", "  Air has it.")
TRAIN = [Question(f"t{i}", f"What is {i}?", (f"a{i}", f"b{i}"), i % 2, f"{'ab'[i % 2]}{i}") for i in range(9)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["Question: Which gas? A. neon B. oxygen Answer: oxygen"] * 20, 300)


def test_miniqwen_asks_with_the_templates_in_an_order_that_depends_on_the_id_and_keeps_the_files_letters() -> None:
    (prompt,) = make_prompts("sciq", [ASKED], [], Template(), EvalConfig())
    shown = shuffle_choices(ASKED, EVALUATION_SEED)
    assert prompt.question == shown
    assert prompt.text == Template().render(shown)
    assert prompt.answers == shown.choices
    assert [ASKED.choices[LABELS.index(label)] for label in prompt.labels] == list(shown.choices)
    assert prompt.hash == hashlib.sha256(prompt.text.encode()).hexdigest()


def test_miniqwen_scores_the_tokens_that_were_trained_on(tokenizer: PreTrainedTokenizerBase) -> None:
    (prompt,) = make_prompts("sciq", [ASKED], [], Template(), EvalConfig())
    request = encode_prompt(tokenizer, prompt)
    trained = training_example(tokenizer, Template(), prompt.question)
    answer = prompt.question.answer_index
    assert answer is not None
    assert (*request.prompt, *request.choices[answer], tokenizer.eos_token_id) == trained.input_ids
    assert len(request.prompt) == trained.prompt_length
    assert request.characters == tuple(map(len, prompt.answers))


def test_letters_are_scored_where_the_prompt_shows_them() -> None:
    (prompt,) = make_prompts("sciq", [ASKED], [], Template(), EvalConfig(answer_format="letter"))
    assert prompt.answers == ("A", "B", "C")
    for template in (Template("{question}\nAnswer:"), Template(choices="- {text}")):
        with pytest.raises(UserError, match=r"show no \{choices\} with \{label\}"):
            make_prompts("sciq", [ASKED], [], template, EvalConfig(answer_format="letter"))


def test_few_shot_examples_come_answered_before_the_question_and_never_are_the_question() -> None:
    twin = dataclasses.replace(TRAIN[0], id="other")
    config = EvalConfig(num_fewshot=3)
    prompts = make_prompts("sciq", [ASKED, twin], [*TRAIN, ASKED], Template(), config)
    for prompt in prompts:
        *shots, last = prompt.text.split("\n\n")
        assert len(shots) == 3
        assert last == Template().render(prompt.question)
        own = prompt.question.question.strip()
        assert not any(f"Question: {own}\n" in shot for shot in shots)
        for shot in shots:
            source = next((one for one in [*TRAIN, ASKED] if f"Question: {one.question.strip()}\n" in shot), None)
            assert source is not None
            assert shot.endswith(f"Answer: {source.answer}")
    thrice = make_prompts(
        "sciq", [ASKED], [TRAIN[0], ASKED, ASKED, ASKED, TRAIN[1]], Template(), EvalConfig(num_fewshot=2)
    )
    assert thrice[0].text.count("Question:") == 3, "copies of the question are no reason for fewer examples"
    with pytest.raises(UserError, match="only 1 other questions"):
        make_prompts("sciq", [ASKED], [TRAIN[0], ASKED, ASKED], Template(), EvalConfig(num_fewshot=2))
    again = make_prompts("sciq", [twin], [*TRAIN, ASKED], Template(), config)
    assert again[0].text == prompts[1].text, "examples depend on the question, not on where it stands"
    with pytest.raises(UserError, match="--num_fewshot 3: the train split has 2 questions"):
        make_prompts("sciq", [ASKED], TRAIN[:2], Template(), config)


def test_lettered_examples_are_answered_with_their_letter() -> None:
    (prompt,) = make_prompts("sciq", [ASKED], TRAIN, Template(), EvalConfig(num_fewshot=2, answer_format="letter"))
    for shot in prompt.text.split("\n\n")[:2]:
        letter = shot[-1]
        source = next(one for one in TRAIN if one.question in shot)
        assert f"\n{letter}. {source.answer}\n" in shot


def test_the_harness_keeps_white_space_and_an_empty_support_line() -> None:
    config = EvalConfig(protocol="harness")
    bare = dataclasses.replace(ASKED, support="")
    first, second = make_prompts("sciq", [ASKED, bare], [], Template(), config)
    assert first.text == "Air has it.\nQuestion:  Which gas?\nAnswer:"
    assert second.text == "\nQuestion:  Which gas?\nAnswer:"
    assert first.answers == ASKED.choices
    (lettered,) = make_prompts("commonsenseqa", [ASKED], [], Template(), config)
    assert lettered.text == "Question: Which gas?\nA. neon\nB. oxygen\nC. a slow river\nAnswer:"
    assert lettered.answers == ("A", "B", "C")


def test_choices_without_their_question_stand_behind_the_token_that_ends_texts(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    (prompt,) = make_prompts("sciq", [ASKED], [], Template(), EvalConfig())
    request = encode_prompt(tokenizer, prompt)
    alone = unconditional_request(tokenizer, prompt)
    assert alone.prompt == (tokenizer.eos_token_id,)
    assert alone.choices == request.choices
    assert leading_tokens(tokenizer) == ()


def test_an_example_that_is_the_question_in_other_case_or_punctuation_is_never_drawn() -> None:
    train = [Question(f"t{i}", f"Which gas is number {i}?", ("neon", "argon"), 0, "neon") for i in range(3)]
    train += [
        Question(f"c{i}", text, ("neon", "argon"), 0, "neon") for i, text in enumerate(("WHICH GAS", "which  gas?!"))
    ]
    config = EvalConfig(dataset_name="sciq", num_fewshot=3)
    for number in range(20):
        question = Question(f"q{number}", "Which gas?", ("neon", "argon"), 1, "argon")
        (prompt,) = make_prompts("sciq", [question], train, Template(), config)
        assert prompt.text.lower().count("which") == 4
        assert all(f"number {i}?" in prompt.text for i in range(3))
