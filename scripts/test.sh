#!/usr/bin/env bash
# All tests on a fresh machine: makes .venv, installs the requirements, runs pytest.
#   bash scripts/test.sh            the fast suite (under 6 minutes on 2 cores)
#   bash scripts/test.sh --all      also what is marked slow (under 40 minutes)
# Further arguments go to pytest; the fast suite has a process per core (-n 0: only one).
# PYTHON=python3.12 chooses the interpreter of a new .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup requirements-dev.txt
start=$SECONDS
export OMP_NUM_THREADS=1 # tiny models: more threads only wait for each other
echo "tests: running (a few minutes on 2 cores)"
# What is slow also measures: memory, deadlines, processes that are killed. It has the machine alone.
[[ " $* " == *' --all '* ]] || set -- -n auto --maxprocesses 8 --dist loadfile "$@"
.venv/bin/python -m pytest "$@"
echo "tests: done in $((SECONDS - start)) s"
