"""How a command line becomes a frozen dataclass: flags, `--config` YAML files, and every mistake at once.

Promises: the same names on the command line and in a YAML file (the command line wins), converted by the same code;
every problem of a command is reported together, on one screen, with exit status 2. Costs: the standard library,
PyYAML and pydantic, so that `--help` answers at once; one dataclass field a flag.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml

from miniqwen.config.helping import help_screen
from miniqwen.config.pasted import Pasted
from miniqwen.config.values import BARE, at_home, nearest, value_of
from miniqwen.errors import UserError
from miniqwen.files import read_yaml
from miniqwen.shipped import shipped

RECORDED = "recorded"  # the section of config.yaml that a run adds for its reader; ignored when the file is used again
LONG = re.compile(r"--([A-Za-z][\w-]*)(=.*)?", re.DOTALL)  # a flag, and what stands behind = in the same word

T = TypeVar("T", bound="Flags")


def flag(
    default: Any,
    help: str,
    *,
    group: str,
    choices: Sequence[str] = (),
    aliases: Sequence[str] = (),
    required: bool = False,
    least: int | None = None,
    most: int | None = None,
    verbatim: bool = False,
    positional: bool = False,
    path: bool = False,
    several: bool = False,
    only_yaml: bool = False,
    spelled: Mapping[str, str] | None = None,
    metavar: str | None = None,
) -> Any:
    """A dataclass field with what the command line needs to know of it.

    `least`, `most`: the smallest and largest value it may have; `verbatim`: a list of texts, not of words;
    `positional`: a list of what belongs to no flag; `path`: may be one, in which `~` is the user's folder, as in
    `--output_dir=~/run` or in YAML, where no shell has seen it; `several`: one text, or a tuple where more are given;
    `only_yaml`: a mapping, which no command line can say; `spelled`: {what other programs call a value: the value}
    (`True`: also the bare flag); `metavar`: what `--help` calls its value.
    """
    known = {
        "help": help, "group": group, "choices": choices, "aliases": aliases, "required": required, "least": least,
        "most": most, "spelled": spelled or {}, "metavar": metavar,
        "verbatim": verbatim or positional, "positional": positional, "path": path, "several": several,
        "only_yaml": only_yaml,
    }  # fmt: skip
    return field(default=default, metadata=known)


def no_flag(default: Any) -> Any:
    """A field that a base class has and this command does not ask for: it keeps its default, and is no flag."""
    return field(default=default, init=False)


@dataclass(frozen=True)
class Flags:
    """The part common to all commands; a subclass is one command's flags.

    `pasted`: other programs' flags, and what to write instead; `needed`: flags that are required, though not always;
    `most_used`: what `--help` shows of many flags; `example`: a command line to begin with, without the program.
    """

    pasted: ClassVar[Mapping[str, Pasted]] = {}
    needed: ClassVar[tuple[str, ...]] = ()
    most_used: ClassVar[tuple[str, ...]] = ()
    example: ClassVar[str] = ""

    def problems(self) -> list[str]:
        """Every contradiction between the flags and with the files they name."""
        found = []
        for f in dataclasses.fields(self):
            value, least = getattr(self, f.name), f.metadata.get("least")
            if least is not None and value is not None and value < least and not 0 < value < 1:  # a fraction of steps
                found.append(f"--{f.name} {value}: must be at least {least}")
            most = f.metadata.get("most")
            if most is not None and value is not None and value > most:
                found.append(f"--{f.name} {value}: must be at most {most}")
        return found

    def useless(self, why: str, *names: str) -> list[str]:
        """A problem for each flag of `names` that is not at its default: it would change nothing, and `why`."""
        defaults = type(self).__dataclass_fields__
        return [
            f"--{name} has no use {why}" for name in names if getattr(self, name) not in (defaults[name].default, None)
        ]


def parse(
    kind: type[T],
    arguments: Sequence[str] | None = None,
    *,
    program: str,
    description: str,
    checks: Sequence[Callable[[T], list[str]]] = (),
) -> T:
    """The flags of one command, from the command line over a `--config` file over the defaults.

    `checks` are rooms' own checks of their flags. Raises `UserError` with every problem found: unknown flags, values of
    the wrong type, contradictions.
    """
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    positional = next((name for name, f in fields.items() if f.metadata["positional"]), None)
    words, others = _sorted_words(list(sys.argv[1:] if arguments is None else arguments), fields, bool(positional))
    parser = _argument_parser(fields, program)
    given, unknown = parser.parse_known_args(words)
    typed: dict[str, Any] = {name: BARE if value == [] else value for name, value in vars(given).items()}
    if "help" in typed:
        print(help_screen(kind, program, description, whole=typed["help"] == "all"))
        raise SystemExit(0)
    in_file, problems = _read_yaml(typed.pop("config", None), kind, fields)
    if positional and (texts := _positional(unknown)):
        typed[positional] = texts
    problems += [problem for name, values in others.items() for problem in _unknown(name, values, kind, fields)]
    problems += [f"{word!r} is not the value of any flag{_how_meant(word)}" for word in unknown]

    values: dict[str, Any] = {}
    hints = typing.get_type_hints(kind)
    for name, value in {**in_file, **typed}.items():
        try:
            values[name] = value_of(value, hints[name], fields[name].metadata)
        except ValueError as error:
            problems.append(f"--{name}: {error}")
    problems += [
        f"--{name} is needed: {f.metadata['help']}"
        for name, f in fields.items()
        if f.metadata["required"] and values.get(name) is None and not (name in typed or name in in_file)
    ]
    config = kind(**values)
    for check in (kind.problems, *checks):
        problems += [problem for problem in check(config) if problem not in problems]
    if problems:
        raise UserError(*problems)
    return config


def _argument_parser(fields: Mapping[str, dataclasses.Field[Any]], program: str) -> argparse.ArgumentParser:
    """A parser that takes every value as text: conversion, and its error messages, are the same as for YAML."""
    parser = argparse.ArgumentParser(
        prog=program, allow_abbrev=False, add_help=False, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("-h", "--help", nargs="?", const="")
    parser.add_argument("--config", nargs="?", const=BARE)
    for f in fields.values():
        if f.metadata["only_yaml"] or f.metadata["positional"]:
            continue
        is_list = isinstance(f.default, tuple) or f.metadata["several"]
        parser.add_argument(
            *(f"--{name}" for name in (f.name, *f.metadata["aliases"])), dest=f.name, nargs="*" if is_list else "?",
            const=None if is_list else BARE,
        )  # fmt: skip
    return parser


def _sorted_words(
    words: Sequence[str], fields: Mapping[str, dataclasses.Field[Any]], takes_words: bool
) -> tuple[list[str], dict[str, list[str]]]:
    """(what belongs to this command's flags, spelled as they are; {flag that is none: its values}).

    Names may have hyphens. Where words without a flag mean something, a flag that is none takes none of them.
    """
    known = {name for f in fields.values() if not f.metadata["only_yaml"] for name in (f.name, *f.metadata["aliases"])}
    known -= {name for name, f in fields.items() if f.metadata["positional"]}
    ours: list[str] = []
    others: dict[str, list[str]] = {}
    place = ours
    for number, word in enumerate(words):
        if word == "--":
            return [*ours, *words[number:]], others
        if flag_word := LONG.fullmatch(word):
            written, value = flag_word[1], flag_word[2] or ""
            name = written.replace("-", "_")
            if name in known or name in ("help", "config"):
                place = ours
                place.append(f"--{name}{value}")
            else:
                place = others.setdefault(written, [])
                place += [value[1:]] if value else []
        elif place is ours or not takes_words:
            place.append(word)
        else:
            ours.append(word)
    return ours, others


def _unknown(
    written: str, values: Sequence[Any], kind: type[Flags], fields: Mapping[str, dataclasses.Field[Any]]
) -> list[str]:
    """What to say of a flag that is none of this command's; nothing where what it asks for is so anyway."""
    name = written.replace("-", "_")
    if name in kind.pasted:
        return kind.pasted[name].problems(written, list(values))
    if name in fields and fields[name].metadata["only_yaml"]:
        return [f"--{written}: goes into a file, for --config"]
    if (switch := name.removeprefix("no_")) != name and isinstance(getattr(fields.get(switch), "default", None), bool):
        return [f"--{written}: write --{switch} False"]
    aliases = {alias: f.name for f in fields.values() for alias in f.metadata["aliases"]}
    near = nearest(name, [*fields, *aliases, *kind.pasted])
    if near and near in kind.pasted:
        return [f"--{written}: no such flag; if --{near} is meant: {kind.pasted[near].said}"]
    hint = f"did you mean --{aliases.get(near, near)}?" if near else "see --help all"
    return [f"--{written}: no such flag; {hint}"]


def _how_meant(word: str) -> str:
    return " (flags begin with two dashes)" if word.startswith("-") else " (quote values that hold spaces)"


def _read_yaml(
    path: Any, kind: type[Flags], fields: Mapping[str, dataclasses.Field[Any]]
) -> tuple[dict[str, Any], list[str]]:
    """The flags in a YAML file and what is wrong with the file."""
    if path is None:
        return {}, []
    if path is BARE:
        return {}, ["--config: needs a file"]
    try:
        read = read_yaml(Path(shipped(at_home(path))))
    except OSError as error:
        return {}, [f"--config {path}: {error.strerror}"]
    except ValueError as error:
        return {}, [f"--config {path}: not YAML: {' '.join(str(error).split())}"]
    if read is None:
        return {}, []
    if not isinstance(read, dict):
        return {}, [f"--config {path}: expected `name: value` lines"]
    names = {alias: f.name for f in fields.values() for alias in (f.name, *f.metadata["aliases"])}
    values, problems = {}, []
    for key, value in read.items():
        name = str(key).replace("-", "_")
        if name in names:
            values[names[name]] = value
        elif name != RECORDED:
            given = value if isinstance(value, list) else [value]
            problems += [f"--config {path}: {problem}" for problem in _unknown(str(key), given, kind, fields)]
    return values, problems


def _positional(unknown: list[str]) -> list[str]:
    """What belongs to no flag, taken out of `unknown`: words without dashes, and all behind `--`."""
    behind: list[str] = []
    if "--" in unknown:
        place = unknown.index("--")
        behind = unknown[place + 1 :]
        del unknown[place:]
    texts = [word for word in unknown if not word.startswith("--")]
    unknown[:] = [word for word in unknown if word.startswith("--")]
    return texts + behind


def plain(config: Flags) -> dict[str, Any]:
    """The flags and their values, as YAML has them."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.init}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def dump(config: Flags, recorded: Mapping[str, Any]) -> str:
    """`config` as YAML that `--config` reads back, with a section of facts about the run for its reader."""
    return yaml.safe_dump({**plain(config), RECORDED: dict(recorded)}, sort_keys=False, allow_unicode=True)
