"""The text that a new tokenizer is trained on.

Promises: documents in the order of the data set, up to the megabytes asked for. Costs: what is read is decoded once.
"""

from __future__ import annotations

from collections.abc import Iterator

from miniqwen.config.creating import CreateConfig
from miniqwen.data.repositories import resolve
from miniqwen.data.sources import Source
from miniqwen.data.windows import TextWindows
from miniqwen.errors import UserError


def training_texts(config: CreateConfig) -> Iterator[str]:
    """Text to train the tokenizer on, `--tokenizer_megabytes` in all, of `both` half from each; says what it read.

    Documents in the order of the data set. Raises `UserError` when there is none.
    """
    name = str(config.dataset_name)
    names = ("wikipedia", "arxiv") if name == "both" else (name,)
    total = 0
    for each in names:
        repository = resolve(each, config)
        if repository.note:
            print(repository.note)
        budget, read = int(config.tokenizer_megabytes * 1e6 / len(names)), 0
        print(f"tokenizer: reading up to {budget / 1e6:g} MB of {each}", flush=True)
        for text in documents(repository.source("train", (config.text_column or "text",))):
            encoded = text.encode("utf-8", "replace")[: budget - read]
            read += len(encoded)
            yield encoded.decode("utf-8", "ignore")  # the last one may be cut, inside a character even
            if read >= budget:
                break
        print(f"tokenizer: {read / 1e6:.2f} MB of {each} read", flush=True)
        total += read
    if not total:
        raise UserError(f"--dataset_name {name}: there is no text in its training split to train a tokenizer on")


def documents(source: Source) -> Iterator[str]:
    """Every text of a source that is not empty, in its order. Raises `UserError` for values that are not text."""
    (column,) = source.columns
    windows = TextWindows(source)
    for unit in range(len(windows.units())):
        for window, first in enumerate(windows.starts(unit)[:-1]):
            for row, text in enumerate(windows.read(unit, window), first):
                if text is not None and not isinstance(text, str):
                    raise UserError(
                        f"{windows.place(unit, row)}: {column} is {type(text).__name__}, not text; "
                        "choose a --text_column of texts"
                    )
                if text:
                    yield text
