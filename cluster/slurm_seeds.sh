#!/usr/bin/env bash
# The same training with several seeds, one array task each, one node each:
#   sbatch --array=0-4 cluster/slurm_seeds.sh --config recipes/sciq.yaml --model_path M
# Task N trains with --seed N in $OUTPUT_ROOT/seed-N and is requeued by itself when it is preempted.
#SBATCH --job-name=miniqwen-seeds
#SBATCH --array=0-4
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
#SBATCH --signal=B:USR1@120
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"

OUTPUT_DIR=${OUTPUT_ROOT:-runs/seeds}/seed-${SLURM_ARRAY_TASK_ID:?start this with sbatch --array}
mkdir -p "$OUTPUT_DIR"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}

# without a launcher: the process catches USR1 and TERM itself, and says by its status that it was preempted
srun --ntasks=1 python train_loop.py "$@" --seed "$SLURM_ARRAY_TASK_ID" --output_dir "$OUTPUT_DIR" \
  --resume_from_checkpoint auto --preempted_exit_code 85 &
child=$!
trap 'kill -TERM "$child"' USR1 TERM  # srun passes TERM on to the process
status=0
wait "$child" || status=$?
while kill -0 "$child" 2>/dev/null; do  # a trap interrupts `wait`
  status=0
  wait "$child" || status=$?
done

if [ "$status" -eq 85 ]; then
  echo "$(date -Is) saved; back into the queue"
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
  exit 0
fi
exit "$status"
