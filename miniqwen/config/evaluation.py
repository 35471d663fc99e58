"""When a run is evaluated, and what that decides: the best model, and whether to stop early.

Promises: what needs an evaluation is refused where none is made. Costs: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from miniqwen.config.data import QA_DATASETS
from miniqwen.config.flags import flag
from miniqwen.config.prompt import PromptFlags


@dataclass(frozen=True)
class EvaluationFlags(PromptFlags):
    """Evaluations during training, and the best of them."""

    eval_strategy: str = flag(
        "no", "when to evaluate during training", group="evaluation", choices=("no", "steps", "epoch"),
        aliases=("evaluation_strategy",))  # fmt: skip
    eval_steps: int | float | None = flag(
        None, "updates between evaluations, or a fraction of all updates (default: --logging_steps)",
        group="evaluation", least=1, metavar="N")  # fmt: skip
    load_best_model_at_end: bool = flag(False, "write the best evaluated model as the final one", group="evaluation")
    metric_for_best_model: str = flag(
        "eval_loss", "eval_loss, or eval_accuracy in fine-tuning", group="evaluation",
        spelled={"loss": "eval_loss", "accuracy": "eval_accuracy"})  # fmt: skip
    greater_is_better: bool | None = flag(None, "direction of the metric (default: by its name)", group="evaluation")
    early_stopping_patience: int | None = flag(
        None, "stop after N evaluations without a new best", group="evaluation", least=1
    )

    sample_prompts: tuple[str, ...] = flag(
        (), "texts that the model goes on with at every evaluation, each in quotes; in fine-tuning, questions for the "
        "prompt template (default: a few beginnings of sentences, or validation questions); none: no samples",
        group="evaluation", verbatim=True)  # fmt: skip

    @property
    def best_metric(self) -> str:
        """`eval_loss` or `eval_accuracy`; as in transformers, --metric_for_best_model may leave the `eval_` out."""
        return f"eval_{self.metric_for_best_model.removeprefix('eval_')}"

    @property
    def larger_is_better(self) -> bool:
        return self.greater_is_better if self.greater_is_better is not None else self.best_metric != "eval_loss"

    @property
    def best_is(self) -> str:
        """What makes a model the best, in words: bests of other metrics cannot be compared with it."""
        return f"the {'largest' if self.larger_is_better else 'smallest'} {self.best_metric}"

    def problems(self) -> list[str]:
        found = super().problems()
        metrics = (
            ("eval_loss",)
            if self.resolved_task == "pretrain" or not self.do_qa_format
            else ("eval_loss", "eval_accuracy")
        )
        if self.best_metric not in metrics and self.task_is_clear:
            found.append(f"--metric_for_best_model {self.metric_for_best_model}: this run has {' and '.join(metrics)}")
        if self.eval_strategy == "no" and self.load_best_model_at_end:
            found.append("--load_best_model_at_end needs evaluations to choose by: add --eval_strategy steps")
        if self.eval_strategy == "no" and self.early_stopping_patience:
            found.append("--early_stopping_patience needs evaluations: add --eval_strategy steps")
        if self.eval_strategy != "steps":
            found += self.useless("without --eval_strategy steps", "eval_steps")
        if self.eval_strategy == "epoch" and self.pretrains:
            found.append("--eval_strategy epoch: streamed text has no epochs; use --eval_strategy steps --eval_steps N")
        ranks_choices = set(self.named.values()) & set(QA_DATASETS) or self.choices_column or not self.finetunes
        if self.best_metric == "eval_accuracy" and not ranks_choices:
            found.append("--metric_for_best_model eval_accuracy needs --choices_column: accuracy ranks choices")
        return found
