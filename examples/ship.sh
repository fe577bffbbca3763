#!/usr/bin/env bash
# From pairs to a reward that others train with: two short runs on SmolLM2-135M, one for each place of the score; both
# folders verified; two steps of TRL's GRPO with the one that every consumer reads, its rewards held against ours; and
# both behind HTTP, asked as three other tools ask.
#
#     examples/ship.sh instruction_preference.jsonl.gz OUT
#
# BASE is what is trained (a folder, a Hub name, a .gguf file), POLICY what GRPO trains (a folder or a Hub name).
# TRL_PYTHON is the Python of an environment with TRL: make .venv-trl/.installed. STEPS: of each run, 8 pairs each.
set -euo pipefail
pairs=$1
out=$2
here=$(dirname "$0")
base=${BASE:-HuggingFaceTB/SmolLM2-135M-Instruct}
policy=${POLICY:-HuggingFaceTB/SmolLM2-135M-Instruct}
trl_python=${TRL_PYTHON:-.venv-trl/bin/python}

train() { # MODE, and its keys
    mode=$1
    shift
    keys=(-s "model.pretrained_model_name_or_path=$base" "$@")
    rmcli prepare "$pairs" --map-fn "$here/instruction_preference.py:to_pair" --no-audit \
        -s data.eval_fraction=0.02 "${keys[@]}" -o "$out/data-$mode"
    rmcli train --data "$out/data-$mode" "${keys[@]}" -s "train.max_steps=${STEPS:-4}" -o "$out/$mode"
    rmcli verify "$out/$mode/model"
}

# Scored at a token of its own, after the template's end; and at the end of the turn itself (docs/consumers.md).
train reserved
train natural -s model.reward_token=natural -s model.reward_token_id=none

"$trl_python" "$here/grpo.py" "$out/natural/model" "$policy" "$out/data-natural/eval.jsonl" "$out/rewards.jsonl"
rmcli score "$out/natural/model" "$out/rewards.jsonl" -o "$out/scores.jsonl"
python3 "$here/same_scores.py" "$out/rewards.jsonl" "$out/scores.jsonl"

for mode in reserved natural; do
    "$here/over_http.sh" "$out/$mode/model" "$out/$mode-over-http"
done
