"""Talking to a model: what it is given for a text or question of the user's, and its answer, written as it comes.

Promises: a model that was fine-tuned here is asked by the very prompt it was trained on, one question at a time; a
model with a chat template of its own is given the whole conversation; every other one is a base model, which goes on
with the text, and says that it is one. Without a temperature always the most likely token, else by a seed, the same for
each prompt. Nothing that the model writes can command a terminal. Costs: a cache of keys and values; a forward pass a
token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer

from miniqwen.config.generating import GenerateConfig
from miniqwen.errors import UserError, printable
from miniqwen.eval.causal_models import check_vocabulary, computing_in, end_tokens, load_causal_model
from miniqwen.eval.scoring import model_positions
from miniqwen.model.tokenization_miniqwen import encode_beginning, encode_text, load_tokenizer
from miniqwen.questions.rows import Question
from miniqwen.questions.templates import TEMPLATE_FILE, Template

Turn = Mapping[str, str]  # {"role", "content"}, as chat templates take it


class Partner:
    """A model to talk to. `kind` is base, questions (fine-tuned here) or chat; `described` says it in words."""

    def __init__(self, config: GenerateConfig) -> None:
        """Load the model; raises `UserError` for a folder without one, or with another one's tokenizer."""
        folder = str(config.model_path)
        self._config = config
        self._tokenizer = load_tokenizer(folder)
        self._template = Template.load(folder) if Path(folder, TEMPLATE_FILE).exists() else None
        self.device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        self._model = load_causal_model(folder).to(self.device).eval()
        check_vocabulary(self._model, self._tokenizer, folder)
        self._positions = model_positions(self._model.config)
        self.kind = "questions" if self._template else "chat" if self._tokenizer.chat_template else "base"
        self.described = f"{folder} " + {
            "base": "is a base model: it goes on with your text, and does not answer",
            "questions": "was fine-tuned on questions: it is asked as in training, each question by itself",
            "chat": "is asked with its own chat template, and told the conversation so far",
        }[self.kind]  # fmt: skip

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """The tokens behind which the model writes its answer to the last of `turns`."""
        asked = turns[-1]["content"]
        if self._template:
            return encode_text(self._tokenizer, self._template.render(Question("", asked, (), None, None)))
        if self.kind == "chat":
            try:
                found = self._tokenizer.apply_chat_template(list(turns), add_generation_prompt=True, return_dict=True)
            except Exception as error:  # a template is a program of its author's, and may raise anything
                raise UserError(f"{self._config.model_path}: its chat template fails ({error})") from None
            return list(found["input_ids"])
        return encode_beginning(self._tokenizer, asked)

    def fitting(self, turns: Sequence[Turn]) -> list[int]:
        """The tokens of `prompt`; raises `UserError` when they leave the model no position."""
        ids = self.prompt(turns)
        if len(ids) >= self._positions:
            raise UserError(f"the prompt has {len(ids):,} tokens; the model has {self._positions:,} positions in all")
        return ids

    @torch.no_grad()
    def write(self, turns: Sequence[Turn], out: IO[str]) -> tuple[str, str | None]:
        """Write the answer to `out` as it comes; returns it, and why it ended before the model's own end (None: not).

        Raises as `fitting` does.
        """
        ids = self.fitting(turns)
        room = self._positions - len(ids)
        limit = min(room, self._config.max_new_tokens)
        torch.manual_seed(self._config.seed)
        how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if self._config.temperature > 0:
            sampling = {"temperature": self._config.temperature, "top_p": self._config.top_p, "top_k": 0}
            how = {"do_sample": True, **sampling}
        ends = end_tokens(self._model, self._tokenizer)
        shown = Shown(self._tokenizer, out, begun=self.kind == "base")
        with computing_in(self._config.precision, self.device):
            written = self._model.generate(
                input_ids=torch.tensor([ids], device=self.device), streamer=shown, max_new_tokens=limit,
                attention_mask=torch.ones(1, len(ids), dtype=torch.int64, device=self.device),
                eos_token_id=sorted(ends), pad_token_id=self._tokenizer.eos_token_id, **how,
            )[0, len(ids) :].tolist()  # fmt: skip
        cut = None
        if written[-1] not in ends:
            cut = "--max_new_tokens" if limit < room else f"the model's {self._positions:,} positions"
        return self._tokenizer.decode(written, skip_special_tokens=True).strip(), cut


class Shown(TextStreamer):
    """The library's streamer of whole words, into any file, without control characters.

    `begun`: the text goes on in a line that has begun; else it loses the space before its first word.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, out: IO[str], begun: bool) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._out, self._begun = out, begun

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by the library with each piece."""
        text = text if self._begun else text.lstrip()
        self._begun = self._begun or bool(text)
        print(printable(text, keep="\n\t"), end="\n" if stream_end else "", flush=True, file=self._out)
