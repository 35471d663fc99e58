"""Flags and their checks: same names on the command line and in YAML, every mistake at once, nothing heavy imported."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from miniqwen.config.creating import CreateConfig
from miniqwen.config.data import DataFlags
from miniqwen.config.evaluating import EvalConfig
from miniqwen.config.flags import Flags, dump, parse
from miniqwen.config.preparing import PrepareConfig
from miniqwen.config.training import TrainConfig
from miniqwen.errors import UserError
from miniqwen.questions.templates import template_flags

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """As much of a model folder as the checks look at."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen3", "max_position_embeddings": 1024}')
    return folder


def train(model: Path, *words: str) -> TrainConfig:
    given = ["--model_path", str(model), "--dataset_name", "both", "--output_dir", str(model.parent / "out")]
    given += [] if "--max_steps" in words else ["--max_steps", "10"]
    return parse(TrainConfig, [*given, *words], program="train_loop.py", description="", checks=[template_flags])


def problems(model: Path, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        train(model, *words)
    return "\n".join(caught.value.problems)


def test_every_flag_of_the_guides_pretraining_command_is_read_as_written(model: Path) -> None:
    config = train(
        model,
        *"--do_train --do_eval --per_device_train_batch_size 4 --per_device_eval_batch_size 4 "
        "--gradient_accumulation_steps 4 --learning_rate 5e-5 --weight_decay 0.01 --max_steps 10000 "
        "--warmup_steps 1000 --logging_steps 100 --save_steps 1000 --evaluation_strategy steps --eval_steps 1000 "
        "--load_best_model_at_end --streaming True --max_seq_length 1024 --block_size 1024 "
        "--preprocessing_num_workers 4 --overwrite_output_dir".split(),
    )
    assert (config.learning_rate, config.warmup_steps, config.eval_strategy) == (5e-5, 1000, "steps")
    assert config.do_train is True
    assert config.streaming is True
    assert config.load_best_model_at_end is True
    assert (config.length, config.resolved_task) == (1024, "pretrain")


def test_every_flag_of_the_guides_fine_tuning_command_is_read_as_written(model: Path) -> None:
    words = (
        "--dataset_name sciq --do_train --do_eval --learning_rate 3e-5 --num_train_epochs 5 --max_steps -1 "
        "--warmup_ratio 0.1 --save_steps 500 --evaluation_strategy steps --do_qa_format True --max_seq_length 512"
    )
    config = train(model, *words.split())
    assert (config.num_train_epochs, config.warmup_ratio, config.length) == (5.0, 0.1, 512)
    assert config.resolved_task == "finetune"


def test_all_problems_are_listed_at_once(model: Path) -> None:
    found = problems(
        model,
        *"--max_steps 0 --block_size 4096 --learning_rate fast --learnin_rate 3 --save_steps 0 --bf16 maybe".split(),
    )
    for part in (
        "--max_steps 0: must be at least 1",
        "4096 tokens are longer than the model's 1024 positions",
        "--learning_rate: expected a number, got 'fast'",
        "--learnin_rate: no such flag; did you mean --learning_rate?",
        "--save_steps 0: must be at least 1",
        "--bf16: expected True or False, got 'maybe'",
    ):
        assert part in found


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--dataset_name wikpedia", "did you mean wikipedia?"),
        ("--dataset_name my.jsonl", "no such data set or file"),
        ("--dataset_name owner/name", "--task: say pretrain or finetune"),
        ("--dataset_name sciq --task pretrain", "contradicts"),
        ("--packing", "--packing is for fine-tuning"),
        ("--truncation left", "no use in pretraining"),
        ("--dataset_name sciq --document_masking False", "always keeps them apart"),
        ("--dataset_name sciq --truncation left --do_qa_format False", "there are none"),
        ("--warmup_steps 11", "longer than the training"),
        ("--warmup_ratio 1.5", "between 0 and 1"),
        ("--warmup_ratio 0.5 --warmup_steps 3", "contradict"),
        ("--max_steps -1", "pretraining streams text without a known end"),
        ("--load_best_model_at_end", "needs evaluations"),
        ("--early_stopping_patience 2", "needs evaluations"),
        ("--eval_strategy epoch", "streamed text has no epochs"),
        ("--metric_for_best_model eval_accuracy", "this run has eval_loss"),
        ("--mixture wikipedia=1", "needs a share above 0 for each"),
        ("--mixture wikipedia=a,arxiv=1", "is not NAME=SHARE"),
        ("--dataset_name arxiv --mixture wikipedia=1,arxiv=1", "is for several data sets: name them all"),
        ("--mixture wikipedia=1,arxiv=1,arxiv=2", "arxiv is there twice"),
        ("--mixture wikipedia=1,arxiv=1,OWNER/NAME=1", "each of wikipedia, arxiv, and for no other"),
        ("--dataset_name wikipedia wikipedia", "wikipedia is named twice"),
        ("--dataset_name wikipedia sciq", "contradicts --dataset_name wikipedia, which is text"),
        ("--dataset_name sciq other/data", "or on one other data set"),
        ("--dataset_name A/B C/D --dataset_config_name x --task pretrain", "whose, of A/B, C/D?"),
        ("--dataset_name A/B wikipedi", "wikipedi: no such data set or file; did you mean wikipedia?"),
        ("--sources wikipedia", "goes into a file, for --config"),
        ("--validation_blocks 0 --do_train --do_eval", "leaves no text to evaluate on"),
        ("--lr_scheduler_type cosin", "did you mean cosine?"),
        ("--report_to tensorbord", "did you mean tensorboard?"),
        ("--report_to none wandb", "stand alone"),
        ("--fp16 --bf16", "contradict"),
        ("--model_path nowhere", "no such folder"),
        ("--data_root nowhere", "no such folder"),
        ("--resume_from_checkpoint nowhere", "no complete checkpoint"),
        ("--prompt_template {question}", "no use in pretraining"),
        ("--dataset_name sciq --prompt_template Q:", "needs {question}"),
        ("--dataset_name sciq --prompt_template {question.__class__}", "unknown field"),
        ("--dataset_name sciq --choices_template {label}", "needs {text}"),
        ("--max_steps", "needs a value"),
        ("--max_steps 1.5", "expected a whole number"),
        ("--learning_rate nan", "expected a finite number"),
        ("stray", "'stray' is not the value of any flag"),
    ],
)
def test_a_mistake_is_named(model: Path, words: str, expected: str) -> None:
    assert expected in problems(model, *words.split())


