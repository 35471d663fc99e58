"""What is trained: Qwen3-compatible models of several sizes, their import and their export.

Promises: with targets, `forward` returns the summed loss (so that every backend wraps it); without, it is the library's
own Qwen3 (`generate`, KV cache). A saved folder is a stock `Qwen3ForCausalLM` folder (an imported Qwen2 stays
`Qwen2ForCausalLM`), the same model in transformers 4 and 5: safetensors and JSON, no code of ours. Costs: what the
library's model costs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedModel, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from miniqwen.errors import UserError, is_shortage
from miniqwen.files import check_regular, make_folder, read_json, write_json
from miniqwen.model.attention import ATTENTION, Documents, SharedPrefixes, has_flash, lay_out
from miniqwen.model.loss import Scored, computes_in, cross_entropy_sum, log_probabilities

# config.json says under `trained_with` by which --optim a model was trained; other people's, by AdamW
UNTRAINED, ADAMW = "nothing", "adamw"


class MiniQwenConfig(Qwen3Config):
    """The library's Qwen3 configuration: MiniQwen models are Qwen3 models."""


class TargetLoss:
    """A causal language model whose forward pass, given targets, returns their summed cross-entropy."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.set_attn_implementation(ATTENTION)  # type: ignore[attr-defined]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        *,
        targets: torch.Tensor | None = None,
        cu_seqlens: np.ndarray | None = None,
        places: torch.Tensor | None = None,
        shared: SharedPrefixes | None = None,
        scored: Scored | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """The sum of cross-entropies over `targets` [batch, length] that are not -100, as an fp32 scalar.

        `targets[b, t]` is the token after `input_ids[b, t]`. `cu_seqlens` [documents + 1] int32 are the cumulative
        lengths of the documents in the rows laid end to end: a token sees earlier tokens of its own document only
        (None: all earlier tokens of the row). They stay on the host. `places`: see `cross_entropy_sum`.
        With `scored` these log-probabilities [n] are returned instead, of one row [1, length] of texts laid out as
        `shared` says: the output matrix is used here, in the outermost forward pass, because sharded models are whole
        nowhere else.
        Without both this is the library's forward pass; `generate` reads its arguments' names off this signature.
        Raises `ValueError` for arguments that have no meaning with `targets`.
        """
        if shared is not None and scored is not None:
            hidden = self._hidden(input_ids, position_ids, shared)
            return log_probabilities(hidden, self.lm_head.weight, scored)  # type: ignore[attr-defined]
        if targets is None:
            if cu_seqlens is not None:
                raise ValueError("cu_seqlens have a meaning only with targets")
            return super().forward(  # type: ignore[misc]
                input_ids, attention_mask, position_ids, logits_to_keep=logits_to_keep, **kwargs
            )
        unused = [name for name, value in {"attention_mask": attention_mask, **kwargs}.items() if value is not None]
        if unused:
            raise ValueError(
                f"with targets, {', '.join(unused)} would be ignored: give input_ids, position_ids, cu_seqlens"
            )
        documents = None
        if cu_seqlens is not None:
            precision = computes_in(next(self.parameters()))  # type: ignore[attr-defined]
            flash = has_flash(targets.device, precision, self.model.layers[0].self_attn.head_dim)  # type: ignore[attr-defined]
            rows, length = targets.shape
            documents = lay_out(cu_seqlens, rows, length, targets.device, flash)
        hidden = self._hidden(input_ids, position_ids, documents)
        # not before: sharded models gather it on the way
        return cross_entropy_sum(hidden, self.lm_head.weight, targets, places)  # type: ignore[attr-defined]

    def _hidden(self, input_ids: Any, position_ids: Any, documents: Documents | None) -> torch.Tensor:
        """The last hidden states [batch, length, width]."""
        # in this form the library builds no mask of its own and hands ours to the layers as it is
        output = self.model(  # type: ignore[attr-defined]
            input_ids=input_ids, position_ids=position_ids, attention_mask={"full_attention": documents},
            use_cache=False,
        )  # fmt: skip
        hidden: torch.Tensor = output.last_hidden_state
        return hidden


class MiniQwenForCausalLM(TargetLoss, Qwen3ForCausalLM):
    """Qwen3 with a loss."""

    config_class = MiniQwenConfig


class MiniQwen2ForCausalLM(TargetLoss, Qwen2ForCausalLM):
    """An imported Qwen2 or Qwen2.5: it has no query and key norms, and so cannot become a Qwen3."""


MODELS: dict[str, type[MiniQwenForCausalLM] | type[MiniQwen2ForCausalLM]] = {
    "qwen3": MiniQwenForCausalLM,
    "qwen2": MiniQwen2ForCausalLM,
}


def new_model(config: MiniQwenConfig, seed: int) -> MiniQwenForCausalLM:
    """A model with random weights (normal, 0.02) that depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MiniQwenForCausalLM(config)
    model.config.trained_with = UNTRAINED
    end = config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)  # ended texts of a batch are padded
    return model


def compile_layers(model: PreTrainedModel, **options: Any) -> None:
    """Have each layer compiled when it is first used, with `torch.compile`'s options; parameters keep their names.

    Layers that are recomputed in the backward pass are compiled in two parts, attention and MLP: the compiler takes a
    recomputed region whole or not at all, and grouped document attention in it is not for compiling.
    """
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp) if model.is_gradient_checkpointing else (layer,):
            part.compile(**options)


