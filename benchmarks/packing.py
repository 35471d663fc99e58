"""How full fine-tuning's batches are: ours packed, and the padded ones of Hugging Face's Trainer, same examples.

    python benchmarks/packing.py [--data_root MIRROR] [--tokenizer DIR] [--max_seq_length 512]

One epoch of SciQ and of CommonsenseQA each: the share of the positions that the model computes which hold tokens of an
example. `packed` is counted over the micro-batches of the task that the training loop uses with --packing; `padded`
over the batches of a real `transformers.Trainer`'s own data loader, which pads to the longest of 4, 8 or 16. Without
--packing ours has no padding at all. Exit status 1 when a packed epoch is less than 97 % full, or an example is lost.
Without --data_root the demo's questions are written, and without --tokenizer one of ours is trained on the questions.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

CLAIM = 0.97
PADDED_TO_LONGEST_OF = (4, 8, 16)


def own_tokenizer(name: str, data_root: Path) -> Any:
    """One of ours, of at most 16,384 entries, trained on the questions."""
    from miniqwen.config.training import TrainConfig
    from miniqwen.data.repositories import resolve
    from miniqwen.model.tokenization_miniqwen import train_tokenizer
    from miniqwen.questions.examples import training_questions

    config = TrainConfig(dataset_name=name, data_root=str(data_root))
    train, _ = training_questions(resolve(name, config), name, config).questions
    return train_tokenizer((" ".join((question.question, *question.choices)) for question in train), 16_384)


def packed(name: str, given: argparse.Namespace, tokenizer: Any) -> tuple[float, list[list[int]]]:
    """The share of positions of one epoch that hold tokens, and the examples that were there."""
    import numpy as np

    from miniqwen.config.training import TrainConfig
    from miniqwen.training.batches import Plan
    from miniqwen.training.opening import list_data, make_task

    config = TrainConfig(
        dataset_name=name, data_root=str(given.data_root), max_seq_length=given.max_seq_length, packing=True,
        do_qa_format=True,
    )  # fmt: skip
    task = make_task(config, list_data(config, tokenizer), tokenizer, Plan(4, 1, 0, 1))
    positions, tokens, examples = 0, 0, []
    for update in itertools.islice(task.updates({}), task.updates_per_epoch):
        tokens += update.num_tokens
        for batch in update.micro_batches:
            rows = [row for row in range(len(batch.input_ids)) if batch.input_ids[row].any()]
            positions += len(rows) * given.max_seq_length  # the last update of an epoch may have empty rows
            assert batch.cu_seqlens is not None
            flat, ends = batch.input_ids.reshape(-1).numpy(), batch.cu_seqlens
            for start, stop in itertools.pairwise(np.unique(ends).tolist()):
                if flat[start:stop].any():  # the filling behind a row's examples is zeros
                    examples.append(flat[start:stop].tolist())
    assert sum(map(len, examples)) == tokens
    return tokens / positions, examples


def padded(examples: Sequence[Sequence[int]], size: int, tokenizer: Any, folder: str) -> float:
    """The same of a Trainer's epoch over `examples`."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Qwen3Config, Qwen3ForCausalLM, Trainer, TrainingArguments

    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, head_dim=8,
        )
    )  # fmt: skip
    data = Dataset.from_list([{"input_ids": ids, "labels": ids} for ids in examples])
    arguments = TrainingArguments(folder, per_device_train_batch_size=size, report_to="none", use_cpu=True)
    collator = DataCollatorForSeq2Seq(tokenizer)
    trainer = Trainer(model, arguments, data_collator=collator, train_dataset=data, processing_class=tokenizer)
    tokens, positions = 0, 0
    for batch in trainer.get_train_dataloader():
        tokens += int(batch["attention_mask"].sum())
        positions += batch["input_ids"].numel()
    assert tokens == sum(map(len, examples))
    return tokens / positions


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--data_root", type=Path)
    flags.add_argument("--tokenizer", type=Path)
    flags.add_argument("--max_seq_length", type=int, default=512)
    given = flags.parse_args()
    from transformers.utils import logging

    from miniqwen.demo import write_demo
    from miniqwen.model.tokenization_miniqwen import load_tokenizer

    logging.set_verbosity_error()
    fullest = []
    with tempfile.TemporaryDirectory() as folder:
        if given.data_root is None:
            given.data_root = Path(folder, "mirror")
            write_demo(given.data_root)
        for name in ("sciq", "commonsenseqa"):
            tokenizer = load_tokenizer(given.tokenizer) if given.tokenizer else own_tokenizer(name, given.data_root)
            share, examples = packed(name, given, tokenizer)
            fullest.append(share)
            others = ", ".join(
                f"{padded(examples, size, tokenizer, folder):.1%} ({size})" for size in PADDED_TO_LONGEST_OF
            )
            print(f"{name}: {len(examples):,} examples; packed {share:.2%} full; Trainer, padded: {others}", flush=True)
    holds = min(fullest) >= CLAIM
    print(f"claimed at least {CLAIM:.0%} packed: {'holds' if holds else 'DOES NOT HOLD'}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
