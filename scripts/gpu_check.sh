#!/usr/bin/env bash
# Check and measure this project on one GPU, or on a CPU at tiny sizes in about 3 minutes.
#   bash scripts/gpu_check.sh [OUT]      writes OUT/gpu_check.json and .md; OUT: default gpu_check_output
cd "$(dirname "$0")/.." && exec "${PYTHON:-python}" scripts/gpu_check.py --output "${1:-gpu_check_output}" "${@:2}"
