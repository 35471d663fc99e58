"""What the user asked of eval_loop.py: its flags and every check that needs no model; frozen afterwards.

Promises: as config.py. Costs: nothing heavy is imported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from miniqwen.config.data import BOTH, ENDINGS, HUB_TIMEOUT, KNOWN, QA_DATASETS, DataFlags, unknown_dataset
from miniqwen.config.flags import flag, no_flag
from miniqwen.config.models import model_problems
from miniqwen.config.pasted import EVALUATING, Pasted
from miniqwen.config.precision import precision_name, precision_problems
from miniqwen.config.watching import TRACKERS, WatchFlags

PROTOCOLS = ("miniqwen", "harness")
DEFAULT_SPLITS = {"sciq": "test", "commonsenseqa": "validation"}  # CommonsenseQA's test split has no answers
SAMPLING = ("temperature", "top_p", "top_k", "seed")


def file_stem(name: str) -> str:
    """`sciq` for sciq, and for data of your own the last part of its name without endings."""
    stem = Path(name).name
    for ending in ENDINGS:
        stem = stem.removesuffix(ending)
    return re.sub(r"[^\w.-]+", "_", stem).strip("_") or "dataset"


@dataclass(frozen=True)
class EvalConfig(WatchFlags, DataFlags):
    """Flags of eval_loop.py."""

    pasted: ClassVar[Mapping[str, Pasted]] = EVALUATING
    needed = ("model_path", "dataset_name", "output_dir")  # but for --compare
    most_used = (
        "overwrite_output_dir", "data_root", "split", "max_eval_samples", "compare",
        "num_fewshot", "protocol", "answer_mode", "max_new_tokens", "prompt_template", "choices_template",
        "question_column", "choices_column", "answer_column", "per_device_eval_batch_size", "bf16", "report_to",
    )  # fmt: skip
    example = "--model_path runs/sciq --dataset_name sciq --output_dir runs/evaluation --max_eval_samples 100"

    dataset_name: str | tuple[str, ...] | None = flag(
        None, "sciq, commonsenseqa, both, a hub id (OWNER/NAME), or a local file or folder (.parquet, .arrow, "
        ".jsonl, .ndjson, .json, .csv, .tsv; also .gz, .zst, .bz2, .xz), or a pattern in quotes; several, "
        "each of which gets results of its own",
        group="data", path=True, several=True)  # fmt: skip
    hub_timeout: float = flag(
        HUB_TIMEOUT, "seconds to wait, at one place, for a hub that does not answer; then the command ends with status "
        "75; what was answered is kept", group="data")  # fmt: skip
    streaming: bool = flag(
        True, "read the files in place; False downloads those of the data set to the cache first", group="data"
    )
    wikipedia_version: str | None = no_flag(None)  # what is only for text
    text_column: str | None = no_flag(None)
    sample_by: str = no_flag("line")
    model_path: str | None = flag(
        None,
        "folder of the model to evaluate: MiniQwen's, or any causal language model of transformers",
        group="model",
        path=True,
        aliases=("model_name_or_path",),
    )
    output_dir: str | None = flag(None, "where <dataset>.json is written", group="output", path=True)
    overwrite_output_dir: bool = flag(
        False, "replace the results of another evaluation that are in --output_dir", group="output"
    )
    report_to: tuple[str, ...] = flag(
        ("none",), "trackers that get the figures and the first questions too; all: those that are installed",
        group="output", choices=(*TRACKERS, "all", "none"))  # fmt: skip
    compare: tuple[str, ...] = flag(
        (), "two files of results, A.json B.json, of the same questions: which model is better, and what changed; "
        "needs no other flag", group="output", path=True, verbatim=True)  # fmt: skip
    split: str | None = flag(
        None, "split to evaluate (default: SciQ test, CommonsenseQA validation, else test); one without answers gets a "
        "file of predictions", group="data")  # fmt: skip
    train_split: str = flag("train", "split that --num_fewshot and --check_contamination read", group="data")
    max_eval_samples: int | None = flag(None, "the first N rows only", group="data", least=1)
    on_bad_data: str = flag(
        "error", "rows whose question, choices or answer cannot be read: list them, or skip them, counted and told",
        group="data", choices=("error", "skip"))  # fmt: skip
    check_contamination: bool = flag(
        False, "look for the questions in --train_split, and report accuracy with and without those that are there",
        group="data")  # fmt: skip
    protocol: str = flag(
        "miniqwen", "miniqwen: the templates saved beside the model; harness: the prompts and rules of "
        "lm-evaluation-harness (sciq, commonsenseqa)", group="prompt", choices=PROTOCOLS)  # fmt: skip
    num_fewshot: int = flag(0, "answered questions of --train_split before each question", group="prompt", least=0)
    answer_format: str | None = flag(
        None, "what is scored: a choice's text or its letter (default: text; under harness what it uses)",
        group="prompt", choices=("text", "letter"))  # fmt: skip
    prompt_template: str | None = flag(
        None, "text before the answer (default: the one saved beside the model)", group="prompt"
    )
    choices_template: str | None = flag(None, "one line a choice, with {label} and {text}", group="prompt")
    shuffle_choices: bool = flag(
        True, "show choices in an order of each question's own, as in training; False: in the file's, as the harness",
        group="prompt")  # fmt: skip
    apply_chat_template: bool = flag(
        False, "put questions as a conversation by the model's chat template, few-shot examples as its turns, as the "
        "harness does", group="prompt")  # fmt: skip
    answer_mode: str = flag(
        "loglikelihood", "loglikelihood: the most likely choice; generate: the model writes, and its answer is found "
        "in the text", group="evaluation", choices=("loglikelihood", "generate"))  # fmt: skip
    unconditional: bool = flag(
        False, "also score each choice without its question, for accuracies.unconditional (the harness's "
        "acc_mutual_info)", group="evaluation")  # fmt: skip
    per_device_eval_batch_size: int = flag(
        8, "questions a device takes at once; halved when memory runs out", group="evaluation", least=1,
        aliases=("per_gpu_eval_batch_size",))  # fmt: skip
    bf16: bool = flag(False, "compute in bfloat16", group="evaluation")
    fp16: bool = flag(False, "compute in float16, on a GPU", group="evaluation")
    extract: tuple[str, ...] = flag(
        ("letter", "text", "last_line"), "rules that look for the answer in generated text, in this order: a letter "
        "(A, (B), the answer is C), a choice's text, the last line", group="generation",
        choices=("letter", "text", "last_line"))  # fmt: skip
    max_new_tokens: int = flag(32, "most tokens to generate", group="generation", least=1)
    stop: tuple[str, ...] = flag(
        (), "texts at which an answer ends, each in quotes; \\n is a line break", group="generation", verbatim=True
    )
    do_sample: bool = flag(False, "sample instead of always taking the most likely token", group="generation")
    temperature: float = flag(1.0, "of sampling", group="generation")
    top_p: float = flag(
        1.0, "sample among the most likely tokens that have this probability together", group="generation"
    )
    top_k: int = flag(0, "sample among so many most likely tokens (0: all)", group="generation", least=0)
    seed: int = flag(0, "of sampling", group="generation")

    @property
    def named(self) -> dict[str, str]:
        """{data set to evaluate: the same}: `both` is SciQ and CommonsenseQA, and a local one is called by its path."""
        names = (self.dataset_name,) if isinstance(self.dataset_name, str) else self.dataset_name or ()
        return {part: part for name in names for part in (QA_DATASETS if name == "both" else (name,))}

    @property
    def names(self) -> tuple[str, ...]:
        """The data sets to evaluate."""
        return tuple(self.named)

    @property
    def stops(self) -> tuple[str, ...]:
        """`--stop` with its line breaks, which are hard to type."""
        return tuple(text.replace("\\n", "\n") for text in self.stop)

    @property
    def precision(self) -> str:
        """As Accelerate names it: no, bf16, fp16."""
        return precision_name(self.fp16, self.bf16)

    def split_of(self, name: str) -> str:
        return self.split or DEFAULT_SPLITS.get(name, "test")

    def problems(self) -> list[str]:
        if self.compare:
            return self._comparison_problems()
        found = super().problems()
        for name in self.needed:
            if not getattr(self, name):
                found.append(f"--{name} is needed: {type(self).__dataclass_fields__[name].metadata['help']}")
        text = [name for name in self.names if name in BOTH]
        if text:
            found.append(f"--dataset_name {' '.join(text)} is text; eval_loop.py takes sciq, commonsenseqa or both")
        if own := [name for name in self.names if name not in KNOWN and not unknown_dataset(name)]:
            found += self._own_data_problems(own)
        if self.protocol == "harness":
            found += [
                f"--protocol harness has prompts of its own: leave --{name} out, or use --protocol miniqwen"
                for name in ("prompt_template", "choices_template", "answer_format")
                if getattr(self, name)
            ]
            if not self.shuffle_choices:
                found.append("--shuffle_choices False has no use with --protocol harness, which shows the file's order")
        stems = Counter([*map(file_stem, self.names), *(["combined"] * (len(self.names) > 1))])
        found += [
            f"--dataset_name {' '.join(self.names)}: {stem}.json would be written {count} times: evaluate one by one"
            for stem, count in stems.items()
            if count > 1
        ]
        found += precision_problems(self.fp16, self.bf16) + self._generation_problems()
        if self.output_dir and Path(self.output_dir).exists() and not Path(self.output_dir).is_dir():
            found.append(f"--output_dir {self.output_dir} is a file, not a folder")
        return found + model_problems(self.model_path, None, any_kind=True)

    def _comparison_problems(self) -> list[str]:
        if len(self.compare) != 2:
            return [f"--compare needs two files, A.json B.json; got {len(self.compare)}"]
        return [f"--compare {file}: no such file" for file in self.compare if not Path(file).is_file()]

    def _own_data_problems(self, names: Sequence[str]) -> list[str]:
        found = []
        needed = ["question_column", "answer_column"] + ["choices_column"] * (self.answer_mode == "loglikelihood")
        if not all(getattr(self, name) for name in needed):
            found.append(f"{', '.join(f'--{name}' for name in needed)} are needed for QA data of your own")
        if self.protocol == "harness":
            found.append(
                f"--protocol harness knows {' and '.join(QA_DATASETS)} only, not {', '.join(names)}: leave it out, and "
                "give what its task asks by --prompt_template, --answer_format and --shuffle_choices False (see README)"
            )
        if not self.choices_column and self.answer_format == "letter":
            found.append("--answer_format letter: the data has no choices (--choices_column)")
        return found

    def _generation_problems(self) -> list[str]:
        found = []
        defaults = {name: f.default for name, f in type(self).__dataclass_fields__.items()}
        if self.answer_mode == "loglikelihood":
            for name in ("do_sample", "extract", "max_new_tokens", "stop"):
                if getattr(self, name) != defaults[name]:
                    found.append(f"--{name} has no use without --answer_mode generate")
        elif self.unconditional:
            found.append("--unconditional has no use with --answer_mode generate, which compares no scores")
        for name in SAMPLING:
            if getattr(self, name) != defaults[name] and not self.do_sample:
                found.append(f"--{name} has no use without --do_sample")
        if not all(self.stop):
            found.append("--stop: a text at which answers end must not be empty")
        if self.temperature <= 0:
            found.append(
                f"--temperature {self.temperature}: must be above 0 (for the most likely tokens leave --do_sample out)"
            )
        if not 0 < self.top_p <= 1:
            found.append(f"--top_p {self.top_p}: must be above 0 and at most 1")
        return found
