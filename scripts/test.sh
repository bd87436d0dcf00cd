#!/usr/bin/env bash
# All tests on a fresh machine: makes .venv, installs the requirements, runs pytest.
#   bash scripts/test.sh            the fast suite (under 7 minutes on 2 cores)
#   bash scripts/test.sh --all      also what is marked slow (under 40 minutes)
# Further arguments go to pytest; fast tests have a process per core (-n 0: only one), slow ones one.
# PYTHON=python3.12 chooses the interpreter of a new .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup requirements-dev.txt
start=$SECONDS
export OMP_NUM_THREADS=1 # tiny models: more threads only wait for each other
echo "tests: running (a few minutes on 2 cores)"
fast=(-n auto --maxprocesses 8 --dist loadfile)
if [[ " $* " == *' --all '* ]]; then
    .venv/bin/python -m pytest "${fast[@]}" -m 'not slow' "$@"
    # What is slow also measures: memory, deadlines, killed processes. It has the machine alone.
    .venv/bin/python -m pytest -m slow "$@"
else
    .venv/bin/python -m pytest "${fast[@]}" "$@"
fi
echo "tests: done in $((SECONDS - start)) s"
