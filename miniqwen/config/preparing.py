"""What the user asked of prepare_datasets.py.

Promises: as flags.py. Costs: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from miniqwen.config.data import (
    ANSWER_READINGS,
    BOTH,
    HUB_IDS,
    HUB_TIMEOUT,
    KNOWN,
    USUAL_DUMP,
    DataFlags,
    is_local,
    unknown_dataset,
)
from miniqwen.config.flags import Flags, flag
from miniqwen.config.models import model_problems
from miniqwen.config.pasted import PREPARING, Pasted

QUESTION_FLAGS = ("question_column", "choices_column", "answer_column", "answer_is", "support_column", "id_column")


@dataclass(frozen=True)
class PrepareConfig(Flags):
    """Flags of prepare_datasets.py."""

    pasted: ClassVar[Mapping[str, Pasted]] = PREPARING
    example = "--all"

    wikipedia: bool = flag(False, "prepare Wikipedia", group="what")
    arxiv: bool = flag(False, "prepare the arXiv papers", group="what")
    sciq: bool = flag(False, "prepare SciQ", group="what")
    commonsenseqa: bool = flag(False, "prepare CommonsenseQA", group="what")
    all: bool = flag(False, "prepare all four", group="what")
    demo: str | None = flag(None, "write the generated demo mirror to this folder instead", group="what", path=True)
    download: str | None = flag(
        None, "copy the files of the chosen data sets to this folder, for --data_root", group="how", path=True
    )
    tokenize: str | None = flag(
        None, "tokenize the training text into this folder, for train_loop.py --token_cache", group="how", path=True
    )
    model_path: str | None = flag(None, "folder of the model whose tokenizer --tokenize uses", group="how", path=True)
    dataset_name: str | None = flag(
        None, "text or questions of your own to prepare: a hub id (OWNER/NAME), a local file or folder, or a "
        "pattern in quotes; the four data sets above are known by their hub ids too",
        group="what", path=True)  # fmt: skip
    dataset_config_name: str | None = flag(None, "configuration (subset) of --dataset_name", group="what")
    text_column: str | None = flag(None, "column with the text of --dataset_name (default: text)", group="what")
    question_column: str | None = flag(
        None, "column with the question: --dataset_name is questions of your own", group="what"
    )
    choices_column: str | None = flag(
        None, "column with its choices, or several with commas, one a choice", group="what"
    )
    answer_column: str | None = flag(None, "column with its answer", group="what")
    answer_is: str | None = flag(
        None, "what an answer says of its choice (see train_loop.py --help)", group="what", choices=ANSWER_READINGS
    )
    support_column: str | None = flag(None, "column with a supporting passage", group="what")
    id_column: str | None = flag(None, "column with a row's id", group="what")
    sample_by: str = flag(
        "line", "a document of a .txt file: line, paragraph or document", group="what",
        choices=("line", "paragraph", "document"))  # fmt: skip
    streaming: bool = flag(
        True, "read only the rows that are shown; False downloads each data set to the cache", group="how"
    )
    wikipedia_version: str | None = flag(
        None, f"Wikipedia dump as DATE.LANGUAGE (default: {USUAL_DUMP}, else the newest English one)", group="how"
    )
    data_root: str | None = flag(None, "check a mirror instead of the hub", group="how", path=True)
    cache_dir: str | None = flag(
        None, "where downloads are kept (default: the Hugging Face cache)", group="how", path=True
    )
    hub_timeout: float = flag(HUB_TIMEOUT, "seconds to wait, at one place, for a hub that does not answer", group="how")
    hints: bool = flag(True, "say which command comes next", group="how")
    num_samples: int = flag(2, "rows to show of each data set", group="how")

    @property
    def datasets(self) -> tuple[str, ...]:
        """What to prepare; a data set that has a flag is known by its name and hub id too, unless its text is given."""
        chosen = KNOWN if self.all else tuple(name for name in KNOWN if getattr(self, name))
        own: tuple[str, ...] = (self.dataset_name,) if self.dataset_name else ()
        if not (self.text_column or self.dataset_config_name or is_local(self.dataset_name or "")):
            own = tuple(part for name in own for part in (BOTH if name == "both" else (HUB_IDS.get(name, name),)))
        return tuple(dict.fromkeys((*chosen, *own)))

    @property
    def asks(self) -> bool:
        """Whether --dataset_name is questions."""
        return bool(self.question_column or self.choices_column or self.answer_column)

    def reading(self, name: str) -> DataFlags:
        """How a data set is read, as the loops' flags say it; columns are those of --dataset_name."""
        own = {flag: getattr(self, flag) for flag in ("text_column", *QUESTION_FLAGS) if name == self.dataset_name}
        return DataFlags(
            dataset_name=name, data_root=self.data_root, cache_dir=self.cache_dir, streaming=self.streaming,
            wikipedia_version=self.wikipedia_version, sample_by=self.sample_by,
            dataset_config_name=self.dataset_config_name if name == self.dataset_name else None,
            hub_timeout=self.hub_timeout, **own,
        )  # fmt: skip

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.datasets and not self.demo:
            found.append(
                "nothing to prepare: give --all, --wikipedia, --arxiv, --sciq, --commonsenseqa, --dataset_name NAME, "
                "or --demo DIR"
            )
        for name in self.datasets:
            if name not in KNOWN:
                found += unknown_dataset(name)
        alone = ("dataset_config_name", "text_column", "sample_by", *QUESTION_FLAGS)
        found += [
            f"--{name} belongs to --dataset_name, which is not given"
            for name in alone
            if not self.dataset_name and getattr(self, name) != type(self).__dataclass_fields__[name].default
        ]
        if self.dataset_name in self.datasets and self.dataset_name not in KNOWN:
            found += [problem for problem in self.reading(self.dataset_name).problems() if problem not in found]
            if self.tokenize and self.asks:
                found.append("--tokenize is for text, and --question_column says that these are questions")
        if self.download and is_local(self.dataset_name or "") and self.dataset_name not in KNOWN:
            found.append(f"--download: {self.dataset_name} is on this machine already; copy it yourself")
        if self.wikipedia_version and "wikipedia" not in self.datasets:
            found.append(f"--wikipedia_version {self.wikipedia_version}: Wikipedia is not among what is prepared")
        if bool(self.tokenize) != bool(self.model_path):
            found.append("--tokenize DIR and --model_path M belong together: the model's tokenizer makes the tokens")
        if self.tokenize:
            found += model_problems(self.model_path, None)
        if self.datasets and self.demo:
            found.append("--demo writes data of its own; leave the other data sets out")
        for name in ("num_samples", "hub_timeout"):
            if getattr(self, name) < 0:
                found.append(f"--{name} {getattr(self, name)}: must not be negative")
        if self.data_root and not Path(self.data_root).is_dir():
            found.append(f"--data_root {self.data_root}: no such folder")
        for name in ("demo", "download", "tokenize"):
            target = getattr(self, name)
            if target and Path(target).exists() and not Path(target).is_dir():
                found.append(f"--{name} {target} is a file, not a folder")
        return found
