"""A model's card: the README.md that a hub shows of it, and that says at home what the folder holds.

Promises: what it says follows from the run alone, so that an interrupted one leaves the same; what is not known is not
said. A README.md of somebody else's, or ours that was changed, is left as it is. Text from data is quoted.
Costs: one small file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from miniqwen.checkpoints.checkpoint import Progress
from miniqwen.config.training import TrainConfig
from miniqwen.errors import printable
from miniqwen.files import regular, write_text
from miniqwen.questions.templates import Template

TEMPLATE = Path(__file__).parent / "page" / "card.md.jinja"
MARK = "<!-- This card was written by MiniQwen; it is written again only while it is as it was: {} -->\n"
LICENCES = {
    "wikimedia/wikipedia": "CC BY-SA 4.0 and GFDL",
    "common-pile/arxiv_papers": "openly licensed papers, each under its own licence",
    "allenai/sciq": "CC BY-NC 3.0",
    "tau/commonsense_qa": "MIT",
}
FIGURES = ("eval_loss", "eval_perplexity", "eval_bits_per_byte", "eval_accuracy")


def card(
    config: TrainConfig,
    identity: Mapping[str, Any],
    progress: Progress,
    made_of: str,
    evaluated: Mapping[str, Any],
    template: Template | None,
) -> str:
    """The text. `made_of`: the checkpoint whose weights these are; `evaluated`: its line of metrics, if it has one."""
    found = identity.get("sources", {})
    hub = sorted({str(of["repository"]) for of in found.values() if of.get("revision")})
    about: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["miniqwen"]}
    about |= {"datasets": hub} if hub else {}
    shares = identity.get("shares", {})
    rows = [
        (*map(_quoted, (name, of.get("repository"), of.get("revision") or "local files", of.get("split"))),
         f"{shares[name]:.3g}" if name in shares else "")
        for name, of in found.items()
    ]  # fmt: skip
    known = [str(of["repository"]) for of in found.values() if of.get("repository") in LICENCES]
    licences = [f"{_quoted(repository)}: {LICENCES[repository]}" for repository in dict.fromkeys(known)]
    figures = {name: evaluated.get(name) for name in FIGURES}
    page = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        about=yaml.safe_dump(about, sort_keys=False, allow_unicode=True),
        name=_plain(Path(str(config.output_dir)).resolve().name),
        what="Pretrained on text" if config.resolved_task == "pretrain" else "Fine-tuned on questions",
        made_of=made_of,
        steps=f"{progress.step:,}",
        tokens=f"{progress.tokens:,}",
        began_as=_quoted(config.model_path),
        rows=rows,
        figures={name: value for name, value in figures.items() if isinstance(value, float) and math.isfinite(value)},
        prompt=_plain(template.prompt) if template else None,
        licences=licences + ["of other data: see there"] * (len(known) < len(found)),
    )


def write_card(folder: Path, text: str) -> str | None:
    """Write README.md there; what is said where one stands that is not ours, or was changed."""
    file = folder / "README.md"
    if (file.exists() or file.is_symlink()) and not _is_ours(file):
        return f"{file} is left as it is: it was not written by a run, or was changed since"
    write_text(file, text + MARK.format(_hash(text)))
    return None


def _is_ours(file: Path) -> bool:
    try:
        whole = regular(file).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    text, last = whole[: whole.rfind("<!-- ")], whole[whole.rfind("<!-- ") :]
    return last == MARK.format(_hash(text))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(text: str) -> str:
    return printable(text, keep="\n").replace("`", "'")


def _quoted(value: Any) -> str:
    """As code in a table."""
    return "" if value is None else "`" + " ".join(_plain(str(value)).replace("|", "\\|").split()) + "`"
