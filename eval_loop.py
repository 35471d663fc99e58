"""Accuracy on questions with choices: `accelerate launch -q eval_loop.py --model_path DIR --dataset_name sciq ...`.

    python eval_loop.py --compare A.json B.json     which of two evaluations is better, and what changed

Promises: `<output_dir>/<data set>.json` with accuracy, its uncertainty and every question's scores, whole or absent;
the same on one process as on several, which share the questions out; an evaluation that was killed goes on where it
was. Questions are asked with the templates saved beside the model, or as lm-evaluation-harness asks them. `both` is
SciQ and CommonsenseQA; several data sets get a file each, and `combined.json` is over all of them. A split without
answers gets a file of predictions.
Costs: see `miniqwen/eval/scoring.py`; all questions in memory on every process.
"""

from miniqwen.errors import check_python

check_python()

from miniqwen.config.evaluating import EvalConfig, file_stem
from miniqwen.config.flags import parse
from miniqwen.errors import UserError, interrupts_end, shortage_told, user_errors_exit_2
from miniqwen.questions.templates import TEMPLATE_FILE, Template, template_flags

if __name__ == "__main__":
    IMPORTED = interrupts_end("what was answered is kept, and the same command goes on from here")
    with user_errors_exit_2():
        CONFIG = parse(
            EvalConfig,
            program="eval_loop.py",
            description="Accuracy of a model on questions with choices.",
            checks=[template_flags],
        )
        if CONFIG.compare:  # needs no model, and none of what is imported for it
            from miniqwen.eval.comparison import compare, told

            print(told(compare(*CONFIG.compare)))
            raise SystemExit

import contextlib
import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import methodcaller
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from miniqwen.config.flags import plain
from miniqwen.data.repositories import Repository, resolve
from miniqwen.distributed.launches import launcher_problems
from miniqwen.distributed.ranks import Ranks
from miniqwen.eval.answers import Answer, combined, predictions, report, result
from miniqwen.eval.causal_models import SHORT_OF_MEMORY, check_vocabulary, computing_in, load_causal_model, scorer
from miniqwen.eval.generation import generate_rounds
from miniqwen.eval.result_files import ResultFile, model_fingerprint
from miniqwen.eval.scoring import is_truncated, model_positions, score_rounds
from miniqwen.files import write_json, write_text
from miniqwen.model.tokenization_miniqwen import load_tokenizer, tokenizer_fingerprint
from miniqwen.questions.protocols import Prompt, Request, chat_of, encode_prompt, make_prompts, unconditional_request
from miniqwen.questions.readings import Reading
from miniqwen.questions.rows import Question
from miniqwen.questions.splits import Read, Wanted, read_splits
from miniqwen.training.outlets.opened import Outlets, check_trackers, sample_table

ASKED_BY = ("answer_mode", "precision", "unconditional")  # flags that decide answers, beside the prompts
WRITTEN_BY = ("max_new_tokens", "stop", "do_sample", "temperature", "top_p", "top_k", "seed")


@dataclass(frozen=True)
class Asked:
    """One data set: its questions as they are put, as tokens, and the training split where that is needed.

    Behind a request a question come those of choices without their question, each set of choices once: `alone[i]` is
    the number of question i's.
    """

    name: str
    prompts: list[Prompt]
    requests: list[Request]
    alone: list[int]
    train: list[Question]
    read: Read


def main(config: EvalConfig) -> None:
    """Ask each data set's questions in turn; process 0 writes and prints."""
    if problems := launcher_problems(os.environ, config.precision):
        raise UserError(*problems)
    transformers_logging.disable_progress_bar()  # of loading weights: scoring has a bar of its own
    state = PartialState() if torch.cuda.is_available() else PartialState(cpu=True)
    ranks = Ranks(state.process_index, state.num_processes)
    tokenizer = load_tokenizer(str(config.model_path))
    template = template_of(config, ranks)
    # before the model: mistakes show early
    asked = [questions_of(name, tokenizer, template, config, state) for name in config.names]
    weights = ranks.on_main(lambda: model_fingerprint(str(config.model_path)))
    files = [result_file(one, tokenizer, weights, config, ranks) for one in asked]
    outlets = trackers(config, ranks)
    known = ranks.on_main(lambda: [known_answers(*both, config) for both in zip(files, asked, strict=True)])
    model = load_causal_model(str(config.model_path)).to(state.device)
    check_vocabulary(model, tokenizer, str(config.model_path))
    results = {}
    for note in (note for one in asked for note in one.read.notes if ranks.is_main):
        print(note)
    for one, file, already in zip(asked, files, known, strict=True):
        answers = answered(model, tokenizer, one, already, file, config, ranks, state.device)
        if ranks.is_main:
            cut = truncated_prompts(one, model_positions(model.config), config)
            recorded: dict[str, Any] = {"truncated_prompts": cut, "answers_are": one.read.reading.kind}
            if config.protocol == "miniqwen":
                recorded |= {"prompt_template": template.prompt, "choices_template": template.choices}
            results[one.name] = result(one.name, answers, one.train, config, recorded)
            tell(results[one.name], answers, file)
        state.wait_for_everyone()
        file.close()
    if len(results) > 1:
        path = Path(str(config.output_dir), "combined.json")
        write_json(path, combined(results, config))
        print(f"written: {path}")
    if outlets:
        report_to(outlets, results, config)
    state.wait_for_everyone()
    state.destroy_process_group()


