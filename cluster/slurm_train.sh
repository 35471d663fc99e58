#!/usr/bin/env bash
# One training on several nodes, continued after every preemption and at every time limit:
#   sbatch --nodes 2 --gpus-per-node 8 cluster/slurm_train.sh accelerate_configs/multi_node_ddp.yaml \
#     --config recipes/pretrain.yaml --model_path M --output_dir /shared/runs/pretrained
# The first argument is an Accelerate file, the rest are train_loop.py's flags. See cluster/README.md.
#SBATCH --job-name=miniqwen
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:USR1@300
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"

ACCELERATE_FILE=${1:?an Accelerate file, then the flags of train_loop.py}; shift
OUTPUT_DIR=
words=("$@")
for ((i = 0; i < ${#words[@]}; i++)); do
  [ "${words[i]}" = --output_dir ] && OUTPUT_DIR=${words[i + 1]}
done
: "${OUTPUT_DIR:?--output_dir must be given here, on a file system that all nodes share}"

gpus=${SLURM_GPUS_ON_NODE:-0}
per_node=$((gpus > 0 ? gpus : 1))
export GPUS_OR_ONE=$per_node
MAIN_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MAIN_NODE ACCELERATE_FILE
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((SLURM_CPUS_PER_TASK / per_node > 0 ? SLURM_CPUS_PER_TASK / per_node : 1))}
# time for the save, where a launcher is told to stop: longer than the slowest one
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-240}
# the network that the nodes see each other on; `ip -br addr` shows its name
[ -z "${NETWORK_INTERFACE:-}" ] || export NCCL_SOCKET_IFNAME=$NETWORK_INTERFACE GLOO_SOCKET_IFNAME=$NETWORK_INTERFACE

# Slurm sends USR1 to this script 300 s before the time limit, and TERM when the job is preempted. The ranks are told by
# the STOP file: a signal to an accelerate launcher would reach them with that launcher's grace only, and USR1 would kill it.
stop() {
  echo "$(date -Is) Slurm asks for the node: stopping and saving"
  mkdir -p "$OUTPUT_DIR" && touch "$OUTPUT_DIR/STOP"
}
trap stop USR1 TERM

srun --kill-on-bad-exit=1 bash -c '
  exec accelerate launch -q --config_file "$ACCELERATE_FILE" --num_machines "$SLURM_NNODES" \
    --num_processes "$((SLURM_NNODES * GPUS_OR_ONE))" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MAIN_NODE" --main_process_port "$((20000 + SLURM_JOB_ID % 10000))" \
    train_loop.py "$@"' bash "$@" --resume_from_checkpoint auto --preempted_exit_code 85 &
child=$!
until wait "$child"; do
  status=$?
  kill -0 "$child" 2>/dev/null || break  # a trap interrupts `wait`; only the end of the step ends it
done

state() { python -c "import json, sys; print(json.load(open(sys.argv[1]))['status'])" "$OUTPUT_DIR/trainer_state.json"; }
if [ "$(state)" = preempted ]; then
  echo "$(date -Is) saved; back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
[ "$(state)" = finished ] || exit "${status:-1}"
