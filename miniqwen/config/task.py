"""What a run trains, and on what: the model, the data set, its splits, and how text and questions fill rows.

Promises: the task follows from the data set where the project knows it, and is asked for where not. Costs: nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from miniqwen.config.data import BOTH, KNOWN, QA_DATASETS, SAMPLE_BY, DataFlags, unknown_dataset
from miniqwen.config.flags import flag
from miniqwen.config.models import model_problems

SETTINGS = ("dataset_config_name", "text_column", "sample_by", "train_split", "validation_split")  # of one data set


@dataclass(frozen=True)
class TaskFlags(DataFlags):
    """The model to train, and how its data is read."""

    model_path: str | None = flag(
        None, "folder of the model to start from", group="model", path=True, required=True,
        aliases=("model_name_or_path",))  # fmt: skip
    task: str | None = flag(
        None, "pretrain (text) or finetune (questions); follows from the data sets the project knows", group="data",
        choices=("pretrain", "finetune"))  # fmt: skip
    mixture: str | None = flag(
        None, "shares of tokens for several data sets, as wikipedia=0.3,notes.jsonl=0.7 (default: equal ones)",
        group="data")  # fmt: skip
    sources: dict[str, dict[str, Any]] | None = flag(  # noqa: RUF009  # it is a field
        None, "in the file of --config: settings of single data sets (see README)", group="data", only_yaml=True
    )
    train_split: str = flag("train", "split to train on", group="data")
    validation_split: str | None = flag(
        None, "split to validate on (default: validation; rows held out of the training split where there is none)",
        group="data")  # fmt: skip
    validation_blocks: int = flag(
        256,
        "blocks of validation text held out of each source (at most 5 % of its text); 0: train on all of it",
        group="data",
        least=0,
    )
    max_eval_samples: int | None = flag(
        None,
        "evaluate on N validation blocks, shared out over the sources (or the first N questions) only",
        group="data",
        least=1,
    )
    allow_data_change: bool = flag(
        False, "resume although the data is not what the checkpoint was made with; the change is recorded", group="data"
    )
    token_cache: str | None = flag(
        None, "folder that `prepare_datasets.py --tokenize` wrote, read instead of the text: same blocks, same cursors",
        group="data", path=True)  # fmt: skip
    on_bad_data: str = flag(
        "error", "text that cannot be read (a broken page, gzip stream, line or UTF-8; a row that is no text): stop, "
        "with a checkpoint, or skip the whole unit (row group, slice, gzipped file; or that row), counted and told; of "
        "questions, rows whose question, choices or answer cannot be read",
        group="data", choices=("error", "skip"))  # fmt: skip
    data_lanes: int | None = flag(
        None, "parallel streams of documents (default: blocks per update of the first run); part of the data order",
        group="data", least=1)  # fmt: skip
    preprocessing_num_workers: int = flag(
        1, "threads that read, tokenize and pack text ahead of the loop; 0: in the loop itself", group="data"
    )
    block_size: int | None = flag(None, "tokens in a pretraining block (default 1024)", group="data", least=1)
    max_seq_length: int | None = flag(
        None, "longest example in fine-tuning (default 512); caps --block_size in pretraining", group="data", least=1
    )
    document_masking: bool | None = flag(
        None, "documents that share a block do not see each other, and positions restart (default: pretraining False; "
        "fine-tuning always)", group="data")  # fmt: skip
    packing: bool = flag(
        False, "fine-tuning: fill blocks of --max_seq_length with whole examples by best fit; the batch then counts "
        "blocks", group="data")  # fmt: skip
    truncation: str = flag(
        "drop", "fine-tuning examples longer than --max_seq_length: drop leaves them out, left cuts the beginning of "
        "their prompts, error lists them", group="data", choices=("drop", "left", "error"))  # fmt: skip

    @property
    def resolved_task(self) -> str:
        """`pretrain` or `finetune`: what --task says, else what the data set is, else what the columns say."""
        if self.task:
            return self.task
        if self.question_column or any(name in QA_DATASETS for name in self.named.values()):
            return "finetune"
        return "pretrain"

    @property
    def task_is_clear(self) -> bool:
        """Whether the flags say it: of a data set that is misspelt, or unknown, nothing else is asked."""
        said = self.task or self.text_column or self.question_column
        return not self.is_misspelt and bool(said or set(self.named.values()) & set(KNOWN))

    @property
    def is_misspelt(self) -> bool:
        """Whether a name can be no data set."""
        return any(map(unknown_dataset, self.named.values()))

    @property
    def pretrains(self) -> bool:
        """Whether it is clear that the task is to pretrain."""
        return self.task_is_clear and self.resolved_task == "pretrain"

    @property
    def finetunes(self) -> bool:
        """Whether it is clear that the task is to fine-tune."""
        return self.task_is_clear and self.resolved_task == "finetune"

    @property
    def masks_documents(self) -> bool:
        """Examples never see each other; documents of a pretraining block only if `--document_masking` is on."""
        return self.resolved_task == "finetune" or bool(self.document_masking)

    @property
    def length(self) -> int:
        """Tokens in a pretraining block, or in the longest fine-tuning example."""
        if self.resolved_task == "finetune":
            return self.max_seq_length or 512
        block = self.block_size or 1024
        return min(block, self.max_seq_length or block)

    @property
    def shares(self) -> dict[str, float]:
        """{name: share of the tokens}, summing to 1: `--mixture`, or equal ones."""
        named = self.named
        asked = _mixture(self.mixture, named) if self.mixture is not None else dict.fromkeys(named, 1.0)
        return {name: asked[name] / sum(asked.values()) for name in named}

    def of_source(self, name: str) -> Self:
        """The flags of one data set alone, with its settings of `sources`."""
        given = self.named[name]
        stored = self.sources or {}
        return dataclasses.replace(self, dataset_name=given, **stored.get(name, stored.get(given, {})))

    @property
    def resumes_model_path(self) -> bool:
        """Whether `--model_path` is the folder of the run that is resumed; see OutputFlags."""
        return False

    def problems(self) -> list[str]:
        sizes_are_positive = all(size is None or size > 0 for size in (self.block_size, self.max_seq_length))
        return [
            *super().problems(),
            *self._task_problems(),
            *self._row_problems(),
            *model_problems(
                self.model_path, self.length if sizes_are_positive else None, resumed=self.resumes_model_path
            ),
        ]

    def _task_problems(self) -> list[str]:
        """Which data set this is, and what must be said of one that the project does not know."""
        found: list[str] = []
        given = tuple(self.named.values())
        text, questions = [name for name in given if name in BOTH], [name for name in given if name in QA_DATASETS]
        unknown = [name for name in given if name not in KNOWN and not unknown_dataset(name)]
        if unknown and not (text or questions or self.task or self.text_column or self.question_column):
            are = "is not a data set" if len(unknown) == 1 else "are no data sets"
            found.append(f"--task: say pretrain or finetune, {', '.join(unknown)} {are} the project knows")
        if (text and self.resolved_task == "finetune") or (questions and self.resolved_task == "pretrain"):
            kind = "text (pretrain)" if text else "questions (finetune)"
            found.append(f"--task {self.resolved_task} contradicts --dataset_name {' '.join(text or questions)}, "
                         f"which is {kind}")  # fmt: skip
        if len(given) > 1 and unknown and self.resolved_task == "finetune":
            found.append(
                f"--dataset_name {' '.join(given)}: fine-tuning is on {' and '.join(QA_DATASETS)}, "
                "or on one other data set"
            )
        if len(unknown) > 1 and self.dataset_config_name:
            found.append(f"--dataset_config_name: whose, of {', '.join(unknown)}? Say it under `sources:` in --config")
        found += [] if self.is_misspelt else source_problems(self.sources or {}, self.named)
        if self.finetunes and not questions and not (self.question_column and self.answer_column):
            found.append("--question_column and --answer_column are needed to fine-tune on QA data of your own")
        if self.on_bad_data == "skip" and self.token_cache:
            found.append("--on_bad_data skip is for text and questions as they are read: a token cache was read before")
        if self.mixture is not None and not self.is_misspelt:
            found += mixture_problems(self.mixture, self.named)
        if self.preprocessing_num_workers < 0:
            found.append(f"--preprocessing_num_workers {self.preprocessing_num_workers}: must not be negative")
        if self.token_cache and self.finetunes:
            found.append("--token_cache holds text for pretraining; fine-tuning tokenizes its questions itself")
        elif self.token_cache and not Path(self.token_cache).is_dir():
            found.append(
                f"--token_cache {self.token_cache}: no such folder (make one with "
                "`python prepare_datasets.py --tokenize DIR --model_path M`)"
            )
        return found

    def _row_problems(self) -> list[str]:
        """What is wrong with how documents and examples are laid out."""
        found = []
        if self.pretrains:
            if self.packing:
                found.append("--packing is for fine-tuning: pretraining text always fills its blocks")
            if self.truncation != "drop":
                found.append(f"--truncation {self.truncation} has no use in pretraining: no text is cut there")
            columns = ("question_column", "choices_column", "answer_column", "support_column", "id_column")
            found += self.useless("in pretraining: it is for questions", *columns)
        elif self.finetunes:
            found += self.useless("in fine-tuning: --max_seq_length is the longest example", "block_size")
            found += self.useless("in fine-tuning: it is for text", "data_lanes", "validation_blocks")
            found += self.useless("in fine-tuning, which tokenizes once, before it begins", "preprocessing_num_workers")
        if self.finetunes and self.document_masking is False:
            found.append(
                "--document_masking False: examples that share a row would see each other, and the loss would depend "
                "on the micro-batch; fine-tuning always keeps them apart"
            )
        return found


def _mixture(mixture: str, named: Mapping[str, str]) -> dict[str, float]:
    """`--mixture` as {name: share}; a data set may be called as it was given. `ValueError` for what is no share."""
    names = {given: name for name, given in named.items()}
    shares: dict[str, float] = {}
    for part in mixture.split(","):
        name, _, share = part.rpartition("=")
        name = names.get(name.strip(), name.strip())
        if not name or name in shares:
            raise ValueError(f"{name} is there twice" if name else f"{part!r} is not NAME=SHARE")
        try:
            shares[name] = float(share)
        except ValueError:
            raise ValueError(f"{part!r} is not NAME=SHARE, as in wikipedia=0.7,arxiv=0.3") from None
    return shares


def mixture_problems(mixture: str, named: Mapping[str, str]) -> list[str]:
    """What is wrong with `--mixture`."""
    if len(named) < 2:
        return ["--mixture is for several data sets: name them all in --dataset_name"]
    try:
        shares = _mixture(mixture, named)
    except ValueError as error:
        return [f"--mixture {mixture}: {error}"]
    if set(shares) != set(named) or any(not 0 < share < float("inf") for share in shares.values()):
        return [f"--mixture {mixture}: needs a share above 0 for each of {', '.join(named)}, and for no other"]
    return []


def source_problems(sources: Mapping[str, Mapping[str, Any]], named: Mapping[str, str]) -> list[str]:
    """What is wrong with `sources:`."""
    found = []
    for name, settings in sources.items():
        if name not in (*named, *named.values()):
            found.append(f"sources: {name} is none of the data sets in --dataset_name ({', '.join(named)})")
        for setting, value in settings.items():
            if setting not in SETTINGS:
                found.append(f"sources: {name}: {setting} is no setting of a data set; there are {', '.join(SETTINGS)}")
            elif not isinstance(value, str) or (setting == "sample_by" and value not in SAMPLE_BY):
                found.append(f"sources: {name}: {setting}: {value!r} is not one of its values")
            elif setting in ("text_column", "dataset_config_name") and named.get(name, name) in KNOWN:
                found.append(f"sources: {name}: its {setting} is known; leave it out")
    return found
