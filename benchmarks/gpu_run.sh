#!/usr/bin/env bash
# The gpu profile and its speed on a lent machine with one GPU, a torch of its own and no network, in calls of at most ten
# minutes. NOT RUN YET with this method: no GPU was lent since it is there.
#
# Call from the repository's root, again and again until it says that the run is finished; results go to $OUT:
#     OUT=/some/folder bash benchmarks/gpu_run.sh          # goes on with runs/gpu for LIMIT_S seconds (default 540)
#     OUT=/some/folder bash benchmarks/gpu_run.sh textbook # images/s against the textbook's CycleGAN, once it is finished
# Wheels that the machine lacks are taken from wheels/ beside pyproject.toml, if that folder is there.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/gpu_out}
RUN=${RUN:-runs/gpu}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"

if [ -d wheels ]; then  # torch and what it brings are the machine's own: --no-deps
    "$PYTHON" -m pip install --quiet --no-deps wheels/*.whl
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"  # the library itself needs no installation
"$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "no GPU"; print(torch.__version__, torch.cuda.get_device_name())' \
    | tee "$OUT/machine.txt"

if [ "${1:-run}" = textbook ]; then  # the run's phantom again; 1500 textbook steps are a guess at a few minutes
    "$PYTHON" benchmarks/training.py --profile gpu --size 256 --batch 4 --device cuda --phantom "$RUN/phantom" \
        --textbook-steps "${TEXTBOOK_STEPS:-1500}" --only --limit-s 500 2>&1 | tee "$OUT/training.txt"
    cp benchmarks/README.md benchmarks/results.json "$OUT/"
    exit
fi

status=0  # a training that is stopped resumes exactly with the next call
timeout --signal=TERM "${LIMIT_S:-540}" "$PYTHON" -m petct_lib run --profile gpu --out "$RUN" --resume 2>&1 \
    | tee -a "$OUT/gpu_run.txt" || status=$?
cp "$RUN"/*.json "$OUT/"
if [ "$status" = 124 ]; then
    echo "not finished: call again"
    exit
fi
[ "$status" = 0 ]
mkdir -p "$OUT/figures"
cp "$RUN"/figures/*.png "$OUT/figures/"
cp "$RUN"/{scores.csv,report.html} "$OUT/"
"$PYTHON" -m petct_lib slim "$RUN" --out "$OUT/slim"  # half precision; parts of 15 MiB: `cat NAME.part-* > NAME` joins them
find "$OUT/slim" -size +15M -exec sh -c 'split --bytes=15M "$1" "$1.part-" && rm "$1"' _ {} \;
echo "finished: $OUT"
