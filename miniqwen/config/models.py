"""What can be seen of a model's folder before anything heavy is loaded.

Promises: a folder that holds no model, an unfinished run, or another model than can be trained is told at once, with
what to do. Costs: config.json and trainer_state.json are read.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miniqwen.files import read_json

# What a model's folder holds; overwriting deletes these, and nothing else, of a model.
MODEL_FILES = (
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "prompt_templates.json", "answer_reading.json",
)  # fmt: skip
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # OWNER/NAME
HUB_ADDRESS = re.compile(
    r"(?:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://)([A-Za-z0-9][\w.-]*/[\w.-]+)(?:[/?#@].*)?"
)


def model_problems(
    model_path: str | None, length: int | None, *, any_kind: bool = False, resumed: bool = False
) -> list[str]:
    """What is wrong with a model folder, and whether blocks of `length` tokens fit its positions.

    Only Qwen models can be trained; `any_kind` of causal language model can be evaluated. `resumed`: this is the folder
    of the run that goes on, from its checkpoints, so that it need not be finished.
    """
    if not model_path:
        return []
    folder = Path(model_path)
    file = folder / "config.json"
    unfinished = run_state(folder)
    if unfinished and not (resumed and file.is_file()):
        return [f"--model_path {model_path}: {_unfinished(folder, unfinished)}"]
    if not file.is_file():
        return [f"--model_path {model_path}: {_no_model(model_path, any_kind)}"]
    try:
        described = read_json(file)
        kind, positions = described.get("model_type"), described.get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return [f"{file}: is not a JSON object"]
    if kind not in ("qwen3", "qwen2") and not any_kind:
        return [f"{file}: model_type is {kind!r}; MiniQwen trains qwen3 and qwen2 models"]
    if length and isinstance(positions, int) and length > positions:
        return [
            f"blocks of {length} tokens are longer than the model's {positions} positions: "
            "lower --block_size or --max_seq_length"
        ]
    return []


def run_state(folder: Path) -> Mapping[str, Any] | None:
    """What trainer_state.json says of a run in this folder that is not finished; None where there is none."""
    try:
        state = read_json(folder / "trainer_state.json")
        return state if state["status"] != "finished" else None
    except (OSError, ValueError, KeyError, TypeError):  # no such file, or another program's
        return None


def how_far(folder: str | Path) -> str:
    """`preempted at update 120 of 400: SIGINT was received`; nothing for a run that is finished, or never began."""
    state = run_state(Path(folder))
    if state is None:
        return ""
    step, total, reason = (state.get(name) for name in ("step", "max_steps", "reason"))
    at = "" if step is None else f" at update {step}" + (f" of {total}" if total else "")
    return f"{state['status']}{at}" + (f": {reason}" if reason else "")


def _unfinished(folder: Path, state: Mapping[str, Any]) -> str:
    """That a run is not finished, how far it is, and what can be done."""
    said = (
        f"the run in it is not finished ({how_far(folder)}), and a model is written at its end; go on with it by its "
        "own command and --resume_from_checkpoint auto"
    )
    last = state.get("last_checkpoint")
    if last and (folder / str(last)).is_dir():
        said += f", or take what it has saved, --model_path {shlex.quote(str(folder / str(last)))}"
    return said


def _no_model(given: str, any_kind: bool) -> str:
    """Why there is no model at a path, and the command that makes one, or brings it from the hub."""
    folder = Path(given)
    make = f"make a model with `python -m miniqwen.create_model --output_dir {shlex.quote(given)}`"
    if folder.is_dir():
        inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
        if inside:
            return f"it has no config.json; there are models in {', '.join(str(folder / name) for name in inside[:5])}"
        return f"it has no config.json; {make}"
    if folder.exists():
        return f"is a file; give the model's folder, {shlex.quote(str(folder.parent))}"
    if address := HUB_ADDRESS.fullmatch(given):
        return f"is an address; {_imported(address[1], any_kind)}"
    if "://" in given:
        return "is an address, and a model's folder on this machine is expected: download it first"
    missing = f"no such folder{_nearly(folder)}"
    if HUB_NAME.fullmatch(given):
        # where the owner's name is a folder here, it may as well be a path
        return f"{missing}; {_imported(given, any_kind)}" + (f"; or {make}" if folder.parent.is_dir() else "")
    if len(folder.parts) == 1 and not given.startswith("~"):
        return f"{missing}; {make}; a model of the hub goes by its whole name, OWNER/{given}"
    return f"{missing}; {make}"


def _imported(name: str, any_kind: bool) -> str:
    """How a model of the hub, OWNER/NAME, gets here."""
    here = f"models/{name.partition('/')[2]}"
    said = (
        f"a model of the hub is imported first: `python -m miniqwen.create_model --from_pretrained {name} "
        f"--output_dir {here}`, then --model_path {here}"
    )
    return said + (f" (one that is no Qwen: `hf download {name} --local-dir {here}`)" if any_kind else "")


def _nearly(folder: Path) -> str:
    """Which folders have nearly this name."""
    names: list[str] = []
    if str(folder).startswith("~") and folder.expanduser().is_dir():  # as in --model_path=~/M
        names = [str(folder.expanduser())]
    elif folder.parent.is_dir():
        there = [path.name for path in folder.parent.iterdir() if path.is_dir()]
        names = [str(folder.parent / name) for name in difflib.get_close_matches(folder.name, there)]
    return f" (did you mean {' or '.join(names)}?)" if names else ""
