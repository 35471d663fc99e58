"""`python -m miniqwen.create_model`: a first model, with a tokenizer trained on the chosen text, or an imported one.

Promises: the weights depend on the size, the vocabulary and `--seed` alone; the folder appears whole or not at all, and
loads in stock transformers; an import keeps its weights bit for bit, and neither code nor pickles of a checkpoint are
read. Costs: about half a minute for the tokenizer's 50 MB of text, and its words in memory; for an import, one copy of
the weights in memory.
"""

from miniqwen.errors import check_python

check_python()

from miniqwen.config.creating import CreateConfig
from miniqwen.config.flags import parse
from miniqwen.errors import interrupts_end, shortage_told, user_errors_exit_2

if __name__ == "__main__":
    IMPORTED = interrupts_end("no model was written")
    with user_errors_exit_2():
        CONFIG = parse(
            CreateConfig,
            program="python -m miniqwen.create_model",
            description="Make a model: a tokenizer trained on text and random weights, or an imported checkpoint.",
        )

import dataclasses
import shlex
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from miniqwen.config.data import KNOWN, DataFlags
from miniqwen.data.pretrained import imported
from miniqwen.data.tokenizer_text import training_texts
from miniqwen.model.folder import write_folder
from miniqwen.model.modeling_miniqwen import count_parameters, new_model
from miniqwen.model.sizes import SIZES
from miniqwen.model.tokenization_miniqwen import train_tokenizer

SHORT_OF_MEMORY = ("--size or --vocab_size smaller", "--tokenizer_megabytes lower")


def main(config: CreateConfig) -> None:
    """Make or import the model, write its folder, say what it is and what comes next."""
    folder = Path(str(config.output_dir))
    if config.from_pretrained:
        model, tokenizer = imported(config.from_pretrained, config.cache_dir)
        what = f"imported from {config.from_pretrained} as {model.config.model_type}"
    else:
        model, tokenizer = created(config)
        what = config.size
    write_folder(folder, model, tokenizer)
    shape = model.config
    print(
        f"{folder}: {what}, {count_parameters(model):,} parameters, vocabulary {shape.vocab_size:,}, "
        f"{shape.num_hidden_layers} layers of width {shape.hidden_size}, {shape.max_position_embeddings:,} positions, "
        f"{model.dtype}"
    )
    if config.hints:
        print(f"next: {next_command(config, shape.max_position_embeddings)}")


def created(config: CreateConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A new tokenizer and a model with random weights for it."""
    size = SIZES[config.size]
    wanted = config.vocab_size or size.vocab_size
    tokenizer = train_tokenizer(training_texts(config), wanted)
    reached = len(tokenizer)
    if reached < wanted:
        print(f"tokenizer: the text has no more than {reached:,} entries to learn, of the {wanted:,} asked for")
    tokenizer.model_max_length = size.max_position_embeddings
    return new_model(size.config(reached, tokenizer.eos_token_id), config.seed), tokenizer


def next_command(config: CreateConfig, positions: int) -> str:
    """The command that continues from here: pretraining on the text that the tokenizer has learned."""
    length = min(1024, positions)
    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(DataFlags) if f.name != "dataset_name"}
    other = {name: value for name, value in given.items() if value != getattr(DataFlags(), name)}
    data = [word for name, value in other.items() for word in (f"--{name}", str(value))]
    data += [] if set(config.named.values()) <= set(KNOWN) else ["--task", "pretrain"]
    words = [
        "accelerate", "launch", "-q", "train_loop.py", "--model_path", str(config.output_dir),
        "--dataset_name", str(config.dataset_name), *data, "--output_dir", "./miniqwen/pretrained",
        "--block_size", str(length), "--max_seq_length", str(length), "--max_steps", "10000",
    ]  # fmt: skip
    return shlex.join(words)


if __name__ == "__main__":
    IMPORTED()
    with user_errors_exit_2(), shortage_told(*SHORT_OF_MEMORY):
        main(CONFIG)
