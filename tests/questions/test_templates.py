"""What a question is to the model: templates, masks, the order of choices, and rows held out."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from miniqwen.config.training import TrainConfig
from miniqwen.errors import UserError
from miniqwen.model.tokenization_miniqwen import encode_text, train_tokenizer
from miniqwen.questions.examples import (
    Example,
    Fitted,
    encode_example,
    fit_examples,
    hold_out,
    plain_example,
    training_example,
)
from miniqwen.questions.rows import Question
from miniqwen.questions.templates import (
    Template,
    plain_chat_template,
    shuffle_choices,
    template_flags,
    template_problems,
)

QUESTION = Question("q1", "Which gas?", ("neon", "oxygen"), 1, "oxygen", "Air has {oxygen}.")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["Question: Which gas? A. neon B. oxygen Answer: oxygen"] * 20, 300)


def numbered(count: int) -> list[Question]:
    return [Question(f"id{i}", f"Question {i}?", ("a", "b", "c", "d"), i % 4, "abcd"[i % 4]) for i in range(count)]


def test_the_built_in_template_shows_support_question_and_lettered_choices() -> None:
    assert Template().render(QUESTION) == "Air has {oxygen}.\nQuestion: Which gas?\nA. neon\nB. oxygen\nAnswer:"
    assert Template().completion(QUESTION.choices[1]) == " oxygen"


def test_an_empty_support_and_missing_choices_leave_no_blank_line() -> None:
    bare = dataclasses.replace(QUESTION, support="", choices=(), answer_index=None)
    assert Template().render(bare) == "Question: Which gas?\nAnswer:"
    assert Template("Context: {support}\n\n{question}\nAnswer:").render(bare) == "\nWhich gas?\nAnswer:"


CHATS = [
    Template(),
    Template("{question}"),
    Template("{support}\n{question} ({choices})\nAnswer: ", "{text}"),
    Template('Q: {{{question}}} "it\'s" {{% x %}} \\n 😀\n\n{question}\n A:'),
    None,
]


@pytest.mark.parametrize("template", CHATS)
@pytest.mark.parametrize("asked", ["Which gas?", '  {{ 7 * 7 }} {% raw %} "o\'clock" \\n é\n#x  '])
def test_a_chat_is_what_was_trained_on_with_the_answer_and_its_end_marked(
    tokenizer: PreTrainedTokenizerBase, template: Template | None, asked: str
) -> None:
    question = Question("q1", asked, (), None, " oxygen ")
    trained = training_example(tokenizer, template, question) if template else plain_example(tokenizer, question)
    jinja = template.chat_template() if template else plain_chat_template()
    asking = [{"role": "user", "content": asked}]
    answered = [*asking, {"role": "assistant", "content": " oxygen "}]
    found = tokenizer.apply_chat_template(
        answered, chat_template=jinja, return_dict=True, return_assistant_tokens_mask=True
    )
    assert found["input_ids"] == list(trained.input_ids)
    prompt = tokenizer.apply_chat_template(asking, chat_template=jinja, add_generation_prompt=True)["input_ids"]
    marked = [0] * len(prompt) + [1] * (len(trained.input_ids) - len(prompt))
    assert found["assistant_masks"] == marked
    if template:
        assert len(prompt) == trained.prompt_length
        assert tokenizer.decode(prompt) == template.render(question)


def test_a_chat_of_several_turns_keeps_them_all_and_other_roles_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    jinja = Template("{question}:").chat_template()
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    text = tokenizer.apply_chat_template(turns, chat_template=jinja, tokenize=False)
    assert text == "a: b<|endoftext|>c:"
    with pytest.raises(Exception, match="roles user and assistant, not system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], chat_template=jinja, tokenize=False)


def test_templates_fill_in_fields_once_and_escapes_become_braces() -> None:
    template = Template("{{{question}}} {support}:")
    tricky = dataclasses.replace(QUESTION, question="{support} {question.__class__}", support="{{x}}")
    assert template.render(tricky) == "{{support} {question.__class__}} {{x}}:"


@pytest.mark.parametrize(
    ("prompt", "choices", "told"),
    [
        ("{choices}\nAnswer:", None, ["--prompt_template", "needs {question}"]),
        ("{question.__class__}", None, ["needs {question}", "unknown field {question.__class__}"]),
        ("{question} {answer}", None, ["unknown field {answer}"]),
        ("{question} {", None, ["stray '{'"]),
        ("{question} }", None, ["stray '}'"]),
        ("{question!r} {question}", None, ["unknown field {question!r}"]),
        (None, "{label}.", ["--choices_template", "needs {text}"]),
        ("{question}", "{text}", ["--choices_template has no use"]),
        ("{text}", "{question}", ["--prompt_template", "--choices_template"]),
    ],
)
def test_each_fault_of_a_template_is_told(prompt: str | None, choices: str | None, told: list[str]) -> None:
    found = "\n".join(template_problems(prompt, choices))
    assert all(part in found for part in told), found


def test_sound_templates_have_no_problems() -> None:
    assert template_problems(None, None) == []
    assert template_problems(Template().prompt, Template().choices) == []
    assert template_problems(None, "({label}) {text}") == []


def test_the_check_of_flags_sees_choices_asked_of_data_without_any() -> None:
    config = TrainConfig(
        dataset_name="own/pairs", question_column="q", answer_column="a", prompt_template="{question}{choices}"
    )
    assert any("--choices_column" in problem for problem in template_flags(config))
    assert template_flags(dataclasses.replace(config, choices_column="c")) == []


def test_saved_templates_come_back_and_a_folder_without_any_has_the_built_in_ones(tmp_path: Path) -> None:
    assert Template.load(tmp_path) == Template()
    template = Template("问题：{question}\n{choices}\n答：", "({label}) {text}")
    template.save(tmp_path)
    assert Template.load(tmp_path) == template


@pytest.mark.parametrize("broken", ["{", "[]", "{}", '{"prompt_template": 1, "choices_template": "{text}"}',
                                    '{"prompt_template": "no field", "choices_template": "{text}"}'])  # fmt: skip
def test_a_broken_template_file_is_named(tmp_path: Path, broken: str) -> None:
    (tmp_path / "prompt_templates.json").write_text(broken)
    with pytest.raises(UserError, match=r"prompt_templates\.json"):
        Template.load(tmp_path)


def test_flags_replace_saved_templates_and_can_hold_line_breaks() -> None:
    saved = Template("{question} {choices}", "{text};")
    assert saved.with_flags(None, None) == saved
    assert saved.with_flags("{question}\\n{choices}", None) == Template("{question}\n{choices}", "{text};")
    with pytest.raises(UserError, match="has no use"):
        Template("{question}").with_flags(None, "{text}")


def test_an_example_is_prompt_completion_and_eos_and_the_prompt_is_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    example = training_example(tokenizer, Template(), QUESTION)
    assert example.input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(example.input_ids[: example.prompt_length]) == Template().render(QUESTION)
    assert tokenizer.decode(example.input_ids[example.prompt_length : -1]) == " oxygen"


def test_spaces_at_the_end_of_a_prompt_belong_to_the_completion(tokenizer: PreTrainedTokenizerBase) -> None:
    spaced = encode_example(tokenizer, "Answer: ", "oxygen", "here")
    assert spaced == encode_example(tokenizer, "Answer:", " oxygen", "here")
    assert Template("{question}\nAnswer:  ").render(QUESTION).endswith("Answer:")


def test_a_prompt_that_runs_into_its_completion_is_an_error_naming_it(tokenizer: PreTrainedTokenizerBase) -> None:
    merged = encode_text(tokenizer, "oxygen")
    assert len(merged) < len(encode_text(tokenizer, "oxy")) + len(encode_text(tokenizer, "gen"))
    with pytest.raises(UserError, match="question 9"):
        encode_example(tokenizer, "oxy", "gen", "question 9")


def test_plain_examples_are_trained_on_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    example = plain_example(tokenizer, QUESTION)
    assert example.prompt_length == 0
    assert tokenizer.decode(example.input_ids[:-1]) == "Air has {oxygen}.\nWhich gas?\noxygen"
    assert example.input_ids[-1] == tokenizer.eos_token_id


def test_special_tokens_in_a_question_stay_text(tokenizer: PreTrainedTokenizerBase) -> None:
    hostile = dataclasses.replace(QUESTION, question="<|endoftext|> is?")
    assert tokenizer.eos_token_id not in training_example(tokenizer, Template(), hostile).input_ids[:-1]


def test_a_long_example_loses_the_beginning_of_its_prompt() -> None:
    example = Example((1, 2, 3, 4, 5), 3)
    assert example.truncated(9) == example
    assert example.truncated(3) == Example((3, 4, 5), 1)
    assert example.truncated(2) == Example((4, 5), 0)
    with pytest.raises(ValueError, match="longer than 1"):
        example.truncated(1)


def test_examples_too_long_are_dropped_cut_on_the_left_or_listed() -> None:
    examples = [Example((1, 2, 3), 1), Example((1, 2, 3, 4, 5), 3), Example((1, 2, 3, 4, 5), 0), Example((6, 7), 1)]
    names = [f"question {number}" for number in range(4)]
    dropped = fit_examples(examples, names, 3, "drop", "quiz")
    assert (dropped.examples, dropped.cut, dropped.left_out) == ([examples[0], examples[3]], 0, 2)
    cut = fit_examples(examples, names, 3, "left", "quiz")
    assert cut.examples == [examples[0], Example((3, 4, 5), 1), examples[3]]
    assert (cut.cut, cut.left_out) == (1, 1)
    with pytest.raises(UserError) as caught:
        fit_examples(examples * 15, names * 15, 3, "error", "quiz, training")
    assert len(caught.value.problems) == 22
    assert caught.value.problems[0].startswith("quiz, training: 30 of 60 examples are longer than --max_seq_length 3")
    assert caught.value.problems[1] == "quiz, training: question 1 has 5 tokens"
    assert caught.value.problems[-1] == "quiz, training: and 10 more"
    assert fit_examples(examples, names, 5, "error", "quiz") == Fitted(examples)


def test_shuffled_choices_keep_the_answer_and_depend_on_seed_and_id_alone() -> None:
    questions = numbered(400)
    shuffled = [shuffle_choices(question, 1) for question in questions]
    assert shuffled == [shuffle_choices(question, 1) for question in questions]
    assert all(q.answer_index is not None and q.choices[q.answer_index] == q.answer for q in shuffled)
    assert [q.choices for q in shuffled] != [shuffle_choices(q, 2).choices for q in questions]
    places = [q.answer_index for q in (shuffle_choices(dataclasses.replace(q, answer_index=3), 1) for q in questions)]
    assert all(70 <= places.count(place) <= 130 for place in range(4)), "the right answer moves to every place"
    literal = shuffle_choices(Question("7", "?", ("a", "b", "c", "d"), 3, "d"), 42)
    assert literal.choices == ("b", "a", "c", "d"), "another order would change every fine-tuning run"


def test_held_out_questions_are_a_seeded_share_and_no_text_stands_on_both_sides() -> None:
    questions = numbered(200)
    questions += [dataclasses.replace(q, id=f"again{q.id}", question=q.question.upper()) for q in questions[:100]]
    train, held = hold_out(questions, seed=3)
    assert len(train) + len(held) == 300
    assert 14 <= len(held) <= 15, "5 % of 300, and a pair may not fit"
    assert not {q.question.lower() for q in train} & {q.question.lower() for q in held}
    assert hold_out(questions, seed=3) == (train, held)
    assert {q.id for q in hold_out(list(reversed(questions)), seed=3)[1]} == {q.id for q in held}
    assert hold_out(questions, seed=4)[1] != held
    assert len(hold_out(questions, 3, maximum=7)[1]) <= 7


def test_one_question_cannot_be_divided() -> None:
    with pytest.raises(UserError, match="too small"):
        hold_out(numbered(1), 0)
    train, held = hold_out(numbered(2), 0)
    assert len(train) == len(held) == 1


def test_the_checks_of_flags_import_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'pyarrow'}"
    code = f"import sys, miniqwen.questions.templates; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_template_of_choices_that_is_not_shown_is_not_filled_in() -> None:
    question = Question("1", "Why?", ("a", "b"), 0, "a")
    assert Template("{question}", "{nothing}").render(question) == "Why?"
    with pytest.raises(UserError, match=r"unknown field \{nothing\}"):
        Template("{question} {choices}", "{text} {nothing}")


def test_a_nul_in_a_template_is_refused() -> None:
    """It stands for the question in the chat template that is made of it."""
    with pytest.raises(UserError, match="has a NUL character"):
        Template("{question}\0")
