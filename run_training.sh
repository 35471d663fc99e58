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
STOPPED=85  # the script's status when a training was stopped and saved by a STOP file or --max_time

# ---- How steps run. Bash runs a trap only when the command before it has ended, and what a script starts in the
# ---- background does not hear Ctrl-C: so every command runs beside the script, in a process group of its own (set -m),
# ---- and the script waits for it. All of them are told SIGTERM, as a launcher dies of that without a traceback; its
# ---- training goes on until it has saved, and the script waits for the whole group.
step="making the environment" far=""
running=""  # the groups
told=""  # when they were told to end
signalled=0  # the script's status after a signal

say() { echo "$1" >&2 || true; }  # the terminal may be gone

tell() {  # SIGNAL: to everything that runs
  local group
  for group in $running; do kill "-$1" -- "-$group" 2>/dev/null || true; done
}

receive() {  # NAME STATUS: everything is told to end; another Ctrl-C, a second later, kills
  [ "$signalled" -ne 0 ] || signalled=$2
  if [ -z "$told" ]; then
    told=$SECONDS
    [ ! -t 2 ] || printf '\r\033[K' >&2 || true  # a progress bar may stand in this line
    [ -z "$running" ] || say "run_training.sh: $1: ending $step; Ctrl-C once more kills it"
    tell TERM
  elif [ "$1" = Ctrl-C ] && [ "$SECONDS" -gt "$told" ]; then
    tell INT  # a training says what it has saved
    local tenths=0 group
    for group in $running; do
      while [ $tenths -lt 30 ] && lives "$group"; do tenths=$((tenths + 1)); sleep 0.1 || true; done
    done
    tell KILL
  fi
}
trap 'receive Ctrl-C 130' INT
trap 'receive SIGTERM 143' TERM
trap 'receive SIGHUP 129' HUP
trap 'signalled=131 told=-1; tell KILL' QUIT
trap 'tell STOP; kill -STOP $$; tell CONT' TSTP

lives() {  # GROUP: is there anything left of it?
  if command -v ps >/dev/null; then
    ps -A -o pgid= -o stat= | awk -v group="$1" '$1 == group && $2 !~ /^Z/ { found = 1 } END { exit !found }'
  else
    kill -0 -- "-$1" 2>/dev/null
  fi
}

start() {  # COMMAND: run it beside the script; its group is `started`
  [ "$signalled" -eq 0 ] || exit "$signalled"
  set -m
  "$@" < /dev/null &
  set +m
  started=$! running="$running $!"
  [ -z "$told" ] || tell TERM  # a signal came in between
}

finish() {  # GROUP: wait for all of it, whatever signals come meanwhile; the status of its first process
  local code=0 others="" group
  wait "$1" 2>/dev/null || code=$?
  while kill -0 "$1" 2>/dev/null; do  # a signal ends `wait`, not what is waited for
    code=0
    wait "$1" 2>/dev/null || code=$?
  done
  if [ "$code" -ne 0 ] || [ -n "$told" ]; then while lives "$1"; do sleep 0.2 || true; done; fi
  for group in $running; do [ "$group" = "$1" ] || others="$others $group"; done
  running=$others
  return "$code"
}

run() {  # COMMAND: run it, and end the script if it fails or a signal came
  start "$@"
  finish "$started" || exit
  [ "$signalled" -eq 0 ] || exit "$signalled"
}

leave() {  # STATUS: at every end; nothing outlives the script
  local code=$1 group
  set +e
  if [ -n "$running" ] && [ -z "$told" ]; then
    say "run_training.sh: waiting for what runs beside $step to save and end; Ctrl-C kills it"
    told=-1
    tell TERM
  fi
  for group in $running; do finish "$group"; done
  [ "$signalled" -eq 0 ] || code=$signalled
  case $code in
    0) ;;
    $STOPPED | 129 | 130 | 131 | 143) say "run_training.sh: stopped at $step$far; the same command goes on from there." ;;
    *) say "run_training.sh: $step failed with status $code$far; the lines above say why. Mend it and start again: finished steps are not repeated." ;;
  esac
  exit "$code"
}
trap 'leave $?' EXIT

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

begin() {  # OUTPUT RECIPE MODEL [FLAGS]: start a training, where it stopped; `started` is empty if it is finished
  local output=$1 recipe=$2 model=$3; shift 3
  started=""
  if finished "$output"; then echo "$output is finished already"; return; fi
  start $LAUNCH train_loop.py --config "recipes/$recipe.yaml" --model_path "$model" --output_dir "$output" --hints False \
    --resume_from_checkpoint auto $DATA $PRECISION "$@"
}

complete() {  # OUTPUT GROUP [LOG]: wait for a training, and end the script unless it has reached its end
  local code=0 ended
  [ -n "$2" ] || return 0
  finish "$2" || code=$?
  if [ "$code" -ne 0 ] || ! finished "$1"; then
    # its state says more than a status: launchers have their own, and one that was stopped ends with 0
    ended=$(python -c "import sys; from miniqwen.config.models import how_far; print(how_far(sys.argv[1]))" "$1") || ended=""
    [ -z "$ended" ] || far=" ($1: $ended)"
    if [ "$signalled" -ne 0 ]; then exit "$signalled"; fi
    [ -z "${3:-}" ] || cat "$3" >&2
    case $ended in preempted*) code=$STOPPED ;; *) [ "$code" -ne 0 ] || code=1 ;; esac
    exit "$code"
  fi
  [ "$signalled" -eq 0 ] || exit "$signalled"
}

train() {  # as `begin`: one training, from its beginning or where it stopped to its end
  begin "$@"
  complete "$1" "$started"
}

guide() {
  LAUNCH=${LAUNCH:-accelerate launch -q --config_file accelerate_configs/$(nvidia-smi -L >/dev/null 2>&1 && echo one_gpu || echo cpu).yaml}
  if wanted model "a tiny model, with a tokenizer for Wikipedia and arXiv" && missing "$OUT/model/config.json"; then
    run python -m miniqwen.create_model --size tiny --dataset_name both --output_dir "$OUT/model" --hints False $DATA
  fi
  if wanted prepare "can all data sets be read?"; then run python prepare_datasets.py --all --streaming $DATA; fi
  if wanted pretrain "pretraining on Wikipedia and arXiv"; then train "$OUT/pretrained" pretrain "$OUT/model"; fi
  if wanted sciq "fine-tuning on SciQ"; then train "$OUT/sciq_finetuned" sciq "$OUT/pretrained"; fi
  if wanted commonsenseqa "fine-tuning on CommonsenseQA"; then
    train "$OUT/commonsenseqa_finetuned" commonsenseqa "$OUT/pretrained"
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
    train "$OUT/pretrained" demo_pretrain "$OUT/model"
  fi
  export OMP_NUM_THREADS=1  # from here two processes run side by side: a core each
  for name in sciq commonsenseqa; do
    if wanted $name "fine-tuning on $name questions, and beside it the same without pretraining"; then
      without=$OUT/${name}_without_pretraining
      begin "$without" demo_$name "$OUT/model" --sample_prompts none > "$without.log" 2>&1
      beside=$started
      train "$OUT/${name}_finetuned" demo_$name "$OUT/pretrained"
      complete "$without" "$beside" "$without.log"
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
  beside=$started
}

await_beside() {
  local code=0
  finish "$beside" || code=$?
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

run bash ./environment.sh  # makes it
. ./environment.sh  # uses it
mkdir -p "$OUT"
$MODE
