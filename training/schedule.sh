#!/bin/bash
# Everything that needs the GPU, in one go: data, tokenizer, speaker encoder, then vocoder, flow and language model together.
#
#   training/schedule.sh CORPUS_DIR DATA_DIR RUN_DIR RESULT_DIR
#
# Tokenizer and speaker encoder are skipped if RUN_DIR holds tokenizer/encoder.pt, or speaker.pt with campplus.onnx, and the
# language model if LLM=0; what was cut short resumes. Weights are copied to RESULT_DIR every half minute as they stand, so that a machine taken away costs little.
# Minutes, in all, resumed time included: TOKENIZER (1.8) SPEAKER (1.4) HIFT (12) FLOW (18) LLM (15). PROCESSES generate (14).
set -u
corpus=$1 data=$2 run=$3 result=$4
spec=$(dirname "$0")/nano/cosyvoice2.yaml
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
mkdir -p "$data" "$run/tokenizer" "$result"
start=$(date +%s)
say() { echo "[$(($(date +%s) - start)) s] $*" | tee -a "$run/schedule.log"; }
parts() { until [ "$(find "$data/store" -name "$1-*.npz" 2>/dev/null | wc -l)" -ge "$2" ]; do sleep 0.5; done; say "$2 of $1"; }
train() { # name, module, arguments: logs to RUN/name.log
  local name=$1; shift
  python3 -m "$@" >>"$run/$name.log" 2>&1
  say "$name ended with $?"
}
keep() { # what is worth having of an unfinished run
  while sleep 30; do
    python3 -m training.snapshot --run "$run" --out "$result" >>"$run/snapshot.log" 2>&1
    cp "$run"/*.csv "$run"/*.log "$result" 2>/dev/null
  done
}

train measured training.generate --corpus "$corpus/corpus.npz" --out "$data/measured" --last 520 --processes 1 &
measured=$!
train generate training.generate --corpus "$corpus/corpus.npz" --out "$data/store" --first 520 --processes "${PROCESSES:-14}" &
generate=$!
keep & keeper=$!
trap 'kill $keeper $generate 2>/dev/null' EXIT
parts part 1
train hift training.hift --spec "$spec" --store "$data/store" --out "$run" --minutes "${HIFT:-12}" & hift=$!
parts part 14
train warp training.warp --store "$data/store" --out "$data/warped" --minutes 8
[ -e "$run/speaker.pt" ] || train speaker training.speaker --store "$data/store" --warped "$data/warped" --out "$run" --minutes "${SPEAKER:-1.4}" & speaker=$!
if [ ! -e "$run/tokenizer/encoder.pt" ]; then
  parts part 34
  train tokenizer training.train_tokenizer --store "$data/store" --out "$run/tokenizer" --minutes "${TOKENIZER:-1.8}"
fi
encoder=$run/tokenizer/encoder.pt
train tokenise training.tokenize_store --encoder "$encoder" --store "$data/store" --follow 60 &
train tokenise training.tokenize_store --encoder "$encoder" --store "$data/warped"
wait $speaker $measured
train tokenise training.tokenize_store --encoder "$encoder" --store "$data/measured"
parts tokens "${FLOW_PARTS:-24}"
train flow training.flow --spec "$spec" --store "$data/store" --warped "$data/warped" --speaker "$run/speaker.pt" --out "$run" --minutes "${FLOW:-18}" & flow=$!
if [ "${LLM:-15}" != 0 ]; then
  train llm training.train_llm --corpus "$corpus" --store "$data/store" --measured "$data/measured" --out "$run" --least 40000 --minutes "${LLM:-15}" & llm=$!
  wait $llm
fi
wait $flow $hift
python3 -m training.snapshot --run "$run" --out "$result"
cp "$run"/*.csv "$run"/*.log "$result"
say done
