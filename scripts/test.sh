#!/usr/bin/env bash
# All tests on a fresh machine: makes .venv, installs the requirements, runs pytest.
#   bash scripts/test.sh            the fast suite (under 6 minutes on 2 cores)
#   bash scripts/test.sh --all      also what is marked slow (under 35 minutes)
# Further arguments go to pytest; a process per core (-n 0: only one). Slow tests that measure memory
# or wait for deadlines (marked alone) come after the others, one by one.
# PYTHON=python3.12 chooses the interpreter of a new .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup requirements-dev.txt
start=$SECONDS
export OMP_NUM_THREADS=1 # tiny models: more threads only wait for each other
echo "tests: running (a few minutes on 2 cores)"
parallel=(-n auto --maxprocesses 8 --dist loadfile)
if [[ " $* " == *' --all '* ]]; then
    .venv/bin/python -m pytest "${parallel[@]}" -m 'not (slow and alone)' "$@"
    .venv/bin/python -m pytest -m 'slow and alone' "$@"
else
    .venv/bin/python -m pytest "${parallel[@]}" "$@"
fi
echo "tests: done in $((SECONDS - start)) s"
