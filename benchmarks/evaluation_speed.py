"""How fast questions are scored: ours against lm-evaluation-harness, the same model, prompts, batch and threads.

    python benchmarks/evaluation_speed.py [--data_root MIRROR] [--tokenizer DIR] [--questions 40] [--rounds 3]

SciQ (test, four answers in full behind a passage) and CommonsenseQA (validation, five letters) as the harness asks
them, by a random model of hidden size 256, 4 layers and 151,936 entries. Each round takes other questions and runs one
after the other; CPU seconds count tokenizing and scoring (`HFLM.loglikelihood` there, `encode_prompt` and
`score_rounds` here), not reading data or loading. A batch is --batch texts there, and as many questions here; four
times as many texts make the harness slower and take 20 GB. Then: how evenly 2 and 4 processes share our work.
Exit status 1 when a ratio is below the claim (15 and 5), or when a log-likelihood differs by more than 1e-4.
Without --tokenizer one of ours is trained on the questions. Without --data_root the demo's are written; its SciQ has no
passages to share, so the ratios are other ones there (about 5 and 17), and no claim is checked.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

CLAIMS = {"sciq": 15.0, "commonsenseqa": 5.0}
TASKS = {"sciq": ("sciq", "allenai/sciq"), "commonsenseqa": ("commonsense_qa", "tau/commonsense_qa")}


def harness_results(
    name: str,
    files: Mapping[str, str],
    model: Any,
    tokenizer: Any,
    cache: str,
    *,
    batch_size: int,
    metrics: Sequence[str] = (),
    form: Mapping[str, Any] | None = None,
    **how: Any,
) -> tuple[list[dict[str, Any]], dict[str, Any], float]:
    """(samples in the order of the split, metrics, CPU seconds of scoring) of the harness itself on local files.

    `files`: {split: parquet files}; `metrics` are computed beside the task's own; `form`: a task in the harness's form,
    of files that it names, in place of its own task. Each sample has `lls`, the log-likelihoods of its choices.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    import lm_eval
    import yaml
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    class Timed(HFLM):
        seconds = 0.0

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            began = time.process_time()
            found = super().loglikelihood(requests, disable_tqdm=True)
            self.seconds += time.process_time() - began
            return found

    lm = Timed(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device="cpu")
    if form:
        task = dict(form)
    else:
        (described,) = Path(lm_eval.__file__).parent.glob(f"tasks/{TASKS[name][0]}/*.yaml")  # the harness's own task
        task = yaml.safe_load(described.read_text()) | {"dataset_path": "parquet", "dataset_name": None}
    task["metric_list"] += [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics]
    task["dataset_kwargs"] = {"data_files": dict(files), "cache_dir": cache}
    found = lm_eval.simple_evaluate(
        model=lm, tasks=[task], bootstrap_iters=1000, log_samples=True, verbosity="ERROR",
        task_manager=TaskManager(include_defaults=False), **how,  # or it reads its 13,000 other tasks first
    )  # fmt: skip
    (named,) = found["results"]
    samples = sorted(found["samples"][named], key=lambda sample: sample["doc_id"])
    for sample in samples:
        sample["lls"] = [float(value) for ((value, _),) in sample["resps"]]
    return samples, found["results"][named], lm.seconds


def files_of(name: str, mirror: Path) -> dict[str, str]:
    """{split: parquet files} of a folder laid out like the hub."""
    return {split: f"{mirror}/{TASKS[name][1]}/data/{split}-*.parquet" for split in ("train", "validation", "test")}


def our_scores(model: Any, tokenizer: Any, prompts: Sequence[Any], batch_size: int) -> tuple[list[Any], float]:
    """(log-likelihoods of the choices of each question, CPU seconds)."""
    from miniqwen.eval.scoring import score_rounds
    from miniqwen.questions.protocols import encode_prompt

    began = time.process_time()
    requests = [encode_prompt(tokenizer, prompt, "harness") for prompt in prompts]
    found = {index: one for part in score_rounds(model, requests, batch_size, "cpu") for index, one in part.items()}
    return [found[index] for index in range(len(requests))], time.process_time() - began


