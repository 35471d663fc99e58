"""Where an imported model comes from: a folder, or a repository on the hub.

Promises: weights stay bit for bit; neither code nor pickles of a checkpoint are read; what cannot be used is refused
before anything large is downloaded. Costs: one copy of the weights in memory.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import HfApi, hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from miniqwen.data.patience import patiently
from miniqwen.errors import UserError
from miniqwen.files import read_json
from miniqwen.model.modeling_miniqwen import check_config, check_weights, load_model
from miniqwen.model.tokenization_miniqwen import load_tokenizer

DOWNLOADED = ("*.json", "*.safetensors", "merges.txt", "*.jinja")  # of a checkpoint on the hub
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def imported(name: str, cache_dir: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A Qwen3 or Qwen2 checkpoint, from a folder or the hub, in the precision it is stored in.

    Raises `UserError` for everything else, before anything large is downloaded.
    """
    folder = checkpoint_folder(name, cache_dir)
    try:
        described = read_json(folder / "config.json")
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
        check_config(read_json(Path(patiently(fetch, where))), where)
        check_weights(files, where)
        return Path(patiently(lambda: download(revision=revision), where))
    except LocalEntryNotFoundError:
        raise UserError(f"{where}: not downloaded yet, and HF_HUB_OFFLINE forbids to ask the hub") from None
    except HFValidationError as error:
        raise UserError(f"{where}: {error}") from None
