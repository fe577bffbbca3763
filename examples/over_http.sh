#!/usr/bin/env bash
# A model folder behind HTTP: served on a free port, its golden conversations scored as OpenRLHF, vLLM's clients and
# LLaMA-Factory ask, held against rmcli score, and the server ended as a scheduler ends it.
#
#     examples/over_http.sh MODEL OUT
set -euo pipefail
model=$1
out=$2
here=$(dirname "$0")
mkdir -p "$out"

rmcli score "$model" "$model/golden.jsonl" -o "$out/scores.jsonl"
rmcli serve "$model" --port 0 >"$out/address" &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT # where a step below fails
until [ -s "$out/address" ]; do # it is written once the server can be asked
    kill -0 "$server"
    sleep 0.1
done
python3 "$here/over_http.py" "$(cat "$out/address")" "$model/golden.jsonl" "$out"
kill -TERM "$server"
wait "$server" # 0: all that was asked has been answered
trap - EXIT

for protocol in openrlhf vllm llamafactory; do
    python3 "$here/same_scores.py" "$out/$protocol.jsonl" "$out/scores.jsonl" 1e-5
done
