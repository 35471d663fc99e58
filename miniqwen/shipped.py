"""The recipes and settings that come with the project: in a checkout beside the commands, else where pip puts data.

Promises: a path that is there is taken as it is; one of the project's own, such as recipes/pretrain.yaml, is found from
any folder. Costs: nothing is imported.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

FOLDERS = ("recipes", "accelerate_configs", "ds_configs", "cluster")


def shipped(path: str) -> str:
    """`path`, or where the project's own file of this name is; `path` again where there is neither."""
    if Path(path).exists() or not Path(path).parts or Path(path).parts[0] not in FOLDERS:
        return path
    found = (str(root / path) for root in roots() if (root / path).is_file())
    return next(found, path)


def roots() -> list[Path]:
    """Folders that may hold `FOLDERS`: the checkout, the environment's data, and where `pip --target` put it."""
    above = Path(__file__).resolve().parents[1]
    return [above, Path(sysconfig.get_path("data"), "share", "miniqwen"), above / "share" / "miniqwen"]