def test_fp16_without_a_gpu_names_bf16(model: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here, and --fp16 is fine")
    assert "use --bf16" in problems(model, "--fp16", "True")


def test_a_folder_with_a_run_is_refused_and_resume_is_offered(model: Path) -> None:
    (model.parent / "out").mkdir()
    (model.parent / "out" / "notes.txt").write_text("mine")
    found = problems(model)
    assert "--resume_from_checkpoint auto" in found
    assert "--overwrite_output_dir" in found
    assert train(model, "--overwrite_output_dir").overwrite_output_dir
    assert train(model, "--resume_from_checkpoint", "auto").resume_from_checkpoint == "auto"


def test_a_model_inside_the_folder_to_be_overwritten_is_protected(model: Path) -> None:
    found = problems(model, "--output_dir", str(model), "--overwrite_output_dir")
    assert "would delete the model" in found
    assert (model / "config.json").exists()


def test_auto_does_not_take_over_a_folder_that_holds_a_model_without_checkpoints(model: Path) -> None:
    assert "is not empty" in problems(model, "--output_dir", str(model), "--resume_from_checkpoint", "auto")


def test_the_command_line_wins_over_the_yaml_file_and_both_know_the_same_names(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 1e-3\nmax_steps: 7\nevaluation_strategy: no\nreport_to: [wandb, tensorboard]\n")
    config = train(model, "--config", str(file), "--max_steps", "9")
    assert (config.learning_rate, config.max_steps) == (1e-3, 9)
    assert (config.eval_strategy, config.report_to) == ("no", ("wandb", "tensorboard"))
    file.write_text("learning_rat: 1e-3\nsave_steps: [1]\n")
    found = problems(model, "--config", str(file))
    assert f"--config {file}: --learning_rat: no such flag; did you mean --learning_rate?" in found
    assert "--save_steps: expected one value, got [1]" in found
    file.write_text("a: [")
    assert "not YAML" in problems(model, "--config", str(file))
    assert "No such file" in problems(model, "--config", str(tmp_path / "none.yaml"))


def test_a_written_configuration_reads_back_as_itself(model: Path, tmp_path: Path) -> None:
    config = train(model, *"--bf16 --report_to wandb --mixture wikipedia=0.7,arxiv=0.3 --eval_strategy steps".split())
    file = tmp_path / "config.yaml"
    file.write_text(dump(config, {"versions": {"torch": "x"}}))
    again = parse(TrainConfig, ["--config", str(file)], program="train_loop.py", description="")
    assert again == config
    assert again.shares == {"wikipedia": 0.7, "arxiv": 0.3}


@pytest.mark.parametrize(
    ("word", "value"), [("1e4", 10_000), ("10.0", 10), ("12345678901234567891", 12345678901234567891), (" 7 ", 7)]
)
def test_a_whole_number_is_read_to_its_last_digit_however_it_is_written(model: Path, word: str, value: int) -> None:
    assert train(model, "--max_steps", word).max_steps == value


@pytest.mark.parametrize("word", ["True", "true", "yes", "on", "1"])
def test_a_switch_is_read_in_every_usual_spelling(model: Path, word: str, tmp_path: Path) -> None:
    assert train(model, "--bf16", word).bf16 is True
    (tmp_path / "run.yaml").write_text(f"bf16: {word}\nlearning_rate: 5e-5\nmax_steps: 1e1\n")
    config = train(model, "--config", str(tmp_path / "run.yaml"))
    assert (config.bf16, config.learning_rate, config.max_steps) == (True, 5e-5, 10)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("seed: true", "--seed: expected a whole number, got True"),
        ("learning_rate: true", "--learning_rate: expected a number, got True"),
        ("learning_rate: .inf", "--learning_rate: expected a finite number, got inf"),
        ("seed: 1.5", "--seed: expected a whole number, got 1.5"),
        ("seed: nan", "--seed: expected a whole number, got 'nan'"),
        ("seed: 1e400", "--seed: expected a whole number, got '1e400'"),
        ("bf16: 2", "--bf16: expected True or False, got 2"),
        ("report_to: []", "--report_to: needs at least one value"),
        ("seed:", "--seed: needs a value"),
        ("run_name: {a: 1}", "--run_name: expected one value, got {'a': 1}"),
    ],
)
def test_a_value_of_another_kind_is_told(model: Path, tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "run.yaml").write_text(line + "\n")
    assert told in problems(model, "--config", str(tmp_path / "run.yaml"))


