"""Where text and questions come from: the flags of every command that reads data.

Promises: a name that can be no data set is told with the nearest that is one, before anything is asked of the hub.
Costs: a look for the files and folders that are named.
"""

from __future__ import annotations

import dataclasses
import glob
from dataclasses import dataclass
from pathlib import Path

from miniqwen.config.flags import Flags, flag
from miniqwen.config.values import nearest

TEXT_DATASETS = ("wikipedia", "arxiv", "both")
QA_DATASETS = ("sciq", "commonsenseqa")
BOTH = ("wikipedia", "arxiv")
KNOWN = (*BOTH, *QA_DATASETS)
# what names of data files end in; the first ones come behind the others
ENDINGS = (".gz", ".zst", ".bz2", ".xz", ".parquet", ".arrow", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
SAMPLE_BY = ("line", "paragraph", "document")
HUB_IDS = {
    "wikimedia/wikipedia": "wikipedia", "common-pile/arxiv_papers": "arxiv", "allenai/sciq": "sciq",
    "tau/commonsense_qa": "commonsenseqa", "commonsense_qa": "commonsenseqa",
}  # fmt: skip
ANSWER_READINGS = ("text", "label", "number", "number_from_1", "column", "added")
USUAL_DUMP = "20220301.en"  # of Wikipedia, unless another is named
HUB_TIMEOUT = 1800.0  # seconds


@dataclass(frozen=True)
class DataFlags(Flags):
    """Where text and questions come from: shared by every command that reads data."""

    dataset_name: str | tuple[str, ...] | None = flag(
        None, "wikipedia, arxiv, both, sciq, commonsenseqa, a hub id (OWNER/NAME), or a local file or folder "
        "(.parquet, .arrow, .jsonl, .ndjson, .json, .csv, .tsv, .txt; also .gz, .zst, .bz2, .xz), or a pattern in "
        "quotes ('notes/*.jsonl'), whose files are one data set; of text several, which are mixed (see --mixture)",
        group="data", path=True, required=True, several=True, metavar="NAME [NAME ...]")  # fmt: skip
    dataset_config_name: str | None = flag(None, "configuration (subset) of a hub data set", group="data")
    wikipedia_version: str | None = flag(
        None, "Wikipedia dump as DATE.LANGUAGE; one that is no longer served is replaced by the newest of that "
        f"language, and the run says so (default: {USUAL_DUMP} where it is served, else the newest English one)",
        group="data")  # fmt: skip
    data_root: str | None = flag(
        None, "folder laid out like the hub (DIR/OWNER/NAME/...), used instead of it", group="data", path=True
    )
    cache_dir: str | None = flag(
        None, "where downloads are kept (default: the Hugging Face cache)", group="data", path=True
    )
    hub_timeout: float = flag(
        HUB_TIMEOUT, "seconds to wait, at one place, for a hub that does not answer; then the run saves, and ends with "
        "status 75", group="data")  # fmt: skip
    streaming: bool = flag(
        True, "read text as it is needed; False downloads the files of the data set first", group="data"
    )
    sample_by: str = flag(
        "line", "a document of a .txt file: a line, a paragraph (up to a blank line), or the whole file (document), as "
        "in the text loader of datasets", group="data", choices=SAMPLE_BY)  # fmt: skip
    text_column: str | None = flag(
        None, "column with the text (text data the project has no name for)", group="data",
        metavar="COLUMN")  # fmt: skip
    question_column: str | None = flag(
        None, "column with the question (QA data of your own)", group="data", metavar="COLUMN"
    )
    choices_column: str | None = flag(
        None, "column with the choices: a list of texts, {label, text} as in CommonsenseQA, or {A: text, B: ...}; or "
        "several columns with commas, one a choice", group="data", metavar="COLUMN[,COLUMN...]")  # fmt: skip
    answer_column: str | None = flag(
        None, "column with the answer; it may be one of several columns of choices", group="data", metavar="COLUMN"
    )
    answer_is: str | None = flag(
        None, "what an answer says of its choice: its text, its label (a letter where it has none), its number from 0 "
        "or from 1, the name of its column; added: the right text itself, beside columns of wrong ones as SciQ's "
        "(default: what fits all rows; where several do, they are told)",
        group="data", choices=ANSWER_READINGS)  # fmt: skip
    support_column: str | None = flag(
        None, "column with a supporting passage, for {support} in the template", group="data", metavar="COLUMN"
    )
    id_column: str | None = flag(
        None, "column with a row's id (default: id, else the row number)", group="data", metavar="COLUMN"
    )

    def __post_init__(self) -> None:
        """A data set with a short name is known by its hub id too, unless its columns or configuration are given.

        Beside other data sets, columns are those of the others.
        """
        names = (self.dataset_name,) if isinstance(self.dataset_name, str) else self.dataset_name or ()
        if self.dataset_config_name or (self.column_flags() and len(names) < 2):
            return
        short = tuple(name if is_local(name) else HUB_IDS.get(name, name) for name in names)
        if short != names:
            object.__setattr__(self, "dataset_name", short[0] if len(short) == 1 else short)

    @property
    def named(self) -> dict[str, str]:
        """{name: data set as it was given} of `--dataset_name`: `both` is two, and a local one has its file's name.

        Where two files have the same name, they are called as they were given.
        """
        names = (self.dataset_name,) if isinstance(self.dataset_name, str) else self.dataset_name or ()
        given = dict.fromkeys(part for name in names for part in (BOTH if name == "both" else (name,)))
        local = [name for name in given if name not in KNOWN and is_local(name)]
        short = {name: Path(name).resolve().name if name in local else name for name in given}
        of_file = list(short.values())
        return {short[name] if of_file.count(short[name]) == 1 else name: name for name in given}

    def column_flags(self) -> dict[str, str]:
        """The column mapping that was given, by flag name."""
        return {
            f.name: value
            for f in dataclasses.fields(self)
            if f.name.endswith("_column") and (value := getattr(self, f.name))
        }

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.dataset_name:
            return found
        qa_columns = [name for name in self.column_flags() if name not in ("text_column", "id_column")]
        given = self.named.values()
        if self.column_flags() and all(name in KNOWN for name in given):
            flag_given = next(iter(self.column_flags()))
            found.append(f"--{flag_given}: the columns of {', '.join(given)} are known; leave it out")
        if self.dataset_config_name and all(name in KNOWN for name in given):
            found.append(
                f"--dataset_config_name: the configuration of {', '.join(given)} is known; leave it out"
                + (" (--wikipedia_version names a dump)" if "wikipedia" in given else "")
            )
        if self.answer_is and (all(name in KNOWN for name in given) or not self.choices_column):
            found.append(f"--answer_is {self.answer_is} is for questions of your own with --choices_column")
        elif self.answer_is in ("column", "added") and "," not in str(self.choices_column):
            found.append(f"--answer_is {self.answer_is} needs several columns of choices (--choices_column A,B,C)")
        if self.sample_by != "line" and given and all(name in KNOWN for name in given):
            found.append(
                f"--sample_by {self.sample_by} is for .txt files, and {', '.join(given)} has none: leave it out"
            )
        if self.wikipedia_version and given and "wikipedia" not in given:
            found.append(f"--wikipedia_version {self.wikipedia_version}: Wikipedia is not among the data sets")
        if self.text_column and qa_columns:
            found.append(f"--text_column and --{qa_columns[0]} contradict each other: text data or QA data?")
        for name in given:
            if name not in KNOWN:
                found += unknown_dataset(name)
        if self.hub_timeout < 0:
            found.append(f"--hub_timeout {self.hub_timeout}: must not be negative")
        if self.data_root and not Path(self.data_root).is_dir():
            found.append(
                f"--data_root {self.data_root}: no such folder (make one with `python prepare_datasets.py --download`)"
            )
        return found


def is_local(name: str) -> bool:
    """Whether a data set's name is that of a file or folder here, or a pattern that some fit."""
    fitting = glob.iglob(name, recursive=True)  # noqa: PTH207  # absolute and relative patterns
    return bool(name) and (Path(name).exists() or (glob.has_magic(name) and any(fitting)))


def unknown_dataset(name: str) -> list[str]:
    """Why `name` can be neither a data set of ours, nor a hub id, nor a local file; empty when it may be one."""
    if name in KNOWN or is_local(name):
        return []
    if glob.has_magic(name):
        return [f"--dataset_name {name}: no file fits this pattern"]
    known = TEXT_DATASETS + QA_DATASETS
    near = nearest(name, known, alike=0.7)  # few and short: sicq
    hint = f"; did you mean {near}?" if near else f"; choose from {', '.join(known)}, OWNER/NAME on the hub, or a file"
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1 or Path(name).suffix in ENDINGS
    return [f"--dataset_name {name}: no such data set or file{hint}"] if looks_local else []
