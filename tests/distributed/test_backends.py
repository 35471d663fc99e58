"""Laws 2 and 3 on every backend: the real loop gives the single process's parameters, norms, losses and checkpoints.

The fast part runs each backend once, on two processes. The whole matrix (minutes), with a table of what was measured:

    python -m pytest -m slow -s tests/distributed/test_backends.py -k whole_matrix
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from runs import WORDS, metrics, needs_compiler, run_script
from safetensors.torch import load_file

from miniqwen.training.auditing import audit

PLANS = ((1, 8), (2, 4), (4, 2), (8, 1))  # micro-batch x accumulation of one process
CONTINUED = (2, 4)  # the plan that runs to update 10, and is saved at 5
VARIANTS = {
    "bf16": ["--bf16"], "recomputed": ["--gradient_checkpointing"],
    # Muon works on matrices in bfloat16, and what FSDP2 sums in another order moves with the learning rate
    "muon": ["--optim", "muon", "--learning_rate", "3e-4"],
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Place:
    """A backend on some processes."""

    kind: str
    world: int

    def flags(self, folder: Path) -> list[str]:
        if self.kind == "fsdp2":
            return ["--fsdp", "full_shard"]
        if not self.kind.startswith("zero"):
            return []
        settings = {"stage": int(self.kind[-1])}
        if self.kind == "zero3":  # or DeepSpeed would leave parameters this small whole
            settings["stage3_param_persistence_threshold"] = 0
        file = folder / f"{self.kind}.json"
        file.write_text(json.dumps({"zero_optimization": settings}))
        return ["--deepspeed", str(file)]

    @property
    def tolerance(self) -> float:
        return 5e-6 if self.kind == "zero3" else 1e-6

    def __str__(self) -> str:
        return f"{self.kind}-{self.world}"


SINGLE_PROCESS = Place("single", 1)
FAST = [SINGLE_PROCESS, *(Place(kind, 2) for kind in ("ddp", "fsdp2", "zero1", "zero2", "zero3"))]
# neighbours differ in backend and in world, so that checkpoints travel between unlike places
WHOLE = [SINGLE_PROCESS, *(
    Place(kind, world) for shift in range(3) for number, kind in enumerate(("ddp", "fsdp2", "zero1", "zero2", "zero3"))
    for world in [(1, 2, 4)[(number + shift) % 3]]
)]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where the runs of a module are kept, and how they are made and compared."""

    folder: Path
    model: Path

    def data(self) -> Path:
        """28 questions and 7 to validate on, with 1 to 15 target tokens: micro-batches and ranks are very unequal, the
        last update of an epoch is short at every world size, and 7 cannot be divided by any."""
        place = self.folder / "pairs"
        if not place.exists():
            place.mkdir()
            drawn = random.Random(0)
            for split, count in (("train", 28), ("validation", 7)):
                rows = [
                    {
                        "q": " ".join(drawn.choices(WORDS, k=drawn.randint(1, 4))),
                        "a": " ".join(drawn.choices(WORDS, k=drawn.choice([1, 1, 2, 14]))),
                    }
                    for _ in range(count)
                ]
                (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return place

    def run(self, place: Place, plan: tuple[int, int], output: Path, steps: int, *more: object) -> list[str]:
        """The command line of one run."""
        return [
            *f"--model_path {self.model} --dataset_name {self.data()} --task finetune --question_column q "
            f"--answer_column a --max_seq_length 96 --learning_rate 1e-3 --weight_decay 0.1 --max_grad_norm 1.5 "
            f"--warmup_steps 2 --lr_scheduler_type constant_with_warmup --logging_steps 1 --eval_strategy steps "
            f"--eval_steps 5 --save_steps 5 --report_to none --max_steps {steps} --output_dir {output} "
            f"--per_device_train_batch_size {plan[0]} --gradient_accumulation_steps {plan[1]}".split(),
            *place.flags(self.folder), *map(str, more),
        ]  # fmt: skip

    def output(self, place: Place, plan: tuple[int, int]) -> Path:
        return self.folder / f"{place}-{plan[0]}x{plan[1]}"

    def whole_batches(self, worlds: Iterable[int]) -> list[list[str]]:
        """The single process's runs with each update in one batch, which all others are measured against."""
        return [self.run(SINGLE_PROCESS, (8 * world, 1), self.reference(world), 10) for world in worlds]

    def reference(self, world: int) -> Path:
        return self.folder / f"reference-{world}"

    def plans(self, place: Place, plans: Iterable[tuple[int, int]]) -> list[list[str]]:
        return [self.run(place, plan, self.output(place, plan), 10 if plan == CONTINUED else 5) for plan in plans]

    def variants(self, place: Place) -> list[list[str]]:
        """One update more exotic than the other: half precision (to update 10, saved at 5), recomputation, Muon."""
        names = VARIANTS if not place.kind.startswith("zero") else [name for name in VARIANTS if name != "muon"]
        return [
            self.run(place, CONTINUED, self.variant(place, name), 10 if name == "bf16" else 5, *VARIANTS[name])
            for name in names
        ]

    def variant(self, place: Place, name: str) -> Path:
        return self.folder / f"{place}-{name}"

    def resume_bf16(self, place: Place) -> list[str]:
        checkpoint = self.variant(place, "bf16") / "checkpoint-5"
        output = self.variant(place, "bf16-again")
        return self.run(place, CONTINUED, output, 10, "--bf16", "--resume_from_checkpoint", checkpoint)

    def resumed(self, place: Place, source: Place) -> Path:
        return self.folder / f"{place}-from-{source}"

    def resume(self, place: Place, source: Place) -> list[str]:
        """Go on at `place` from update 5 of `source`, with the same rows an update."""
        rows = 8 * source.world // place.world
        plan, checkpoint = (2, rows // 2), self.output(source, CONTINUED) / "checkpoint-5"
        return self.run(place, plan, self.resumed(place, source), 10, "--resume_from_checkpoint", checkpoint)

    def launch(self, place: Place, runs: list[list[str]], limit: float = 600) -> None:
        file = self.folder / f"runs-{place}.json"
        file.write_text(json.dumps(runs))
        done = run_script("tests/runs_in_a_row.py", file, processes=place.world, limit=limit)
        assert done.returncode == 0, done.stderr[-6000:]
        for words in runs:
            assert audit(Path(words[words.index("--output_dir") + 1])).faults == []


def difference(one: Path, other: Path) -> float:
    """The largest one between two folders' weights."""
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys()
    assert len(first) > 20
    return max(float((value - second[name]).abs().max()) for name, value in first.items())


def compared(bench: Bench, place: Place, output: Path, world: int, first: int, last: int) -> tuple[float, float, float]:
    """Differences to the reference: weights after update `last`, gradient norm and losses (relative) of the updates."""
    reference = bench.reference(world)
    ours, theirs = metrics(output), metrics(reference)
    relative = {}
    for name in ("grad_norm", "loss", "eval_loss", "learning_rate"):
        pairs = [(ours[s][name], theirs[s][name]) for s in range(first, last + 1) if name in theirs[s]]
        assert pairs
        relative[name] = max(abs(a - b) / max(abs(b), 1e-30) for a, b in pairs)
    assert relative["learning_rate"] == 0
    assert max(theirs[s]["grad_norm"] for s in theirs) > 1.5 > min(theirs[s]["grad_norm"] for s in theirs) > 0, (
        "clipping has to bite in some updates only"
    )
    weights = difference(output / f"checkpoint-{last}", reference / f"checkpoint-{last}")
    return weights, relative["grad_norm"], max(relative["loss"], relative["eval_loss"])


def assert_close(place: Place, found: tuple[float, float, float], tolerance: float | None = None) -> None:
    weights, norm, loss = found
    assert weights <= (tolerance or place.tolerance), f"{place}: {weights}"
    assert norm <= 1e-5, f"{place}: {norm}"
    assert loss <= 1e-6, f"{place}: {loss}"


@pytest.fixture(scope="module")
def bench(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("backends"), model)


@pytest.fixture(scope="module")
def chain(bench: Bench) -> Bench:
    """Each place trains with two plans and the variants, and goes on from its own checkpoints and its neighbour's."""
    plans = ((1, 8), CONTINUED)
    muon = bench.run(SINGLE_PROCESS, (16, 1), bench.folder / "reference-muon", 5, *VARIANTS["muon"])
    bench.launch(SINGLE_PROCESS, [*bench.whole_batches((1, 2)), muon, *bench.plans(SINGLE_PROCESS, plans)])
    for before, place in pairwise(FAST):
        trained = [*bench.plans(place, plans), *bench.variants(place)]
        bench.launch(place, [*trained, *(bench.resume(place, at) for at in (before, place)), bench.resume_bf16(place)])
    bench.launch(SINGLE_PROCESS, [bench.resume(SINGLE_PROCESS, source) for source in FAST])
    return bench


@needs_compiler
@pytest.mark.parametrize("place", FAST, ids=str)
def test_every_backend_makes_the_single_process_s_updates(chain: Bench, place: Place) -> None:
    for plan in ((1, 8), CONTINUED):
        assert_close(place, compared(chain, place, chain.output(place, plan), place.world, 1, 5))


@needs_compiler
@pytest.mark.parametrize("place", FAST, ids=str)
def test_samples_are_written_alike_on_every_backend(chain: Bench, place: Place) -> None:
    reference = (chain.reference(place.world) / "samples.jsonl").read_text().splitlines()[:4]
    assert [json.loads(line)["step"] for line in reference] == [5, 5, 5, 5]
    for plan in ((1, 8), CONTINUED):
        assert (chain.output(place, plan) / "samples.jsonl").read_text().splitlines()[:4] == reference


@needs_compiler
@pytest.mark.parametrize("place", FAST, ids=str)
def test_a_checkpoint_goes_on_at_any_other_place_and_bit_for_bit_at_its_own(chain: Bench, place: Place) -> None:
    number = FAST.index(place)
    travelled = [(place, FAST[number - 1])] if number else []
    for there, source in [*travelled, (SINGLE_PROCESS, place)]:
        tolerance = max(there.tolerance, source.tolerance)
        found = compared(chain, there, chain.resumed(there, source), source.world, 6, 10)
        assert_close(there, found, tolerance)
    assert difference(chain.resumed(place, place), chain.output(place, CONTINUED)) == 0
    own, whole = metrics(chain.resumed(place, place)), metrics(chain.output(place, CONTINUED))
    assert [own[step]["loss"] for step in range(6, 11)] == [whole[step]["loss"] for step in range(6, 11)]


@pytest.mark.slow
def test_ddp_resumes_bit_for_bit_on_four_processes_too_where_the_order_of_sums_could_change(
    model: Path, tmp_path: Path
) -> None:
    """With two processes a sum has one order only."""
    bench, place = Bench(tmp_path, model), Place("ddp", 4)
    bench.launch(place, [*bench.plans(place, [CONTINUED]), bench.resume(place, place)])
    assert difference(bench.resumed(place, place), bench.output(place, CONTINUED)) == 0


@needs_compiler
@pytest.mark.parametrize("place", FAST[1:], ids=str)
def test_half_precision_stays_near_and_resumes_bit_for_bit_from_fp32_masters(chain: Bench, place: Place) -> None:
    output, reference = chain.variant(place, "bf16"), chain.reference(place.world)
    ours, theirs = metrics(output), metrics(reference)
    for step in range(1, 6):
        assert ours[step]["loss"] == pytest.approx(theirs[step]["loss"], rel=2e-3)
        assert ours[step]["grad_norm"] == pytest.approx(theirs[step]["grad_norm"], rel=2e-2)
    assert ours[5]["eval_loss"] == pytest.approx(theirs[5]["eval_loss"], rel=2e-3)
    assert [ours[step]["loss"] for step in range(1, 6)] != [theirs[step]["loss"] for step in range(1, 6)]
    masters = load_file(output / "checkpoint-5" / "model.safetensors")
    assert {value.dtype for value in masters.values()} == {torch.float32}
    assert any((value.bfloat16().float() != value).any() for value in masters.values())
    again = chain.variant(place, "bf16-again")
    assert difference(again / "checkpoint-10", output / "checkpoint-10") == 0
    assert {value.dtype for value in load_file(again / "model.safetensors").values()} == {torch.bfloat16}


@needs_compiler
@pytest.mark.parametrize("place", FAST[1:], ids=str)
def test_recomputed_activations_change_nothing(chain: Bench, place: Place) -> None:
    assert_close(place, compared(chain, place, chain.variant(place, "recomputed"), place.world, 1, 5))


@needs_compiler
@pytest.mark.parametrize("place", FAST[1:3], ids=str)
def test_muon_makes_the_same_updates_on_several_processes(chain: Bench, place: Place) -> None:
    reference, output = chain.folder / "reference-muon", chain.variant(place, "muon")
    assert difference(output, reference) <= 1e-4
    state = load_file(output / "checkpoint-5" / "optimizer.safetensors")
    assert sum(name.startswith("momentum_buffer.") for name in state) == 14  # seven matrices in each layer
    for step in range(1, 6):
        assert metrics(output)[step]["loss"] == pytest.approx(metrics(reference)[step]["loss"], rel=1e-4)


@pytest.mark.slow
@needs_compiler
def test_the_whole_matrix(model: Path, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model)
    bench.launch(SINGLE_PROCESS, bench.whole_batches((1, 2, 4)))
    for place in WHOLE:
        bench.launch(place, bench.plans(place, PLANS))
    # each place goes on from itself and from two unlike ones: so each checkpoint travels twice as well
    journeys = [(place, WHOLE[number - back]) for number, place in enumerate(WHOLE) for back in (0, 1, 4)]
    for place in WHOLE:
        bench.launch(place, [bench.resume(there, source) for there, source in journeys if there == place])
    rows = []
    for place in WHOLE:
        for plan in PLANS:
            found = compared(bench, place, bench.output(place, plan), place.world, 1, 5)
            rows.append((f"{place} {plan[0]}x{plan[1]}", found, place.tolerance))
    for place, source in journeys:
        found = compared(bench, place, bench.resumed(place, source), source.world, 6, 10)
        rows.append((f"{place} from {source}", found, max(place.tolerance, source.tolerance)))
    print("\n| run | weights | grad norm (relative) | losses (relative) |\n|---|---|---|---|")
    for name, (weights, norm, loss), _ in rows:
        print(f"| {name} | {weights:.1e} | {norm:.1e} | {loss:.1e} |")
    for (_, found, tolerance), place in zip(
        rows, [p for p in WHOLE for _ in PLANS] + [p for p, _ in journeys], strict=True
    ):
        assert_close(place, found, tolerance)
    assert all(difference(bench.resumed(place, place), bench.output(place, CONTINUED)) == 0 for place in WHOLE), (
        "not bit for bit"
    )


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("place", FAST, ids=str)
def test_compiled_layers_make_the_same_updates(model: Path, tmp_path: Path, place: Place) -> None:
    bench = Bench(tmp_path, model)
    bench.launch(SINGLE_PROCESS, bench.whole_batches([place.world]))
    bench.launch(place, [bench.run(place, CONTINUED, tmp_path / "compiled", 5, "--torch_compile")], limit=1200)
    assert_close(place, compared(bench, place, tmp_path / "compiled", place.world, 1, 5), 5e-6)
