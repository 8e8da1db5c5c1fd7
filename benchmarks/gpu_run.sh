#!/usr/bin/env bash
# The gpu profile and the training benchmark on a lent machine with one GPU, Python 3.12 and a torch of its own, and no
# network. NOT RUN YET: no GPU was lent when this was written.
#
# Call from the repository's root; results go to $OUT (default: runs/gpu_out):
#     OUT=/some/folder bash benchmarks/gpu_run.sh
# Wheels that the machine lacks are taken from wheels/ beside this checkout's pyproject.toml, if that folder is there.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/gpu_out}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"

if [ -d wheels ]; then  # torch and what it brings are the machine's own: --no-deps
    "$PYTHON" -m pip install --quiet --no-deps wheels/*.whl
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"  # the library itself needs no installation
"$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "no GPU"; print(torch.__version__, torch.cuda.get_device_name())' \
    | tee "$OUT/machine.txt"

"$PYTHON" -m petct_lib run --profile gpu --out "$OUT/gpu" 2>&1 | tee "$OUT/gpu_run.txt"  # table and seconds by stage
mkdir -p "$OUT/figures"
cp "$OUT"/gpu/figures/*.png "$OUT/figures/"
cp "$OUT"/gpu/{scores.csv,metrics.json,manifest.json,stages.json} "$OUT/"

# The phantom of the run is used again; 1500 textbook steps are a guess at a few minutes.
"$PYTHON" benchmarks/training.py --profile gpu --size 256 --batch 4 --device cuda --phantom "$OUT/gpu/phantom" \
    --textbook-steps "${TEXTBOOK_STEPS:-1500}" --only --limit-s 1200 2>&1 | tee "$OUT/training.txt"
cp benchmarks/README.md benchmarks/results.json "$OUT/"
