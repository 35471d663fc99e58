"""How a command line becomes a frozen dataclass: flags, `--config` YAML files, and every mistake at once.

Promises: the same names on the command line and in a YAML file (the command line wins), converted by the same code;
every problem of a command is reported together, on one screen, with exit status 2. Costs: the standard library,
PyYAML and pydantic, so that `--help` answers at once; one dataclass field a flag.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from miniqwen.errors import UserError
from miniqwen.files import read_yaml

RECORDED = "recorded"  # the section of config.yaml that a run adds for its reader; ignored when the file is used again

BARE = object()  # a flag on the command line without a value

SCALARS: dict[type, tuple[TypeAdapter[Any], str]] = {
    bool: (TypeAdapter(bool), "True or False"),
    int: (TypeAdapter(int), "a whole number"),
    float: (TypeAdapter(FiniteFloat), "a number"),
}

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
    verbatim: bool = False,
    positional: bool = False,
    path: bool = False,
    several: bool = False,
    only_yaml: bool = False,
) -> Any:
    """A dataclass field with what the command line needs to know of it.

    `least`: the smallest value it may have; `verbatim`: a list of texts, not of words; `positional`: a list of what
    belongs to no flag; `path`: may be one, in which `~` is the user's folder, as in `--output_dir=~/run` or in YAML,
    where no shell has seen it; `several`: one text, or a tuple where more are given; `only_yaml`: a mapping, which no
    command line can say.
    """
    known = {
        "help": help, "group": group, "choices": choices, "aliases": aliases, "required": required, "least": least,
        "verbatim": verbatim or positional, "positional": positional, "path": path, "several": several,
        "only_yaml": only_yaml,
    }  # fmt: skip
    return field(default=default, metadata=known)


def no_flag(default: Any) -> Any:
    """A field that a base class has and this command does not ask for: it keeps its default, and is no flag."""
    return field(default=default, init=False)


@dataclass(frozen=True)
class Flags:
    """The part common to all commands; a subclass is one command's flags."""

    def problems(self) -> list[str]:
        """Every contradiction between the flags and with the files they name."""
        found = []
        for f in dataclasses.fields(self):
            value, least = getattr(self, f.name), f.metadata.get("least")
            if least is not None and value is not None and value < least:
                found.append(f"--{f.name} {value}: must be at least {least}")
        return found


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
    given, unknown = _argument_parser(kind, program, description).parse_known_args(
        list(sys.argv[1:] if arguments is None else arguments)
    )
    typed: dict[str, Any] = {name: BARE if value == [] else value for name, value in vars(given).items()}
    in_file, problems = _read_yaml(typed.pop("config", None), fields)
    positional = next((name for name, f in fields.items() if f.metadata["positional"]), None)
    if positional and (texts := _positional(unknown)):
        typed[positional] = texts
    problems += [_unknown(word, fields) for word in unknown]

    values: dict[str, Any] = {}
    hints = typing.get_type_hints(kind)
    for name, value in {**in_file, **typed}.items():
        try:
            known = fields[name].metadata
            if known["only_yaml"]:
                values[name] = _mapping(value)
            elif known["several"]:
                values[name] = _one_or_several(value)
            else:
                values[name] = _convert(value, hints[name], known["choices"], known["verbatim"])
            if known["path"]:
                values[name] = _at_home(values[name])
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


def _argument_parser(kind: type[Flags], program: str, description: str) -> argparse.ArgumentParser:
    """A parser that takes every value as text: conversion, and its error messages, are the same as for YAML."""
    parser = argparse.ArgumentParser(
        prog=program, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=120),
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE.yaml", help="read flags from a YAML file; the command line wins")
    groups: dict[str, Any] = {}
    for f in (f for f in dataclasses.fields(kind) if f.init):
        meta, default = f.metadata, f.default
        is_list = isinstance(default, tuple) or meta["several"]
        if meta["only_yaml"]:
            continue
        if meta["group"] not in groups:
            groups[meta["group"]] = parser.add_argument_group(meta["group"])
        text = meta["help"]
        if meta["choices"] and not is_list:
            text += f"; one of {', '.join(meta['choices'])}"
        if default not in (None, ()):
            text += f" (default: {' '.join(default) if isinstance(default, tuple) else default})"
        if meta["positional"]:
            parser.usage = f"%(prog)s [flags] [{f.name.upper()} ...]"
            parser.epilog = f"{f.name.upper()}: {meta['help']}"
            continue
        groups[meta["group"]].add_argument(
            *(f"--{name}" for name in (f.name, *meta["aliases"])), dest=f.name, nargs="*" if is_list else "?",
            const=None if is_list else BARE,
            metavar="BOOL" if isinstance(f.default, bool) else f.name.rsplit("_", 1)[-1].upper(),
            help=text.replace("%", "%%"),
        )  # fmt: skip
    return parser


def _unknown(word: str, fields: Mapping[str, Any]) -> str:
    known = fields.get(word.lstrip("-").partition("=")[0])
    if word.startswith("--") and known is not None and known.metadata["only_yaml"]:
        return f"{word.partition('=')[0]}: goes into a file, for --config"
    if not word.startswith("--"):
        return f"{word!r} is not the value of any flag (quote values that hold spaces)"
    name = word.lstrip("-").partition("=")[0]
    near = difflib.get_close_matches(name, fields, n=1)
    return f"{word.partition('=')[0]}: no such flag" + (f"; did you mean --{near[0]}?" if near else "; see --help")


