"""How a question is put in training: its flags. What a template may hold is checked where templates are.

Promises: a flag that would change nothing is refused. Costs: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from miniqwen.config.flags import flag
from miniqwen.config.task import TaskFlags


@dataclass(frozen=True)
class PromptFlags(TaskFlags):
    """Whether questions are put by templates, and by which."""

    do_qa_format: bool = flag(
        True, "ask with the prompt template and train on the answer only; False: plain text", group="prompt"
    )
    prompt_template: str | None = flag(
        None, "text before the answer, with {question}, {choices}, {support}", group="prompt"
    )
    choices_template: str | None = flag(None, "one line a choice, with {label} and {text}", group="prompt")

    def problems(self) -> list[str]:
        found = super().problems()
        if self.pretrains:
            found += self.useless("in pretraining", "prompt_template", "choices_template", "do_qa_format")
        elif self.finetunes and not self.do_qa_format:
            if self.prompt_template or self.choices_template:
                found.append("--prompt_template and --choices_template have no use with --do_qa_format False")
            if self.truncation == "left":
                found.append("--truncation left cuts prompts, and with --do_qa_format False there are none")
        return found
