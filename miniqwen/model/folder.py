"""A model's folder: which files it holds, and how a new one takes its place.

Promises: it appears whole or not at all. Costs: the weights are written once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from miniqwen.config.models import MODEL_FILES
from miniqwen.errors import disk_refusal, refused_by_disk
from miniqwen.files import make_folder, publish
from miniqwen.lock import FolderLock
from miniqwen.model.modeling_miniqwen import save_model
from miniqwen.model.tokenization_miniqwen import save_tokenizer


def write_folder(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write beside the folder first, then rename; into a folder that is there, file by file, config.json last."""
    folder = folder.resolve()
    temporary = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    try:
        make_folder(temporary)
        save_model(model, temporary, model.dtype)
        save_tokenizer(tokenizer, temporary)
        with FolderLock(folder, "create_model") if folder.exists() else contextlib.nullcontext():
            publish(temporary, folder, "config.json", MODEL_FILES)
    except Exception as error:
        if not isinstance(error, OSError) and refused_by_disk(error) is None:
            raise
        advice = "no model was written: make room, or choose another place"
        raise disk_refusal(error, str(folder), advice, "--output_dir") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