def _read_yaml(path: Any, fields: Mapping[str, dataclasses.Field[Any]]) -> tuple[dict[str, Any], list[str]]:
    """The flags in a YAML file and what is wrong with the file."""
    if path is None:
        return {}, []
    if path is BARE:
        return {}, ["--config: needs a file"]
    try:
        read = read_yaml(Path(_at_home(path)))
    except OSError as error:
        return {}, [f"--config {path}: {error.strerror}"]
    except ValueError as error:
        return {}, [f"--config {path}: not YAML: {' '.join(str(error).split())}"]
    if read is None:
        return {}, []
    if not isinstance(read, dict):
        return {}, [f"--config {path}: expected `name: value` lines"]
    aliases = {alias: name for name, f in fields.items() for alias in f.metadata["aliases"]}
    values, problems = {}, []
    for key, value in read.items():
        name = aliases.get(str(key), str(key))
        if name in fields:
            values[name] = value
        elif name != RECORDED:
            problems.append(f"--config {path}: {_unknown(f'--{name}', fields)}")
    return values, problems


def _at_home(value: Any) -> Any:
    """A path, or several, with `~` or `~user` replaced by a folder; `ValueError` where there is none."""
    if isinstance(value, tuple):
        return tuple(map(_at_home, value))
    try:
        return str(Path(value).expanduser()) if value and value.startswith("~") else value
    except RuntimeError as error:
        raise ValueError(f"{value}: {error}") from None


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


def _convert(value: Any, hint: Any, choices: Sequence[str], verbatim: bool) -> Any:
    """`value` (text from the command line, or anything YAML can say) as `hint`; `ValueError` says what was expected."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    wanted = next(o for o in options if o is not type(None))
    if value is BARE and wanted is bool:
        return True
    if value is None and type(None) in options:
        return None
    if value is BARE or value is None:
        raise ValueError("needs a value")
    if typing.get_origin(wanted) is tuple:
        given = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(part, (list, dict)) for part in given):
            raise ValueError("expected texts, got a list or a mapping among them")
        words = [word for part in given for word in ([str(part)] if verbatim else str(part).replace(",", " ").split())]
        if not words and not verbatim:  # a file may say of texts that there are none
            raise ValueError("needs at least one value")
        return tuple(_chosen(word, choices) for word in words)
    if isinstance(value, (list, dict)):
        inner = value if isinstance(value, list) else [*value, *value.values()]
        nested = any(isinstance(part, (list, dict)) for part in inner)  # without end, where YAML says so
        raise ValueError(f"expected one value, got {'lists in each other' if nested else repr(value)}")
    if wanted is str:  # YAML reads a bare `no` as False: `eval_strategy: no` means the word
        return _chosen("no" if value is False and "no" in choices else str(value), choices)
    return _number(value, wanted)


def _one_or_several(value: Any) -> str | tuple[str, ...] | None:
    """A text as it is, of several a tuple; `ValueError` where there is none, or one stands there twice."""
    if value is None:
        return None
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    if value is BARE or not given or any(isinstance(word, (list, dict)) or word is None for word in given):
        raise ValueError("needs a name, or several")
    names = tuple(str(word) for word in given)
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"{twice[0]} is named twice")
    return names[0] if len(names) == 1 else names


def _mapping(value: Any) -> dict[str, dict[str, Any]] | None:
    """{name: {setting: value}}, as a file says it."""
    if value is None:
        return None
    if not isinstance(value, dict) or any(not isinstance(found, dict) for found in value.values()):
        raise ValueError("expected `NAME:` with lines `setting: value` under it, in the file of --config")
    return {str(name): {str(key): setting for key, setting in found.items()} for name, found in value.items()}


def _number(value: Any, wanted: type) -> Any:
    """`value` as a bool, int or float, as pydantic reads them; a whole number may be written as 1e4."""
    adapter, expected = SCALARS[wanted]
    given = value.strip() if isinstance(value, str) else value
    if wanted is int and isinstance(given, str) and "e" in given.lower():
        with contextlib.suppress(ValueError):
            given = float(given)
    try:
        # Python takes True for 1
        return adapter.validate_python(None if isinstance(value, bool) and wanted is not bool else given)
    except ValidationError as error:
        finite = "a finite number" if wanted is float and error.errors()[0]["type"] == "finite_number" else expected
        raise ValueError(f"expected {finite}, got {value!r}") from None


def _chosen(word: str, choices: Sequence[str]) -> str:
    if choices and word not in choices:
        near = difflib.get_close_matches(word, choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{word!r} is not one of {', '.join(choices)}{hint}")
    return word


def plain(config: Flags) -> dict[str, Any]:
    """The flags and their values, as YAML has them."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.init}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def dump(config: Flags, recorded: Mapping[str, Any]) -> str:
    """`config` as YAML that `--config` reads back, with a section of facts about the run for its reader."""
    return yaml.safe_dump({**plain(config), RECORDED: dict(recorded)}, sort_keys=False, allow_unicode=True)
