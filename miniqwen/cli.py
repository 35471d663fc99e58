"""`miniqwen COMMAND ...`: every command under one name, from any folder.

Promises: each is the script or module of the same words in a checkout, with the same flags. Costs: nothing is imported
but what the command needs.
"""

from __future__ import annotations

import importlib.metadata
import runpy
import sys

from miniqwen.shipped import FOLDERS, roots

COMMANDS = {
    "prepare": ("prepare_datasets", "check, download or generate data sets"),
    "create": ("miniqwen.create_model", "make or import a model"),
    "train": ("train_loop", "pretrain or fine-tune; on several processes: accelerate launch -m train_loop ..."),
    "eval": ("eval_loop", "ask a model questions, or compare two results"),
    "generate": ("miniqwen.generate", "go on with texts, answer questions, or talk"),
    "audit": ("miniqwen.audit", "whether what a run left is whole and true"),
    "report": ("miniqwen.report", "runs on one page"),
    "export": ("miniqwen.export", "a model as one file for llama.cpp"),
    "caches": ("miniqwen.caches", "what the caches hold, and what can go"),
}


def main() -> None:
    """Run the command that is named; status 2 where it is none."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        module, _ = COMMANDS[name]
        sys.argv = [f"miniqwen {name}", *sys.argv[2:]]
        runpy.run_module(module, run_name="__main__", alter_sys=False)
    elif name in ("-h", "--help"):
        print(told())
    elif name == "--version":
        print(importlib.metadata.version("miniqwen"))
    else:
        print(f"error: {name!r} is no command\n" if name else "error: which command?\n", file=sys.stderr)
        print(told(), file=sys.stderr)
        raise SystemExit(2)


def told() -> str:
    """The commands, a line each, and where the recipes are."""
    lines = [f"  {name:<9} {what}" for name, (_, what) in COMMANDS.items()]
    where = next((str(root) for root in roots() if (root / FOLDERS[0]).is_dir()), "not installed")
    return "\n".join(
        [
            "usage: miniqwen COMMAND [flags]     (miniqwen COMMAND --help, --version)", "", *lines, "",
            f"{', '.join(FOLDERS)} are in {where}; --config recipes/pretrain.yaml is found from any folder",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
