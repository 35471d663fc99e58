"""What in a run's metrics is worth a look: noticed line by line, told in plain words; and what is healthy.

Promises: pure functions of the lines of metrics, so that a loop notices while it runs what a page marks later; each
trouble is told once, until it is over. Costs: a few dozen numbers in memory, a median a line.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from miniqwen.training.history import evaluates

WINDOW = 32  # lines that say what is usual
ENOUGH = 8  # of them
SPIKE = 0.1  # a loss that is higher than usual by this share of it ...
SIGMAS = 6.0  # ... and by so many standard deviations, as the median deviation tells them
GRADIENT = 10.0  # times the usual norm
WAITING = 0.1  # share of the time that is waited for data
CREEPING = 1.1  # times the memory of the first lines
SLOWER = 0.5  # times the usual speed
IN_A_ROW = 3  # lines, or evaluations, after which it is no accident
WORSE = 1.01  # times the best evaluation loss

# (names, what is healthy, the bound of it where there is one: from (low) or up to (high))
HEALTHY: tuple[tuple[str, str, tuple[str, float] | None], ...] = (
    (r"(eval_)?loss", "falls fast, then ever slower; the evaluation's stays near the training's. A gap that grows: "
     "more data, fewer epochs, or a smaller learning rate", None),
    (r"(eval_)?bits_per_byte", "the same loss by bytes of text, by which tokenizers can be compared: 8 knows nothing, "
     "about 1 is a good small model of English", None),
    (r"eval_accuracy", "above chance, and rising; it moves in steps of one over the number of questions", None),
    (r"(eval_)?loss_.+", "no source rises while the others fall: it is forgotten, or its share too small", None),
    (r"learning_rate", "zero to its peak in the warm-up, then down to its end as --lr_scheduler_type says", None),
    (r"grad_norm", "settles after the warm-up; single peaks are clipped at --max_grad_norm; a norm that grows for long "
     "comes before a loss that does", None),
    (r"tokens_per_second.*", "flat; dips are saves, evaluations, or another program on the machine", None),
    (r"data_wait", f"below {WAITING:.0%}: else the device waits for text; --preprocessing_num_workers, --token_cache, "
     "or a local copy help", ("high", WAITING)),
    (r"mfu", "0.3 to 0.6 on one GPU with bf16; small models and short blocks have less", None),
    (r"goodput", "above 0.9 in a long run: the rest went into start-up, saves, evaluations, and work done twice",
     ("low", 0.9)),
    (r".*memory.*|.*_gib", "flat after the first evaluation and save", None),
    (r"skipped_updates", "0: an update is skipped when its loss or gradient is not finite", None),
    (r"passes_.+|epoch", "up to about 4 passes over a text are nearly as good as new text (Muennighoff et al. 2023, "
     "arXiv:2305.16264)", None),
)  # fmt: skip


def healthy(name: str) -> tuple[str, tuple[str, float] | None] | None:
    """What is healthy of a metric: in words, and its bound if it has one."""
    return next(((words, bound) for names, words, bound in HEALTHY if re.fullmatch(names, name)), None)


@dataclass(frozen=True)
class Notice:
    """Something to look at: from which update on, in which metric, what it is and what to do."""

    step: int
    metric: str
    what: str
    look_at: str


class Watch:
    """Sees the lines of metrics of one run in their order, and says what is worth a look."""

    def __init__(self) -> None:
        self._usual: dict[str, deque[float]] = {}
        self._in_a_row: dict[str, int] = {}
        self._first_memory: dict[str, float] = {}
        self._lines = 0
        self._skipped: float = 0
        self._best: tuple[float, int, float] | None = None  # eval_loss, its update, and the training loss there

    def see(self, line: Mapping[str, Any]) -> list[Notice]:
        """What is to be told at this line of metrics, where None is a number that was not finite."""
        step = int(line["step"])
        if evaluates(line):
            found = [self._not_finite(step, "eval_loss", line), self._worse(step, line.get("eval_loss"))]
        else:
            self._lines += 1
            found = [
                self._skips(step, line), self._not_finite(step, "loss", line), self._spike(step, line.get("loss")),
                self._gradient(step, line.get("grad_norm")), self._waits(step, line.get("data_wait")),
                self._slower(step, line.get("tokens_per_second")), *self._creeps(step, line),
            ]  # fmt: skip
        return [notice for notice in found if notice]

    def _begins(self, kind: str, is_so: bool, lines: int = 1) -> bool:
        """Whether it `is_so` in so many lines in a row now, and was not told of; it is told again after it was over."""
        self._in_a_row[kind] = self._in_a_row.get(kind, 0) + 1 if is_so else 0
        return self._in_a_row[kind] == lines

    def _usually(self, name: str, value: float) -> tuple[float, float] | None:
        """The median of the lines before this value, and the standard deviation that the median deviation tells; None
        where little is known. The value counts from now on."""
        window = self._usual.setdefault(name, deque(maxlen=WINDOW))
        found = None
        if len(window) >= ENOUGH:
            middle = median(window)
            found = middle, 1.4826 * median([abs(one - middle) for one in window])
        window.append(value)
        return found

    def _not_finite(self, step: int, name: str, line: Mapping[str, Any]) -> Notice | None:
        if not self._begins(f"finite {name}", name in line and not _finite(line[name])):
            return None
        return Notice(
            step, name, f"{name} is not a finite number",
            "go on from the last checkpoint before it with a lower --learning_rate, a longer warm-up, or --bf16 "
            "instead of --fp16",
        )  # fmt: skip

    def _skips(self, step: int, line: Mapping[str, Any]) -> Notice | None:
        before, self._skipped = self._skipped, line.get("skipped_updates") or 0
        if not self._begins("skipped", self._skipped > before):
            return None
        count = f"{self._skipped - before:g} updates were" if self._skipped - before > 1 else "an update was"
        return Notice(
            step, "skipped_updates", f"{count} skipped: the loss or gradient was not finite",
            "bad_updates.json has the text; a few under --fp16 are its loss scale being found",
        )  # fmt: skip

    def _spike(self, step: int, loss: Any) -> Notice | None:
        usual = self._usually("loss", loss) if _finite(loss) else None
        if usual is None or not self._begins("spike", loss > usual[0] + max(SPIKE * usual[0], SIGMAS * usual[1])):
            return None
        return Notice(
            step, "loss", f"the loss jumps to {loss:.3f}, where {usual[0]:.3f} was usual",
            "the gradient norm before it, and the text at that place (--preview); where it does not come back by "
            "itself, go on from a checkpoint before it with a lower --learning_rate or --max_grad_norm",
        )  # fmt: skip

    def _gradient(self, step: int, norm: Any) -> Notice | None:
        usual = self._usually("grad_norm", norm) if _finite(norm) else None
        if usual is None or not self._begins("gradient", norm > GRADIENT * usual[0] > 0):
            return None
        return Notice(
            step, "grad_norm", f"the gradient norm is {norm:.3g}, where {usual[0]:.3g} was usual",
            "whether the loss follows; --max_grad_norm clips it, a longer warm-up keeps it small",
        )  # fmt: skip

    def _waits(self, step: int, share: Any) -> Notice | None:
        # the first update opens all files
        if not self._begins("waits", _finite(share) and share > WAITING and self._lines > 1, IN_A_ROW):
            return None
        return Notice(
            step, "data_wait", f"{share:.0%} of the time is waited for data",
            "--preprocessing_num_workers, prepare_datasets.py --tokenize and --token_cache, or a local copy of the "
            "data (--data_root)",
        )  # fmt: skip

    def _slower(self, step: int, speed: Any) -> Notice | None:
        usual = self._usually("speed", speed) if _finite(speed) else None
        if usual is None or not self._begins("slower", speed < SLOWER * usual[0], IN_A_ROW):
            return None
        return Notice(
            step, "tokens_per_second", f"{speed:,.0f} tokens/s, where {usual[0]:,.0f} were usual",
            "other programs on the machine, a device that is too warm, waits for data",
        )  # fmt: skip

    def _creeps(self, step: int, line: Mapping[str, Any]) -> list[Notice]:
        """Evaluations and saves come in the first lines, and take what they need."""
        found = []
        for name, value in line.items():
            if not ("memory" in name or name.endswith("_gib")) or not _finite(value):
                continue
            first = self._first_memory.setdefault(name, value)
            if self._lines <= WINDOW:
                self._first_memory[name] = first = max(first, value)
            if self._begins(f"creeps {name}", value > CREEPING * first > 0):
                found.append(Notice(
                    step, name, f"{name} has grown from {first:.3g} to {value:.3g} and may go on to",
                    "what grows with time: workers' buffers, longer rows, tensors kept by a changed loop",
                ))  # fmt: skip
        return found

    def _worse(self, step: int, loss: Any) -> Notice | None:
        if not _finite(loss):
            return None
        latest = list(self._usual.get("loss", ()))[-IN_A_ROW:]
        training = median(latest) if latest else math.inf
        if self._best is None or loss < self._best[0]:
            self._best = (loss, step, training)
        best, where, then = self._best
        if not self._begins("worse", loss > WORSE * best and training < then, IN_A_ROW):
            return None
        return Notice(
            step, "eval_loss", f"the evaluation gets worse ({loss:.3f}, the best was {best:.3f} at update {where}) "
            "while the training's loss falls: it learns its text by heart",
            "more or other data, fewer epochs, more --weight_decay; --load_best_model_at_end and "
            "--early_stopping_patience keep the best",
        )  # fmt: skip


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