def trackers(config: EvalConfig, ranks: Ranks) -> Outlets | None:
    """Those of --report_to, on the process that writes; what does not start is found before the model is loaded."""
    opened: list[Outlets] = []

    def open_them() -> None:
        check_trackers(config)
        opened.append(Outlets(config, Path(str(config.output_dir)), "evaluate"))

    if config.trackers:
        ranks.on_main(open_them)
    return opened[0] if opened else None


def report_to(outlets: Outlets, results: dict[str, dict[str, Any]], config: EvalConfig) -> None:
    """Every figure that is one number, as eval/DATA_SET/NAME, and the first questions; for trackers."""
    for place in outlets.places:
        print(place)
    outlets.each(lambda outlet: outlet.begin({"flags": plain(config)}))
    for number, (name, found) in enumerate(results.items(), 1):
        figures = {**found, **{f"calibration_{key}": value for key, value in found.get("calibration", {}).items()}}
        if interval := found.get("confidence_interval"):
            figures |= {"accuracy_low": interval[0], "accuracy_high": interval[1]}
        numbers = {
            f"eval/{file_stem(name)}/{key}": value for key, value in figures.items() if isinstance(value, (int, float))
        }
        outlets.each(methodcaller("log", 0, number, numbers))
        outlets.each(
            methodcaller("table", f"eval/{file_stem(name)}/samples", 0, number, *sample_table(found["samples"]))
        )
    outlets.each(lambda outlet: outlet.end("finished", None, {}))


def template_of(config: EvalConfig, ranks: Ranks) -> Template:
    """The templates to ask with; what is not the model's own is said."""
    saved = Template.load(str(config.model_path))
    template = saved.with_flags(config.prompt_template, config.choices_template)
    if config.protocol == "miniqwen" and ranks.is_main:
        if template != saved:
            print("note: asked with the templates of the flags, not with those saved beside the model")
        elif not Path(str(config.model_path), TEMPLATE_FILE).exists():
            print(f"note: no {TEMPLATE_FILE} beside the model, so it is asked with the built-in templates")
    return template


def questions_of(
    name: str, tokenizer: PreTrainedTokenizerBase, template: Template, config: EvalConfig, state: PartialState
) -> Asked:
    """The first `--max_eval_samples` questions, as `--protocol` puts them."""
    with state.local_main_process_first():  # one download a machine
        repository = resolve(name, config)
        read = questions_and_train(name, repository, config)
    questions, train = read.questions
    chat = chat_of(tokenizer, str(config.model_path)) if config.apply_chat_template else None
    prompts = make_prompts(name, questions, train, template, config, chat)
    writes = config.answer_mode == "generate"
    requests = [encode_prompt(tokenizer, prompt, config.protocol, writes) for prompt in prompts]
    alone: list[int] = []
    if config.unconditional:
        numbers: dict[tuple[tuple[int, ...], ...], int] = {}
        for prompt in prompts:
            request = unconditional_request(tokenizer, prompt)
            if request.choices not in numbers:
                numbers[request.choices] = len(requests)
                requests.append(request)
            alone.append(numbers[request.choices])
    return Asked(name, prompts, requests, alone, train, read)


