#!/bin/bash
# Trains the voice on a GPU machine in one go that ends in time, or goes on from what is there.
#
#   training/schedule.sh PARTS RUN RESULT
#
# PARTS   corpus.npz and CosyVoice-BlankEN/ of training.prepare; hibari/, the teacher, where it is not installed;
#         tokenizer.pt, speaker.pt: not trained again if there; llm.pt, flow.pt, hift.pt: to start from if there
# RUN     data, checkpoints and logs, in memory if it may be (60 GB); a later call with the same folder goes on from it
# RESULT  weights and logs, as they stand every minute and at the end
#
# Set in the environment:
#   LIMIT      seconds after which the script has ended, with what it has (560)
#   TRAIN      what to train of "hift flow llm" (all three); "flow:24" plans 24 minutes for it over all calls, without
#              which its learning rate ends with this call
#   SPENT      minutes that llm.pt, flow.pt and hift.pt of PARTS were trained for (0)
#   PIECES     size of pieces, such as 15M: RESULT holds voice.tar.00, ... for `cat voice.tar.* | tar x`
#   PROCESSES  that speak the corpus (14)
set -um
mkdir -p "$2/data" "$3" || exit
parts=$(cd "$1" && pwd) run=$(cd "$2" && pwd) result=$(cd "$3" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
data=$run/data spec=$here/nano/cosyvoice2.yaml
start=$(date +%s)
end=$((start + ${LIMIT:-560}))
until=$((end - 15))
PYTHONPATH=$(dirname "$here"):$parts${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR=$run/inductor

say() { echo "[$(($(date +%s) - start)) s] $*" | tee -a "$run/schedule.log"; }

run_once() { # log's name, module, arguments
  local name=$1 code; shift
  python3 -m "$@" >>"$run/$name.log" 2>&1
  code=$?
  say "$name ended with $code"
  return $code
}

persist() { # the same; what failed starts again, from its checkpoint, as long as there is time
  until run_once "$@" || [ "$(date +%s)" -ge $until ]; do tail -n 1 "$run/$1.log"; sleep 2; done
}

has() { find "$data/store" -name "$1-*.npz" 2>/dev/null | wc -l; }
await() { # "part" or "tokens", how many parts: or all, once the teacher has finished
  until [ "$(has "$1")" -ge "$2" ] || { ! kill -0 $generate 2>/dev/null && [ "$(has "$1")" -ge "$(has part)" ]; }; do
    [ "$(date +%s)" -lt $until ] || return 1
    sleep 0.5
  done
  say "$(has "$1") of $1"
}
end_of() { while kill -0 "$1" 2>/dev/null; do sleep 0.5; done; }

keep() {
  local files
  files=$(cd "$run" && ls tokenizer.pt speaker.pt llm.pt flow.pt hift.pt 2>/dev/null)
  tar -C "$run" -czf "$run/logs.new" $(cd "$run" && ls -- *.csv *.log 2>/dev/null) && cp "$run/logs.new" "$result/logs.tgz"
  [ -n "$files" ] || return 0
  if [ -n "${PIECES:-}" ]; then
    tar -C "$run" -cf "$run/voice.new" $files && rm -f "$result"/voice.tar.* &&
      split -d -b "$PIECES" "$run/voice.new" "$result/voice.tar."
  else
    (cd "$run" && cp $files "$result")
  fi
}

share_gpu() { # one process's kernels beside another's: MPS, if it works here
  command -v nvidia-cuda-mps-control >/dev/null || return 0
  CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d) CUDA_MPS_LOG_DIRECTORY=$(mktemp -d)
  export CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
  nvidia-cuda-mps-control -d
  if ! timeout 60 python3 -c 'import torch; torch.ones(4, device="cuda").sum().item()' >>"$run/mps.log" 2>&1; then
    echo quit | timeout 10 nvidia-cuda-mps-control
    unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
    say "without MPS"
  fi
}

wanted() { [[ " ${TRAIN:-hift flow llm} " == *" $1"[\ :]* ]]; }
planned() { [[ ! " ${TRAIN:-} " =~ \ $1:([0-9.]+)\  ]] || echo "${BASH_REMATCH[1]}"; }

trainer() { # name, module, arguments
  local name=$1 options=(--out "$run" --until $until); shift
  [ -z "$(planned "$name")" ] || options+=(--minutes "$(planned "$name")")
  [ ! -e "$parts/$name.pt" ] || options+=(--init "$parts/$name.pt" --spent "${SPENT:-0}")
  persist "$name" "$@" "${options[@]}"
}


acoustic() { # what needs other speakers and tokens
  await part 14
  [ "$(find "$data/warped" -name 'part-*.npz' 2>/dev/null | wc -l)" -ge 24 ] ||
    run_once warp training.warp --store "$data/store" --out "$data/warped" --minutes 8
  [ -e "$run/speaker.pt" ] ||
    persist speaker training.speaker --store "$data/store" --warped "$data/warped" --out "$run" --minutes 1.4 --until $until &
  local speaker=$!
  if [ ! -e "$run/tokenizer.pt" ]; then
    await part 34
    persist tokenizer training.train_tokenizer --store "$data/store" --out "$run" --minutes 1.8 --until $until
  fi
  end_of $measured
  for store in measured warped; do
    persist tokenise training.tokenize_store --encoder "$run/tokenizer.pt" --store "$data/$store"
  done
  persist tokenise training.tokenize_store --encoder "$run/tokenizer.pt" --store "$data/store" --follow 60 &
  if wanted llm; then
    trainer llm training.train_llm --corpus "$parts" --store "$data/store" --measured "$data/measured" --least 12000 &
  fi
  wait $speaker
  if wanted flow; then
    await tokens 24
    trainer flow training.flow --spec "$spec" --store "$data/store" --warped "$data/warped" --speaker "$run/speaker.pt"
  fi
  wait
}

stop() { # every job is a process group of its own
  local job
  for job in $(jobs -p); do kill -- "-$job" 2>/dev/null; done
}

trap stop EXIT
trap 'exit 1' INT TERM
for name in tokenizer speaker; do [ ! -e "$parts/$name.pt" ] || cp "$parts/$name.pt" "$run"; done
run_once measured training.generate --corpus "$parts/corpus.npz" --out "$data/measured" --last 520 --processes 1 &
measured=$!
run_once generate training.generate --corpus "$parts/corpus.npz" --out "$data/store" --first 520 --processes "${PROCESSES:-14}" &
generate=$!
share_gpu
while sleep 60; do keep; done &
acoustic & trainers=($!)
if wanted hift; then
  trainer hift training.hift --spec "$spec" --store "$data/store" & trainers+=($!)
fi
while kill -0 "${trainers[@]}" 2>/dev/null && [ "$(date +%s)" -lt $((end - 6)) ]; do sleep 1; done
stop
keep
[ -z "${CUDA_MPS_PIPE_DIRECTORY:-}" ] || echo quit | timeout 3 nvidia-cuda-mps-control
say "done"
