"""`python -m miniqwen.report RUN [RUN ...]`: one page to look back at, of a run or of several side by side.

    python -m miniqwen.report runs/demo/sciq_finetuned runs/demo/evaluation
    python -m miniqwen.report runs/a runs/b runs/c --output comparison.html

Promises: see `miniqwen/training/report.py`. A run writes its own page; written anew, it has what came later, such as
results of eval_loop.py, whose files or folders can be named too. Costs: see there.
"""

from miniqwen.errors import check_python

check_python()

from miniqwen.config.flags import parse
from miniqwen.config.reporting import ReportConfig
from miniqwen.errors import interrupts_end, user_errors_exit_2

if __name__ == "__main__":
    IMPORTED = interrupts_end("no page was written")
    with user_errors_exit_2():
        CONFIG = parse(
            ReportConfig,
            program="python -m miniqwen.report",
            description="One page to look back at, of a run or of several side by side.",
        )

from pathlib import Path

from miniqwen.files import make_folder, write_text
from miniqwen.training.record import Record, result, result_files
from miniqwen.training.report import page


def main(config: ReportConfig) -> None:
    """Read the runs and the results that were named, write the page, and say where it is."""
    records = [Record.read(folder) for folder in config.runs]
    files = (file for place in config.evaluations for file in result_files(place))
    text = page(records, [found for file in files if (found := result(file))])
    output = Path(config.written_to)
    make_folder(output.parent)
    write_text(output, text)
    print(f"{output}: {len(text.encode()):,} bytes; open it in a browser")


if __name__ == "__main__":
    IMPORTED()
    with user_errors_exit_2():
        main(CONFIG)
