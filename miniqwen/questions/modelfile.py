"""How Ollama is to ask a model: a Modelfile, made of the templates that it was trained with.

Promises: what it says is what `python -m miniqwen.generate` does, or it is not said: a line of the file explains why.
Costs: nothing.
"""

from __future__ import annotations

from miniqwen.questions.rows import Question
from miniqwen.questions.templates import BLANK, Template

GREEDY = "PARAMETER temperature 0\n"


def modelfile(gguf: str, template: Template | None, has_chat_template: bool) -> str:
    """Of the file `gguf` beside it. `template`: what a model that was fine-tuned here is asked with."""
    head = f"# ollama create NAME -f FILE.Modelfile\nFROM ./{gguf}\n"
    if template is None and has_chat_template:
        return f"{head}# asked with the chat template of its own, which is in the file\n{GREEDY}"
    if template is None:
        return f'{head}# a base model: it goes on with a text\nTEMPLATE """{{{{ .Prompt }}}}"""\n{GREEDY}'
    # a user's turn is the {question} of a row without the rest, as in the model's chat template
    parts = template.render(Question("", BLANK, (), None, None)).split(BLANK)
    text = "{{ .Prompt }}".join(map(_literal, parts))
    return f'{head}# asked as in training, each question by itself\nTEMPLATE """{text}"""\n{GREEDY}'


def _literal(text: str) -> str:
    """A text in a template of Go, in which braces have a meaning, and in a Modelfile, in which three quotes have."""
    return "".join('{{ "{" }}' if char == "{" else '{{ "\\"" }}' if char == '"' else char for char in text)