def slowest_share(model: Any, requests: Sequence[Any], batch_size: int, world_size: int) -> float:
    """CPU seconds of the slowest of several processes, times their number, over those of all together: 1 is even."""
    from miniqwen.eval.scoring import score_rounds

    seconds = []
    for rank in range(world_size):
        began = time.process_time()
        for _ in score_rounds(model, requests, batch_size, "cpu", rank=rank, world_size=world_size):
            pass
        seconds.append(time.process_time() - began)
    return max(seconds) * world_size / sum(seconds)


def random_model(tokens: int) -> Any:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=max(151_936, tokens), hidden_size=256, intermediate_size=768, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=2048,
        tie_word_embeddings=True, initializer_range=0.05,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def measure(name: str, given: argparse.Namespace, tokenizer: Any, folder: Path) -> bool:
    """Print the figures of one data set; whether the claims hold."""
    from transformers import AutoModelForCausalLM

    from miniqwen.config.evaluating import EvalConfig
    from miniqwen.data.repositories import resolve
    from miniqwen.eval.causal_models import load_causal_model, scorer
    from miniqwen.questions.protocols import encode_prompt, make_prompts
    from miniqwen.questions.splits import Wanted, read_splits
    from miniqwen.questions.templates import Template

    config = EvalConfig(dataset_name=name, data_root=str(given.data_root), protocol="harness")
    split = config.split_of(name)
    (questions,) = read_splits(resolve(name, config), name, config, [Wanted(split)]).questions
    places = files_of(name, given.data_root)
    ours, theirs = scorer(load_causal_model(folder)), AutoModelForCausalLM.from_pretrained(folder)
    ratios, seconds, furthest = [], [], 0.0
    for number in range(given.rounds):
        rows = [row % len(questions) for row in range(number * given.questions, (number + 1) * given.questions)]
        prompts = make_prompts(name, [questions[row] for row in rows], [], Template(), config)
        scores, own = our_scores(ours, tokenizer, prompts, given.batch)
        samples, _, cpu = harness_results(
            name, places, theirs, tokenizer, str(folder / "cache"), batch_size=given.batch,
            samples={TASKS[name][0]: rows},
        )  # fmt: skip
        ratios.append(cpu / own)
        seconds.append(own)
        for mine, sample in zip(scores, samples, strict=True):
            furthest = max(furthest, *(abs(a - b) for a, b in zip(mine, sample["lls"], strict=True)))
    good, speed = furthest <= 1e-4, given.questions / statistics.median(seconds)
    print(f"{name}: {speed:.0f} questions a CPU second; furthest log-likelihood {furthest:.1e}")
    middle = statistics.median(ratios)
    spread = f"{min(ratios):.1f} to {max(ratios):.1f} in {len(ratios)} rounds"
    claim = "" if given.on_demo else f"; claim {CLAIMS[name]:.0f}"
    print(f"  {middle:.1f} times the harness ({spread}{claim})")
    prompts = make_prompts(name, questions[:400], [], Template(), config)
    requests = [encode_prompt(tokenizer, prompt, "harness") for prompt in prompts]
    for world in (2, 4):
        share = slowest_share(ours, requests, given.batch, world)
        print(f"  the slowest of {world} processes has {share:.2f} times its even share of the work")
    return good and (given.on_demo or middle >= CLAIMS[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, help="folder laid out like the hub (default: the demo's)")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer (default: one trained on the questions)")
    parser.add_argument("--questions", type=int, default=40, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()

    import torch
    from transformers.utils import logging as transformers_logging

    from miniqwen.config.evaluating import EvalConfig
    from miniqwen.data.repositories import resolve
    from miniqwen.demo import write_demo
    from miniqwen.model.tokenization_miniqwen import load_tokenizer, train_tokenizer
    from miniqwen.questions.splits import Wanted, read_splits

    transformers_logging.disable_progress_bar()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        given.on_demo = given.data_root is None
        if given.on_demo:
            given.data_root = Path(scratch, "demo")
            write_demo(given.data_root)
        tokenizer = load_tokenizer(given.tokenizer) if given.tokenizer else None
        if tokenizer is None:
            flags = EvalConfig(dataset_name="sciq", data_root=str(given.data_root))
            (texts,) = read_splits(resolve("sciq", flags), "sciq", flags, [Wanted("train")]).questions
            tokenizer = train_tokenizer((" ".join((one.support, one.question, *one.choices)) for one in texts), 16_384)
        folder = Path(scratch, "model")
        random_model(len(tokenizer)).save_pretrained(folder)
        good = [measure(name, given, tokenizer, folder) for name in CLAIMS]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
