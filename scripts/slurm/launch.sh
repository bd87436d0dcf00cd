#!/usr/bin/env bash
# The part of a job on one node, which job.sh starts through srun: torchrun with a process per GPU.
#   bash scripts/slurm/launch.sh [--plain] SCRIPT.py ARGUMENTS...
# The exit code is the code of the processes. SIGTERM is only sent to the processes: torchrun would
# kill them 30 s after receiving SIGTERM, in the middle of a long step or of saving.
{ # bash reads the whole block before it runs it: an edit of this file breaks no running job
set -uo pipefail
trap 'exit 75' TERM USR1 # no process has started yet

name=${SLURMD_NODENAME:-$(hostname)} nodes=${SLURM_NNODES:-1} number=${SLURM_NODEID:-0}
# srun returns the highest code of all nodes. A failure often aborts the other nodes with 134, and must
# come before it, so that the job is not requeued: job.sh subtracts the 200.
end() {
    if [ "$nodes" -gt 1 ] && { [ "$1" = 1 ] || [ "$1" = 2 ]; }; then exit $(($1 + 200)); fi
    exit "$1"
}
if [ -n "${CPU_ONLY-}" ]; then
    gpus=0
    export CUDA_VISIBLE_DEVICES=''
else
    gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())') || end 1
    if [ "$gpus" -lt "${SLURM_GPUS_ON_NODE:-1}" ]; then
        echo "error: $name: PyTorch sees $gpus GPUs and Slurm assigned ${SLURM_GPUS_ON_NODE:-none}." \
            "Request GPUs with sbatch --gpus-per-node=N, check the driver, and check that $PYTHON has" \
            "a PyTorch for CUDA, or train on the CPU with CPU_ONLY=1." >&2
        end 2
    fi
fi
has="$(env -u OMP_NUM_THREADS nproc) CPUs, $gpus GPUs"
if [ "$1" = --plain ]; then
    echo "slurm: $name: $has"
    exec "$PYTHON" "${@:2}"
fi
processes=${PROCESSES:-$gpus}
[ "$processes" -gt 0 ] || processes=1 # CPU_ONLY

# A packed store is copied to the local disk, unless the command sets DATA.CACHE_DIR.
cache=${CACHE_DIR-${SLURM_TMPDIR-}} data='' before=''
for word in "$@"; do
    [ "$before" != --data-path ] || data=$word
    [[ $word != --data-path=* ]] || data=${word#*=}
    [ "$word" != DATA.CACHE_DIR ] || cache=''
    before=$word
done
if [ -n "$cache" ] && [ -f "$data/store.json" ]; then
    set -- "$@" --opts DATA.CACHE_DIR "$cache"
else
    cache=none
fi

# gloo uses the network of the host name, which is often the loopback interface.
if [ "$nodes" -gt 1 ] && [ -z "${GLOO_SOCKET_IFNAME-}" ]; then
    other=$MASTER_ADDR
    [ "$number" -gt 0 ] || other=$PEER_ADDR
    other=$(getent ahostsv4 "$other" | awk 'NR == 1 { print $1 }')
    GLOO_SOCKET_IFNAME=$(ip route get "$other" | sed -n 's/.* dev \([^ ]*\).*/\1/p')
    [ -z "$GLOO_SOCKET_IFNAME" ] || export GLOO_SOCKET_IFNAME
fi
echo "slurm: $name: node $((number + 1)) of $nodes, $has, processes: $processes," \
    "gloo on ${GLOO_SOCKET_IFNAME:-the network of the host name}, cache $cache"

asked='' again='' torchrun=''
tell() {
    until pkill -TERM -P "$torchrun" || ! kill -0 "$torchrun" 2>/dev/null; do
        sleep 0.5 # no process has started yet
    done
}
# shellcheck disable=SC2317 # the trap calls it
stop() {
    asked=yes again=yes
    echo "slurm: $name: received a stop signal and forwards it to the processes"
    [ -z "$torchrun" ] || tell
}
trap stop TERM USR1
setsid "$PYTHON" scripts/slurm/torchrun.py --nnodes "$nodes" --node_rank "$number" \
    --nproc_per_node "$processes" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" "$@" &
torchrun=$!
[ -z "$asked" ] || tell
while
    again=''
    wait "$torchrun"
    code=$?
    [ -n "$again" ] # the signal interrupted the waiting
do :; done
# 128 + SIGTERM: the processes received the signal before they could handle it, with nothing to save.
[ "$asked:$code" != yes:143 ] || code=75
# torchrun waits 300 s for rank 0, whose report may take longer, and srun ends the job 120 s after the
# first node. Until torchrun ends on the first node, its port is open.
while [ "$code" = 0 ] && [ "$number" -gt 0 ] &&
    (: <>"/dev/tcp/$MASTER_ADDR/$MASTER_PORT") 2>/dev/null; do
    sleep 2
done
end "$code"
}
