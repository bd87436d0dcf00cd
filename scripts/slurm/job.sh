#!/usr/bin/env bash
# Called by the .sbatch files: run a command on every node of the job. Requeue the job if a signal
# stopped the run (code 75, or 143 before Python handles signals), or if a process was aborted
# (SIGABRT, code 134) after its first 10 minutes, as NCCL does when it lost another process. Any other
# code ends the job, also 76: a probe or --eval was stopped, and would begin again.
#   bash scripts/slurm/job.sh [--plain] SCRIPT.py ARGUMENTS...      (--plain: without torchrun)
# Environment: PYTHON (default .venv's), PROCESSES per node (default: its GPUs), CPU_ONLY (1: train
# on the CPU; without it a node without GPUs ends the job with code 2), CACHE_DIR (default
# $SLURM_TMPDIR), MASTER_ADDR, MASTER_PORT, GLOO_SOCKET_IFNAME, MAX_REQUEUES (default 50),
# TORCHINDUCTOR_CACHE_DIR (default in the home folder, where a requeued job finds its compiled code).
{ # bash reads the whole block before it runs it: an edit of this file breaks no running job
set -uo pipefail

script=${1-}
[ "$script" != --plain ] || script=${2-}
if [ ! -f scripts/slurm/launch.sh ] || [ ! -f "$script" ]; then
    echo "error: the script '$script' does not exist in $PWD: submit in the root of the repository," \
        "such as sbatch scripts/slurm/node.sbatch main_simmim.py --cfg FILE --data-path DIR" >&2
    exit 2
fi
if [ -z "${PYTHON-}" ]; then
    PYTHON=python3
    [ ! -x .venv/bin/python ] || PYTHON=$PWD/.venv/bin/python
fi
export PYTHON

address() { # the address by which Slurm reaches a node
    scontrol show node "$1" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p'
}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
if [ "${#nodes[@]}" -gt 1 ]; then
    export MASTER_ADDR=${MASTER_ADDR:-$(address "${nodes[0]}")}
    PEER_ADDR=$(address "${nodes[1]}") # the first node reaches it through the right network
    export PEER_ADDR
else
    export MASTER_ADDR=127.0.0.1
fi
export MASTER_PORT=${MASTER_PORT:-$((10000 + SLURM_JOB_ID % 20000))}

export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/torchinductor}

job=$SLURM_JOB_ID # for a task of an array this may be the ID of the whole array
[ -z "${SLURM_ARRAY_JOB_ID-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
requeued=${SLURM_RESTART_COUNT:-0}
version=$("$PYTHON" -c 'from engine.run_record import code_version; print(code_version())')
cat <<END
slurm: job $job, requeued $requeued times, $(date '+%F %T')
slurm: ${#nodes[@]} node(s) $SLURM_JOB_NODELIST, master $MASTER_ADDR:$MASTER_PORT
slurm: commit $version, python $PYTHON
slurm: compiled code in $TORCHINDUCTOR_CACHE_DIR
slurm: command $*
END

# scancel and the end of the time limit also send SIGTERM to every process of this script. srun would
# then kill the processes of all nodes while they save.
trap '' TERM
# A job with --exclusive owns all GPUs of its nodes, but a step only gets the GPUs that it requests.
gpus=${SLURM_GPUS_ON_NODE-}
# Without a request of this job, the variable may be that of the job in which sbatch was called.
if scontrol show job "$SLURM_JOB_ID" | grep -q 'TresPerNode=.*gpu'; then
    gpus=${SLURM_GPUS_PER_NODE:-$gpus}
fi
# Each node gets all CPUs and variables of the job. After a failure, the other nodes report the reason,
# and srun ends those that still wait after 120 s.
setsid --wait srun --nodes="${#nodes[@]}" --ntasks-per-node=1 --cpu-bind=none --export=ALL \
    ${gpus:+--gpus-per-node="$gpus"} \
    --kill-on-bad-exit=0 --wait=120 bash scripts/slurm/launch.sh "$@"
code=$?
[ "$code" -lt 200 ] || code=$((code - 200)) # see `end` in launch.sh
case $code in
    75 | 143) ended='stopped by a signal' ;;
    76)
        echo "slurm: stopped by a signal, and not requeued, because this run keeps nothing: raise --time"
        exit 76
        ;;
    134)
        ended='aborted (SIGABRT), probably by NCCL, which lost another process'
        if [ "$SECONDS" -lt "${ABORT_SECONDS:-600}" ]; then
            echo "slurm: $ended, and not requeued, because this was in its first $SECONDS s"
            exit 134
        fi
        ;;
    *) exit "$code" ;;
esac

# A job that was cancelled, or that Slurm requeues by itself, is no longer running.
for _ in 1 2 3 4 5; do
    state=$(squeue --noheader --jobs "$job" --format %T) && break
    sleep "${WAIT:-15}" # the controller may be busy
done
if [ "$state" != RUNNING ]; then
    echo "slurm: $ended, and not requeued, because the job is ${state:-gone}"
elif [ "$requeued" -ge "${MAX_REQUEUES:-50}" ]; then
    echo "slurm: $ended, and not requeued, because it was requeued $requeued times (MAX_REQUEUES)"
else
    echo "slurm: $ended; the job is requeued and resumes from its last checkpoint"
    scontrol requeue "$job" || echo 'slurm: requeue failed; the same sbatch command resumes the run'
fi
exit "$code"
}
