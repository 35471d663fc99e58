"""What a model really writes when it is asked."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from miniqwen.config.evaluating import EvalConfig
from miniqwen.errors import UserError
from miniqwen.eval.generation import Drawn, Noise, generate_rounds
from miniqwen.model.modeling_miniqwen import MiniQwenConfig, MiniQwenForCausalLM
from miniqwen.model.tokenization_miniqwen import train_tokenizer
from miniqwen.questions.protocols import Request


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["red green blue stone river moon"] * 20, 280)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> MiniQwenForCausalLM:
    torch.manual_seed(1)
    config = MiniQwenConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    return MiniQwenForCausalLM(config).eval()


def requests(count: int = 5) -> list[Request]:
    return [Request(str(i), tuple(range(10, 13 + 3 * i)), ((1,),), (1,), (1,)) for i in range(count)]


def config(batch: int = 2, **how: object) -> EvalConfig:
    return EvalConfig(per_device_eval_batch_size=batch, answer_mode="generate", max_new_tokens=6, **how)  # type: ignore[arg-type]


def texts(
    model: MiniQwenForCausalLM, tokenizer: PreTrainedTokenizerBase, how: EvalConfig, rank: int = 0, world_size: int = 1
) -> dict[int, str]:
    rounds = generate_rounds(
        model, tokenizer, requests(), how, "cpu", halve=lambda size: None, rank=rank, world_size=world_size
    )
    return {index: text for part in rounds for index, text in part.items()}


def test_greedy_texts_are_those_of_one_prompt_at_a_time(
    model: MiniQwenForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    found = texts(model, tokenizer, config())
    for index, request in enumerate(requests()):
        ids = list(request.prompt)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert found[index] == tokenizer.decode(ids[len(request.prompt) :], skip_special_tokens=True).strip()
    assert len(set(found.values())) > 1
    assert texts(model, tokenizer, config(5)) == found


def test_a_text_ends_at_the_end_token(tokenizer: PreTrainedTokenizerBase, model: MiniQwenForCausalLM) -> None:
    free = texts(model, tokenizer, config())
    ends = MiniQwenForCausalLM(model.config).eval()
    ends.load_state_dict(model.state_dict())
    first = tokenizer.encode(free[0])[0]
    ends.generation_config.eos_token_id = [first]
    assert texts(ends, tokenizer, config())[0] == ""
    assert free[0] != ""


def test_sampled_texts_depend_on_the_seed_and_not_on_the_number_of_processes_or_the_batch(
    model: MiniQwenForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    one = texts(model, tokenizer, config(do_sample=True, seed=1))
    shares = [texts(model, tokenizer, config(do_sample=True, seed=1), rank=rank, world_size=3) for rank in range(3)]
    assert {index: text for share in shares for index, text in share.items()} == one
    assert texts(model, tokenizer, config(do_sample=True, seed=2)) != one
    for batch in (1, 5):
        assert texts(model, tokenizer, config(batch, do_sample=True, seed=1)) == one
    likely = texts(model, tokenizer, config(do_sample=True, seed=1, top_k=1))
    assert likely == texts(model, tokenizer, config()) == texts(model, tokenizer, config(do_sample=True, top_p=1e-6))


def test_samples_are_as_frequent_as_their_probabilities() -> None:
    scores = torch.tensor([[1.0, 0.0, -1.0, 2.0]])
    counts = torch.zeros(4)
    noise = Noise([Drawn(config(seed=3), 0)])
    for _ in range(4000):
        counts[noise(torch.zeros(1, 1), scores).argmax()] += 1
    assert torch.allclose(counts / 4000, scores.softmax(-1)[0], atol=0.03)


def test_a_text_ends_before_the_first_of_the_stops(
    model: MiniQwenForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    free = texts(model, tokenizer, config())
    longest = max(free.values(), key=len)
    stop = longest[len(longest) // 2 :][:2]
    found = texts(model, tokenizer, config(stop=(stop,)))
    assert all(found[index] == text.partition(stop)[0].strip() for index, text in free.items())
    assert found != free
    assert config(stop=("\\n\\n", "x")).stops == ("\n\n", "x")


def test_more_new_tokens_than_positions_are_refused(
    model: MiniQwenForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    long = EvalConfig(answer_mode="generate", max_new_tokens=64)
    with pytest.raises(UserError, match="--max_new_tokens 64: the model has positions for 64"):
        texts(model, tokenizer, long)
