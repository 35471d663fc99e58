"""`python -m miniqwen.generate`: talk to a model, or have it go on with a text.

    python -m miniqwen.generate --model_path M "The opposite of hot is"     one or more prompts
    python -m miniqwen.generate --model_path M                              a dialogue, until Ctrl-D

Promises: see `miniqwen/eval/dialogue.py`. Answers go to stdout, everything else to stderr; prompts can be piped in, a
line each. Costs: the model in memory, on the GPU where there is one.
"""

from miniqwen.errors import check_python, printable

check_python()

from miniqwen.config.flags import parse
from miniqwen.config.generating import GenerateConfig
from miniqwen.errors import interrupts_end, shortage_told, user_errors_exit_2

if __name__ == "__main__":
    IMPORTED = interrupts_end("the answer ends here")
    with user_errors_exit_2():
        CONFIG = parse(
            GenerateConfig,
            program="python -m miniqwen.generate",
            description="Talk to a model, or have it go on with a text.",
        )

import contextlib
import sys
from collections.abc import Iterator

from transformers.utils import logging as transformers_logging

from miniqwen.errors import UserError
from miniqwen.eval.causal_models import SHORT_OF_MEMORY
from miniqwen.eval.dialogue import Partner


def main(config: GenerateConfig) -> None:
    """Answer the prompts of the command line, or those that are typed."""
    transformers_logging.disable_progress_bar()  # of loading weights
    partner = Partner(config)
    print(partner.described, file=sys.stderr)
    if config.prompts:
        for number, prompt in enumerate(config.prompts):
            if number:
                print()
            answer(partner, [{"role": "user", "content": prompt}])
    else:
        converse(partner)


def converse(partner: Partner) -> None:
    """Answer line by line. A chat is told its earlier turns, as many as it has positions for."""
    if sys.stdin.isatty():
        print("Ctrl-D ends" + ("; an empty line begins another talk" * (partner.kind == "chat")), file=sys.stderr)
    turns: list[dict[str, str]] = []
    for line in typed():
        if not line.strip():
            turns = []
            continue
        turns = (
            [*turns, {"role": "user", "content": line}]
            if partner.kind == "chat"
            else [{"role": "user", "content": line}]
        )
        try:
            turns = remembered(partner, turns)
            written = answer(partner, turns, echo=not sys.stdin.isatty())
        except UserError as error:  # of this line; the next may do
            print(f"error: {error}", file=sys.stderr)
            turns = []
            continue
        turns.append({"role": "assistant", "content": written})


def remembered(partner: Partner, turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """The last of `turns` that the model has positions for, the user's own at least."""
    with contextlib.suppress(UserError):
        partner.fitting(turns)
        return turns
    if len(turns) == 1:
        return turns
    print("(the first turn is forgotten: the model has no positions for it)", file=sys.stderr)
    return remembered(partner, turns[2:])


def typed() -> Iterator[str]:
    """The lines of stdin; on a terminal behind a mark, and editable."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    import readline  # noqa: F401  # makes `input` remember lines

    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def answer(partner: Partner, turns: list[dict[str, str]], echo: bool = True) -> str:
    """Write the prompt, unless it stands on the screen already, and the answer to it."""
    partner.fitting(turns)  # before anything is shown
    asked = printable(turns[-1]["content"], keep="\n\t")
    if partner.kind == "base":
        print(asked.rstrip(" "), end="", flush=True)  # the answer goes on in the same line
    elif echo:
        print(f"> {asked}")
    written, cut = partner.write(turns, sys.stdout)
    if cut:
        print(f"({cut} reached)", file=sys.stderr)
    return written


if __name__ == "__main__":
    IMPORTED()
    with user_errors_exit_2(), shortage_told(*SHORT_OF_MEMORY):
        main(CONFIG)
