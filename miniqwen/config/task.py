"""What a run trains, and on what: the model, the data set, its splits, and how text and questions fill rows.

Promises: the task follows from the data set where the project knows it, and is asked for where not. Costs: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from miniqwen.config.data import QA_DATASETS, TEXT_DATASETS, DataFlags
from miniqwen.config.flags import flag
from miniqwen.config.models import model_problems


@dataclass(frozen=True)
class TaskFlags(DataFlags):
    """The model to train, and how its data is read."""

    model_path: str | None = flag(None, "folder of the model to start from", group="model", path=True, required=True)
    task: str | None = flag(
        None, "pretrain (text) or finetune (questions); follows from the data sets the project knows", group="data",
        choices=("pretrain", "finetune"))  # fmt: skip
    mixture: str | None = flag(
        None, "shares of tokens for --dataset_name both, as wikipedia=0.7,arxiv=0.3", group="data"
    )
    train_split: str = flag("train", "split to train on", group="data")
    validation_split: str | None = flag(
        None, "split to validate on (default: validation; rows held out of the training split where there is none)",
        group="data")  # fmt: skip
    validation_blocks: int = flag(
        256, "blocks of validation text held out of each source (at most 5 % of a small one)", group="data", least=1
    )
    max_eval_samples: int | None = flag(
        None, "evaluate on the first N validation blocks (or questions) only", group="data", least=1
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
        if self.dataset_name in QA_DATASETS or self.question_column:
            return "finetune"
        return "pretrain"

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
    def shares(self) -> dict[str, float] | None:
        """`--mixture` as {name: share}, summing to 1; None when it was not given."""
        if self.mixture is None:
            return None
        parsed = {name.strip(): float(share) for name, share in (part.split("=") for part in self.mixture.split(","))}
        return {name: share / sum(parsed.values()) for name, share in parsed.items()}

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
        found = []
        known_text, known_qa = self.dataset_name in TEXT_DATASETS, self.dataset_name in QA_DATASETS
        is_known = known_text or known_qa
        if self.dataset_name and not is_known and not (self.task or self.text_column or self.question_column):
            found.append(f"--task: say pretrain or finetune, {self.dataset_name} is not a data set the project knows")
        if (known_text and self.task == "finetune") or (known_qa and self.task == "pretrain"):
            kind = "text (pretrain)" if known_text else "questions (finetune)"
            found.append(f"--task {self.task} contradicts --dataset_name {self.dataset_name}, which is {kind}")
        if self.resolved_task == "finetune" and not known_qa and not (self.question_column and self.answer_column):
            found.append("--question_column and --answer_column are needed to fine-tune on QA data of your own")
        if self.on_bad_data == "skip" and self.token_cache:
            found.append("--on_bad_data skip is for text and questions as they are read: a token cache was read before")
        if self.mixture is not None:
            found += mixture_problems(self.mixture, self.dataset_name)
        if self.preprocessing_num_workers < 0:
            found.append(f"--preprocessing_num_workers {self.preprocessing_num_workers}: must not be negative")
        if self.token_cache and self.resolved_task == "finetune":
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
        if self.resolved_task == "pretrain":
            if self.packing:
                found.append("--packing is for fine-tuning: pretraining text always fills its blocks")
            if self.truncation != "drop":
                found.append(f"--truncation {self.truncation} has no use in pretraining: no text is cut there")
        elif self.document_masking is False:
            found.append(
                "--document_masking False: examples that share a row would see each other, and the loss would depend "
                "on the micro-batch; fine-tuning always keeps them apart"
            )
        return found


def mixture_problems(mixture: str, dataset_name: str | None) -> list[str]:
    """What is wrong with `--mixture`."""
    if dataset_name != "both":
        return ["--mixture belongs to --dataset_name both"]
    shares: dict[str, float] = {}
    for part in mixture.split(","):
        name, _, share = part.partition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            return [f"--mixture {mixture}: {part!r} is not NAME=SHARE, as in wikipedia=0.7,arxiv=0.3"]
    if set(shares) != {"wikipedia", "arxiv"} or any(not 0 < share < float("inf") for share in shares.values()):
        return [f"--mixture {mixture}: needs a share above 0 for each of wikipedia and arxiv"]
    return []
