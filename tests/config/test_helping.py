"""`--help`: short, with what is required and an example; `--help all` has every flag in its group."""

from __future__ import annotations

import dataclasses

import pytest

from miniqwen.config.auditing import AuditConfig
from miniqwen.config.caching import CachesConfig
from miniqwen.config.creating import CreateConfig
from miniqwen.config.evaluating import EvalConfig
from miniqwen.config.exporting import ExportConfig
from miniqwen.config.flags import Flags, parse
from miniqwen.config.generating import GenerateConfig
from miniqwen.config.preparing import PrepareConfig
from miniqwen.config.reporting import ReportConfig
from miniqwen.config.training import TrainConfig

COMMANDS: dict[str, type[Flags]] = {
    "train_loop.py": TrainConfig, "eval_loop.py": EvalConfig, "prepare_datasets.py": PrepareConfig,
    "python -m miniqwen.create_model": CreateConfig, "python -m miniqwen.generate": GenerateConfig,
    "python -m miniqwen.audit": AuditConfig, "python -m miniqwen.report": ReportConfig,
    "python -m miniqwen.caches": CachesConfig, "python -m miniqwen.export": ExportConfig,
}  # fmt: skip


def shown(program: str, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        parse(COMMANDS[program], words, program=program, description="What it does.")
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("program", COMMANDS)
def test_help_begins_with_what_is_needed_and_ends_with_an_example(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    short = shown(program, capsys, "--help")
    assert shown(program, capsys, "-h") == short
    lines = short.splitlines()
    assert lines[0].startswith(f"usage: {program} ")
    assert lines[2] == "What it does."
    kind = COMMANDS[program]
    needed = {f.name for f in dataclasses.fields(kind) if f.metadata.get("required")} | set(kind.needed)
    if needed:
        required = short.split("required:")[1].split("\n\n")[0]
        assert all(f"--{name} " in lines[0] and f"  --{name} " in required for name in needed)
    example = next(line for line in lines if f"{program} {kind.example}" in line)
    assert example.startswith(("  accelerate launch -q ", "  python "))
    assert len(lines) < 70
    assert max(map(len, lines)) <= 140


@pytest.mark.parametrize("program", COMMANDS)
def test_help_all_has_every_flag_once(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = shown(program, capsys, "--help", "all")
    flags = [line.split()[0] for line in whole.splitlines() if line.startswith("  --")]
    known = [f for f in dataclasses.fields(COMMANDS[program]) if f.init and not f.metadata["positional"]]
    assert sorted(flags) == sorted([*(f"--{f.name}" for f in known if not f.metadata["only_yaml"]), "--config"])
    for odd in ("[BETTER]", "[STEPS]", "SIZE]", "[MODEL]"):
        assert odd not in whole


@pytest.mark.parametrize("program", ["train_loop.py", "eval_loop.py"])
def test_the_short_help_says_how_many_flags_more_there_are(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    short, whole = shown(program, capsys, "--help"), shown(program, capsys, "--help", "all")
    count = {text: sum(line.startswith("  --") for line in text.splitlines()) for text in (short, whole)}
    assert 15 <= count[short] <= 30
    assert f"--help all shows {count[whole] - count[short]} more flags" in short
    assert set(COMMANDS[program].most_used) <= {f.name for f in dataclasses.fields(COMMANDS[program])}
