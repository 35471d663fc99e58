"""`python -m miniqwen.caches`: what large files cut into windows and token caches take, and whether they are whole.

    python -m miniqwen.caches                       # the windows in Hugging Face's folder, or in --cache_dir
    python -m miniqwen.caches tokens --verify       # and the token caches in tokens/, every byte read
    python -m miniqwen.caches --prune 30            # delete windows that nobody used for 30 days

Promises: see `miniqwen/data/caches.py`; exit status 1 where something that stays is damaged. Costs: see there.
"""

from miniqwen.errors import check_python

check_python()

from miniqwen.config.caching import CachesConfig
from miniqwen.config.flags import parse
from miniqwen.errors import interrupts_end, user_errors_exit_2

if __name__ == "__main__":
    IMPORTED = interrupts_end("what was not deleted yet is whole")
    with user_errors_exit_2():
        CONFIG = parse(
            CachesConfig, program="python -m miniqwen.caches", description="What the caches hold, and what can go."
        )

from pathlib import Path

from miniqwen.data.caches import Cached, prune, tokens_in, windows_in
from miniqwen.data.cuts import cuts_folder


def main(config: CachesConfig) -> bool:
    """List the caches, and make room if asked to; returns whether all that stays is whole."""
    kept: list[Cached] = []
    freed = 0
    for cached in windows_in(config.cache_dir, config.verify):
        print(cached, flush=True)
        why = "" if config.prune is None else prune(cached, config.prune)
        if why is None:
            freed += cached.size
            print("  deleted")
            continue
        if why:
            print(f"  stays: {why}")
        kept.append(cached)
    for root in config.token_caches:
        for cached in tokens_in(Path(root), config.verify):
            print(cached, flush=True)
            if cached.fault:
                print("  made anew where it is damaged by `python prepare_datasets.py --tokenize`, as it was made")
            kept.append(cached)
    total = sum(cached.size for cached in kept)
    told = f"{len(kept)} caches, {total / 1e6:,.1f} MB" + (f"; {freed / 1e6:,.1f} MB freed" if freed else "")
    print(f"{told} (windows of large files are in {cuts_folder(config.cache_dir)})")
    return not any(cached.fault for cached in kept)


if __name__ == "__main__":
    IMPORTED()
    with user_errors_exit_2():
        if not main(CONFIG):
            raise SystemExit(1)
