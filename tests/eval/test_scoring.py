"""Scores against one choice at a time through the model's full logits."""

from __future__ import annotations

import copy
import dataclasses
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from runs import ROOT
from transformers import PreTrainedTokenizerBase

from miniqwen.errors import UserError
from miniqwen.eval import scoring
from miniqwen.eval.scoring import is_truncated, score_rounds
from miniqwen.model.modeling_miniqwen import MiniQwenConfig, MiniQwenForCausalLM
from miniqwen.model.tokenization_miniqwen import encode_text, train_tokenizer
from miniqwen.questions.protocols import Request, encode_prompt, template_prompt
from miniqwen.questions.rows import Question
from miniqwen.questions.templates import Template

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


def requests_of(tokenizer: PreTrainedTokenizerBase, template: Template, questions: Sequence[Question]) -> list[Request]:
    return [encode_prompt(tokenizer, template_prompt(question, template)) for question in questions]


def score(model: torch.nn.Module, requests: Sequence[Request], batch_size: int, **how: Any) -> list[tuple[float, ...]]:
    found: dict[int, tuple[float, ...]] = {}
    for part in score_rounds(model, requests, batch_size, "cpu", **how):
        found |= part
    return [found[index] for index in range(len(requests))]


def flat(scores: Sequence[Sequence[float]]) -> list[float]:
    return [value for one in scores for value in one]


@pytest.fixture(scope="module")
def requests(tokenizer: PreTrainedTokenizerBase, questions: list[Question]) -> list[Request]:
    return requests_of(tokenizer, Template(), questions)


@pytest.fixture(scope="module")
def expected(model: MiniQwenForCausalLM, tokenizer: PreTrainedTokenizerBase, questions: list[Question]) -> list[float]:
    return [value for question in questions for value in one_by_one(model, tokenizer, Template(), question)]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_scores_equal_the_one_by_one_reference_whatever_the_batch_size(
    model: MiniQwenForCausalLM, requests: list[Request], expected: list[float], batch_size: int
) -> None:
    scores = score(model, requests, batch_size)
    assert [len(own) for own in scores] == [len(request.choices) for request in requests]
    assert flat(scores) == pytest.approx(expected, abs=1e-5)
    assert len({len(choice) for request in requests for choice in request.choices}) > 2, "one- and many-token choices"
    assert len(set(flat(scores))) == len(flat(scores)), "a model that tells nothing apart would pass vacuously"


def test_a_batch_of_few_tokens_scores_as_one_of_many(
    model: MiniQwenForCausalLM, requests: list[Request], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "MOST_TOKENS", 50)
    seen: list[int] = []
    watched = Watched(model, lambda ids: seen.append(ids.numel()))
    assert flat(score(watched, requests, 100)) == pytest.approx(expected, abs=1e-5)
    longest = max(len(request.prompt) + sum(map(len, request.choices)) for request in requests)
    assert max(seen) < max(50, longest) + 1
    assert len(seen) > 1


def test_the_order_of_questions_and_choices_changes_no_score(
    model: MiniQwenForCausalLM, tokenizer: PreTrainedTokenizerBase, questions: list[Question]
) -> None:
    template = Template("{question}\nAnswer:")  # shows no choices, so their order cannot matter
    forward = score(model, requests_of(tokenizer, template, questions), 4)
    turned = [dataclasses.replace(question, choices=question.choices[::-1]) for question in questions[::-1]]
    backward = score(model, requests_of(tokenizer, template, turned), 4)
    assert flat(backward)[::-1] == pytest.approx(flat(forward), abs=1e-5)


def test_noise_in_one_choice_changes_no_other_choice_and_no_other_question(
    model: MiniQwenForCausalLM, requests: list[Request]
) -> None:
    noisy = dataclasses.replace(requests[0], choices=(*requests[0].choices[:-1], (5, 6, 7, 8, 9)))
    before, after = score(model, requests[:3], 3), score(model, [noisy, *requests[1:3]], 3)
    assert after[0][-1] != before[0][-1]
    assert after[0][:-1] == pytest.approx(before[0][:-1], abs=1e-5)
    assert flat(after[1:]) == pytest.approx(flat(before[1:]), abs=1e-5)


def test_equal_choices_score_the_same_to_the_last_bit(model: MiniQwenForCausalLM, requests: list[Request]) -> None:
    twice = dataclasses.replace(requests[0], choices=(*requests[0].choices, *requests[0].choices))
    (scores,) = score(model, [twice], 1)
    half = len(scores) // 2
    assert scores[:half] == scores[half:]
    assert scores[:half] == pytest.approx(score(model, requests[:1], 1)[0], abs=1e-5)


def test_ranks_share_out_all_questions_once_and_score_the_same(
    model: MiniQwenForCausalLM, requests: list[Request]
) -> None:
    rounds = {rank: list(score_rounds(model, requests, 2, "cpu", rank=rank, world_size=3)) for rank in range(3)}
    assert len({len(parts) for parts in rounds.values()}) == 1, "sharded models need every rank equally often"
    shares = [{index: one for part in parts for index, one in part.items()} for parts in rounds.values()]
    assert sum(map(len, shares)) == len(requests)
    together = {index: one for share in shares for index, one in share.items()}
    assert [together[index] for index in range(len(requests))] == score(model, requests, 2)
    assert all(shares)


def test_what_is_done_is_not_scored_again_and_the_rest_stays_the_same_to_the_last_bit(
    model: MiniQwenForCausalLM, requests: list[Request]
) -> None:
    whole = dict(enumerate(score(model, requests, 3)))
    parts = list(score_rounds(model, requests, 3, "cpu"))
    done = frozenset(index for part in parts[:2] for index in part)
    rest = {index: one for part in score_rounds(model, requests, 3, "cpu", done=done) for index, one in part.items()}
    assert rest == {index: whole[index] for index in whole if index not in done}


