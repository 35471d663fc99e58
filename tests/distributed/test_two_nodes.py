"""Two machines for real: two network namespaces with a cable between them, which can be cut."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import TINY, command, lines, ranks, run_script, running, state, wait_for_updates, wait_until, warm_python
from safetensors.torch import load_file
from torch.testing import assert_close

IP, UNSHARE = shutil.which("ip"), shutil.which("unshare")
BLOCKS = 4  # per update


class Nodes:
    """Two namespaces, `a` and `b`, with an interface and a host name each; all traffic stays between them."""

    def __init__(self, folder: Path) -> None:
        self._names, self._name_servers = folder / "hosts", folder / "resolv.conf"
        self.spaces = [f"mq{os.getpid()}{letter}" for letter in "ab"]
        self.interfaces = [f"mq{os.getpid() % 100000}{letter}" for letter in "ab"]
        self.hosts = ["node-a", "node-b"]

    def make(self) -> None:
        # or every lookup of a name would wait for a name server that cannot be reached
        addresses = ["127.0.0.1 localhost", *(f"10.77.0.{n} {host}" for n, host in enumerate(self.hosts, 1))]
        self._names.write_text("\n".join(addresses) + "\n")
        self._name_servers.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")  # where nobody listens
        for space in self.spaces:
            ip("netns", "add", space)
        first, second = self.interfaces
        ip("link", "add", first, "netns", self.spaces[0], "type", "veth", "peer", second, "netns", self.spaces[1])
        for number, (space, interface) in enumerate(zip(self.spaces, self.interfaces, strict=True), 1):
            ip("-n", space, "addr", "add", f"10.77.0.{number}/24", "dev", interface)
            ip("-n", space, "link", "set", "lo", "up")
            ip("-n", space, "link", "set", interface, "up")

    def remove(self) -> None:
        for space in self.spaces:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", space)

    def cable(self, there: bool) -> None:
        ip("-n", self.spaces[1], "link", "set", self.interfaces[1], "up" if there else "down")

    def inside(self, node: int, words: list[str]) -> list[str]:
        """`words` on one of the nodes, which has a host name of its own."""
        mounts = f"mount --bind {self._names} /etc/hosts && mount --bind {self._name_servers} /etc/resolv.conf"
        named = f'{mounts} && hostname {self.hosts[node]} && exec "$@"'
        return [str(IP), "netns", "exec", self.spaces[node], str(UNSHARE), "--uts", "sh", "-c", named, "sh", *words]


def ip(*words: str) -> None:
    subprocess.run([str(IP), *words], check=True, capture_output=True)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """The namespaces; skips where the machine or the user may not have any."""
    if not IP or not UNSHARE:
        pytest.skip("no `ip` (iproute2) or no `unshare` (util-linux) on this machine")
    made = Nodes(tmp_path)
    try:
        made.make()
        tried = subprocess.run(made.inside(0, ["true"]), capture_output=True, text=True, check=False)
        if tried.returncode:
            pytest.skip(f"namespaces are not allowed here: {tried.stderr.strip()}")
        yield made
    except subprocess.CalledProcessError as error:
        pytest.skip(f"namespaces are not allowed here: {error.stderr.decode().strip()}")
    finally:
        made.remove()


@contextlib.contextmanager
def on_both(
    nodes: Nodes, config: str, each: int, flags: list[object], log: Path
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """One training over both nodes, `each` processes a node; the launchers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    share = ["--per_device_train_batch_size", 1, "--gradient_accumulation_steps", BLOCKS // (2 * each)]
    launchers = []
    with contextlib.ExitStack() as stack:
        for node in (0, 1):
            accelerate = [
                warm_python(), "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file",
                f"accelerate_configs/{config}.yaml", "--num_machines", "2", "--num_processes", str(2 * each),
                "--machine_rank", str(node), "--main_process_ip", "10.77.0.1", "--main_process_port", str(port),
            ]  # fmt: skip
            words = nodes.inside(node, command(*flags, *share, launcher=accelerate))
            environment = {"GLOO_SOCKET_IFNAME": nodes.interfaces[node]}
            launchers.append(stack.enter_context(running(words, log.with_suffix(f".{node}"), **environment)))
        yield launchers


def cases() -> list[object]:
    fast = [("multi_node_ddp", 1)]
    slow = [("multi_node_ddp", 2), *((f"multi_node_{name}", each) for name in ("fsdp2", "zero3") for each in (1, 2))]
    return [*fast, *(pytest.param(*case, marks=pytest.mark.slow) for case in slow)]


@pytest.mark.parametrize(("config", "each"), cases())
def test_two_nodes_train_as_one_process_and_survive_signals_kills_and_a_cut_cable(
    model: Path, mirror: Path, tmp_path: Path, nodes: Nodes, config: str, each: int
) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    # a schedule that does not depend on the end, and a rate at which rounding does not grow
    common: list[object] = ["--model_path", model, "--data_root", mirror, *TINY, "--learning_rate", "1e-4"]
    common += ["--lr_scheduler_type", "constant_with_warmup", "--save_steps", "5", "--save_total_limit", "3"]
    flags = [*common, "--output_dir", output, "--resume_from_checkpoint", "auto", "--collective_timeout", "5"]
    endless = [*flags, "--max_steps", "100000"]

    with on_both(nodes, config, each, endless, log) as launchers:
        wait_for_updates(launchers[0], output, more=6)
        launchers[1].send_signal(signal.SIGTERM)  # to one node only: the other's launcher must not wait for it
        assert all(launcher.wait(timeout=60) for launcher in launchers)
    stopped = state(output)
    assert (stopped["status"], stopped["last_checkpoint"]) == ("preempted", f"checkpoint-{stopped['step']}")
    assert re.fullmatch(r"rank \d: SIGTERM was received", stopped["reason"])
    assert not stopped["reason"].startswith("rank 0")

    with on_both(nodes, config, each, endless, log) as launchers:
        wait_for_updates(launchers[0], output, more=8)
        killed = 2 * each - 1
        os.kill(ranks(launchers[1].pid)[killed], signal.SIGKILL)
        assert all(launcher.wait(timeout=300) for launcher in launchers)
    now = state(output)
    assert now["status"] == "failed"
    assert f"rank {killed} on node-b" in now["reason"]

    with on_both(nodes, config, each, endless, log) as launchers:
        wait_for_updates(launchers[0], output, more=8)
        nodes.cable(there=False)
        assert all(launcher.wait(timeout=300) for launcher in launchers)
        nodes.cable(there=True)
    now = state(output)
    assert now["status"] == "failed"
    assert "on node-b" in now["reason"]
    assert "does not answer: is this machine cut off?" in log.with_suffix(".1").read_text()

    last = int(now["last_checkpoint"].split("-")[1]) + 5
    assert last > stopped["step"] + 5
    with on_both(nodes, config, each, [*flags, "--max_steps", last], log) as launchers:
        assert [launcher.wait(timeout=300) for launcher in launchers] == [0, 0]
    wait_until(lambda: state(output)["status"] == "finished")
    one = tmp_path / "one"
    alone = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2]
    done = run_script("train_loop.py", *common, "--output_dir", one, "--max_steps", last, *alone)
    assert done.returncode == 0, done.stderr
    first, second = load_file(one / "model.safetensors"), load_file(output / "model.safetensors")
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert_close(value, second[name], rtol=0, atol=5e-6 if "zero3" in config else 1e-6)
    losses = {line["step"]: line["loss"] for line in lines(output)}
    assert losses == pytest.approx({line["step"]: line["loss"] for line in lines(one)}, rel=1e-5)
