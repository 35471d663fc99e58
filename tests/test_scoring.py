"""Scores against one choice at a time through the model's full logits."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from miniqwen.config import UserError
from miniqwen.modeling_miniqwen import MiniQwenConfig, MiniQwenForCausalLM
from miniqwen.qa import Template
from miniqwen.questions import Question
from miniqwen.scoring import ChoiceScores, score_questions, score_share
from miniqwen.tokenization_miniqwen import encode_text, train_tokenizer

WORDS = ("iron", "water", "a slow river", "the moon", "carbon dioxide", "x", "photosynthesis", "north east wind")
POSITIONS = 96


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer([f"Question: which of A. B. C. D. Answer: {word}" for word in WORDS] * 5, 320)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> MiniQwenForCausalLM:
    torch.manual_seed(0)
    config = MiniQwenConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=POSITIONS, initializer_range=0.3,
    )  # fmt: skip
    return MiniQwenForCausalLM(config).eval()


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    """Of unequal length, with two to five choices."""
    drawn = random.Random(0)
    made = []
    for number in range(13):
        choices = tuple(drawn.sample(WORDS, drawn.randint(2, 5)))
        text = " ".join(drawn.choices(WORDS, k=drawn.randint(1, 6)))
        support = " ".join(drawn.choices(WORDS, k=drawn.randint(0, 2)))
        made.append(Question(str(number), text + "?", choices, 0, choices[0], support))
    return made


def one_by_one(
    model: MiniQwenForCausalLM, tokenizer: PreTrainedTokenizerBase, template: Template, question: Question
) -> list[float]:
    """The reference: one sequence, all logits, a sum in Python; the last POSITIONS + 1 tokens of a long one."""
    sums = []
    for choice in question.choices:
        prompt = encode_text(tokenizer, template.render(question))
        whole = encode_text(tokenizer, template.render(question) + " " + choice)
        cut = max(0, len(whole) - POSITIONS - 1)
        with torch.no_grad():
            logits = model(torch.tensor([whole[cut:-1]])).logits[0].double()
        log_probabilities = torch.log_softmax(logits, dim=-1)
        places = range(len(prompt), len(whole))
        sums.append(sum(float(log_probabilities[place - cut - 1, whole[place]]) for place in places))
    return sums


@pytest.fixture(scope="module")
def expected(model: MiniQwenForCausalLM, tokenizer: PreTrainedTokenizerBase, questions: list[Question]) -> list[float]:
    return [value for question in questions for value in one_by_one(model, tokenizer, Template(), question)]


def flat(scores: list[ChoiceScores]) -> list[float]:
    return [value for score in scores for value in score.log_likelihoods]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_scores_equal_the_one_by_one_reference_whatever_the_batch_size(
    model: MiniQwenForCausalLM, tokenizer: PreTrainedTokenizerBase, questions: list[Question], expected: list[float],
    batch_size: int,
) -> None:  # fmt: skip
    scores = score_questions(model, tokenizer, Template(), questions, batch_size, "cpu")
    assert [len(score.log_likelihoods) for score in scores] == [len(question.choices) for question in questions]
    assert flat(scores) == pytest.approx(expected, abs=1e-5)
    assert len(set(flat(scores))) == len(flat(scores)), "a model that tells nothing apart would pass vacuously"
    assert scores[0].characters == tuple(len(choice) for choice in questions[0].choices)
    assert not any(score.truncated for score in scores)


def test_the_order_of_questions_and_choices_changes_no_score(
    model: MiniQwenForCausalLM, tokenizer: PreTrainedTokenizerBase, questions: list[Question]
) -> None:
    template = Template("{question}\nAnswer:")  # shows no choices, so their order cannot matter
    forward = score_questions(model, tokenizer, template, questions, 4, "cpu")
    turned = [dataclasses.replace(question, choices=question.choices[::-1]) for question in questions[::-1]]
    backward = score_questions(model, tokenizer, template, turned, 4, "cpu")
    assert flat(backward)[::-1] == pytest.approx(flat(forward), abs=1e-5)


def test_ranks_share_out_all_questions_once_and_score_the_same(
    model: MiniQwenForCausalLM, tokenizer: PreTrainedTokenizerBase, questions: list[Question]
) -> None:
    whole = score_share(model, tokenizer, Template(), questions, 2, "cpu")
    shares = [
        score_share(model, tokenizer, Template(), questions, 2, "cpu", rank=rank, world_size=3) for rank in range(3)
    ]
    assert sum(len(share) for share in shares) == len(questions)
    assert {index: scores for share in shares for index, scores in share.items()} == whole
    assert all(shares)
    assert score_share(model, tokenizer, Template(), questions, 100, "cpu", rank=1, world_size=2) == {}


def test_a_prompt_beyond_the_positions_loses_its_beginning_and_is_counted(
    model: MiniQwenForCausalLM, tokenizer: PreTrainedTokenizerBase, questions: list[Question]
) -> None:
    long = dataclasses.replace(questions[0], support="the moon " * 200)
    scores = score_questions(model, tokenizer, Template(), [questions[1], long], 2, "cpu")
    assert [score.truncated for score in scores] == [False, True]
    assert list(scores[1].log_likelihoods) == pytest.approx(one_by_one(model, tokenizer, Template(), long), abs=1e-5)


def test_a_choice_longer_than_the_model_is_an_error_naming_the_question(
    model: MiniQwenForCausalLM, tokenizer: PreTrainedTokenizerBase, questions: list[Question]
) -> None:
    endless = dataclasses.replace(questions[0], choices=("x", "the moon " * 200))
    with pytest.raises(UserError, match="question 0: the completion alone is longer"):
        score_questions(model, tokenizer, Template(), [endless], 2, "cpu")


def test_the_models_mode_comes_back_and_dropout_is_off_meanwhile(
    model: MiniQwenForCausalLM, tokenizer: PreTrainedTokenizerBase, questions: list[Question]
) -> None:
    expected = flat(score_questions(model, tokenizer, Template(), questions[:2], 2, "cpu"))
    assert not model.training
    model.train()
    try:
        assert flat(score_questions(model, tokenizer, Template(), questions[:2], 2, "cpu")) == expected
        assert model.training
    finally:
        model.eval()


def test_bfloat16_autocast_is_near_the_full_precision(
    model: MiniQwenForCausalLM, tokenizer: PreTrainedTokenizerBase, questions: list[Question]
) -> None:
    exact = flat(score_questions(model, tokenizer, Template(), questions, 8, "cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        rough = flat(score_questions(model, tokenizer, Template(), questions, 8, "cpu"))
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.02, abs=0.3)


def test_scores_that_are_not_numbers_are_an_error(
    tokenizer: PreTrainedTokenizerBase, model: MiniQwenForCausalLM, questions: list[Question]
) -> None:
    broken = MiniQwenForCausalLM(model.config)
    torch.nn.init.constant_(broken.model.norm.weight, float("nan"))
    with pytest.raises(UserError, match="gives nan"):
        score_questions(broken, tokenizer, Template(), questions[:1], 1, "cpu")
