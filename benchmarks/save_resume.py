"""What a checkpoint costs: seconds of saving, in the foreground and beside the loop, of resuming, and bytes on disk.

    python benchmarks/save_resume.py                        # 1, 10 and 50 million parameters
    python benchmarks/save_resume.py --millions 100 --folder /scratch
    OMP_NUM_THREADS=1 python benchmarks/save_resume.py      # leaves cores to the writer, as training on a GPU does

One process on the CPU, a model with AdamW's moments. "the loop loses" is the time that updates during a background save
take longer than the same updates without one, and the copying before it. Exit status 1 when the largest model's loop
loses 20 % of the foreground save or more.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from miniqwen.checkpoints.checkpoint import Progress, read_checkpoint
from miniqwen.config.training import TrainConfig
from miniqwen.distributed.shards import gathered, restore_optimizer
from miniqwen.model.modeling_miniqwen import MiniQwenConfig, count_parameters, new_model
from miniqwen.model.tokenization_miniqwen import train_tokenizer
from miniqwen.training.output_folder import OutputFolder
from miniqwen.training.resuming import checkpoint_to_resume

LIMIT = 0.2  # of the foreground save
WIDTHS = {1: 128, 10: 320, 50: 768, 100: 1024, 200: 1536}  # millions of parameters to hidden size, roughly


def make(hidden: int, vocabulary: int) -> torch.nn.Module:
    config = MiniQwenConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=6,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, head_dim=64,
        max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    return new_model(config, seed=0)


def update(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> None:
    model(input_ids=tokens, targets=tokens).backward()
    optimizer.step()
    optimizer.zero_grad()


def measure(folder: Path, hidden: int, repeats: int) -> dict[str, float]:
    tokenizer = train_tokenizer(["stone river light metal"] * 10, 300)
    model = make(hidden, 8192)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    tokens = torch.randint(0, 8192, (4, 128), generator=torch.Generator().manual_seed(0))
    update(model, optimizer, tokens)
    outputs = [
        OutputFolder(TrainConfig(output_dir=str(folder), async_save=beside), model, tokenizer, (), {}, 1)
        for beside in (False, True)
    ]
    foreground, copying, loses = [], [], []
    for repeat in range(repeats):  # the least of several: other work on the machine only ever adds
        began = perf_counter()
        outputs[0].save(Progress(step=2 * repeat + 1), gathered(model, optimizer), None)
        foreground.append(perf_counter() - began)
        began = perf_counter()
        outputs[1].save(Progress(step=2 * repeat + 2), gathered(model, optimizer), None)
        copying.append(perf_counter() - began)
        updates, began = 0, perf_counter()
        thread = outputs[1]._background._thread
        while thread is not None and (thread.is_alive() or updates == 0):
            update(model, optimizer, tokens)
            updates += 1
        during = perf_counter() - began
        outputs[1].wait()
        began = perf_counter()
        for _ in range(updates):
            update(model, optimizer, tokens)
        loses.append(copying[-1] + max(during - (perf_counter() - began), 0.0))

    size = sum(file.stat().st_size for file in (folder / "checkpoint-1").iterdir())
    began = perf_counter()
    chosen = checkpoint_to_resume(TrainConfig(output_dir=str(folder), resume_from_checkpoint="auto"))
    checkpoint = read_checkpoint(chosen) if chosen else None
    if checkpoint is None:
        raise SystemExit("there is no checkpoint to resume from")
    model.load_state_dict(dict(checkpoint.weights.items()), strict=False)
    restore_optimizer(model, optimizer, checkpoint.weights, checkpoint.optimizer_state)
    resume = perf_counter() - began
    return {
        "parameters": count_parameters(model) / 1e6, "megabytes": size / 1e6, "foreground": min(foreground),
        "copying": min(copying), "loses": min(loses), "resume": resume,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, nargs="+", default=[1, 10, 50], choices=WIDTHS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure (default: a temporary one)")
    given = parser.parse_args()
    print("parameters   on disk   save    copy   the loop loses   of the save   resume")
    share = 0.0
    for millions in given.millions:
        folder = Path(tempfile.mkdtemp(dir=given.folder))
        try:
            found = measure(folder, WIDTHS[millions], given.repeats)
        finally:
            shutil.rmtree(folder)
        share = found["loses"] / found["foreground"]
        print(
            f"{found['parameters']:8.1f} M {found['megabytes']:6.0f} MB {found['foreground']:6.2f} s "
            f"{found['copying']:5.2f} s {found['loses']:14.2f} s {share:13.0%} {found['resume']:8.2f} s",
            flush=True,
        )
    sys.exit(share >= LIMIT)


if __name__ == "__main__":
    main()