def count_parameters(model: torch.nn.Module) -> int:
    """Distinct parameters: tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def check_config(described: Any, where: str) -> None:
    """Raises `UserError` with every reason why config.json (parsed) describes no model that can be trained here."""
    if not isinstance(described, dict):
        raise UserError(f"{where}: config.json is not a JSON object")
    problems, kind = [], described.get("model_type")
    if kind not in MODELS:
        problems.append(f"{where}: model_type is {kind!r}; MiniQwen takes {' and '.join(MODELS)} (Qwen2.5 is a qwen2)")
    if described.get("auto_map"):
        problems.append(
            f"{where}: the model brings code of its own (auto_map), which is never run; use a plain checkpoint"
        )
    if described.get("quantization_config"):
        problems.append(f"{where}: the weights are quantised and cannot be trained; use the original checkpoint")
    if described.get("use_sliding_window"):
        problems.append(f"{where}: use_sliding_window is on; only full attention is trained")
    if problems:
        raise UserError(*problems)


def check_weights(names: Iterable[str], where: str) -> None:
    """Raises `UserError` unless there are safetensors weights among the files `names`."""
    found = sorted(names)
    if any(fnmatch(name, "model*.safetensors") for name in found):
        return
    pickled = [name for name in found if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickled:
        raise UserError(
            f"{where}: has its weights as a pickle only ({pickled[0]}), which can run code when read; convert it to "
            "model.safetensors where you trust it, or use another checkpoint"
        )
    raise UserError(f"{where}: no weights (model.safetensors) there; is the download complete?")


def read_config(path: Path) -> Any:
    """The configuration of the model in a folder; raises `UserError` where it is none that can be trained here."""
    try:
        described = read_json(path / "config.json")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no readable config.json ({error})") from None
    check_config(described, str(path))
    try:
        return MODELS[described["model_type"]].config_class.from_pretrained(path)
    except Exception as error:  # as in `read_model`
        raise UserError(f"{path / 'config.json'}: {' '.join(str(error).split())[:300]}") from None


def parameter_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every parameter that the model in a folder has to have; tied ones once. No weight is read."""
    config = read_config(folder)
    with torch.device("meta"):
        model = MODELS[config.model_type](config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def load_model(folder: str | Path, dtype: torch.dtype = torch.float32) -> MiniQwenForCausalLM | MiniQwen2ForCausalLM:
    """The model in a folder, with attention within documents, its weights in `dtype`.

    Raises `UserError` for other architectures, for code and pickles in the folder, for missing or broken weights.
    """
    path = Path(folder)
    kind = MODELS[read_config(path).model_type]
    model = read_model(kind, path, "the weights cannot be loaded", dtype=dtype, attn_implementation=ATTENTION)
    # nothing is padded in training, and where padding is the end token, torch would never train its embedding
    model.get_input_embeddings().padding_idx = None
    return model


def read_model(kind: Any, path: Path, failure: str, **options: Any) -> Any:
    """What the library makes of a folder as a `kind` of model: of safetensors, all of them there, without any code.

    Raises `UserError`, with `failure` for what the library refuses.
    """
    check_weights((file.name for file in path.iterdir()), str(path))
    try:
        check_regular(path)
        model, report = kind.from_pretrained(
            path, trust_remote_code=False, use_safetensors=True, local_files_only=True, output_loading_info=True,
            **options,
        )  # fmt: skip
    except Exception as error:  # of any kind: the library finds out what is wrong in a file by using it
        if is_shortage(error):
            raise
        raise UserError(f"{path}: {failure} ({' '.join(str(error).split())[:300]})") from None
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{path}: the weights lack {', '.join(missing[:3])} ({len(missing)} tensors in all)")
    return model


def save_model(model: PreTrainedModel, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the model's folder in `dtype`, as the library's own class; the model itself is left as it is."""
    path = Path(folder)
    make_folder(path)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    state = {
        name: value.detach().to("cpu", dtype).contiguous()
        for name, value in model.state_dict().items()
        if name not in tied
    }
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    describe_model(model, path, dtype)
    # safetensors makes its files readable for their owner only; the others follow the umask
    (path / "model.safetensors").chmod((path / "config.json").stat().st_mode)


def describe_model(model: PreTrainedModel, path: Path, dtype: torch.dtype) -> None:
    """Write config.json and generation_config.json of `model` with weights in `dtype`, as the library's own class."""
    described = copy.deepcopy(model.config)
    described.architectures = [kind.__name__ for kind in type(model).__mro__ if _is_stock(kind)][:1]
    described.dtype = dtype
    described.save_pretrained(path)
    _place_for_transformers_4(path / "config.json")
    model.generation_config.save_pretrained(path)


def _place_for_transformers_4(file: Path) -> None:
    """Rotary parameters also where transformers 4 looks for them: what it does not find it takes to be the default."""
    described = read_json(file)
    rope = dict(described["rope_parameters"])
    described["rope_theta"] = rope.pop("rope_theta")
    if rope["rope_type"] != "default":
        described["rope_scaling"] = rope
    write_json(file, dict(sorted(described.items())))


def _is_stock(kind: type) -> bool:
    return kind.__module__.startswith("transformers.")
