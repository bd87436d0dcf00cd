#!/usr/bin/env bash
# Create .venv, install the requirements and run pytest.
#   bash scripts/test.sh            the fast suite (about 5 minutes on 2 cores)
#   bash scripts/test.sh --all      also the tests marked slow (about 20 minutes)
# Other arguments go to pytest, which uses one process per core (-n 0: only one). Tests marked slow
# and alone, which measure memory or wait for deadlines, run one by one after the others.
# PYTHON=python3.12 chooses the interpreter of a new .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup dev
start=$SECONDS
export OMP_NUM_THREADS=1 # with tiny models, more threads only wait for each other
unset PYTHONDONTWRITEBYTECODE # otherwise each test process compiles every module again
echo "tests: running (a few minutes on 2 cores)"
parallel=(-n auto --maxprocesses 8 --dist worksteal)
if [[ " $* " == *' --all '* ]]; then
    .venv/bin/python -m pytest "${parallel[@]}" -m 'not (slow and alone)' "$@"
    .venv/bin/python -m pytest -m 'slow and alone' "$@" || [ $? = 5 ] # 5: no such test was chosen
else
    .venv/bin/python -m pytest "${parallel[@]}" "$@"
fi
echo "tests: done in $((SECONDS - start)) s"
