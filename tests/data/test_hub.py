"""The hub: passing faults change nothing but the time, final ones are explained, and nothing stands in for it."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from faulty_hub import Fault, FaultyHub
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from runs import ROOT, article, write_parquet

from miniqwen.data.patience import HubTimeout, is_passing, patiently
from miniqwen.errors import UserError

NAMES = ("some/parquet", "some/zipped", "some/lines")
READ = """
import hashlib, json, sys
from miniqwen.config.data import DataFlags
from miniqwen.errors import UserError
from miniqwen.data.repositories import resolve
digest = hashlib.sha256()
try:
    for name in sys.argv[3:]:
        flags = DataFlags(dataset_name=name, hub_timeout=float(sys.argv[1]), streaming=sys.argv[2] == "streaming")
        source = resolve(name, flags).source("train", ("text",))
        for unit in source.units():
            digest.update(json.dumps(source.read(unit)).encode())
    print(json.dumps({"digest": digest.hexdigest()}))
except UserError as error:
    print(json.dumps({"status": error.exit_status, "problems": error.problems}))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror with the same texts as parquet, .jsonl.gz and .jsonl, and a card that says where they are."""
    root = tmp_path_factory.mktemp("hub")
    rows = [{"text": article(n)} for n in range(60)]
    write_parquet(root / "some/parquet/here", "train", rows, shards=2)
    (root / "some/parquet/README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: here/*\n---\n"
    )
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("zipped", "lines"):
        (root / "some" / name).mkdir()
    (root / "some/lines/train.jsonl").write_text(lines)
    with gzip.open(root / "some/zipped/train.jsonl.gz", "wt") as file:
        file.write(lines)
    return root


def read(url: str, home: Path, *names: str, timeout: float = 60, how: str = "streaming") -> tuple[dict[str, Any], str]:
    """What a process of its own, with a cache of its own, reads from the hub; and what it told on the way."""
    environment = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READ, str(timeout), how, *names], cwd=ROOT, env=os.environ | environment,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def faultless(root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    with FaultyHub(root) as hub:
        answer, said = read(hub.url, tmp_path_factory.mktemp("home"), *NAMES)
    assert "trying again" not in said
    return str(answer["digest"])


STATUSES = ("status 500", "status 502", "status 503", "status 504")
SURVIVED = {
    "statuses while listing": [Fault(does, "/api/datasets", times=1, after=n) for n, does in enumerate(STATUSES)],
    "statuses of the card": [
        Fault("status 503", "HEAD .*README", times=1),
        Fault("status 500", "GET .*README", times=1),
    ],
    "statuses while reading": [
        *(Fault(does, "GET .*(parquet|gz|jsonl)$", times=1, after=2 * n) for n, does in enumerate(STATUSES)),
        Fault("status 503", "HEAD .*gz", times=1),
    ],
    "a rate limit": [Fault("status 429", "parquet|api", times=2, headers={"Retry-After": "2"})],
    "cuts and resets": [
        Fault("reset", "/api/datasets", times=1),
        Fault("cut", "GET .*(parquet|gz|jsonl|README.md)$", times=4),
        Fault("reset", "GET .*(parquet|jsonl)$", times=3, after=1),
    ],
    "silence and a slow link": [
        Fault("hang 2", "/api/datasets", times=1),
        Fault("hang 2", "GET .*(parquet|jsonl)$", times=2),
        Fault("slow 5000", "GET .*gz$", times=1),
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", SURVIVED)
def test_passing_faults_change_no_row_and_are_told(root: Path, faultless: str, tmp_path: Path, case: str) -> None:
    with FaultyHub(root) as hub:
        hub.faults = SURVIVED[case]
        answer, said = read(hub.url, tmp_path, *NAMES)
        assert all(fault.met > fault.after for fault in hub.faults), "a fault was never met"
    assert answer == {"digest": faultless}
    assert "for up to 60 s (--hub_timeout)" in said
    assert "the hub answers again" in said


def test_a_hub_that_stays_away_is_waited_for_as_long_as_was_said_and_never_called_a_missing_data_set(
    root: Path, tmp_path: Path
) -> None:
    with FaultyHub(root) as hub:
        for number, fault in enumerate(
            [Fault("status 503", ""), Fault("status 503", "GET .*parquet"), Fault("reset", "README")]
        ):
            hub.faults = [fault]
            answer, said = read(hub.url, tmp_path / str(number), "some/parquet", timeout=3)
            assert answer["status"] == 75
            assert "did not answer for 3 s (--hub_timeout)" in answer["problems"][0]
            assert "--data_root" in answer["problems"][0]
            assert "trying again" in said
        hub.faults = [Fault("status 429", "parquet", headers={"Retry-After": "3600"})]
        answer, _ = read(hub.url, tmp_path / "limited", "some/parquet", timeout=3)
        assert "asked again in 60 min, which is longer than --hub_timeout" in answer["problems"][0]
    answer, _ = read(hub.url, tmp_path / "gone", "some/parquet", timeout=2)  # the server is closed
    assert answer["status"] == 75
    answer, said = read("http://no-such-host.invalid", tmp_path / "dns", "some/parquet", timeout=2)
    assert (answer["status"], "ConnectError" in said) == (75, True)


@pytest.mark.parametrize(
    ("status", "headers", "where", "expected"),
    [
        (401, {}, "/api/", "the hub refuses access (401): run `hf auth login`"),
        (403, {}, "GET .*parquet", "the hub refuses access (403)"),
        (403, {"X-Error-Code": "GatedRepo"}, "/api/", "it is gated (403): accept its terms"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "GET .*parquet", "not in this revision (404)"),
        (404, {"X-Error-Code": "EntryNotFound"}, "GET .*parquet", "the hub has no such file (404)"),
    ],
)
def test_final_answers_fail_at_once_with_the_reason(
    root: Path, tmp_path: Path, status: int, headers: dict[str, str], where: str, expected: str
) -> None:
    with FaultyHub(root) as hub:
        hub.faults = [Fault(f"status {status}", where, headers=headers)]
        answer, said = read(hub.url, tmp_path, "some/parquet")
    assert answer["status"] == 2
    assert expected in answer["problems"][0]
    assert "trying again" not in said


def test_an_unknown_repository_is_told_as_one(root: Path, tmp_path: Path) -> None:
    with FaultyHub(root) as hub:
        answer, _ = read(hub.url, tmp_path, "some/thing")
    assert "some/thing: the hub has no such repository" in answer["problems"][0]


def test_an_older_copy_in_the_cache_does_not_stand_in_for_a_hub_that_is_away(root: Path, tmp_path: Path) -> None:
    with FaultyHub(root) as hub:
        assert "digest" in read(hub.url, tmp_path, *NAMES, how="downloaded")[0]
        hub.faults = [Fault("status 503", "")]
        assert read(hub.url, tmp_path, *NAMES, how="downloaded", timeout=1)[0]["status"] == 75


def test_a_fetched_file_has_the_hash_that_the_hub_states_or_is_fetched_again(
    root: Path, faultless: str, tmp_path: Path
) -> None:
    with FaultyHub(root) as hub:
        hub.faults = [Fault("flip", r"GET .*(gz|parquet|\.jsonl)$", times=2)]
        assert read(hub.url, tmp_path / "twice", *NAMES, how="downloaded")[0] == {"digest": faultless}
        hub.faults = [Fault("flip", "GET .*gz$")]
        answer, _ = read(hub.url, tmp_path / "always", "some/zipped")
    assert "train.jsonl.gz: arrived 3 times with another SHA-256 than the hub states" in answer["problems"][0]


def test_errors_that_pass_are_told_from_those_that_do_not() -> None:
    passing = [
        httpx2.ConnectError("refused"), httpx2.ReadTimeout("late"), TimeoutError(), ConnectionResetError(),
        LocalEntryNotFoundError("no answer"), FileNotFoundError("Couldn't find 'a/b': LocalEntryNotFoundError: ..."),
    ]  # fmt: skip
    final = [
        OfflineModeIsEnabled("off"), ConnectionError("Couldn't reach 'a/b' on the Hub (OfflineModeIsEnabled)"),
        httpx2.UnsupportedProtocol("ftp"), httpx2.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED]"),
        FileNotFoundError("x"), ValueError("x"), OSError("disk"),
    ]  # fmt: skip
    assert [is_passing(error) for error in passing] == [True] * len(passing)
    assert [is_passing(error) for error in final] == [False] * len(final)


def test_patience_ends_at_its_limit_and_other_errors_pass_through() -> None:
    tries: list[int] = []

    def failing() -> None:
        tries.append(1)
        raise ConnectionResetError("reset by peer")

    with pytest.raises(HubTimeout, match=r"it: the hub did not answer for 0 s .*reset by peer"):
        patiently(failing, "it", limit=0)
    assert len(tries) == 1
    with pytest.raises(HubTimeout):
        patiently(failing, "it", limit=0.5)
    assert len(tries) == 3  # at once, and once more at the limit
    with pytest.raises(ZeroDivisionError):
        patiently(lambda: 1 / 0, "it")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        patiently(lambda: (_ for _ in ()).throw(OfflineModeIsEnabled("off")), "it")
