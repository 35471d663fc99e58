"""The hub itself: repositories pinned to a commit, files read range by range, files fetched whole.

Promises: before anything is listed a repository is pinned to the commit that the hub names, so that an older copy in
the cache never stands in for a hub that is away; every request is waited for in one place (patience.py), range by
range, so that a long read does not begin anew; a file that is fetched whole has the SHA-256 that the hub states for it.
Costs: two requests a repository; a file that was just fetched is hashed once.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from huggingface_hub import HfApi, HfFileSystemFile, get_session, hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from miniqwen.config.data import HUB_TIMEOUT
from miniqwen.data.patience import patiently
from miniqwen.errors import UserError
from miniqwen.files import file_hash

CARDS = ("README.md", ".huggingface.yaml")  # say which files belong to which split
TRANSFERS = 3  # of a file that arrives damaged


def pinned(repository: str, name: str, limit: float = HUB_TIMEOUT) -> str:
    """The commit of a data set on the hub, with its card in the cache, where `datasets` will find it.

    `datasets` reads a card that could not be fetched as one that is not there, or takes an older one from the cache.
    Raises `UserError` when the hub does not have it or stays away.
    """
    info = patiently(lambda: HfApi().dataset_info(repository, timeout=HF_HUB_DOWNLOAD_TIMEOUT), name, limit)
    for card in CARDS:
        if any(file.rfilename == card for file in info.siblings or ()):
            fetched(repository, card, str(info.sha), None, f"{name}: {card}", limit)
    return str(info.sha)


def fetched(
    repository: str, path: str, revision: str, cache_dir: str | None, what: str, limit: float, again: bool = False
) -> str:
    """Where a file of a data set lies on this machine; downloaded once, or `again` where the copy is damaged.

    Raises `UserError` when what arrives is not what the hub says it has.
    """
    known = try_to_load_from_cache(repository, path, cache_dir, revision, "dataset")
    if isinstance(known, str) and not again:
        return known
    for transfer in range(TRANSFERS):
        call = functools.partial(
            hf_hub_download, repository, path, repo_type="dataset", revision=revision, cache_dir=cache_dir,
            force_download=again or transfer > 0,
        )  # fmt: skip
        copy: str = patiently(call, what, limit)
        stated = Path(copy).resolve().name  # the cache names large files by the hash that the hub states
        if not re.fullmatch("[0-9a-f]{64}", stated) or file_hash(copy) == stated:
            return copy
    raise UserError(f"{what}: arrived {TRANSFERS} times with another SHA-256 than the hub states, {stated}")


class HubFile(HfFileSystemFile):
    """A binary file on the hub, at an hf:// URL with its commit.

    The library's own would wait for 24 s at most, and for a rate limit without an end, before patience is asked.
    """

    def __init__(self, url: str, limit: float = HUB_TIMEOUT) -> None:
        filesystem, path = url_to_fs(url)
        self._what, self._limit = re.sub(r"^datasets/|@[0-9a-f]{40}", "", path), limit

        try:
            patiently(lambda: super(HubFile, self).__init__(filesystem, path), self._what, limit)
        except FileNotFoundError:
            raise UserError(
                f"{self._what}: the hub has no such file (404): it was renamed or removed since it was listed"
            ) from None

    def _fetch_range(self, start: int, end: int) -> bytes:
        headers = {"range": f"bytes={start}-{end - 1}", **build_hf_headers(token=self.fs.token)}

        def asked() -> Any:
            response = get_session().get(
                self.url(), headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=True
            )
            hf_raise_for_status(response)
            if len(response.content) != end - start:
                raise ConnectionError(f"{len(response.content)} of {end - start} bytes came")
            return response.content

        return bytes(patiently(asked, self._what, self._limit))
