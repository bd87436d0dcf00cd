# The cross-validated studies source this file with their arguments LABELLED UNLABELLED OUT. It installs
# the requirements, packs all images at 64 px into OUT, and sets labelled, out, python and sweep.
set -euo pipefail
. "$(dirname "$0")/../help.sh"
study=$(basename "$0" .sh)
usage="usage: bash scripts/studies/$study.sh LABELLED UNLABELLED OUT"
labelled=$(cd "${1:?$usage}" && pwd)
unlabelled=$(cd "${2:?$usage}" && pwd)
out=${3:?$usage}
case $out in /*) ;; *) out=$PWD/$out ;; esac
cd "$(dirname "$0")/../.."
. scripts/setup.sh
setup studies
python=.venv/bin/python
export PYTHON=$PWD/$python # starts the runs
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= # runs share the CPU cores
sweep=(--sweep "scripts/studies/$study.yaml" --scale all)
$python scripts/pack.py --data-path "$labelled" --csv all.csv --output "$out/labelled" --size 64
$python scripts/pack.py --data-path "$unlabelled" --output "$out/unlabelled" --size 64
