"""Where text and questions come from: names → repositories → splits → files.

Promises: a data set is listed once, its revision pinned, on the hub, in a mirror laid out like the hub (`--data_root`)
or from local files. What cannot be had is named: data set, configuration, split, and what to try. `datasets` resolves
names and splits; it never iterates. Costs: a few requests a data set.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import json
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import datasets
import yaml
from fsspec.core import url_to_fs

from miniqwen.config.data import HUB_TIMEOUT, USUAL_DUMP, DataFlags, is_local
from miniqwen.data.formats import FORMATS, READ
from miniqwen.data.hub import pinned
from miniqwen.data.patience import is_passing, patiently
from miniqwen.data.sources import Source, downloaded, parquet_footer, readable
from miniqwen.data.units import DataFile
from miniqwen.errors import UserError

REPOSITORIES = {
    "wikipedia": "wikimedia/wikipedia",
    "arxiv": "common-pile/arxiv_papers",
    "sciq": "allenai/sciq",
    "commonsenseqa": "tau/commonsense_qa",
}
# Data sets that are scripts, which `datasets` no longer runs, and old names: where their data stands today.
MOVED = {
    "legacy-datasets/wikipedia": "wikimedia/wikipedia",
    "armanc/scientific_papers": "ccdv/arxiv-summarization",
}
TEXT_COLUMNS = {"wikipedia": "text", "arxiv": "text"}
SHOWN_FILES = 10  # of those that are amiss
# what `datasets` writes about data, beside it
ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Repository:
    """A data set that was found: its files by split, and a note for the user where a name led elsewhere."""

    name: str
    path: str
    config_name: str | None
    revision: str | None
    splits: dict[str, tuple[DataFile, ...]]
    note: str | None = None
    cache_dir: str | None = None
    sample_by: str = "line"
    row_groups: Mapping[str, Mapping[str, Sequence[Sequence[int]]]] = field(default_factory=dict)
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by column, of what is stored as numbers

    def source(self, split: str, columns: tuple[str, ...]) -> Source:
        """Some columns of a split. Raises `UserError` naming the splits there are."""
        if split not in self.splits:
            raise UserError(f"{self.name}: no split {split!r}; it has {', '.join(self.splits)}")
        found = (self.name, self.path, self.config_name, self.revision)
        listed = self.row_groups.get(split)
        return Source(*found, split, self.splits[split], columns, self.cache_dir, self.sample_by, listed)

    def listed(self, splits: Sequence[str], columns: tuple[str, ...], skip_bad: bool = False) -> Repository:
        """The same with the row groups of those of `splits` that it has: nothing about them need be asked again."""
        there = [split for split in splits if split in self.splits]
        found = {split: self.source(split, columns).list_row_groups(skip_bad) for split in there}
        return replace(self, row_groups=found)

    def names_of_classes(self, split: str, column: str) -> Sequence[str] | None:
        """Of a column that holds the numbers of classes: their names, as the card or the parquet files have them.

        `datasets` keeps its features in the files. Raises `UserError` where card and files, or two files, differ.
        """
        found = {f"the card of {self.name}": self.class_names.get(column)}
        for file in self.splits.get(split, ()):
            if file.format == ".parquet":
                found[file.path] = _names_kept(readable(functools.partial(parquet_footer, file), file), column)
        named = {where: tuple(names) for where, names in found.items() if names}
        if len(set(named.values())) > 1:
            said = "; ".join(f"{where} {', '.join(names)[:60]}" for where, names in named.items())
            raise UserError(f"{column} holds the numbers of classes, whose names differ: {said}")
        return next(iter(named.values()), None)

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it; `from_json` makes it again."""
        return {**vars(self), "splits": {split: [vars(file) for file in files] for split, files in self.splits.items()}}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Repository:
        splits = {split: tuple(DataFile(**file) for file in files) for split, files in stored["splits"].items()}
        return cls(**{**stored, "splits": splits})

    def check_here(self) -> None:
        """That this machine has the local files that rank 0 listed on its own; raises `UserError` naming the others."""
        amiss = []
        for file in (file for files in self.splits.values() for file in files if "://" not in file.url):
            size = Path(file.url).stat().st_size if Path(file.url).exists() else None
            if size != file.size:
                here = "is not here" if size is None else f"has {size} bytes here"
                amiss.append(f"{file.url} {here} ({platform.node()}), and {file.size} bytes where rank 0 runs")
        if amiss:
            raise UserError(
                *amiss[:SHOWN_FILES], *([f"and {len(amiss) - SHOWN_FILES} more"] * (len(amiss) > SHOWN_FILES))
            )

    def downloaded(self) -> Repository:
        """The same with all its files on this machine."""
        files = lambda found: tuple(downloaded(file, self.cache_dir) for file in found)  # noqa: E731
        return replace(self, splits={split: files(found) for split, found in self.splits.items()})


def _names_kept(footer: Any, column: str) -> Sequence[str] | None:
    try:
        kept = json.loads((footer.metadata or {})[b"huggingface"])
        return [str(name) for name in kept["info"]["features"][column]["names"]]
    except (ValueError, KeyError, TypeError):  # no such key, or another program's
        return None


