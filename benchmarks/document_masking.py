"""What it costs on a CPU to keep the documents of a block apart: a training step against plain causal attention.

    python benchmarks/document_masking.py [--size tiny] [--repeats 15]

Per mix of document lengths, a step (forward and backward of a batch of 4 blocks of 1,024 tokens, laying the documents
out included) is run three ways in turn: plain causal attention over the block, ours with the documents, and the dense
[length, length] mask that the library's sdpa attention takes. Printed are the ratios of CPU seconds to plain causal of
the same round: median and quartiles. The claim is that ours costs at most 1.15.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from time import process_time

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch

from miniqwen.model.attention import cumulative_lengths
from miniqwen.model.loss import cross_entropy_sum
from miniqwen.model.modeling_miniqwen import MiniQwenForCausalLM, new_model
from miniqwen.model.sizes import SIZES

BLOCKS, LENGTH, CLAIM = 4, 1024, 1.15
# Tokens of a document. Wikipedia's and the papers' are log-normal fits to the real excerpts with Qwen's tokenizer.
MIXES = {
    "one document a block": lambda drawn: LENGTH,
    "papers": lambda drawn: int(drawn.lognormal(9.3, 1.0)) + 1,
    "wikipedia": lambda drawn: int(drawn.lognormal(5.1, 1.4)) + 1,
    "wikipedia and papers": lambda drawn: int(drawn.lognormal(*((5.1, 1.4), (9.3, 1.0))[drawn.random() < 0.05])) + 1,
    "two halves": lambda drawn: LENGTH // 2,
    "questions": lambda drawn: int(drawn.integers(30, 130)),
    "many tiny ones": lambda drawn: int(drawn.integers(4, 24)),
    "one token each": lambda drawn: 1,
}


def starts_of(mix: str, seed: int) -> np.ndarray:
    """Where documents begin in the blocks laid end to end; the stream of documents runs on from block to block."""
    drawn = np.random.default_rng(seed)
    ends, place = set(range(0, BLOCKS * LENGTH, LENGTH)), 0
    skipped = 0 if mix in ("one document a block", "two halves") else int(drawn.integers(0, LENGTH))
    while place < BLOCKS * LENGTH + skipped:
        ends.add(place - skipped)
        place += MIXES[mix](drawn)
    return np.array(sorted(end for end in ends if end >= 0))


def dense_mask(starts: np.ndarray) -> torch.Tensor:
    """[blocks, 1, length, length]: True where a token (row) may see another (column)."""
    number = np.searchsorted(starts, np.arange(BLOCKS * LENGTH), side="right").reshape(BLOCKS, LENGTH)
    same = torch.from_numpy(number[:, :, None] == number[:, None, :])
    return (same & torch.ones(LENGTH, LENGTH).tril().bool())[:, None]


def seconds(model: MiniQwenForCausalLM, batch: dict[str, torch.Tensor], way: str, starts: np.ndarray) -> float:
    """CPU seconds of one step."""
    began = process_time()
    if way == "dense":
        hidden = model.model(
            batch["input_ids"], position_ids=batch["position_ids"], use_cache=False,
            attention_mask={"full_attention": dense_mask(starts)},
        ).last_hidden_state  # fmt: skip
        loss = cross_entropy_sum(hidden, model.lm_head.weight, batch["targets"])
    elif way == "ours":
        loss = model(**batch, cu_seqlens=cumulative_lengths(starts, BLOCKS * LENGTH))
    else:
        loss = model(**batch)
    loss.backward()
    taken = process_time() - began
    model.zero_grad()
    return taken


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--size", default="tiny", choices=SIZES)
    flags.add_argument("--repeats", type=int, default=15)
    given = flags.parse_args()
    size = SIZES[given.size]
    model = new_model(size.config(size.vocab_size), 0).train()
    tokens = torch.randint(0, size.vocab_size, (BLOCKS, LENGTH), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": tokens, "targets": tokens.roll(-1, 1)}
    print(f"{given.size}, {BLOCKS} x {LENGTH} tokens, {torch.get_num_threads()} threads, {given.repeats} rounds")
    print(f"{'documents':24}{'number':>8}{'ours / plain':>14}{'quartiles':>16}{'dense / plain':>16}{'quartiles':>16}")
    worst = 0.0
    for mix in MIXES:
        ratios: dict[str, list[float]] = {"ours": [], "dense": []}
        count = 0
        for repeat in range(-1, given.repeats):
            starts = starts_of(mix, max(repeat, 0))
            lengths = np.diff(starts, append=BLOCKS * LENGTH)
            places = torch.from_numpy(np.arange(BLOCKS * LENGTH) - np.repeat(starts, lengths)).view(BLOCKS, LENGTH)
            placed = {**batch, "position_ids": places}
            taken = {way: seconds(model, placed, way, starts) for way in ("plain", "ours", "dense")}
            if repeat >= 0:  # the first round warms up
                count += len(starts)
                for way, found in ratios.items():
                    found.append(taken[way] / taken["plain"])
        ours, dense = (statistics.quantiles(found, n=4) for found in ratios.values())
        worst = max(worst, ours[1])
        print(
            f"{mix:24}{count / given.repeats:8.0f}{ours[1]:14.3f}{f'{ours[0]:.3f}-{ours[2]:.3f}':>16}"
            f"{dense[1]:16.3f}{f'{dense[0]:.3f}-{dense[2]:.3f}':>16}"
        )
    print(f"worst median {worst:.3f}; claimed at most {CLAIM}: {'holds' if worst <= CLAIM else 'DOES NOT HOLD'}")
    return 0 if worst <= CLAIM else 1


if __name__ == "__main__":
    sys.exit(main())
