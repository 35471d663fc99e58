#!/usr/bin/env bash
# ./run_training.sh        the guide's run: Wikipedia and arXiv, then SciQ and CommonsenseQA, then evaluation (in runs/guide)
# ./run_training.sh demo   the same steps on generated data, minutes on a CPU (in runs/demo)
#
# What is trained, and how long, stands in recipes/*.yaml: edit there, or add flags to the commands below.
# Steps: model prepare pretrain sciq commonsenseqa evaluate. A finished training is not repeated, a stopped one goes on.
#   STEPS="sciq evaluate" ./run_training.sh     only these steps
#   OUT=/data/run1 ./run_training.sh            another folder
#   LAUNCH="accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes 8" ./run_training.sh
#   DATA="--data_root /data/mirror" ./run_training.sh   without a network (see prepare_datasets.py --download)
#   PRECISION="--bf16" ./run_training.sh
set -euo pipefail
cd "$(dirname "$0")"
MODE=${1:-guide}
STEPS=${STEPS:-model prepare pretrain sciq commonsenseqa evaluate}
OUT=${OUT:-runs/$MODE}
DATA=${DATA:-}
PRECISION=${PRECISION:-}

step=start
trap 'code=$?; [ $code -eq 0 ] || echo "run_training.sh: step \"$step\" failed with status $code; the lines above say why. Mend it and start again: finished steps are not repeated." >&2' EXIT

wanted() {  # is this step asked for?
  case " $STEPS " in *" $1 "*) step=$1 ;; *) return 1 ;; esac
  echo "== $1"
}

finished() {  # has this training already reached its end?
  grep -qs '"status": "finished"' "$1/trainer_state.json" && echo "   $1 is finished already"
}

train() {  # OUTPUT RECIPE MODEL [FLAGS]: one training, continued where it stopped
  local output=$1 recipe=$2 model=$3; shift 3
  finished "$output" || $LAUNCH train_loop.py --config "recipes/$recipe.yaml" --model_path "$model" --output_dir "$output" \
    --resume_from_checkpoint auto $DATA $PRECISION "$@"
}

guide() {
  LAUNCH=${LAUNCH:-accelerate launch --config_file accelerate_configs/$(nvidia-smi -L >/dev/null 2>&1 && echo one_gpu || echo cpu).yaml}
  if wanted model && [ ! -f "$OUT/model/config.json" ]; then
    python -m miniqwen.create_model --size tiny --dataset_name both --output_dir "$OUT/model" $DATA
  fi
  if wanted prepare; then python prepare_datasets.py --all --streaming $DATA; fi
  if wanted pretrain; then train "$OUT/pretrained" pretrain "$OUT/model"; fi
  if wanted sciq; then train "$OUT/sciq_finetuned" sciq "$OUT/pretrained"; fi
  if wanted commonsenseqa; then train "$OUT/commonsenseqa_finetuned" commonsenseqa "$OUT/pretrained"; fi
  if wanted evaluate; then
    for name in sciq commonsenseqa; do
      $LAUNCH eval_loop.py --model_path "$OUT/${name}_finetuned" --dataset_name $name --output_dir "$OUT/evaluation/$name" \
        --overwrite_output_dir --max_eval_samples 100 $DATA
    done
    $LAUNCH eval_loop.py --model_path "$OUT/pretrained" --dataset_name both --output_dir "$OUT/evaluation/combined" \
      --overwrite_output_dir --max_eval_samples 100 $DATA
  fi
  echo "== done: the evaluations are in $OUT/evaluation; curves: tensorboard --logdir $OUT"
}

demo() {
  LAUNCH=${LAUNCH:-python}  # one process needs no launcher, and starts faster without
  DATA="--data_root $OUT/mirror"
  if wanted prepare && [ ! -d "$OUT/mirror" ]; then python prepare_datasets.py --demo "$OUT/mirror"; fi
  if wanted model && [ ! -f "$OUT/model/config.json" ]; then
    python -m miniqwen.create_model --config recipes/demo_model.yaml --output_dir "$OUT/model" $DATA
  fi
  if wanted pretrain; then train "$OUT/pretrained" demo_pretrain "$OUT/model"; fi
  export OMP_NUM_THREADS=1  # from here two processes run side by side: a core each
  for name in sciq commonsenseqa; do
    if wanted $name; then
      echo "   with pretraining, and (in the background) without it, for comparison"
      train "$OUT/${name}_without_pretraining" demo_$name "$OUT/model" > "$OUT/${name}_without_pretraining.log" 2>&1 &
      train "$OUT/${name}_finetuned" demo_$name "$OUT/pretrained"
      wait $! || { cat "$OUT/${name}_without_pretraining.log" >&2; exit 1; }
    fi
  done
  if wanted evaluate; then
    for name in sciq commonsenseqa; do
      $LAUNCH eval_loop.py --model_path "$OUT/${name}_without_pretraining" --dataset_name $name \
        --output_dir "$OUT/evaluation_without_pretraining/$name" --overwrite_output_dir $DATA \
        > "$OUT/evaluation_without_pretraining_$name.log" 2>&1 &
      $LAUNCH eval_loop.py --model_path "$OUT/${name}_finetuned" --dataset_name $name --output_dir "$OUT/evaluation/$name" \
        --overwrite_output_dir $DATA
      wait $! || { cat "$OUT/evaluation_without_pretraining_$name.log" >&2; exit 1; }
    done
    python - "$OUT" <<'PYTHON'
import json, pathlib, sys
print("\naccuracy on questions that no training saw, about facts that the text states:")
print(f"{'':16}{'guessing':>10}{'fine-tuned only':>18}{'pretrained, then fine-tuned':>30}")
for name, guess in (("sciq", 0.25), ("commonsenseqa", 0.20)):
    folders = ("evaluation_without_pretraining", "evaluation")
    found = [json.loads(pathlib.Path(sys.argv[1], f, name, f"{name}.json").read_text())["accuracy"] for f in folders]
    print(f"{name:16}{guess:>10.0%}{found[0]:>18.1%}{found[1]:>30.1%}")
PYTHON
  fi
  echo "== done in ${SECONDS} s: evaluations in $OUT/evaluation; curves: tensorboard --logdir $OUT"
}

. ./environment.sh
case $MODE in
  guide) guide ;;
  demo) STEPS=${STEPS/model prepare/prepare model}; demo ;;
  *) echo "usage: ./run_training.sh [demo]" >&2; exit 2 ;;
esac