def resolve(name: str, flags: DataFlags) -> Repository:
    """Find a data set: a name of ours, OWNER/NAME on the hub or under `--data_root`, a local file or folder.

    With `--streaming False` its files are downloaded here. Raises `UserError` for what cannot be had: which, why, and
    what to try.
    """
    repository = locate(name, flags)
    return repository if flags.streaming else repository.downloaded()


def locate(name: str, flags: DataFlags) -> Repository:
    """`resolve` without any download."""
    if name not in REPOSITORIES and is_local(name):
        found = _local(name, flags.dataset_config_name)
        return replace(found, cache_dir=flags.cache_dir, sample_by=flags.sample_by)
    path = REPOSITORIES.get(name, name)
    if path in MOVED:
        raise UserError(f"{path} is a script, which the data sets library no longer runs; use {MOVED[path]}")
    where = path
    if flags.data_root:
        where = str(Path(flags.data_root, path))
        if not Path(where).is_dir():
            raise UserError(f"{name}: --data_root {flags.data_root} has no folder {path}")
    config_name, note = flags.dataset_config_name if name not in REPOSITORIES else None, None
    if name == "wikipedia":
        config_name, note = _wikipedia_dump(where, flags.wikipedia_version, flags.hub_timeout)
    revision, files, names = _files(name, where, config_name, flags.hub_timeout)
    return Repository(
        name, path, config_name, revision, files, note, flags.cache_dir, flags.sample_by, class_names=names
    )


def _local(name: str, config_name: str | None) -> Repository:
    """A file, the files that a pattern names (one split, `train`, in the order of their paths), or a folder."""
    path = Path(name)
    if not path.is_dir():
        if config_name:
            raise UserError(f"--dataset_config_name {config_name}: {name} has no configurations: files have none")
        found = [path] if path.exists() else sorted(map(Path, glob.glob(name, recursive=True)))  # noqa: PTH207  # absolute and relative ones
        files = [file.resolve() for file in found if not file.is_dir()]
        if not files:
            raise UserError(
                f"{name}: there are only folders; a pattern names files, such as {name.rstrip('/')}/*.jsonl"
            )
        root = files[0].parent if len(files) == 1 else Path(os.path.commonpath(files))
        listed = tuple(_data_file(file, root) for file in files)
        where = files[0] if path.exists() else path.absolute()
        return Repository(path.name, str(where), None, None, {"train": listed})
    path = path.resolve()
    with _without_patterns(path) as where:
        _, splits, names = _files(name, str(where), config_name)
    splits = {
        split: tuple(replace(file, url=str(path / file.path)) for file in files) for split, files in splits.items()
    }
    note = _left_out(name, path, {file.url for files in splits.values() for file in files})
    return Repository(path.name, str(path), config_name, None, splits, note, class_names=names)


def _data_file(file: Path, root: Path) -> DataFile:
    if not file.is_file():
        raise UserError(f"{file}: is no file that can be read")
    found = DataFile(file.relative_to(root).as_posix(), str(file), file.stat().st_size)
    _ = found.format  # a format that cannot be read is said at once
    return found


