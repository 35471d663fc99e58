"""How a model goes on with texts, when every process of a run has to take the same steps.

Promises: always the most likely token, so that no random number is drawn; the same number of steps on every process,
through whatever wraps the model, as sharded parameters are gathered in each of them; a cache of keys and values.
Costs: at most the positions that the caller allows at once; a forward pass a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch


@torch.no_grad()
def continued(
    model: torch.nn.Module, prompts: Sequence[Sequence[int]], steps: int, end: int, device: torch.device, room: int
) -> Iterator[list[list[int]]]:
    """The `steps` most likely tokens behind each prompt, up to its `end` token; in parts of at most `room` positions.

    Prompts have a token at least. `end` also fills the shorter ones of a part, on the left, where nothing sees it.
    """
    longest = max(map(len, prompts), default=0) + steps
    together = max(1, room // longest) if prompts else 1
    for start in range(0, len(prompts), together):
        written = _steps(model, prompts[start : start + together], steps, end, device)
        yield [row[: row.index(end)] if end in row else row for row in written.tolist()]


def _steps(
    model: torch.nn.Module, prompts: Sequence[Sequence[int]], steps: int, end: int, device: torch.device
) -> torch.Tensor:
    """The tokens behind each prompt [prompts, steps]."""
    length = max(map(len, prompts))
    ids = torch.tensor([[end] * (length - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    seen = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    cache, written = None, []
    for _ in range(steps):
        positions = (seen.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        # layers that are compiled for the blocks of training are not compiled again for every length here
        with torch.compiler.set_stance("force_eager"):
            output = model(
                input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
        ids, cache = output.logits[:, -1].argmax(dim=-1, keepdim=True), output.past_key_values
        seen = torch.cat([seen, torch.ones_like(ids)], dim=1)
        written.append(ids)
    return torch.cat(written, dim=1)
