#!/usr/bin/env bash
# Talk to SmolLM2-135M-Instruct, teach it about a repair café by LoRA, and ask it the same again.
#   bash examples/chat/quickstart.sh [PRETUNE]
set -euo pipefail
pretune=${1:-pretune}
run=runs/repair-cafe

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }

# Each question in a talk of its own, with the likeliest words: what changes is the model alone.
talk() {
  while IFS= read -r question; do
    printf '> %s\n' "$question"
    "$pretune" chat "$1" --temperature 0 --max-new-tokens 60 <<<"$question"
  done <examples/chat/questions.txt
}

step "1. Talk to it as it was published: pretune chat smollm2"
talk smollm2

step "2. Teach it by LoRA on 65 conversations: pretune train examples/chat/recipe.yaml"
"$pretune" train examples/chat/recipe.yaml output="$run" --overwrite

step "3. The same talk: pretune chat $run"
talk "$run"

cat <<END
What next?
  pretune chat $run                                  ask it yourself
  pretune train instruct model.from=smollm2 data.train=YOURS.jsonl train.lora='{rank: 8}'
  pretune serve smollm2 $run                         both as one API: /v1/chat/completions, and a page
  pretune generate smollm2 --prompt 'Name three primary colours.'
END