@contextlib.contextmanager
def _without_patterns(folder: Path) -> Iterator[Path]:
    """A folder of links to its files whose name has no character of a pattern: `datasets` would look for others."""
    if not glob.has_magic(str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory() as above:
        for file in folder.rglob("*"):
            link = Path(above, file.relative_to(folder))
            if file.is_file():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
        yield Path(above)


def _left_out(name: str, folder: Path, held: set[str]) -> str | None:
    """A note on files of a folder that no split holds, where its card says which do; without a card, `UserError`.

    `datasets` goes by names: where one has `train` in it, those without a split's word are of none; and of two formats
    it takes the one that more files have.
    """
    there = [
        path for path in sorted(folder.rglob("*"))
        if path.name.endswith(FORMATS) and path.name not in ABOUT and path.is_file()
        and not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
    ]  # fmt: skip
    left = [str(path.relative_to(folder)) for path in there if str(path) not in held]
    if not left:
        return None
    more = f" and {len(left) - SHOWN_FILES} more" if len(left) > SHOWN_FILES else ""
    listed = f"{', '.join(left[:SHOWN_FILES])}{more}"
    card = folder / "README.md"
    if card.is_file() and re.search(r"^(configs|data_files):", card.read_text(errors="replace"), re.MULTILINE):
        return f"{name}: its card leaves out {len(left)} files: {listed}"
    raise UserError(
        f"{name}: {len(left)} files would not be read, as their names belong to no split (train, validation, test ...) "
        f"or their format is not that of most: {listed}; rename or move them, or name what is to be read by a pattern, "
        f"such as '{name.rstrip('/')}/**/*{Path(left[0]).suffix}'"
    )


def _wikipedia_dump(where: str, named: str | None, limit: float) -> tuple[str, str | None]:
    """The configuration for `--wikipedia_version`, and a note if it is not the one that was named."""
    wanted = named or USUAL_DUMP
    names = _listed("wikipedia", where, limit, datasets.get_dataset_config_names)
    if wanted in names:
        return wanted, None if named else f"wikipedia: dump {wanted}"
    language = wanted.partition(".")[2] or wanted
    dumps = sorted(name for name in names if name.partition(".")[2] == language)
    if not dumps:
        languages = sorted({name.partition(".")[2] for name in names})
        raise UserError(
            f"--wikipedia_version {wanted}: no dump of language {language!r}; there is {', '.join(languages[:40])}"
        )
    newest = dumps[-1]
    if not named:
        return newest, f"wikipedia: dump {newest}"
    return newest, f"wikipedia: dump {wanted} is no longer served; using {newest}, the newest one of that language"


def _files(
    name: str, where: str, config_name: str | None, limit: float = HUB_TIMEOUT
) -> tuple[str | None, dict[str, tuple[DataFile, ...]], dict[str, list[str]]]:
    """(revision, files by split, names of classes by column as its card has them) of a data set, here or on the hub."""

    def files_of(path: str, **pinning: Any) -> tuple[str | None, dict[str, tuple[DataFile, ...]], dict[str, list[str]]]:
        builder = datasets.load_dataset_builder(path, config_name, **pinning)
        separator = _separator(name, builder.config)
        found: dict[str, tuple[DataFile, ...]] = {}
        for split, urls in (builder.config.data_files or {}).items():
            files = []
            for url in urls:
                filesystem, file = url_to_fs(url)
                inside = os.path.relpath(url, where)
                if url.startswith("hf://"):
                    inside = filesystem.resolve_path(file).path_in_repo
                files.append(DataFile(inside, url, filesystem.info(file)["size"], limit, separator))
            found[str(split)] = tuple(files)
        features = builder.info.features or {}
        names = {column: kind.names for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
        return pinning.get("revision"), found, names

    revision, files, names = _listed(name, where, limit, files_of)
    if not files or not any(files.values()):
        raise UserError(f"{name}: no data files in {where}; expected {READ}")
    for file in (file for found in files.values() for file in found):
        _ = file.format
    return revision, files, names


def _separator(name: str, config: Any) -> str | None:
    """What a card says between the values of its CSV files; raises `UserError` for other settings of a reader."""
    own = type(config)()
    about = {f.name for f in dataclasses.fields(datasets.BuilderConfig)} | {"features"}
    other = {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if f.name not in about and getattr(config, f.name) != getattr(own, f.name, None)
    }
    found = [other.pop(key) for key in ("sep", "delimiter") if other.get(key) is not None]
    if other:
        said = ", ".join(f"{key}: {value!r}" for key, value in other.items())
        raise UserError(f"{name}: its card sets {said} for the reading of its files, which is not followed here")
    return found[0] if found else None


def _listed(name: str, where: str, limit: float, ask: Callable[..., Result]) -> Result:
    """What `ask(where, revision=, cache_dir=)` finds, in a folder or in the commit that the hub has now.

    The empty cache is for `datasets`, which would answer from one in place of a hub that does not answer.
    """
    if Path(where).is_dir():
        return _explained(name, lambda: ask(where))
    revision = _explained(name, lambda: pinned(where, name, limit))
    with tempfile.TemporaryDirectory() as empty:
        call = lambda: ask(where, revision=revision, cache_dir=empty)  # noqa: E731
        return patiently(lambda: _explained(name, call), name, limit)


def _explained(name: str, call: Any) -> Any:
    """`call()`, with the library's errors about names turned into ours; network errors pass, to be waited for."""
    try:
        return call()
    except datasets.exceptions.DatasetNotFoundError:
        raise UserError(
            f"{name}: not on the hub, or not accessible: check the name OWNER/NAME, `hf auth login` if it is private "
            "or gated, or give a local file"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: its card (README.md) is no YAML: {' '.join(str(error).split())[:300]}") from None
    except (ValueError, RuntimeError, FileNotFoundError, TypeError, KeyError, AttributeError) as error:
        if is_passing(error) or (isinstance(error, OSError) and not isinstance(error, FileNotFoundError)):
            raise
        said = " ".join(str(error).split())
        hint = "; choose one with --dataset_config_name" if "onfig" in said else ""
        if "scripts are no longer supported" in said:
            hint = "; look for a parquet version of it on the hub"
        raise UserError(f"{name}: {said[:400]}{hint}") from None


def repository_card(repository: Repository) -> list[DataFile]:
    """The README.md that tells which files belong to which split; a mirror needs it. Empty where there is none."""
    first = next(file for files in repository.splits.values() for file in files)
    root = first.url.removesuffix(first.path).rstrip("/")

    def found() -> list[DataFile]:
        filesystem, path = url_to_fs(f"{root}/README.md")
        if not filesystem.exists(path):
            return []
        size = filesystem.info(path)["size"]
        return [DataFile("README.md", f"{root}/README.md", size, first.hub_timeout)]

    return patiently(found, f"{repository.name}: README.md", first.hub_timeout)


def text_column(name: str, flags: DataFlags) -> str:
    """The column that holds a data set's text."""
    return TEXT_COLUMNS.get(name, flags.text_column or "text")
