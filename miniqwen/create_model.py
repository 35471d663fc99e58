"""`python -m miniqwen.create_model`: a first model, with a tokenizer trained on the chosen text, or an imported one.

Promises: the weights depend on the size, the vocabulary and `--seed` alone; the folder appears whole or not at all, and
loads in stock transformers; an import keeps its weights bit for bit, and neither code nor pickles of a checkpoint are
read. Costs: about half a minute for the tokenizer's 50 MB of text, and its words in memory; for an import, one copy of
the weights in memory.
"""

from miniqwen.config.creating import CreateConfig
from miniqwen.config.flags import parse
from miniqwen.errors import UserError, user_errors_exit_2

if __name__ == "__main__":
    with user_errors_exit_2():
        CONFIG = parse(
            CreateConfig,
            program="python -m miniqwen.create_model",
            description="Make a model: a tokenizer trained on text and random weights, or an imported checkpoint.",
        )

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import HfApi, hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from miniqwen.data.patience import patiently
from miniqwen.data.repositories import resolve
from miniqwen.data.sources import Source
from miniqwen.data.windows import TextWindows
from miniqwen.model.modeling_miniqwen import (
    SIZES,
    check_config,
    check_weights,
    count_parameters,
    load_model,
    new_model,
    save_model,
    size_parameters,
)
from miniqwen.model.tokenization_miniqwen import load_tokenizer, train_tokenizer

# What a model folder holds: all that --overwrite_output_dir deletes here.
MODEL_FILES = (
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "prompt_templates.json",
)  # fmt: skip
DOWNLOADED = ("*.json", "*.safetensors", "merges.txt", "*.jinja")  # of a checkpoint on the hub
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def main(config: CreateConfig) -> None:
    """Make or import the model, write its folder, say what it is and what comes next."""
    folder = Path(str(config.output_dir))
    if config.from_pretrained:
        model, tokenizer = imported(config.from_pretrained, config.cache_dir)
        what = f"imported from {config.from_pretrained} as {model.config.model_type}"
    else:
        model, tokenizer = created(config)
        what = config.size
    write_folder(folder, model, tokenizer)
    shape = model.config
    print(
        f"{folder}: {what}, {count_parameters(model):,} parameters, vocabulary {shape.vocab_size:,}, "
        f"{shape.num_hidden_layers} layers of width {shape.hidden_size}, {shape.max_position_embeddings:,} positions, "
        f"{model.dtype}"
    )
    print(f"next: {next_command(config, shape.max_position_embeddings)}")


def created(config: CreateConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A new tokenizer and a model with random weights for it."""
    size = SIZES[config.size]
    wanted = config.vocab_size or size.vocab_size
    tokenizer = train_tokenizer(training_texts(config), wanted)
    reached = len(tokenizer)
    if reached < wanted:
        print(f"tokenizer: the text has no more than {reached:,} entries to learn, of the {wanted:,} asked for")
    tokenizer.model_max_length = size.max_position_embeddings
    return new_model(size.config(reached, tokenizer.eos_token_id), config.seed), tokenizer


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


def imported(name: str, cache_dir: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A Qwen3 or Qwen2 checkpoint, from a folder or the hub, in the precision it is stored in.

    Raises `UserError` for everything else, before anything large is downloaded.
    """
    folder = checkpoint_folder(name, cache_dir)
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--from_pretrained {name}: no readable config.json ({error})") from None
    check_config(described, f"--from_pretrained {name}")
    stored = described.get("dtype") or described.get("torch_dtype")
    model = load_model(folder, PRECISIONS.get(str(stored), torch.float32))
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"--from_pretrained {name}: its tokenizer has {len(tokenizer):,} entries and its model "
            f"{model.config.vocab_size:,}: they do not belong together"
        )
    return model, tokenizer


def checkpoint_folder(name: str, cache_dir: str | None) -> Path:
    """The folder of a checkpoint; one on the hub is looked at first, and downloaded when it can be used."""
    where = f"--from_pretrained {name}"
    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists() or not HUB_ID.fullmatch(name):
        raise UserError(f"{where}: neither a folder nor a hub id (OWNER/NAME)")
    download = partial(snapshot_download, name, cache_dir=cache_dir, allow_patterns=list(DOWNLOADED))
    try:
        if is_offline_mode():
            return Path(download(local_files_only=True))
        info = patiently(lambda: HfApi().model_info(name), where)
        revision, files = info.sha, [file.rfilename for file in info.siblings or ()]
        if "config.json" not in files:
            raise UserError(f"{where}: has no config.json, so it is no checkpoint for transformers")
        fetch = partial(hf_hub_download, name, "config.json", revision=revision, cache_dir=cache_dir)
        check_config(json.loads(Path(patiently(fetch, where)).read_text(encoding="utf-8")), where)
        check_weights(files, where)
        return Path(patiently(lambda: download(revision=revision), where))
    except LocalEntryNotFoundError:
        raise UserError(f"{where}: not downloaded yet, and HF_HUB_OFFLINE forbids to ask the hub") from None
    except HFValidationError as error:
        raise UserError(f"{where}: {error}") from None


def write_folder(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write beside the folder first, then rename; into a folder that is there, file by file, config.json last."""
    folder = folder.resolve()
    temporary = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    try:
        temporary.mkdir(parents=True)
        save_model(model, temporary, model.dtype)
        tokenizer.save_pretrained(temporary)
        if not folder.exists():
            temporary.rename(folder)
            return
        for pattern in MODEL_FILES:
            for old in folder.glob(pattern):
                old.unlink()
        for new in sorted(temporary.iterdir(), key=lambda path: path.name == "config.json"):
            new.rename(folder / new.name)
    except OSError as error:
        raise UserError(f"--output_dir {folder}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def next_command(config: CreateConfig, positions: int) -> str:
    """The command that continues from here: pretraining on the text that the tokenizer has learned."""
    length = min(1024, positions)
    names = ("dataset_config_name", "data_root", "text_column")
    data = [word for name in names if (value := getattr(config, name)) for word in (f"--{name}", value)]
    words = [
        "accelerate", "launch", "train_loop.py", "--model_path", str(config.output_dir),
        "--dataset_name", str(config.dataset_name), *data, "--output_dir", "./miniqwen/pretrained",
        "--block_size", str(length), "--max_seq_length", str(length), "--max_steps", "10000",
    ]  # fmt: skip
    return shlex.join(words)


def size_table() -> str:
    """The sizes as a Markdown table, parameters counted in the models themselves."""
    rows = [
        ("size", "parameters", "width", "layers", "heads", "key-value heads", "vocabulary", "positions"),
        ("---", *["--:"] * 7),
    ]
    for name, size in SIZES.items():
        numbers = (
            size_parameters(size, size.vocab_size), size.hidden_size, size.num_hidden_layers, size.num_attention_heads,
            size.num_key_value_heads, size.vocab_size, size.max_position_embeddings,
        )  # fmt: skip
        rows.append((name, *(f"{number:,}" for number in numbers)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    with user_errors_exit_2():
        main(CONFIG)
