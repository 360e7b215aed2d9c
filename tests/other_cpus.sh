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
# Every setting once, and those in which a bound has failed before; "make test" itself is the native two threads. ALL=1 runs every pair.
run KRS_TEST_THREADS=1 OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default
run KRS_TEST_THREADS=1 OMP_NUM_THREADS=1
run KRS_TEST_THREADS=2 OMP_NUM_THREADS=2 ATEN_CPU_CAPABILITY=avx2
run KRS_TEST_THREADS=2 OMP_NUM_THREADS=2 MKL_CBWR=COMPATIBLE
run KRS_TEST_THREADS=3 OMP_NUM_THREADS=3 ATEN_CPU_CAPABILITY=default
run KRS_TEST_THREADS=3 OMP_NUM_THREADS=3
if [ -n "${ALL:-}" ]; then
    run KRS_TEST_THREADS=1 OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=avx2
    run KRS_TEST_THREADS=2 OMP_NUM_THREADS=2 ATEN_CPU_CAPABILITY=default
    run KRS_TEST_THREADS=2 OMP_NUM_THREADS=2
    run KRS_TEST_THREADS=3 OMP_NUM_THREADS=3 ATEN_CPU_CAPABILITY=avx2
fi
[ ${#failed[@]} = 0 ] || { printf 'failed: %s\n' "${failed[@]}"; exit 1; }
