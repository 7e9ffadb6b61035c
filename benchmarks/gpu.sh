#!/usr/bin/env bash
# Everything that wants a GPU, in one command: build, tests of the CUDA kernels, the same under compute-sanitizer,
# and the tables of ops, stages, detection and training beside torchvision's. Installs nothing; about seven minutes on
# an H100. Then the zoo, fps and memory of every row beside the published V100 figures: a quarter of an hour; no row
# begins after ZOO_SECONDS (default: 1500), and the next run with the same OUT goes on with the rows that are missing.
#
#     bash benchmarks/gpu.sh [OUT]      logs and results.md go to the folder OUT (default: build/gpu)
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-build/gpu}" && cd "${1:-build/gpu}" && pwd)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
config=faster_rcnn_r50_fpn_1x_coco
started=$SECONDS
failed=()

# step NAME SECONDS COMMAND...: runs it with a limit; its output goes to OUT/NAME.log.
step() {
  local name=$1 limit=$2
  shift 2
  if timeout "$limit" "$@" > "$out/$name.log" 2>&1; then echo "$name: ok, $((SECONDS - started)) s"
  else
    echo "$name: FAILED (rc $?), see $out/$name.log"
    grep -E "^(FAILED|ERROR)|^E  |ERROR SUMMARY|error:" "$out/$name.log" | cut -c1-200 | head -20
    return 1
  fi
}

architecture=$(python3 -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || exit 1
step build 300 env TORCH_CUDA_ARCH_LIST="$architecture" FORCE_CUDA=1 python3 setup.py build_ext --inplace || exit 1

tests=$(grep -lE "device|cuda" tests/test_*.py)
parallel=$(python3 -c 'import xdist; print("-n 8")' 2> /dev/null)
# shellcheck disable=SC2086
step tests 240 python3 -m pytest $parallel -k "cuda and not emulat" $tests || failed+=(tests)
step ops 200 python3 benchmarks/ops.py --device cuda --json "$out/ops.json" || failed+=(ops)
step stages 60 python3 benchmarks/stages.py $config || failed+=(stages)
step detection 90 python3 benchmarks/inference.py $config || failed+=(detection)
step training 120 python3 benchmarks/training.py $config --repeats 10 || failed+=(training)
step serving 90 python3 benchmarks/serving.py $config --number 64 --workers 0 2 4 8 || failed+=(serving)
if command -v compute-sanitizer > /dev/null; then  # both at once: they wait for the host most of the time
  declare -A running
  for tool in memcheck racecheck; do
    step $tool 240 compute-sanitizer --tool $tool --error-exitcode 9 \
      python3 -m pytest -x tests/test_cuda.py -k test_equals_the_cpu &
    running[$tool]=$!
  done
  for tool in "${!running[@]}"; do wait "${running[$tool]}" || failed+=("$tool"); done
fi
zoo_seconds=${ZOO_SECONDS:-1500}
step zoo $((zoo_seconds + 120)) python3 benchmarks/zoo.py --json "$out/zoo.json" --seconds "$zoo_seconds" || failed+=(zoo)

{
  echo "# $(python3 -c 'import torch; print(torch.cuda.get_device_name())'), $(date -u +%Y-%m-%d)"
  echo
  echo "Written by \`benchmarks/gpu.sh\` at $(git rev-parse --short HEAD 2> /dev/null || echo "an unknown commit")."
  for name in tests memcheck racecheck; do
    [ -f "$out/$name.log" ] && echo "- $name: $(grep -E "passed|failed|ERROR SUMMARY|RACECHECK SUMMARY" "$out/$name.log" | tail -2 | tr '\n' ' ')"
  done
  for name in ops stages detection training serving zoo; do printf '\n## %s\n\n' "$name" && cat "$out/$name.log"; done
} > "$out/results.md"
echo "results: $out/results.md; failed: ${failed[*]:-none}"
[ ${#failed[@]} = 0 ]
