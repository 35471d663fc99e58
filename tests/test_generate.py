"""Talking to a model: what it is asked, what it answers, and what a terminal sees of it."""

from __future__ import annotations

import io
import os
import pty
import shutil
import sys
from pathlib import Path
from subprocess import Popen

import pytest
import torch
from runs import OFFLINE, ROOT, run_script
from transformers import AutoModelForCausalLM, AutoTokenizer

from miniqwen.config.generating import GenerateConfig
from miniqwen.eval.dialogue import Partner, Shown
from miniqwen.generate import converse
from miniqwen.model.tokenization_miniqwen import encode_text, load_tokenizer, save_tokenizer
from miniqwen.questions.templates import Template

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def generate(*words: object) -> tuple[int, str, str]:
    done = run_script("-m", "miniqwen.generate", *words)
    return done.returncode, done.stdout, done.stderr


def expected(folder: Path, prompt: str, tokens: int) -> str:
    """What the stock library writes behind a prompt."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    written = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return str(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.fixture(scope="module")
def asked(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a fine-tuned one: with the prompt that it was trained on."""
    folder = tmp_path_factory.mktemp("asked") / "model"
    shutil.copytree(model, folder)
    Template("Q: {question}\n{choices}\nA:").save(folder)
    return folder


@pytest.fixture(scope="module")
def chatting(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as one with a chat template of its own."""
    folder = tmp_path_factory.mktemp("chatting") / "model"
    shutil.copytree(model, folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = CHAT
    save_tokenizer(tokenizer, folder)
    return folder


def test_a_base_model_goes_on_with_each_prompt_and_says_that_it_is_one(model: Path) -> None:
    status, out, err = generate("--model_path", model, "--max_new_tokens", 9, "stone river ", "the -- heavy")
    assert status == 0, err
    assert "is a base model" in err
    assert err.count("--max_new_tokens reached") == 2
    prompts = ("stone river", "the -- heavy")
    assert out == "\n".join(f"{prompt}{expected(model, prompt, 9)}\n" for prompt in prompts)


def test_sampling_depends_on_the_seed_alone_and_not_on_the_prompts_before(model: Path) -> None:
    def sampled(seed: int, *prompts: str) -> list[str]:
        flags = ("--temperature", 1.5, "--top_p", 0.9, "--seed", seed, "--max_new_tokens", 8)
        status, out, err = generate("--model_path", model, *flags, *prompts)
        assert status == 0, err
        return out.split("\n\n")

    both = sampled(1, "stone", "river")
    assert sampled(1, "river")[0] == both[1]
    assert sampled(2, "river")[0] != both[1]


def test_a_fine_tuned_model_is_asked_by_its_own_template(asked: Path) -> None:
    status, out, err = generate("--model_path", asked, "--max_new_tokens", 6, "Which <|endoftext|> word?")
    assert status == 0, err
    assert "fine-tuned on questions" in err
    partner = Partner(GenerateConfig(model_path=str(asked), max_new_tokens=6))
    ids = partner.prompt([{"role": "user", "content": " Which <|endoftext|> word? "}])
    tokenizer = load_tokenizer(asked)
    assert ids == encode_text(tokenizer, "Q: Which <|endoftext|> word?\nA:")
    assert tokenizer.eos_token_id not in ids, "what looks like a control token in a question is text"
    told = io.StringIO()
    written, _ = partner.write([{"role": "user", "content": "Which <|endoftext|> word?"}], told)
    assert out == f"> Which <|endoftext|> word?\n{told.getvalue()}"
    assert told.getvalue().strip() == written


def test_a_chat_is_told_its_earlier_turns_and_forgets_the_first_when_there_is_no_room(
    chatting: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    partner = Partner(GenerateConfig(model_path=str(chatting), max_new_tokens=4))
    seen: list[list[str]] = []
    prompt = partner.prompt
    monkeypatch.setattr(partner, "prompt", lambda turns: (seen.append([t["content"] for t in turns]), prompt(turns))[1])
    monkeypatch.setattr(sys, "stdin", io.StringIO("stone\nriver\n\nlight\n" + "heavy quiet glass " * 32 + "\ntower\n"))
    converse(partner)
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if line.startswith("> ")][:3] == ["> stone", "> river", "> light"]
    second = next(turns for turns in seen if turns[-1] == "river")
    assert (second[0], len(second)) == ("stone", 3)
    assert all(turns == ["light"] for turns in seen if turns[-1] == "light"), "an empty line begins another talk"
    assert "the first turn is forgotten" in err
    assert seen[-1][-1] == "tower"


def test_a_line_that_is_too_long_is_told_and_the_dialogue_goes_on(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("heavy salt " * 200 + "\nstone\n"))
    converse(Partner(GenerateConfig(model_path=str(model), max_new_tokens=4)))
    out, err = capsys.readouterr()
    assert "the model has 128 positions in all" in err
    assert out.splitlines()[-1].startswith("stone")
    assert generate("--model_path", model, "heavy salt " * 200)[0] == 2


def test_what_a_model_writes_cannot_command_a_terminal(model: Path) -> None:
    tokenizer, out = load_tokenizer(model), io.StringIO()
    shown = Shown(tokenizer, out, begun=True)
    shown.put(torch.tensor([[1]]))  # the prompt
    for token in encode_text(tokenizer, " red\x1b[2J\x9b1m\tglass\n"):
        shown.put(torch.tensor([token]))
    shown.end()
    assert out.getvalue() == " red\\x1b[2J\\x9b1m\tglass\n\n"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--top_p", "0.5"], "--top_p is for sampling"),
        (["--seed", "3"], "--seed is for sampling"),
        (["--temperature", "-1"], "must not be negative"),
        (["--temperature", "1", "--top_p", "0"], "above 0 and at most 1"),
        (["--max_new_tokens", "0"], "must be at least 1"),
        (["--temprature", "1"], "did you mean --temperature"),
    ],
)
def test_flags_that_change_nothing_or_make_no_sense_are_refused(model: Path, flags: list[str], told: str) -> None:
    status, out, err = generate("--model_path", model, *flags, "stone")
    assert (status, out) == (2, "")
    assert told in err


def test_a_dialogue_on_a_terminal_ends_with_control_d(asked: Path) -> None:
    terminal, inside = pty.openpty()
    words = [sys.executable, "-m", "miniqwen.generate", "--model_path", str(asked), "--max_new_tokens", "3"]
    with Popen(
        words, cwd=ROOT, env=os.environ | OFFLINE | {"TERM": "dumb"}, stdin=inside, stdout=inside, stderr=inside
    ) as run:
        os.close(inside)
        screen, seen = b"", 0
        for expected_mark, typed in ((b"> ", b"stone\n"), (b"reached)", b""), (b"> ", b"\x04")):
            while (found := screen.find(expected_mark, seen)) < 0:  # two marks may come in one piece
                screen += os.read(terminal, 1000)
            seen = found + len(expected_mark)
            os.write(terminal, typed)
        assert run.wait(timeout=60) == 0
    os.close(terminal)
    assert b"Ctrl-D ends" in screen
    assert b"Traceback" not in screen