class Watched(torch.nn.Module):
    """The model, with a look at each row of tokens before it is run."""

    def __init__(self, model: torch.nn.Module, look: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.model, self.look, self.config = model, look, model.config
        self.train(model.training)

    def forward(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        self.look(input_ids)
        return self.model(input_ids=input_ids, **inputs)


def test_a_batch_that_does_not_fit_into_memory_is_halved_and_scores_the_same(
    model: MiniQwenForCausalLM, requests: list[Request], expected: list[float]
) -> None:
    longest = max(len(request.prompt) + sum(map(len, request.choices)) for request in requests)

    def run_out(ids: torch.Tensor) -> None:
        if ids.numel() > longest:
            torch.empty(2**62, dtype=torch.uint8)  # the allocator's own error

    told: list[int] = []
    scores = score(Watched(model, run_out), requests, 8, halve=told.append)
    assert flat(scores) == pytest.approx(expected, abs=1e-5)
    assert told[0] == 4
    assert told == sorted(told, reverse=True)
    with pytest.raises(RuntimeError, match="allocate"):
        score(Watched(model, run_out), requests, 8)


def test_one_question_that_does_not_fit_into_memory_is_named(
    model: MiniQwenForCausalLM, requests: list[Request]
) -> None:
    def run_out(ids: torch.Tensor) -> None:
        torch.empty(2**62, dtype=torch.uint8)

    with pytest.raises(UserError, match="alone needs more memory"):
        score(Watched(model, run_out), requests, 4, halve=lambda size: None)


def test_a_prompt_beyond_the_positions_loses_its_beginning_as_each_choice_needs(
    model: MiniQwenForCausalLM, tokenizer: PreTrainedTokenizerBase, questions: list[Question]
) -> None:
    long = dataclasses.replace(questions[0], support="the moon " * 200, choices=("x", "north east wind", "iron"))
    requests = requests_of(tokenizer, Template(), [questions[1], long])
    assert len({len(choice) for choice in requests[1].choices}) > 1, "choices of one length would share their cut"
    assert [is_truncated(request, POSITIONS) for request in requests] == [False, True]
    scores = score(model, requests, 2)
    assert list(scores[1]) == pytest.approx(one_by_one(model, tokenizer, Template(), long), abs=1e-5)


def test_a_choice_longer_than_the_model_is_an_error_naming_the_question(
    model: MiniQwenForCausalLM, tokenizer: PreTrainedTokenizerBase, questions: list[Question]
) -> None:
    endless = dataclasses.replace(questions[0], choices=("x", "the moon " * 200))
    with pytest.raises(UserError, match=r"question 0: choice 1 has \d+ tokens, the model positions for 96"):
        score(model, requests_of(tokenizer, Template(), [endless]), 2)


def test_the_models_mode_comes_back_and_dropout_is_off_meanwhile(
    model: MiniQwenForCausalLM, requests: list[Request]
) -> None:
    expected = score(model, requests[:2], 2)
    assert not model.training
    model.train()
    try:
        assert score(model, requests[:2], 2) == expected
        assert model.training
    finally:
        model.eval()


def test_bfloat16_autocast_is_near_the_full_precision(model: MiniQwenForCausalLM, requests: list[Request]) -> None:
    exact = flat(score(model, requests, 8))
    with torch.autocast("cpu", torch.bfloat16):
        rough = flat(score(model, requests, 8))
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.02, abs=0.3)


def test_scores_that_are_not_numbers_are_an_error(model: MiniQwenForCausalLM, requests: list[Request]) -> None:
    broken = MiniQwenForCausalLM(model.config)
    torch.nn.init.constant_(broken.model.norm.weight, float("nan"))
    with pytest.raises(UserError, match="question 0: the model gives nan"):
        score(broken, requests[:1], 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_scores_as_the_cpu_does(
    model: MiniQwenForCausalLM, requests: list[Request], expected: list[float]
) -> None:
    on_gpu = copy.deepcopy(model).cuda()
    found = {i: one for part in score_rounds(on_gpu, requests, 4, "cuda") for i, one in part.items()}
    assert flat([found[i] for i in range(len(requests))]) == pytest.approx(expected, abs=1e-3)


def test_memory_that_really_runs_out_halves_the_batch() -> None:
    """In a process that may have only a little more memory than it has once the model is there."""
    program = """
import re, resource
from pathlib import Path
import torch
from miniqwen.model.modeling_miniqwen import MiniQwenConfig, new_model
from miniqwen.questions.protocols import Request
from miniqwen.eval.scoring import score_rounds

torch.set_num_threads(1)
shape = dict(vocab_size=512, hidden_size=256, intermediate_size=1024, num_hidden_layers=1, num_attention_heads=4,
             num_key_value_heads=2, head_dim=64, max_position_embeddings=4096)
model = new_model(MiniQwenConfig(**shape), 0).eval()
requests = [Request(str(i), tuple(range(i, i + 500)) * 3, ((1, 2), (3,)), (1, 1), (1, 1)) for i in range(8)]

def score(size, halve=None):
    return {i: one for part in score_rounds(model, requests, size, "cpu", halve=halve) for i, one in part.items()}

expected = score(1)
used = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 60 * 2**20, used + 60 * 2**20))
sizes = []
found = score(8, sizes.append)
assert sizes and sizes[0] == 4, sizes
assert max(abs(a - b) for i in expected for a, b in zip(expected[i], found[i])) < 1e-5
print("halved to", sizes[-1])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "halved to" in done.stdout
