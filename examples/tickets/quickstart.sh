#!/usr/bin/env bash
# Fine-tune the embedded 22M-parameter BERT on the sample tickets, measure it, and ask it something.
#   bash examples/tickets/quickstart.sh [PRETUNE]
set -euo pipefail
pretune=${1:-pretune}
run=runs/tickets

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }

step "1. Fine-tune on 684 customer messages: pretune train examples/tickets/recipe.yaml"
"$pretune" train examples/tickets/recipe.yaml output="$run" --overwrite

step "2. Measure it on 162 messages it has never seen: pretune evaluate $run examples/tickets/test.tsv"
"$pretune" evaluate "$run" examples/tickets/test.tsv

step "3. Ask it: pretune predict $run TEXT..."
"$pretune" predict "$run" \
  "The tracking page has said 'out for delivery' since Monday. Where is my lamp?" \
  "you took 19.99 twice this month, please check" \
  "every time i open the settings page the app just closes"

cat <<END
What next?
  pretune predict $run "your own text"             ask it more; --json for programs
  pretune train YOUR_FILE.csv                      your own data: columns text and label
  pretune init classify > my-recipe.yaml           every knob, explained
  make demo                                        serve it: a page and an API
  tensorboard --logdir $run/events                 the course of the training
END
