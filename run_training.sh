#!/usr/bin/env bash
# ./run_training.sh        the guide's run: Wikipedia and arXiv, then SciQ and CommonsenseQA, then evaluation (in runs/guide)
# ./run_training.sh demo   the same steps on generated data, minutes on a CPU (in runs/demo)
#
# What is trained, and how long, stands in recipes/*.yaml: edit there, or add flags to the commands below.
# Steps: model prepare pretrain sciq commonsenseqa evaluate. A finished training is not repeated, a stopped one goes on.
# Ctrl-C, SIGTERM, --max_time in a recipe and a file named STOP in a run's folder save the training that is on, and end
# the script; the same command goes on from there.
#   STEPS="sciq evaluate" ./run_training.sh     only these steps
#   OUT=/data/run1 ./run_training.sh            another folder
#   LAUNCH="accelerate launch -q --config_file accelerate_configs/ddp.yaml --num_processes 8" ./run_training.sh
#   DATA="--data_root /data/mirror" ./run_training.sh   without a network (see prepare_datasets.py --download)
#   PRECISION="--bf16" ./run_training.sh
set -euo pipefail
cd "$(dirname "$0")"
MODE=${1:-guide}
case $MODE in guide | demo) ;; *) echo "usage: ./run_training.sh [demo]" >&2; exit 2 ;; esac
ALL="model prepare pretrain sciq commonsenseqa evaluate"
[ "$MODE" = demo ] && ALL="prepare model pretrain sciq commonsenseqa evaluate"
STEPS=${STEPS:-$ALL}
OUT=${OUT:-runs/$MODE}
DATA=${DATA:-}
PRECISION=${PRECISION:-}
STOPPED=85  # status of a training that was stopped and saved, and of this script then

# ---- How steps run. Bash runs a trap only between commands: so that a signal reaches what runs at once, commands run
# ---- beside the script, each in a process group of its own (set -m), and the script waits for them.
set -m
step="making the environment"
children=()
signalled=0

pass_on() {  # SIGNAL STATUS: to everything that runs
  signalled=$2
  tell "$1"
}
tell() {  # SIGNAL
  local child
  for child in ${children[@]+"${children[@]}"}; do kill "-$1" -- "-$child" 2>/dev/null || true; done
}
trap 'pass_on INT 130' INT
trap 'pass_on TERM 143' TERM
trap 'pass_on TERM 129' HUP

leave() {  # STATUS: at every end; nothing outlives the script
  local code=$1 child
  trap '' INT TERM HUP
  tell TERM
  for child in ${children[@]+"${children[@]}"}; do wait "$child" 2>/dev/null || true; done
  [ "$signalled" -eq 0 ] || code=$signalled
  case $code in
    0) ;;
    $STOPPED | 129 | 130 | 143) echo "run_training.sh: stopped at $step; the same command goes on from there." >&2 ;;
    *) echo "run_training.sh: $step failed with status $code; the lines above say why. Mend it and start again: finished steps are not repeated." >&2 ;;
  esac
  exit "$code"
}
trap 'leave $?' EXIT

start() {  # COMMAND: run it beside the script
  # a launcher ignores these signals, and waits for its training, which hears them
  (trap '' INT TERM HUP; "$@") &
  children+=($!)
}

finish() {  # PID: wait for it, whatever signals come meanwhile; its status
  local code left=() child
  while :; do
    wait "$1" 2>/dev/null && code=0 || code=$?
    kill -0 "$1" 2>/dev/null || break
  done
  for child in "${children[@]}"; do [ "$child" = "$1" ] || left+=("$child"); done
  children=(${left[@]+"${left[@]}"})
  return "$code"
}

run() {  # COMMAND: run it, and end the script if it fails or a signal came
  [ "$signalled" -eq 0 ] || exit "$signalled"
  start "$@"
  finish $! || exit
  [ "$signalled" -eq 0 ] || exit "$signalled"
}

# ---- Steps
wanted() {  # STEP [WHAT]: is it asked for? Says what is done
  case " $STEPS " in *" $1 "*) ;; *) return 1 ;; esac
  local number=0 total=0 name
  for name in $ALL; do
    case " $STEPS " in *" $name "*) total=$((total + 1)); [ "$name" = "$1" ] && number=$total ;; esac
  done
  step="step $1"
  echo
  echo "[$number/$total] ${2:-$1}"
}

missing() {  # does this file or folder still have to be made?
  [ ! -e "$1" ] || { echo "$1 is there already"; return 1; }
}

finished() {  # has this training already reached its end?
  grep -qs '"status": "finished"' "$1/trainer_state.json"
}

train() {  # OUTPUT RECIPE MODEL [FLAGS]: one training, continued where it stopped
  local output=$1 recipe=$2 model=$3; shift 3
  if finished "$output"; then echo "$output is finished already"; return; fi
  # a stopped training ends this script, too: it has a status of its own
  $LAUNCH train_loop.py --config "recipes/$recipe.yaml" --model_path "$model" --output_dir "$output" --hints False \
    --preempted_exit_code $STOPPED --resume_from_checkpoint auto $DATA $PRECISION "$@"
}

