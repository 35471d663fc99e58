"""`python -m miniqwen.export`: a model as one file for llama.cpp, Ollama and what is built on them.

    python -m miniqwen.export --model_path runs/sciq --gguf sciq.gguf --type q8_0
    ollama create sciq -f sciq.Modelfile

Promises: see `miniqwen/model/gguf_file.py` and `miniqwen/questions/modelfile.py`. Costs: see there.
"""

from miniqwen.errors import check_python

check_python()

from miniqwen.config.exporting import ExportConfig, modelfile_of
from miniqwen.config.flags import parse
from miniqwen.errors import interrupts_end, shortage_told, user_errors_exit_2

if __name__ == "__main__":
    IMPORTED = interrupts_end("nothing was written, or all of it")
    with user_errors_exit_2():
        CONFIG = parse(
            ExportConfig,
            program="python -m miniqwen.export",
            description="A model as one file for llama.cpp and Ollama.",
        )

from pathlib import Path

from miniqwen.files import write_text
from miniqwen.model.gguf_file import write_gguf
from miniqwen.model.tokenization_miniqwen import load_tokenizer
from miniqwen.questions.modelfile import modelfile
from miniqwen.questions.templates import TEMPLATE_FILE, Template


def main(config: ExportConfig) -> None:
    """Write the file, and how Ollama asks it beside it."""
    folder, target = Path(str(config.model_path)), Path(str(config.gguf))
    template = Template.load(folder) if (folder / TEMPLATE_FILE).exists() else None
    write_gguf(folder, target, config.type)
    asked = modelfile(target.name, template, bool(load_tokenizer(folder).chat_template))
    write_text(modelfile_of(target), asked)
    print(f"{target}: {target.stat().st_size / 1e6:,.1f} MB, {config.type}")
    print(f"{modelfile_of(target)}: ollama create NAME -f {modelfile_of(target)}")
    print("llama.cpp does not normalise texts: give it texts in NFC, as nearly all are")


if __name__ == "__main__":
    IMPORTED()
    with user_errors_exit_2(), shortage_told("a machine with more memory: the largest matrix is held twice"):
        main(CONFIG)
