"""Whether the data path's memory stays flat: resident memory while millions of tokens are made into micro-batches.

    python benchmarks/memory.py [--files FILE ...] [--text_column text] [--tokenizer DIR] [--tokens 10000000]

Text is read, tokenised, packed and batched as in training, epoch after epoch. After the first fifth, when every buffer
is full, resident memory is noted at every tenth; claimed is that the last note is at most 5 % above the first.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from throughput import updates_of, write_text

DRIFT = 0.05


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--files", type=Path, nargs="*", default=[])
    flags.add_argument("--text_column", default="text")
    flags.add_argument("--tokenizer", type=Path)
    flags.add_argument("--tokens", type=int, default=10_000_000)
    flags.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = flags.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(given.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.environ["HF_HUB_OFFLINE"] = "1"
    import pyarrow.parquet as pq

    from miniqwen.model.tokenization_miniqwen import load_tokenizer, train_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = folder
        files = given.files or write_text(Path(folder), 12.0)
        if given.tokenizer:
            tokenizer = load_tokenizer(given.tokenizer)
        else:
            sample = pq.read_table(files[0])[given.text_column].slice(0, 500).to_pylist()
            tokenizer = train_tokenizer(sample, 16_384)
        made, notes = 0, []
        for update in updates_of(tokenizer, files, given.text_column, given.threads):
            before, made = made, made + update.num_tokens
            if made * 10 // given.tokens > before * 10 // given.tokens:
                print(f"{made:>12,} tokens {resident() / 2**20:8.1f} MiB", flush=True)
                notes += [resident()] if made * 10 >= given.tokens * 2 else []
            if made >= given.tokens:
                break
    drift = notes[-1] / notes[0] - 1
    print(f"drift {drift:+.1%}; claimed at most {DRIFT:.0%}: {'holds' if drift <= DRIFT else 'DOES NOT HOLD'}")
    return 0 if drift <= DRIFT else 1


if __name__ == "__main__":
    sys.exit(main())
