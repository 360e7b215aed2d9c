#!/usr/bin/env bash
# What compares numbers, as other processors would round them: vector instructions and thread counts are set by hand.
# Arguments go to pytest, instead of the tests named below; WORKERS=2 runs two files at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
tests=("$@")
if [ ${#tests[@]} = 0 ]; then
    tests=(tests/generation tests/hooks tests/metrics tests/restore tests/unlearn/test_losses.py tests/unlearn/test_memit.py
        tests/unlearn/test_memit_covariance.py tests/unlearn/test_memit_parts.py tests/unlearn/test_options.py
        tests/unlearn/test_processes.py tests/unlearn/test_run.py)
fi
failed=()
run() {
    echo "== $*"
    env "$@" "$python" -m pytest -q -n "${WORKERS:-0}" --durations=0 --durations-min=60 "${tests[@]}" || failed+=("$*")
}
for threads in 1 2 3; do
    for capability in default avx2; do
        run KRS_TEST_THREADS=$threads OMP_NUM_THREADS=$threads ATEN_CPU_CAPABILITY=$capability
    done
    run KRS_TEST_THREADS=$threads OMP_NUM_THREADS=$threads
done
run KRS_TEST_THREADS=2 OMP_NUM_THREADS=2 MKL_CBWR=COMPATIBLE
[ ${#failed[@]} = 0 ] || { printf 'failed: %s\n' "${failed[@]}"; exit 1; }