def questions_and_train(name: str, repository: Repository, config: EvalConfig) -> Read:
    """Two lists: the questions to ask, and those of the training split where they are needed."""
    split, limit = config.split_of(name), config.max_eval_samples
    how: dict[str, Any] = {"saved": Reading.load(str(config.model_path)), "skip_bad": config.on_bad_data == "skip"}
    wanted = [Wanted(split, need_answers=False, limit=limit)]
    if config.num_fewshot or config.check_contamination:
        if config.train_split == split:
            raise UserError(f"{name}: --train_split {split} is the split that is evaluated")
        wanted.append(Wanted(config.train_split, need_answers=bool(config.num_fewshot)))
    read = read_splits(repository, name, config, wanted, **how)
    if len({question.answer is None for question in read.questions[0]}) > 1:  # those without are bad rows
        read = read_splits(repository, name, config, [replace(wanted[0], need_answers=True), *wanted[1:]], **how)
    return replace(read, questions=[*read.questions, []][:2])


def result_file(
    one: Asked, tokenizer: PreTrainedTokenizerBase, weights: str, config: EvalConfig, ranks: Ranks
) -> ResultFile:
    """Where the results go; the same file, going on where it was, only for the same model and questions."""
    flags = (*ASKED_BY, *(WRITTEN_BY if config.answer_mode == "generate" else ()))
    decides = hashlib.sha256()
    asked = (f"{name} {getattr(config, name)}" for name in flags)
    for part in (weights, tokenizer_fingerprint(tokenizer), *asked, *map(repr, one.requests)):
        decides.update(f"{part}\n".encode())
    return ResultFile(Path(str(config.output_dir)), file_stem(one.name), decides.hexdigest(), ranks.rank)


def known_answers(file: ResultFile, one: Asked, config: EvalConfig) -> dict[int, Any]:
    """{number of the request: what the model answered} of an earlier start of the same evaluation."""
    writes = config.answer_mode == "generate"
    choices = [None if writes else len(request.choices) for request in one.requests]
    known = file.begin(config.overwrite_output_dir, choices, one.alone)
    if known:
        print(f"{file.path}: {len(known)} of {len(one.requests)} answers are there already")
    return known


def answered(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, one: Asked, known: dict[int, Any], file: ResultFile,
    config: EvalConfig, ranks: Ranks, device: torch.device,
) -> list[Answer]:  # fmt: skip
    """All answers on every process, each given by one of them, batch by batch."""

    def halved(size: int) -> None:
        print(f"note: out of memory; process {ranks.rank} goes on with batches of {size}", file=sys.stderr)

    how: dict[str, Any] = {
        "rank": ranks.rank, "world_size": ranks.world_size, "done": frozenset(known), "halve": halved,
        "progress": one.name if ranks.is_main and sys.stderr.isatty() else None,
    }  # fmt: skip
    own: dict[int, Any] = {}
    with computing_in(config.precision, device), errors_told():
        if config.answer_mode == "generate":
            rounds: Any = generate_rounds(model, tokenizer, one.requests, config, device, **how)
        else:
            size = config.per_device_eval_batch_size
            rounds = score_rounds(scorer(model), one.requests, size, device, **how)
        for found in rounds:
            file.add(found)
            own |= found
    found = {index: value for part in ranks.gather(own) for index, value in part.items()} | known
    if config.answer_mode == "generate":
        return [Answer.written(prompt, found[i], config.extract) for i, prompt in enumerate(one.prompts)]
    alone = [found[number] for number in one.alone] or [None] * len(one.prompts)
    return [Answer.chosen(prompt, one.requests[i], found[i], alone[i]) for i, prompt in enumerate(one.prompts)]


def truncated_prompts(one: Asked, positions: int, config: EvalConfig) -> int:
    """How many prompts lost their beginning to the model's positions."""
    asked = one.requests[: len(one.prompts)]
    if config.answer_mode == "generate":
        return sum(len(request.prompt) > positions - config.max_new_tokens for request in asked)
    return sum(is_truncated(request, positions) for request in asked)


def tell(described: dict[str, Any], answers: Sequence[Answer], file: ResultFile) -> None:
    """Write and print a data set's results; predictions where the right answers are secret."""
    print(report(described, answers, file.path.stem))
    if answers[0].is_correct is None:
        ending, text = predictions(described["dataset"], answers)
        beside = file.path.with_name(f"{file.path.stem}{ending}")
        write_text(beside, text)
        print(f"the {described['split']} split has no right answers; written: {beside}")
    file.finish(described)
    print(f"written: {file.path}", flush=True)


@contextlib.contextmanager
def errors_told() -> Any:
    """Around what a process may meet alone: it tells its error itself."""
    try:
        yield
    except UserError as error:
        error.of_one_rank = True
        raise


if __name__ == "__main__":
    IMPORTED()
    with user_errors_exit_2(), shortage_told(*SHORT_OF_MEMORY):
        main(CONFIG)
