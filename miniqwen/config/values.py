"""What a flag's value is, from text on the command line or from anything YAML can say.

Promises: one conversion for both; what does not fit is a `ValueError` that says what was expected. A hint is given only
where a word is nearly another one. Costs: PyYAML's types and pydantic.
"""

from __future__ import annotations

import contextlib
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, TypeAdapter, ValidationError

BARE = object()  # a flag on the command line without a value


LARGEST_SEED = 2**32 - 1  # numpy's

SCALARS: dict[type, tuple[TypeAdapter[Any], str]] = {
    bool: (TypeAdapter(bool), "True or False"),
    int: (TypeAdapter(int), "a whole number"),
    float: (TypeAdapter(FiniteFloat), "a number"),
}
ALIKE = 0.85  # of a word and what is meant by it: learnin_rate is, batch_size is not block_size


def value_of(value: Any, hint: Any, known: Mapping[str, Any]) -> Any:
    """`value` of a flag with the type `hint` and the metadata `known`, see `flag`."""
    if value is BARE or isinstance(value, (str, bool)):
        spelled = known["spelled"].get("True" if value is BARE else str(value).strip())
        if spelled is not None:
            return spelled
    if known["only_yaml"]:
        return _mapping(value)
    if known["several"]:
        found: Any = _one_or_several(value)
    else:
        found = _convert(value, hint, known["choices"], known["verbatim"])
    return at_home(found) if known["path"] else found


def nearest(word: str, known: Iterable[str], alike: float = ALIKE) -> str | None:
    """Which of the known words is meant by one that is misspelt; None where it may as well be another word."""
    return next(iter(difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=alike)), None)


def at_home(value: Any) -> Any:
    """A path, or several, with `~` or `~user` replaced by a folder; `ValueError` where there is none."""
    if isinstance(value, tuple):
        return tuple(map(at_home, value))
    try:
        return str(Path(value).expanduser()) if value and value.startswith("~") else value
    except RuntimeError as error:
        raise ValueError(f"{value}: {error}") from None


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
    return _steps(value) if {int, float} <= set(options) else _number(value, wanted)


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


def _steps(value: Any) -> int | float:
    """A whole number, or a fraction between 0 and 1; 1.0 is one update, as in transformers."""
    with contextlib.suppress(ValueError):
        return int(_number(value, int))
    with contextlib.suppress(ValueError):
        if 0 < (fraction := float(_number(value, float))) < 1:
            return fraction
    raise ValueError(
        f"expected a whole number of updates, or a fraction of all of them between 0 and 1, got {value!r}"
    ) from None


def _chosen(word: str, choices: Sequence[str]) -> str:
    if choices and word not in choices:
        near = nearest(word, choices)
        hint = f"; did you mean {near}?" if near else ""
        raise ValueError(f"{word!r} is not one of {', '.join(choices)}{hint}")
    return word