guide() {
  LAUNCH=${LAUNCH:-accelerate launch -q --config_file accelerate_configs/$(nvidia-smi -L >/dev/null 2>&1 && echo one_gpu || echo cpu).yaml}
  if wanted model "a tiny model, with a tokenizer for Wikipedia and arXiv" && missing "$OUT/model/config.json"; then
    run python -m miniqwen.create_model --size tiny --dataset_name both --output_dir "$OUT/model" --hints False $DATA
  fi
  if wanted prepare "can all data sets be read?"; then run python prepare_datasets.py --all --streaming $DATA; fi
  if wanted pretrain "pretraining on Wikipedia and arXiv"; then run train "$OUT/pretrained" pretrain "$OUT/model"; fi
  if wanted sciq "fine-tuning on SciQ"; then run train "$OUT/sciq_finetuned" sciq "$OUT/pretrained"; fi
  if wanted commonsenseqa "fine-tuning on CommonsenseQA"; then
    run train "$OUT/commonsenseqa_finetuned" commonsenseqa "$OUT/pretrained"
  fi
  if wanted evaluate "evaluation"; then
    for name in sciq commonsenseqa; do
      run $LAUNCH eval_loop.py --model_path "$OUT/${name}_finetuned" --dataset_name $name \
        --output_dir "$OUT/evaluation/$name" --overwrite_output_dir --max_eval_samples 100 $DATA
    done
    run $LAUNCH eval_loop.py --model_path "$OUT/pretrained" --dataset_name both --output_dir "$OUT/evaluation/combined" \
      --overwrite_output_dir --max_eval_samples 100 $DATA
  fi
  echo
  echo "done in $((SECONDS / 60)) minutes. The evaluations are in $OUT/evaluation. Next:"
  next "python -m miniqwen.generate --model_path $OUT/pretrained" "tensorboard --logdir $OUT"
}

demo() {
  LAUNCH=${LAUNCH:-python}  # one process needs no launcher, and starts faster without
  DATA="--data_root $OUT/mirror"
  if wanted prepare "data: 577 facts in generated articles and papers, and questions about them" && missing "$OUT/mirror"; then
    run python prepare_datasets.py --demo "$OUT/mirror" --hints False
  fi
  if wanted model "a model with random weights, and a tokenizer trained on that text" && missing "$OUT/model/config.json"; then
    run python -m miniqwen.create_model --config recipes/demo_model.yaml --output_dir "$OUT/model" --hints False $DATA
  fi
  if wanted pretrain "pretraining: 577 facts, 0.8 M tokens, about 2 min"; then
    run train "$OUT/pretrained" demo_pretrain "$OUT/model"
  fi
  export OMP_NUM_THREADS=1  # from here two processes run side by side: a core each
  for name in sciq commonsenseqa; do
    if wanted $name "fine-tuning on $name questions, and beside it the same without pretraining"; then
      beside "$OUT/${name}_without_pretraining.log" \
        train "$OUT/${name}_without_pretraining" demo_$name "$OUT/model" --sample_prompts none
      run train "$OUT/${name}_finetuned" demo_$name "$OUT/pretrained"
      await_beside
    fi
  done
  if wanted evaluate "evaluation on questions that no training saw"; then
    for name in sciq commonsenseqa; do
      beside "$OUT/evaluation_without_pretraining_$name.log" $LAUNCH eval_loop.py \
        --model_path "$OUT/${name}_without_pretraining" --dataset_name $name \
        --output_dir "$OUT/evaluation_without_pretraining/$name" --overwrite_output_dir $DATA
      run $LAUNCH eval_loop.py --model_path "$OUT/${name}_finetuned" --dataset_name $name \
        --output_dir "$OUT/evaluation/$name" --overwrite_output_dir $DATA
      await_beside
    done
    story
  fi
  echo
  echo "done in $((SECONDS / 60)) min $((SECONDS % 60)) s. Next:"
  next "python -m miniqwen.generate --model_path $OUT/pretrained            # goes on with your text" \
    "python -m miniqwen.generate --model_path $OUT/sciq_finetuned       # answers your questions" \
    "tensorboard --logdir $OUT                                # curves, samples, tables"
}

beside() {  # LOG COMMAND: run it beside the next command
  beside_log=$1; shift
  start "$@" > "$beside_log" 2>&1
  beside_pid=$!
}

await_beside() {
  local code=0
  finish "$beside_pid" || code=$?
  [ "$signalled" -eq 0 ] || exit "$signalled"
  [ $code -eq 0 ] || { cat "$beside_log" >&2; exit $code; }
}

story() {  # what pretraining was good for
  python - "$OUT" <<'PYTHON'
import json, pathlib, sys
print("\naccuracy on questions that no training saw, about facts that the text states:")
print(f"{'':16}{'guessing':>10}{'fine-tuned only':>18}{'pretrained, then fine-tuned':>30}")
for name, guess in (("sciq", 0.25), ("commonsenseqa", 0.20)):
    folders = ("evaluation_without_pretraining", "evaluation")
    found = [json.loads(pathlib.Path(sys.argv[1], f, name, f"{name}.json").read_text())["accuracy"] for f in folders]
    print(f"{name:16}{guess:>10.0%}{found[0]:>18.1%}{found[1]:>30.1%}")
PYTHON
  beside "$OUT/before.log" python -m miniqwen.generate --model_path "$OUT/model" --max_new_tokens 8 "${BEGINNINGS[@]}"
  run python -m miniqwen.generate --model_path "$OUT/pretrained" --max_new_tokens 8 "${BEGINNINGS[@]}" > "$OUT/after.log" 2>&1
  await_beside
  local when
  for when in before after; do
    echo
    echo "$when pretraining the model goes on like this:"
    grep -v '^$\|^runs\|base model\|reached' "$OUT/$when.log" | sed 's/^/  /'
  done
}
BEGINNINGS=("The opposite of hot is" "The chemical symbol of gold is" "The young of a dog is called" "The moon Phobos travels around")

next() {  # COMMANDS: what can be typed now, in a fresh shell
  echo "  . .venv/bin/activate"
  printf '  %s\n' "$@"
}

. ./environment.sh
mkdir -p "$OUT"
$MODE
