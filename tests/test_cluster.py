"""The files for clusters: shell that parses, #SBATCH lines that sbatch would take, manifests of the right shape."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import ROOT, wait_until

from miniqwen.config.training import TrainConfig

CLUSTER = ROOT / "cluster"
# what `man sbatch` has and these scripts use, with the form of the value
SBATCH = {
    "job-name": r"[\w-]+", "nodes": r"\d+(-\d+)?", "ntasks": r"\d+", "ntasks-per-node": r"\d+", "cpus-per-task": r"\d+",
    "time": r"(\d+-)?\d{1,2}:\d{2}:\d{2}", "requeue": None, "open-mode": r"append|truncate", "output": r"\S+",
    "signal": r"([BR]{1,2}:)?(USR1|TERM|\d+)@\d+", "array": r"\d+-\d+(%\d+)?",
}  # fmt: skip


@pytest.mark.parametrize("script", sorted(path.name for path in CLUSTER.glob("*.sh")))
def test_slurm_scripts_parse_and_ask_for_what_sbatch_knows(script: str) -> None:
    text = (CLUSTER / script).read_text()
    assert subprocess.run(["bash", "-n", str(CLUSTER / script)], check=False).returncode == 0
    assert text.startswith("#!/usr/bin/env bash\n")
    directives = re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)
    for directive in directives:
        name, has_value, value = directive.removeprefix("--").partition("=")
        assert directive.startswith("--"), directive
        assert name in SBATCH, directive
        pattern = SBATCH[name]
        assert bool(has_value) == (pattern is not None), directive
        assert pattern is None or re.fullmatch(pattern, value), directive
    # sbatch stops reading them at the first command
    first_command = next(number for number, line in enumerate(text.splitlines()) if line and not line.startswith("#"))
    assert all(number < first_command for number, line in enumerate(text.splitlines()) if line.startswith("#SBATCH"))
    assert {"--requeue", "--open-mode=append"} <= set(directives)
    assert any(directive.startswith("--signal=B:USR1@") for directive in directives)
    if shutil.which("shellcheck"):
        assert subprocess.run(["shellcheck", str(CLUSTER / script)], check=False).returncode == 0


def fake_slurm(folder: Path, log: Path) -> None:
    """srun that runs one task here, scontrol that writes down what it is asked, and a launcher."""
    programs = {
        "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
        "scontrol": f'if [ "$1" = show ]; then echo node1; else echo "scontrol $*" >> {log}; fi',
        "accelerate": f'echo "accelerate $*" >> {log}; exec bash {folder}/training "$@"',
    }
    for name, body in programs.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("ends", "status", "requeued"), [("preempted", 0, True), ("finished", 0, False), ("failed", 1, False)]
)
def test_a_slurm_job_stops_by_the_file_and_requeues_itself_only_when_preempted(
    tmp_path: Path, ends: str, status: int, requeued: bool
) -> None:
    log, output, programs = tmp_path / "log", tmp_path / "out", tmp_path / "programs"
    programs.mkdir()
    fake_slurm(programs, log)
    # a training that waits for the STOP file if it is to be preempted
    wait = f"until [ -e {output}/STOP ]; do sleep 0.1; done;" if ends == "preempted" else ""
    written = f'echo \'{{"status": "{ends}"}}\' > {output}/trainer_state.json'
    (programs / "training").write_text(
        f"mkdir -p {output}; touch {output}/begun; {wait} {written}; exit {int(ends == 'failed')}\n"
    )
    slurm = {
        "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_NODEID": "0",
        "SLURM_JOB_ID": "4321", "SLURM_CPUS_PER_TASK": "16", "SLURM_GPUS_ON_NODE": "8",
    }  # fmt: skip
    words = ["bash", str(CLUSTER / "slurm_train.sh"), "accelerate_configs/ddp.yaml", "--output_dir", str(output)]
    environment = os.environ | slurm | {"PATH": f"{programs}:{os.environ['PATH']}"}
    with subprocess.Popen(words, env=environment) as process:
        if ends == "preempted":
            wait_until((output / "begun").exists, process)
            process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=30) == status
    said = log.read_text()
    assert (
        "--num_machines 2 --num_processes 16 --machine_rank 0 --main_process_ip node1 --main_process_port 24321" in said
    )
    assert f"train_loop.py --output_dir {output} --resume_from_checkpoint auto --preempted_exit_code 85" in said
    assert ("scontrol requeue 4321" in said) == requeued


def pod(template: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A pod template's spec and its only container."""
    spec = template["spec"]
    (container,) = spec["containers"]
    return spec, container


def test_the_indexed_job_has_the_shape_that_kubernetes_takes() -> None:
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes_job.yaml").read_text())
    assert (service["apiVersion"], service["kind"], service["spec"]["clusterIP"]) == ("v1", "Service", "None")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == 2
    inside, container = pod(spec["template"])
    assert inside["restartPolicy"] == "Never"  # what a podFailurePolicy needs
    assert inside["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    words = shlex.split(container["args"][0])
    assert f"{job['metadata']['name']}-0.{service['metadata']['name']}" in words
    assert words[words.index("--num_machines") + 1] == str(spec["completions"])
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert words[words.index("--num_processes") + 1] == str(gpus * spec["completions"])
    assert "--preempted_exit_code" in words
    check_pod(inside, container)
    rules = spec["podFailurePolicy"]["rules"]
    assert all(rule["action"] in ("Ignore", "FailJob", "Count", "FailIndex") for rule in rules)
    assert {rule["onExitCodes"]["containerName"] for rule in rules if "onExitCodes" in rule} == {container["name"]}


def test_the_pytorchjob_has_the_shape_that_the_operator_takes() -> None:
    job = yaml.safe_load((CLUSTER / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert set(replicas) == {"Master", "Worker"}
    assert replicas["Master"]["replicas"] == 1
    for replica in replicas.values():
        assert replica["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
        inside, container = pod(replica["template"])
        assert container["name"] == "pytorch"
        assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == job["spec"]["nprocPerNode"]
        check_pod(inside, container)
        assert "--preempted_exit_code=85" in container["args"]


def check_pod(spec: dict[str, Any], container: dict[str, Any]) -> None:
    """The grace is longer than the launcher's, interfaces are named, volumes are there, flags are train_loop.py's."""
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert all(isinstance(value, str) for value in variables.values())
    assert int(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < spec["terminationGracePeriodSeconds"]
    assert {"NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"} <= variables.keys()
    assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in spec["volumes"]}
    words = [word for part in (*container["command"], *container["args"]) for word in shlex.split(part)]
    known = {f"--{name}" for name in TrainConfig.__dataclass_fields__} | {"--config"}
    after = words[words.index("train_loop.py") + 1 :]
    used = {word.partition("=")[0] for word in after if word.startswith("--")}
    assert {"--output_dir", "--resume_from_checkpoint"} <= used <= known
