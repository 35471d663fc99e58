"""What the user asked for: each command's flags and every check that needs no model; frozen afterwards.

Promises: names are those of `transformers.TrainingArguments` where it has one; contradictions between flags, and with
the files they name, are found before anything is loaded. Costs: nothing heavy is imported.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miniqwen.config.flags import Flags, UserError, dump, flag, parse, user_errors_exit_2

__all__ = ["UserError", "dump", "parse", "user_errors_exit_2"]

SCHEDULES = ("linear", "cosine", "cosine_with_min_lr", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
             "warmup_stable_decay")  # fmt: skip
TEXT_DATASETS = ("wikipedia", "arxiv", "both")
QA_DATASETS = ("sciq", "commonsenseqa")
TRACKERS = ("tensorboard", "wandb")
STOP_FILE = "STOP"  # touched in --output_dir, it ends the run
HUB_TIMEOUT = 1800.0  # seconds
# What a run leaves in its folder: all that --overwrite_output_dir deletes there.
LEFT_BY_A_RUN = (
    STOP_FILE, "bad_updates.json", "config.yaml", "metrics.jsonl", "trainer_state.json", "runs", "wandb", "report.html",
    "checkpoint-*", ".*.tmp", "model*.safetensors", "model.safetensors.index.json", "config.json",
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "prompt_templates.json",
)  # fmt: skip


@dataclass(frozen=True)
class DataFlags(Flags):
    """Where text and questions come from: shared by every command that reads data."""

    dataset_name: str | None = flag(
        None, "wikipedia, arxiv, both, sciq, commonsenseqa, a hub id (OWNER/NAME), or a local file or folder "
        "(.parquet, .jsonl, .json, .csv, .txt; also .gz)", group="data", required=True)  # fmt: skip
    dataset_config_name: str | None = flag(None, "configuration (subset) of a hub data set", group="data")
    wikipedia_version: str = flag(
        "20220301.en", "Wikipedia dump as DATE.LANGUAGE; one that the hub no longer serves is replaced by the newest "
        "of that language, and the run says so", group="data")  # fmt: skip
    data_root: str | None = flag(
        None, "folder laid out like the hub (DIR/OWNER/NAME/...), used instead of it", group="data"
    )
    cache_dir: str | None = flag(None, "where downloads are kept (default: the Hugging Face cache)", group="data")
    hub_timeout: float = flag(
        HUB_TIMEOUT, "seconds to wait, at one place, for a hub that does not answer; then the run saves, and ends with "
        "status 75", group="data")  # fmt: skip
    streaming: bool = flag(
        True, "read text as it is needed; False downloads the files of the data set first", group="data"
    )
    sample_by: str = flag(
        "line", "a document of a .txt file: a line, a paragraph (up to a blank line), or the whole file (document), as "
        "in the text loader of datasets", group="data", choices=("line", "paragraph", "document"))  # fmt: skip
    text_column: str | None = flag(None, "column with the text (text data the project has no name for)", group="data")
    question_column: str | None = flag(None, "column with the question (QA data of your own)", group="data")
    choices_column: str | None = flag(
        None, "column with the choices: a list of texts, or {label, text} as in CommonsenseQA; several columns with "
        "commas (distractor1,distractor2,...) to which the answer is added", group="data")  # fmt: skip
    answer_column: str | None = flag(
        None, "column with the answer: a choice's text, its label, or its number from 0", group="data")  # fmt: skip
    support_column: str | None = flag(
        None, "column with a supporting passage, for {support} in the template", group="data"
    )
    id_column: str | None = flag(None, "column with a row's id (default: id, else the row number)", group="data")

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
        if self.dataset_name in TEXT_DATASETS and self.column_flags():
            found.append(
                f"--{next(iter(self.column_flags()))}: the columns of {self.dataset_name} are known; leave it out"
            )
        if self.dataset_name in QA_DATASETS and self.column_flags():
            found.append(
                f"--{next(iter(self.column_flags()))}: the columns of {self.dataset_name} are known; leave it out"
            )
        if self.text_column and qa_columns:
            found.append(f"--text_column and --{qa_columns[0]} contradict each other: text data or QA data?")
        if self.dataset_name not in TEXT_DATASETS + QA_DATASETS:
            found += unknown_dataset(self.dataset_name)
        if self.hub_timeout < 0:
            found.append(f"--hub_timeout {self.hub_timeout}: must not be negative")
        if self.data_root and not Path(self.data_root).is_dir():
            found.append(
                f"--data_root {self.data_root}: no such folder (make one with `python prepare_datasets.py --download`)"
            )
        return found


def unknown_dataset(name: str) -> list[str]:
    """Why `name` can be neither a data set of ours, nor a hub id, nor a local file; empty when it may be one."""
    if Path(name).exists():
        return []
    known = TEXT_DATASETS + QA_DATASETS
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = (
        f"; did you mean {near[0]}?" if near else f"; choose from {', '.join(known)}, OWNER/NAME on the hub, or a file"
    )
    looks_local = (
        name.startswith((".", "/", "~"))
        or name.count("/") != 1
        or Path(name).suffix in (".parquet", ".jsonl", ".json", ".gz", ".csv", ".txt")
    )
    return [f"--dataset_name {name}: no such data set or file{hint}"] if looks_local else []


@dataclass(frozen=True)
class TrainConfig(DataFlags):
    """Flags of train_loop.py."""

    model_path: str | None = flag(None, "folder of the model to start from", group="model", required=True)
    output_dir: str | None = flag(None, "where the run is written", group="output", required=True)
    overwrite_output_dir: bool = flag(
        False, "delete what an earlier run left in --output_dir, and start afresh", group="output"
    )
    resume_from_checkpoint: str = flag(
        "none", "auto: continue from the newest complete checkpoint in --output_dir; a checkpoint's path; or none",
        group="output")  # fmt: skip
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
        256, "blocks of validation text held out of each source (at most 5 % of a small one)", group="data"
    )
    max_eval_samples: int | None = flag(
        None, "evaluate on the first N validation blocks (or questions) only", group="data"
    )
    allow_data_change: bool = flag(
        False, "resume although the data is not what the checkpoint was made with; the change is recorded", group="data"
    )
    token_cache: str | None = flag(
        None, "folder that `prepare_datasets.py --tokenize` wrote, read instead of the text: same blocks, same cursors",
        group="data")  # fmt: skip
    on_bad_data: str = flag(
        "error", "text that cannot be read (a broken page, gzip stream, line or UTF-8; a row that is no text): stop, "
        "with a checkpoint, or skip the whole unit (row group, slice, gzipped file; or that row), counted and told",
        group="data", choices=("error", "skip"))  # fmt: skip
    data_lanes: int | None = flag(
        None, "parallel streams of documents (default: blocks per update of the first run); part of the data order",
        group="data")  # fmt: skip
    preprocessing_num_workers: int = flag(
        1, "threads that read, tokenize and pack text ahead of the loop; 0: in the loop itself", group="data"
    )
    block_size: int | None = flag(None, "tokens in a pretraining block (default 1024)", group="data")
    max_seq_length: int | None = flag(
        None, "longest example in fine-tuning (default 512); caps --block_size in pretraining", group="data"
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

    do_qa_format: bool = flag(
        True, "ask with the prompt template and train on the answer only; False: plain text", group="prompt"
    )
    prompt_template: str | None = flag(
        None, "text before the answer, with {question}, {choices}, {support}", group="prompt"
    )
    choices_template: str | None = flag(None, "one line a choice, with {label} and {text}", group="prompt")

    do_train: bool | None = flag(None, "train (this is the default unless only --do_eval is given)", group="training")
    do_eval: bool | None = flag(None, "evaluate: at the end, and as --eval_strategy says", group="training")
    per_device_train_batch_size: int = flag(8, "blocks (or examples) a device takes at once", group="training")
    per_device_eval_batch_size: int = flag(8, "the same in evaluation", group="training")
    gradient_accumulation_steps: int = flag(1, "micro-batches per update", group="training")
    max_steps: int = flag(-1, "updates in all; beats --num_train_epochs", group="training")
    num_train_epochs: float = flag(3.0, "passes over the questions (fine-tuning)", group="training")
    learning_rate: float = flag(5e-5, "peak learning rate", group="training")
    lr_scheduler_type: str = flag("linear", "learning rate over the updates", group="training", choices=SCHEDULES)
    min_lr_ratio: float = flag(
        0.0, "share of the peak at which cosine_with_min_lr, polynomial and warmup_stable_decay end", group="training"
    )
    decay_ratio: float = flag(0.2, "share of the updates that warmup_stable_decay decays over", group="training")
    warmup_steps: int = flag(0, "updates of linear warm-up", group="training")
    warmup_ratio: float = flag(0.0, "the same as a share of all updates", group="training")
    optim: str = flag(
        "adamw", "muon: Muon for the matrices, AdamW for the rest", group="training", choices=("adamw", "muon")
    )
    weight_decay: float = flag(0.0, "decoupled weight decay of the matrices", group="training")
    adam_beta1: float = flag(0.9, "AdamW's beta 1", group="training")
    adam_beta2: float = flag(0.999, "AdamW's beta 2", group="training")
    adam_epsilon: float = flag(1e-8, "AdamW's epsilon", group="training")
    max_grad_norm: float = flag(1.0, "clip the gradient to this norm; 0 turns clipping off", group="training")
    seed: int = flag(42, "seed of the data order and the shuffling", group="training")
    fp16: bool = flag(False, "mixed precision with float16 (needs a GPU)", group="precision")
    bf16: bool = flag(False, "mixed precision with bfloat16", group="precision")
    gradient_checkpointing: bool = flag(
        False, "recompute activations: less memory, about a third slower", group="precision"
    )
    torch_compile: bool = flag(False, "compile the layers with torch.compile", group="precision")

    deepspeed: str | None = flag(
        None, "DeepSpeed JSON with ZeRO settings (ds_configs/ has some), where no Accelerate file asks for ZeRO",
        group="launch")  # fmt: skip
    fsdp: str | None = flag(
        None, "FSDP2, where no Accelerate file asks for it: full_shard, or shard_grad_op (parameters stay gathered "
        "until the backward pass); with offload, parameters rest on the CPU", group="launch")  # fmt: skip
    local_rank: int = flag(-1, "given by some launchers; the environment says it too", group="launch")

    eval_strategy: str = flag(
        "no", "when to evaluate during training", group="evaluation", choices=("no", "steps", "epoch"),
        aliases=("evaluation_strategy",))  # fmt: skip
    eval_steps: int | None = flag(None, "updates between evaluations (default: --logging_steps)", group="evaluation")
    load_best_model_at_end: bool = flag(False, "write the best evaluated model as the final one", group="evaluation")
    metric_for_best_model: str = flag("eval_loss", "eval_loss, or eval_accuracy in fine-tuning", group="evaluation")
    greater_is_better: bool | None = flag(None, "direction of the metric (default: by its name)", group="evaluation")
    early_stopping_patience: int | None = flag(None, "stop after N evaluations without a new best", group="evaluation")

    max_time: str | None = flag(
        None, "save and end after this time: seconds, MM:SS, HH:MM:SS or D-HH:MM:SS, from the start of the process",
        group="survival")  # fmt: skip
    preempted_exit_code: int = flag(0, "exit status of a run that was stopped and saved", group="survival")
    collective_timeout: float = flag(
        600.0, "seconds after which a rank that does not come to a collective ends the run; at the start, until the "
        "first update is made, at least 1800", group="survival")  # fmt: skip
    max_bad_steps: int = flag(
        10, "updates in a row with a loss or gradient that is not finite, after which the run fails; one such update "
        "is skipped and counted", group="survival")  # fmt: skip

    logging_steps: int = flag(10, "updates between two lines of metrics", group="output")
    save_steps: int = flag(500, "updates between checkpoints; the last update is always saved", group="output")
    async_save: bool = flag(
        False, "write checkpoints in the background: training goes on after a copy is made, in the memory of rank 0 "
        "(parameters and optimizer, in fp32)", group="output")  # fmt: skip
    save_total_limit: int | None = flag(None, "keep the newest N checkpoints (and the best one)", group="output")
    report_to: tuple[str, ...] = flag(
        ("tensorboard",), "trackers beside metrics.jsonl: tensorboard, wandb, all, none", group="output",
        choices=(*TRACKERS, "all", "none"))  # fmt: skip
    run_name: str | None = flag(None, "name of the run in W&B (default: the output folder)", group="output")

    @property
    def alike(self) -> dict[str, object]:
        """What every process has to be given alike: {"--FLAG": value}."""
        return {f"--{name}": value for name, value in vars(self).items() if name != "local_rank"}

    @property
    def trains(self) -> bool:
        return self.do_train if self.do_train is not None else not self.do_eval

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
    def trackers(self) -> tuple[str, ...]:
        if "none" in self.report_to:
            return ()
        return TRACKERS if "all" in self.report_to else self.report_to

    @property
    def shares(self) -> dict[str, float] | None:
        """`--mixture` as {name: share}, summing to 1; None when it was not given."""
        if self.mixture is None:
            return None
        parsed = {name.strip(): float(share) for name, share in (part.split("=") for part in self.mixture.split(","))}
        return {name: share / sum(parsed.values()) for name, share in parsed.items()}

    @property
    def max_seconds(self) -> float | None:
        """`--max_time` in seconds; None when it was not given. Raises `ValueError` when it is no time."""
        return None if self.max_time is None else seconds(self.max_time)

    @property
    def best_metric(self) -> str:
        """`eval_loss` or `eval_accuracy`; as in transformers, --metric_for_best_model may leave the `eval_` out."""
        return f"eval_{self.metric_for_best_model.removeprefix('eval_')}"

    def once_an_epoch(self, updates: int | None) -> tuple[TrainConfig, list[str]]:
        """With `--packing` an epoch has few `updates`: steps between evaluations and saves fit in one; and what to say.

        Flags that were meant for epochs of single examples would come too rarely, or never.
        """
        if not self.packing or updates is None:
            return self, []
        asked = {"save_steps": self.save_steps}
        if self.eval_strategy == "steps":
            asked["eval_steps"] = self.eval_steps or self.logging_steps
        lower: dict[str, Any] = {name: updates for name, steps in asked.items() if steps > updates}
        notes = [
            f"--{name} {asked[name]} is lowered to {updates}: with --packing an epoch has {updates} updates"
            for name in lower
        ]
        return dataclasses.replace(self, **lower), notes

    @property
    def larger_is_better(self) -> bool:
        return self.greater_is_better if self.greater_is_better is not None else self.best_metric != "eval_loss"

    def problems(self) -> list[str]:
        return [
            *super().problems(),
            *self._data_problems(),
            *self._step_problems(),
            *self._evaluation_problems(),
            *precision_problems(self.fp16, self.bf16),
            *self._survival_problems(),
            *self._launch_problems(),
            *model_problems(self.model_path, self.length if self._sizes_are_positive() else None),
            *self._output_problems(),
        ]

    def _sizes_are_positive(self) -> bool:
        return all(size is None or size > 0 for size in (self.block_size, self.max_seq_length))

    def _data_problems(self) -> list[str]:
        found = []
        known_text, known_qa = self.dataset_name in TEXT_DATASETS, self.dataset_name in QA_DATASETS
        if (
            self.dataset_name
            and not (known_text or known_qa)
            and not (self.task or self.text_column or self.question_column)
        ):
            found.append(f"--task: say pretrain or finetune, {self.dataset_name} is not a data set the project knows")
        if (known_text and self.task == "finetune") or (known_qa and self.task == "pretrain"):
            kind = "text (pretrain)" if known_text else "questions (finetune)"
            found.append(f"--task {self.task} contradicts --dataset_name {self.dataset_name}, which is {kind}")
        if self.resolved_task == "finetune" and not known_qa and not (self.question_column and self.answer_column):
            found.append("--question_column and --answer_column are needed to fine-tune on QA data of your own")
        if (
            self.resolved_task == "finetune"
            and not known_qa
            and not self.choices_column
            and self.best_metric == "eval_accuracy"
        ):
            found.append("--metric_for_best_model eval_accuracy needs --choices_column: accuracy ranks choices")
        if self.on_bad_data == "skip" and (self.resolved_task == "finetune" or self.token_cache):
            found.append("--on_bad_data skip is for streamed text: questions and token caches are read whole before")
        if self.mixture is not None:
            found += mixture_problems(self.mixture, self.dataset_name)
        if self.resolved_task == "pretrain":
            for name in ("prompt_template", "choices_template"):
                if getattr(self, name):
                    found.append(f"--{name} has no use in pretraining")
        elif not self.do_qa_format and (self.prompt_template or self.choices_template):
            found.append("--prompt_template and --choices_template have no use with --do_qa_format False")
        found += self._example_problems()
        for name in ("block_size", "max_seq_length", "per_device_train_batch_size", "per_device_eval_batch_size",
                     "gradient_accumulation_steps", "validation_blocks", "max_eval_samples", "data_lanes",
                     "logging_steps", "save_steps", "eval_steps", "save_total_limit",
                     "early_stopping_patience"):  # fmt: skip
            if getattr(self, name) is not None and getattr(self, name) < 1:
                found.append(f"--{name} {getattr(self, name)}: must be at least 1")
        if self.preprocessing_num_workers < 0:
            found.append(f"--preprocessing_num_workers {self.preprocessing_num_workers}: must not be negative")
        if self.allow_data_change and self.resume_from_checkpoint == "none":
            found.append("--allow_data_change belongs to --resume_from_checkpoint")
        if self.token_cache and self.resolved_task == "finetune":
            found.append("--token_cache holds text for pretraining; fine-tuning tokenizes its questions itself")
        elif self.token_cache and not Path(self.token_cache).is_dir():
            found.append(
                f"--token_cache {self.token_cache}: no such folder (make one with "
                "`python prepare_datasets.py --tokenize DIR --model_path M`)"
            )
        return found

    def _example_problems(self) -> list[str]:
        """What is wrong with how examples are laid out."""
        found = []
        if self.resolved_task == "pretrain":
            if self.packing:
                found.append("--packing is for fine-tuning: pretraining text always fills its blocks")
            if self.truncation != "drop":
                found.append(f"--truncation {self.truncation} has no use in pretraining: no text is cut there")
            return found
        if self.document_masking is False:
            found.append(
                "--document_masking False: examples that share a row would see each other, and the loss would depend "
                "on the micro-batch; fine-tuning always keeps them apart"
            )
        if self.truncation == "left" and not self.do_qa_format:
            found.append("--truncation left cuts prompts, and with --do_qa_format False there are none")
        return found

    def _step_problems(self) -> list[str]:
        found = []
        if self.max_steps == 0 or self.max_steps < -1:
            found.append(f"--max_steps {self.max_steps}: must be at least 1 (or -1: by --num_train_epochs)")
        if self.max_steps == -1 and self.resolved_task == "pretrain" and self.trains:
            found.append("--max_steps: pretraining streams text without a known end; say how many updates to make")
        if self.max_steps == -1 and self.num_train_epochs <= 0:
            found.append(f"--num_train_epochs {self.num_train_epochs}: must be above 0")
        if not self.learning_rate > 0:
            found.append(f"--learning_rate {self.learning_rate}: must be above 0")
        if self.warmup_steps < 0 or not 0 <= self.warmup_ratio <= 1:
            found.append("--warmup_steps must not be negative, and --warmup_ratio must lie between 0 and 1")
        if self.warmup_steps and self.warmup_ratio:
            found.append("--warmup_steps and --warmup_ratio contradict each other: give one")
        if 0 < self.max_steps < self.warmup_steps:
            found.append(
                f"--warmup_steps {self.warmup_steps} is longer than the training, --max_steps {self.max_steps}"
            )
        for name, low, high in (
            ("min_lr_ratio", 0, 1),
            ("decay_ratio", 0, 1),
            ("adam_beta1", 0, 1),
            ("adam_beta2", 0, 1),
        ):
            if not low <= getattr(self, name) <= high:
                found.append(f"--{name} {getattr(self, name)}: must lie between {low} and {high}")
        for name in ("max_grad_norm", "weight_decay", "adam_epsilon"):
            if getattr(self, name) < 0:
                found.append(f"--{name} {getattr(self, name)}: must not be negative")
        return found

    def _evaluation_problems(self) -> list[str]:
        found = []
        metrics = (
            ("eval_loss",)
            if self.resolved_task == "pretrain" or not self.do_qa_format
            else ("eval_loss", "eval_accuracy")
        )
        if self.best_metric not in metrics:
            found.append(f"--metric_for_best_model {self.metric_for_best_model}: this run has {' and '.join(metrics)}")
        if self.eval_strategy == "no" and self.load_best_model_at_end:
            found.append("--load_best_model_at_end needs evaluations to choose by: add --eval_strategy steps")
        if self.eval_strategy == "no" and self.early_stopping_patience:
            found.append("--early_stopping_patience needs evaluations: add --eval_strategy steps")
        if self.eval_strategy == "epoch" and self.resolved_task == "pretrain":
            found.append("--eval_strategy epoch: streamed text has no epochs; use --eval_strategy steps --eval_steps N")
        if self.do_train is False and self.do_eval is False:
            found.append("--do_train False --do_eval False leaves nothing to do")
        if len(self.report_to) > 1 and {"all", "none"} & set(self.report_to):
            found.append(f"--report_to {' '.join(self.report_to)}: `all` and `none` stand alone")
        return found

    def _launch_problems(self) -> list[str]:
        found = []
        if self.deepspeed is not None and not Path(self.deepspeed).is_file():
            found.append(f"--deepspeed {self.deepspeed}: no such file; ds_configs/ has examples")
        if self.fsdp is not None:
            words = self.fsdp.split()
            unknown = [word for word in words if word not in ("full_shard", "shard_grad_op", "auto_wrap", "offload")]
            if unknown or len({"full_shard", "shard_grad_op"} & set(words)) != 1:
                found.append(f"--fsdp {self.fsdp!r}: expected full_shard or shard_grad_op, and perhaps offload")
        return found

    def _survival_problems(self) -> list[str]:
        found = []
        try:
            if self.max_seconds is not None and not self.max_seconds > 0:
                found.append(f"--max_time {self.max_time}: must be above 0")
        except ValueError:
            found.append(f"--max_time {self.max_time}: expected seconds, MM:SS, HH:MM:SS or D-HH:MM:SS")
        if not 0 <= self.preempted_exit_code <= 255:
            found.append(f"--preempted_exit_code {self.preempted_exit_code}: must lie between 0 and 255")
        if not self.collective_timeout >= 1:
            found.append(f"--collective_timeout {self.collective_timeout:g}: must be at least 1 (second)")
        if self.max_bad_steps < 1:
            found.append(f"--max_bad_steps {self.max_bad_steps}: must be at least 1")
        return found

    def _output_problems(self) -> list[str]:
        """Nothing that is already there may be lost without being asked for."""
        if not self.output_dir:
            return []
        folder, resume = Path(self.output_dir), self.resume_from_checkpoint
        if folder.exists() and not folder.is_dir():
            return [f"--output_dir {folder} is a file, not a folder"]
        found = []
        if resume not in ("none", "auto"):
            if not (Path(resume) / "manifest.json").is_file():
                found.append(f"--resume_from_checkpoint {resume}: no complete checkpoint (no manifest.json there)")
            if self.overwrite_output_dir:
                found.append(
                    "--overwrite_output_dir would delete what --resume_from_checkpoint PATH continues: give one"
                )
        if self.overwrite_output_dir and self.model_path and folder.resolve() in (
            Path(self.model_path).resolve(), *Path(self.model_path).resolve().parents
        ):  # fmt: skip
            found.append(
                f"--overwrite_output_dir would delete the model in --model_path {self.model_path}: "
                "choose another --output_dir"
            )
        elif folder.is_dir() and any(p.name != STOP_FILE for p in folder.iterdir()) and not self.overwrite_output_dir:
            inside = Path(resume).resolve().parent == folder.resolve()
            continues = inside or (
                resume == "auto" and (_has_checkpoint(folder) or not (folder / "config.json").exists())
            )
            if not continues:
                found.append(
                    f"--output_dir {folder} is not empty: continue its run with --resume_from_checkpoint auto, "
                    "or delete it with --overwrite_output_dir"
                )
        return found


def _has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("checkpoint-*/manifest.json"))


@dataclass(frozen=True)
class PrepareConfig(Flags):
    """Flags of prepare_datasets.py."""

    wikipedia: bool = flag(False, "prepare Wikipedia", group="what")
    arxiv: bool = flag(False, "prepare the arXiv papers", group="what")
    sciq: bool = flag(False, "prepare SciQ", group="what")
    commonsenseqa: bool = flag(False, "prepare CommonsenseQA", group="what")
    all: bool = flag(False, "prepare all four", group="what")
    demo: str | None = flag(None, "write the generated demo mirror to this folder instead", group="what")
    download: str | None = flag(
        None, "copy the files of the chosen data sets to this folder, for --data_root", group="how"
    )
    tokenize: str | None = flag(
        None, "tokenize the training text into this folder, for train_loop.py --token_cache", group="how"
    )
    model_path: str | None = flag(None, "folder of the model whose tokenizer --tokenize uses", group="how")
    dataset_name: str | None = flag(
        None, "text of your own to prepare: a hub id (OWNER/NAME), or a local file or folder", group="what"
    )
    dataset_config_name: str | None = flag(None, "configuration (subset) of --dataset_name", group="what")
    text_column: str | None = flag(None, "column with the text of --dataset_name (default: text)", group="what")
    sample_by: str = flag(
        "line", "a document of a .txt file: line, paragraph or document", group="what",
        choices=("line", "paragraph", "document"))  # fmt: skip
    streaming: bool = flag(
        True, "read only the rows that are shown; False downloads each data set to the cache", group="how"
    )
    wikipedia_version: str = flag("20220301.en", "Wikipedia dump as DATE.LANGUAGE", group="how")
    data_root: str | None = flag(None, "check a mirror instead of the hub", group="how")
    cache_dir: str | None = flag(None, "where downloads are kept (default: the Hugging Face cache)", group="how")
    hub_timeout: float = flag(HUB_TIMEOUT, "seconds to wait, at one place, for a hub that does not answer", group="how")
    num_samples: int = flag(2, "rows to show of each data set", group="how")

    @property
    def datasets(self) -> tuple[str, ...]:
        names = ("wikipedia", "arxiv", *QA_DATASETS)
        chosen = names if self.all else tuple(name for name in names if getattr(self, name))
        return (*chosen, self.dataset_name) if self.dataset_name else chosen

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.datasets and not self.demo:
            found.append(
                "nothing to prepare: give --all, --wikipedia, --arxiv, --sciq, --commonsenseqa, --dataset_name NAME, "
                "or --demo DIR"
            )
        if self.dataset_name in TEXT_DATASETS + QA_DATASETS:
            own = ("wikipedia", "arxiv") if self.dataset_name == "both" else (self.dataset_name,)
            found.append(f"--dataset_name {self.dataset_name}: has flags of its own; give --{' --'.join(own)}")
        elif self.dataset_name:
            found += unknown_dataset(self.dataset_name)
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


@dataclass(frozen=True)
class CreateConfig(DataFlags):
    """Flags of `python -m miniqwen.create_model`."""

    dataset_name: str | None = flag(
        "both",
        "text to train the tokenizer on: wikipedia, arxiv, both, a hub id or a local file or folder",
        group="data",
    )
    output_dir: str | None = flag(None, "folder for the new model", group="output", required=True)
    overwrite_output_dir: bool = flag(False, "replace a model that is already there", group="output")
    size: str = flag("tiny", "model size", group="model", choices=("tiny", "small", "medium", "base", "large"))
    vocab_size: int | None = flag(None, "tokenizer vocabulary (default 8192 for tiny)", group="model")
    from_pretrained: str | None = flag(
        None, "import a Qwen3 (or Qwen2/2.5) checkpoint: folder or hub id", group="model"
    )
    tokenizer_megabytes: float = flag(50.0, "megabytes of text to train the tokenizer on", group="model")
    seed: int = flag(42, "seed of the weights", group="model")

    def problems(self) -> list[str]:
        found = super().problems()
        if self.from_pretrained and self.vocab_size:
            found.append("--vocab_size contradicts --from_pretrained: an imported model keeps its vocabulary")
        if self.dataset_name in QA_DATASETS:
            found.append(
                f"--dataset_name {self.dataset_name}: the tokenizer is trained on text; use wikipedia, arxiv or both"
            )
        if self.vocab_size is not None and self.vocab_size < 300:
            found.append(f"--vocab_size {self.vocab_size}: must be at least 300 (256 bytes and the special tokens)")
        if not self.tokenizer_megabytes > 0:
            found.append(f"--tokenizer_megabytes {self.tokenizer_megabytes}: must be above 0")
        target = Path(self.output_dir) if self.output_dir else None
        if target and target.exists() and not target.is_dir():
            found.append(f"--output_dir {target} is a file, not a folder")
        elif target and target.is_dir() and any(target.iterdir()) and not self.overwrite_output_dir:
            found.append(f"--output_dir {target} is not empty; add --overwrite_output_dir to replace the model in it")
        return found


def precision_name(fp16: bool, bf16: bool) -> str:
    """What these flags ask for, as Accelerate names it."""
    return "fp16" if fp16 else "bf16" if bf16 else "no"


def precision_problems(fp16: bool, bf16: bool) -> list[str]:
    """Why a computation cannot run in the precision that these flags ask for."""
    if fp16 and bf16:
        return ["--fp16 and --bf16 contradict each other: give one"]
    if fp16:
        import torch  # only here: the other checks need nothing heavy

        if not torch.cuda.is_available():
            return ["--fp16 needs a GPU, and none is visible: use --bf16, which works on CPUs too"]
    return []


def model_problems(model_path: str | None, length: int | None, *, any_kind: bool = False) -> list[str]:
    """What is wrong with a model folder, and whether blocks of `length` tokens fit its positions.

    Only Qwen models can be trained; `any_kind` of causal language model can be evaluated.
    """
    if not model_path:
        return []
    file = Path(model_path) / "config.json"
    if not file.is_file():
        why = "it has no config.json" if Path(model_path).is_dir() else "no such folder"
        return [
            f"--model_path {model_path}: {why}; make a model with "
            f"`python -m miniqwen.create_model --output_dir {model_path}`"
        ]
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        kind, positions = described.get("model_type"), described.get("max_position_embeddings")
    except (ValueError, AttributeError):
        return [f"{file}: is not a JSON object"]
    if kind not in ("qwen3", "qwen2") and not any_kind:
        return [f"{file}: model_type is {kind!r}; MiniQwen trains qwen3 and qwen2 models"]
    if length and isinstance(positions, int) and length > positions:
        return [
            f"blocks of {length} tokens are longer than the model's {positions} positions: "
            "lower --block_size or --max_seq_length"
        ]
    return []


def seconds(time: str) -> float:
    """`90`, `1:30`, `0:01:30` or `0-00:01:30` in seconds; raises `ValueError` for anything else."""
    days, dash, rest = time.rpartition("-")
    parts = rest.split(":")
    if (dash and not days.isdigit()) or not 1 <= len(parts) <= 3 or not all(part.isdigit() for part in parts[:-1]):
        raise ValueError(time)
    if not parts[-1].replace(".", "", 1).isdigit():
        raise ValueError(time)
    total = 0.0
    for part in parts:
        total = total * 60 + float(part)
    return total + 86400 * int(days or 0)


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
