"""What a model goes on with at an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from miniqwen.errors import UserError
from miniqwen.model.tokenization_miniqwen import encode_text, load_tokenizer
from miniqwen.training.samples import SAMPLE_TOKENS, SamplePrompt, fitting


def test_a_sample_s_texts_can_be_written_also_where_data_spells_half_a_surrogate_pair(model: Path) -> None:
    broken, tokenizer = json.loads('"stone \\ud800"'), load_tokenizer(model)
    sample = SamplePrompt.of(tokenizer, broken, f"Q: {broken}", False, broken)
    assert (sample.shown, sample.text, sample.answer) == ("stone ?", "Q: stone ?", "stone ?")
    assert sample.input_ids == tuple(encode_text(tokenizer, "Q: stone ?"))
    assert SamplePrompt.of(tokenizer, "", "  ", False).input_ids == (tokenizer.eos_token_id,)


def test_a_prompt_of_the_user_s_that_leaves_no_room_is_refused_and_a_question_left_out(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    short, long = "stone", "stone " * 40
    given, found = (
        [SamplePrompt.of(tokenizer, text, text, is_given) for text in (short, long)] for is_given in (True, False)
    )
    assert [sample.text for sample in fitting(found, SAMPLE_TOKENS + 20)] == [short]
    with pytest.raises(UserError, match="--sample_prompts: 'stone stone"):
        fitting(given, SAMPLE_TOKENS + 20)
