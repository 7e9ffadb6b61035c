#!/usr/bin/env bash
# Everything that wants a GPU, in one command: build, tests of the CUDA kernels, of captured graphs and of waits for the
# host, the kernels under compute-sanitizer, and the tables of ops, stages, detection, resizing, training, serving and
# scaling beside torchvision's. Then the zoo: fps in float32, float16 and bfloat16, eager and as graphs, channels-last,
# and memory of every row beside the published V100 figures; no row begins after ZOO_SECONDS (default: 1500), and the
# next run with the same OUT goes on with the rows that are missing. Installs nothing (benchmarks/README.md: needs).
#
#     bash benchmarks/gpu.sh [OUT]      results.md and logs go to the folder OUT (default: build/gpu)
#
# results.md grows with every step, so a run that is cut short leaves what it had. A step that fails is noted there, and
# the next one begins. ONLY="detection zoo" runs these steps alone. CONFIG: another config than R-50-FPN.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-build/gpu}" && cd "${1:-build/gpu}" && pwd)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
config=${CONFIG:-faster_rcnn_r50_fpn_1x_coco}
results=$out/results.md
started=$SECONDS
: > "$out/failed"

wanted() { [[ -z ${ONLY:-} || " $ONLY " == *" $1 "* ]]; }

# failure NAME STATUS: notes it, with the last words of the step.
failure() {
  local limit=""
  [ "$2" = 124 ] && limit=", its time was over"
  echo "$1" >> "$out/failed"
  printf '\n%s FAILED (exit status %s%s):\n\n```\n%s\n```\n' "$1" "$2" "$limit" \
    "$(cat "$out/$1.log" "$out/$1.err" | grep -vE '^\s*$' | tail -12 | cut -c1-300)"
}

# check NAME SECONDS COMMAND...: runs it with a time limit; its summary becomes a line of the results.
check() {
  wanted "$1" || return 0
  local name=$1 limit=$2 status=0
  shift 2
  timeout "$limit" "$@" > "$out/$name.log" 2> "$out/$name.err" || status=$?
  {
    printf '\n- %s: %s\n' "$name" \
      "$(grep -hE "passed|failed|ERROR SUMMARY|RACECHECK SUMMARY" "$out/$name.log" | tail -2 | tr '\n' ' ')"
    [ $status = 0 ] || failure "$name" $status
  } >> "$results"
  echo "$name: exit status $status, $((SECONDS - started)) s"
  return $status
}

# table NAME SECONDS COMMAND...: the same; what it prints goes into the results line by line.
table() {
  wanted "$1" || return 0
  local name=$1 limit=$2 status
  shift 2
  printf '\n## %s\n\n' "$name" >> "$results"
  timeout "$limit" "$@" 2> "$out/$name.err" | tee "$out/$name.log" >> "$results"
  status=${PIPESTATUS[0]}
  [ "$status" = 0 ] || failure "$name" "$status" >> "$results"
  echo "$name: exit status $status, $((SECONDS - started)) s"
}

{
  echo "# $(python3 -c 'import torch; print(torch.cuda.get_device_name())' 2> /dev/null || echo "no GPU"), $(date -u +%Y-%m-%d)"
  echo
  echo "Written by \`benchmarks/gpu.sh\` at $(git rev-parse --short HEAD 2> /dev/null || echo "an unknown commit")."
} > "$results"

architecture=$(python3 -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || exit 1
check build 300 env TORCH_CUDA_ARCH_LIST="$architecture" FORCE_CUDA=1 python3 setup.py build_ext --inplace || exit 1

tests=$(grep -lE "device|cuda" tests/test_*.py)
parallel=$(python3 -c 'import xdist; print("-n 8")' 2> /dev/null)
# shellcheck disable=SC2086
check tests 300 python3 -m pytest --continue-on-collection-errors $parallel -k "cuda and not emulat" $tests
check capture 240 python3 -m pytest tests/test_capture.py
check waits 120 python3 -m pytest tests/test_cuda.py tests/test_capture.py -k "wait"
table ops 300 python3 benchmarks/ops.py --device cuda --json "$out/ops.json"
table stages 90 python3 benchmarks/stages.py "$config"
table detection 500 python3 benchmarks/inference.py "$config"
table resizing 60 python3 benchmarks/resizing.py "$config"
table training 120 python3 benchmarks/training.py "$config" --repeats 10
table serving 90 python3 benchmarks/serving.py "$config" --number 64 --workers 0 2 4 8
if command -v compute-sanitizer > /dev/null; then  # both at once: they wait for the host most of the time
  for tool in memcheck racecheck; do
    check $tool 240 compute-sanitizer --tool $tool --error-exitcode 9 \
      python3 -m pytest -x tests/test_cuda.py -k test_equals_the_cpu &
  done
  wait
fi
zoo_seconds=${ZOO_SECONDS:-1500}
table zoo $((zoo_seconds + 120)) python3 benchmarks/zoo.py --json "$out/zoo.json" --seconds "$zoo_seconds"
table scaling 900 python3 benchmarks/scaling.py "$config"

echo "results: $results; failed: $(tr '\n' ' ' < "$out/failed")"
[ ! -s "$out/failed" ]
