"""`python -m miniqwen.audit OUTPUT`: whether what a run left is whole, and what it says of itself is true.

    python -m miniqwen.audit runs/demo/pretrained

Promises: see `miniqwen/training/auditing.py`; exit status 1 where something is wrong, 2 where there is no run. Costs:
see there.
"""

from miniqwen.errors import check_python

check_python()

from miniqwen.config.auditing import AuditConfig
from miniqwen.config.flags import parse
from miniqwen.errors import interrupts_end, user_errors_exit_2

if __name__ == "__main__":
    IMPORTED = interrupts_end("nothing was changed")
    with user_errors_exit_2():
        CONFIG = parse(
            AuditConfig,
            program="python -m miniqwen.audit",
            description="Whether what runs left is whole, and what they say of themselves is true.",
        )

from pathlib import Path

from miniqwen.training.auditing import audit


def main(config: AuditConfig) -> bool:
    """Say what was found in each folder; returns whether nothing is wrong anywhere."""
    whole = True
    for folder in config.output_dirs:
        found = audit(Path(folder))
        whole = whole and not found.faults
        print(f"{folder}: {'; '.join(found.checked)}")
        for note in found.notes:
            print(f"  note: {note}")
        for fault in found.faults:
            print(f"  WRONG: {fault}")
        print(f"  {f'{len(found.faults)} faults' if found.faults else 'all of it is as it says'}")
    return whole


if __name__ == "__main__":
    IMPORTED()
    with user_errors_exit_2():
        if not main(CONFIG):
            raise SystemExit(1)
