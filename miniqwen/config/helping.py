"""What `--help` shows: what a command does, what it needs, the flags that are used most, an example; `all`: every flag.

Promises: on one screen, from the same fields that are parsed. Costs: nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import typing
from typing import Any

PART = re.compile(r"; (?![^(]*\))")  # not in parentheses
METAVARS = {bool: "BOOL", int: "N", float: "X"}


def help_screen(kind: Any, program: str, description: str, whole: bool) -> str:
    """The help of a command whose flags are `kind`: short where it has many, and `whole` if asked."""
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init and not f.metadata["only_yaml"]}
    hints = typing.get_type_hints(kind)
    needed = [name for name, f in fields.items() if f.metadata["required"] or name in kind.needed]
    others = [name for name in fields if name not in needed]
    whole = whole or not kind.most_used
    shown = [*needed, *(others if whole else kind.most_used)]
    parser = argparse.ArgumentParser(
        prog=program, description=description, add_help=False, usage=_usage(fields, needed, hints),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=120),
    )  # fmt: skip
    groups: dict[str, Any] = {}
    for f in (fields[name] for name in shown if not fields[name].metadata["positional"]):
        title = "required" if f.name in needed else f.metadata["group"] if whole else "most used"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        groups[title].add_argument(
            f"--{f.name}", nargs="?" if _is_switch(hints[f.name]) else None, metavar=_metavar(f, hints[f.name]),
            help=_text(f, whole),
        )  # fmt: skip
    parser.add_argument_group("file").add_argument(
        "--config", metavar="FILE.yaml", help="read flags from a YAML file; the command line wins"
    )
    parser.epilog = _epilog(kind, program, fields, more=len(fields) - len(shown))
    return parser.format_help().rstrip()


def _usage(fields: dict[str, dataclasses.Field[Any]], needed: list[str], hints: dict[str, Any]) -> str:
    """The required flags, and that there are more."""
    flags = [f"--{name} {_metavar(fields[name], hints[name])}" for name in needed]
    words = [f"[{name.removesuffix('s').upper()} ...]" for name, f in fields.items() if f.metadata["positional"]]
    return " ".join(["%(prog)s", *flags, "[flags]", *words])


def _epilog(kind: Any, program: str, fields: dict[str, dataclasses.Field[Any]], more: int) -> str:
    """What stands without a flag, an example, and how to see the rest."""
    words = [
        f"{name.removesuffix('s').upper()}: {f.metadata['help']}"
        for name, f in fields.items()
        if f.metadata["positional"]
    ]
    launched = "accelerate launch -q " if program.endswith("_loop.py") else "python " if program.endswith(".py") else ""
    example = [f"example:\n  {launched}{program} {kind.example}"] if kind.example else []
    return "\n".join([*words, *example, *([f"--help all shows {more} more flags"] if more else [])])


def _text(f: dataclasses.Field[Any], whole: bool) -> str:
    """What a flag is for, which values it has and which is its default; in short its first part."""
    meta, default, text = f.metadata, f.default, str(f.metadata["help"])
    is_list = isinstance(default, tuple) or meta["several"]
    if not whole and not meta["choices"]:
        text = PART.split(text)[0]
    if meta["choices"] and not is_list:
        text += f"; one of {', '.join(meta['choices'])}"
    if default not in (None, (), False):
        text += f" (default: {' '.join(default) if isinstance(default, tuple) else default})"
    return text.replace("%", "%%")


def _is_switch(hint: Any) -> bool:
    return bool in (typing.get_args(hint) or (hint,))


def _metavar(f: dataclasses.Field[Any], hint: Any) -> str:
    """What a flag's value is called: by its own word, or by its type."""
    meta = f.metadata
    if meta["metavar"]:
        return str(meta["metavar"])
    wanted = next(kind for kind in (typing.get_args(hint) or (hint,)) if kind is not type(None))
    word = "PATH" if meta["path"] else "NAME" if meta["choices"] else METAVARS.get(wanted, "TEXT")
    return f"{word} [{word} ...]" if isinstance(f.default, tuple) or meta["several"] else word
