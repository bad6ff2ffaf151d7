#!/usr/bin/env bash
# Start train_tool_aware.py on the GPUs of this machine, one process each, as one of NODES machines.
#
#   launch/train.sh                                                    # one machine, all of its GPUs
#   NODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 launch/train.sh --set lora.r=16
#
# Slurm and Kubernetes start it (slurm.sbatch, kubernetes/). Its arguments are those of train_tool_aware.py. A run
# whose output folder holds a checkpoint goes on from there, so the same command starts a job and starts it again.
set -euo pipefail

output_dir="${OUTPUT_DIR:-output}"
nodes="${NODES:-1}"
# Which of the machines this is: said by hand, by Slurm for a task, or by an indexed Job of Kubernetes.
node_rank="${NODE_RANK:-${SLURM_NODEID:-${JOB_COMPLETION_INDEX:-0}}}"

arguments=(--output_dir "$output_dir" "$@")
if compgen -G "$output_dir/checkpoint-*" >/dev/null; then
  arguments+=(--resume)
fi

# Compiled kernels belong on a disk of this machine: many processes that write them to a shared home are slow.
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-${TMPDIR:-/tmp}/triton-$(id -u)}"

# exec: a signal then reaches torchrun, which passes it on. --max-restarts 0: the scheduler starts a failed job again.
# --shutdown-timeout: seconds for the step at hand and its checkpoint, before torchrun kills what has not ended.
exec torchrun \
  --nnodes "$nodes" --node-rank "$node_rank" --nproc-per-node "${GPUS:-gpu}" \
  --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" \
  --max-restarts 0 --shutdown-timeout "${SAVE_SECONDS:-240}" \
  "$(dirname "$0")/../train_tool_aware.py" "${arguments[@]}"
