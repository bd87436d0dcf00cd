#!/usr/bin/env bash
# Check and measure this project on one GPU, or on a CPU at tiny sizes in a few minutes.
#   bash tools/gpu_check.sh [OUT] [--only LETTER ...]    writes OUT/gpu_check.json and .md
# OUT: default gpu_check_output. docs/explanation/speed.md lists the parts and the calls.
out=gpu_check_output
case ${1:---} in
    --*) ;;
    *) out=$(realpath -m "$1") && shift ;;
esac
cd "$(dirname "$0")/.." || exit
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then PYTHON=$PWD/.venv/bin/python; fi
exec "${PYTHON:-python}" tools/gpu_check.py --output "$out" "$@"