def test_the_block_is_capped_by_max_seq_length(model: Path) -> None:
    assert train(model, "--block_size", "1024", "--max_seq_length", "256").length == 256
    assert train(model, "--block_size", "128", "--max_seq_length", "256").length == 128


def test_trackers_take_several_values_all_and_none(model: Path) -> None:
    assert train(model, "--report_to", "tensorboard", "wandb").trackers == ("tensorboard", "wandb")
    assert train(model, "--report_to", "tensorboard,wandb").trackers == ("tensorboard", "wandb")
    assert train(model, "--report_to", "all").trackers == ("tensorboard", "wandb")
    assert train(model, "--report_to", "none").trackers == ()


def test_the_other_commands_list_their_problems_too(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        parse(EvalConfig, ["--dataset_name", "wikipedia"], program="", description="")
    assert len(caught.value.problems) == 3  # no model, no output folder, and text cannot be scored
    with pytest.raises(UserError, match="nothing to prepare"):
        parse(PrepareConfig, [], program="", description="")
    with pytest.raises(UserError, match="must be at least 300"):
        parse(CreateConfig, ["--vocab_size", "5", "--output_dir", str(tmp_path / "m")], program="", description="")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--protocol harness --prompt_template {question}", "--protocol harness has prompts of its own"),
        ("--protocol harness --answer_format letter", "leave --answer_format out"),
        ("--protocol lm_eval", "not one of miniqwen, harness"),
        ("--max_new_tokens 5", "--max_new_tokens has no use without --answer_mode generate"),
        ("--answer_mode generate --temperature 0.5", "--temperature has no use without --do_sample"),
        ("--answer_mode generate --do_sample --temperature 0", "must be above 0"),
        ("--answer_mode generate --do_sample --top_p 1.5", "must be above 0 and at most 1"),
        ("--answer_mode generate --unconditional", "compares no scores"),
        ("--answer_mode generate --extract letters", "did you mean letter?"),
        ("--fp16 --bf16", "--fp16 and --bf16 contradict each other"),
        ("--num_fewshot -1", "must be at least 0"),
        ("--dataset_name own/data --protocol harness", "knows sciq and commonsenseqa only, not own/data"),
        ("--dataset_name own/data --protocol harness", "by --prompt_template, --answer_format and --shuffle_choices"),
        ("--protocol harness --shuffle_choices False", "--shuffle_choices False has no use"),
        ("--dataset_name sciq arxiv", "--dataset_name arxiv is text"),
        ("--dataset_name sciq combined.csv", "combined.json would be written 2 times"),
        ("--dataset_name own/data", "--question_column, --answer_column, --choices_column are needed"),
        ("--dataset_name own/data --answer_mode generate", "--question_column, --answer_column are needed"),
    ],
)
def test_contradictions_of_an_evaluation_are_told(flags: str, told: str, tmp_path: Path) -> None:
    given = ["--dataset_name", "sciq", "--model_path", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    parse(EvalConfig, given, program="", description="")
    with pytest.raises(UserError) as caught:
        parse(EvalConfig, [*given, *flags.split()], program="", description="")
    assert any(told in problem for problem in caught.value.problems)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_an_evaluation_in_float16_needs_a_gpu_too() -> None:
    with pytest.raises(UserError, match="--fp16 needs a GPU, and none is visible: use --bf16"):
        parse(EvalConfig, ["--fp16", "True"], program="", description="")


def test_a_comparison_needs_two_files_and_nothing_else(tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("a.json", "b.json")]
    with pytest.raises(UserError) as caught:
        parse(EvalConfig, ["--compare", *files], program="", description="")
    assert [problem.split(": ")[1] for problem in caught.value.problems] == ["no such file", "no such file"]
    with pytest.raises(UserError, match="needs two files"):
        parse(EvalConfig, ["--compare", files[0]], program="", description="")
    for file in files:
        Path(file).write_text("{}")
    assert parse(EvalConfig, ["--compare", *files], program="", description="").compare == tuple(files)


@pytest.mark.parametrize("script", ["train_loop.py", "eval_loop.py", "prepare_datasets.py"])
def test_help_and_mistakes_answer_at_once_and_import_nothing_heavy(script: str) -> None:
    program = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'datasets', 'wandb'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--data_root" in done.stdout
    wrong = subprocess.run(
        [sys.executable, script, "--nonsense"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert "--nonsense: no such flag" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_a_path_may_begin_at_home_on_the_command_line_and_in_a_file_and_no_text_does(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model == tmp_path / "model"
    (tmp_path / "run.yaml").write_text("model_path: ~/model\ndo_train: yes\ndo_eval: yes\nsample_prompts: [~/a text]\n")
    flags = "--config ~/run.yaml --dataset_name both --max_steps 2 --block_size 32 --output_dir=~/a//run".split()
    config = parse(TrainConfig, flags, program="", description="")
    assert (config.model_path, config.output_dir) == (f"{tmp_path}/model", f"{tmp_path}/a/run")
    assert config.sample_prompts == ("~/a text",)
    with pytest.raises(UserError, match="--output_dir: ~nobody-here/x"):
        parse(TrainConfig, [*flags, "--output_dir", "~nobody-here/x"], program="", description="")
    there = parse(PrepareConfig, ["--sciq", "--download=~/mirror"], program="", description="")
    assert there.download == f"{tmp_path}/mirror"


def test_a_data_set_with_a_short_name_is_known_by_its_hub_id() -> None:
    for given, short in {"allenai/sciq": "sciq", "tau/commonsense_qa": "commonsenseqa"}.items():
        assert DataFlags(dataset_name=given).dataset_name == short
        assert DataFlags(dataset_name=given, dataset_config_name="default").dataset_name == given
        assert DataFlags(dataset_name=(given, "x.csv"), question_column="q").dataset_name == (short, "x.csv")
    assert DataFlags(dataset_name="other/sciq").dataset_name == "other/sciq"


def test_a_data_set_to_prepare_is_known_by_its_flag_its_name_and_its_hub_id() -> None:
    for given, short in {"allenai/sciq": "sciq", "wikimedia/wikipedia": "wikipedia", "arxiv": "arxiv"}.items():
        assert PrepareConfig(dataset_name=given).datasets == (short,)
        assert PrepareConfig(dataset_name=given, **{short: True}).datasets == (short,)
        assert PrepareConfig(dataset_name=given, text_column="body").datasets == (given,)
    assert PrepareConfig(dataset_name="both", sciq=True).datasets == ("sciq", "wikipedia", "arxiv")
    assert PrepareConfig(dataset_name="own/text").datasets == ("own/text",)


def test_a_configuration_of_a_data_set_that_has_only_the_one_is_refused() -> None:
    for given in ("wikipedia", "sciq"):
        (told,) = DataFlags(dataset_name=given, dataset_config_name="20220301.de").problems()
        assert told.startswith(f"--dataset_config_name: the configuration of {given} is known; leave it out")
        assert ("--wikipedia_version" in told) is (given == "wikipedia")


def test_files_to_compare_may_have_spaces_and_commas_in_their_paths(tmp_path: Path) -> None:
    files = [tmp_path / "my run" / "a, b.json", tmp_path / "b.json"]
    files[0].parent.mkdir()
    for file in files:
        file.write_text("{}")
    config = parse(EvalConfig, ["--compare", *map(str, files)], program="", description="")
    assert config.compare == tuple(map(str, files))


def test_the_help_of_an_evaluation_lists_no_flag_of_text_and_they_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse(EvalConfig, ["--help", "all"], program="", description="")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--answer_is" in shown
    for flag in ("--wikipedia_version", "--text_column", "--sample_by", "then the run saves", "accuracy_unconditional"):
        assert flag not in shown
    with pytest.raises(UserError, match="--text_column: no such flag"):
        parse(EvalConfig, ["--text_column", "text"], program="", description="")


def test_flags_of_a_data_set_of_ones_own_are_refused_without_it_in_preparing() -> None:
    given = "--sciq --dataset_config_name x --sample_by document --wikipedia_version 20231101.zh"
    with pytest.raises(UserError) as wrong:
        parse(PrepareConfig, given.split(), program="", description="")
    assert list(wrong.value.problems) == [
        "--dataset_config_name belongs to --dataset_name, which is not given",
        "--sample_by belongs to --dataset_name, which is not given",
        "--wikipedia_version 20231101.zh: Wikipedia is not among what is prepared",
    ]
    parse(PrepareConfig, ["--all", "--wikipedia_version", "20231101.zh"], program="", description="")


def test_making_a_model_asks_for_nothing_about_questions() -> None:
    fields = {field.name for field in dataclasses.fields(CreateConfig) if field.init}
    assert "text_column" in fields
    assert not fields & {
        "question_column", "choices_column", "answer_column", "answer_is", "support_column", "id_column"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "not YAML: nested too deep"),
        ("max_steps: 2026-01-01T00:00:00+99:99", "not YAML: offset must be"),
        ("max_steps: !!timestamp 1", "not YAML:"),
        ("warmup_steps: &a [*a, *a]", "--warmup_steps: expected one value, got lists in each other"),
        ("report_to: [[wandb]]", "--report_to: expected texts, got a list"),
        ("a: !!python/object/apply:os.getcwd []", "not YAML:"),
    ],
    ids=["deep", "offset", "timestamp", "itself", "list in a list", "python"],
)
def test_a_file_that_is_odd_yaml_is_refused_in_words(model: Path, text: str, told: str) -> None:
    file = model.parent / "odd.yaml"
    file.write_text(text)
    assert told in problems(model, "--config", str(file))


def test_a_config_that_names_no_file_or_a_pipe_is_refused(model: Path) -> None:
    pipe = model.parent / "pipe.yaml"
    os.mkfifo(pipe)
    assert "--config: needs a file" in problems(model, "--config=--")
    assert f"--config {pipe}: Is no regular file" in problems(model, "--config", str(pipe))


@pytest.mark.parametrize("kind", [EvalConfig, CreateConfig, PrepareConfig])
def test_what_a_commands_flags_are_written_as_is_read_back(kind: type[Flags], model: Path) -> None:
    given = {
        EvalConfig: ["--model_path", str(model), "--dataset_name", "sciq", "--output_dir", "o"],
        CreateConfig: ["--output_dir", "o"],
    }
    config = parse(kind, given.get(kind, ["--all"]), program="", description="")
    file = model.parent / "again.yaml"
    file.write_text(dump(config, {}))
    assert parse(kind, ["--config", str(file)], program="", description="") == config
