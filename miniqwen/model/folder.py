"""A model's folder: which files it holds, and how a new one takes its place.

Promises: it appears whole or not at all. Costs: the weights are written once.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from miniqwen.config.models import MODEL_FILES
from miniqwen.errors import UserError
from miniqwen.model.modeling_miniqwen import save_model
from miniqwen.model.tokenization_miniqwen import save_tokenizer


def write_folder(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write beside the folder first, then rename; into a folder that is there, file by file, config.json last."""
    folder = folder.resolve()
    temporary = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    try:
        temporary.mkdir(parents=True)
        save_model(model, temporary, model.dtype)
        save_tokenizer(tokenizer, temporary)
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
