#!/usr/bin/env bash
# One node's part of slurm/train.sbatch, started there by srun: node.sh HOST PORT RECIPE [--section.field VALUE ...]
# What differs between nodes is asked here, not in the batch script, which knows the first node only.
set -uo pipefail

host=$1 port=$2
shift 2
repository=${CIFAR_DIST_HOME:-$SLURM_SUBMIT_DIR}
processes=${CIFAR_DIST_PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
config=${CIFAR_DIST_LAUNCH:-$([[ -n ${SLURM_GPUS_ON_NODE-} ]] && echo ddp || echo cpu)}

options=(--num_processes=$((SLURM_NNODES * processes)))
if ((SLURM_NNODES > 1)); then
    # DeepSpeed's own launcher would go to the other nodes by ssh; srun is there already.
    options+=(--num_machines="$SLURM_NNODES" --machine_rank="$SLURM_NODEID" --main_process_ip="$host"
        --main_process_port="$port" --deepspeed_multinode_launcher=standard)
fi
echo "machine $SLURM_NODEID of $SLURM_NNODES is $(hostname), processes on it: $processes, launch/$config.yaml"

trap '' TERM USR1  # the launcher listens
"$repository/launch/local.sh" "$config" "${options[@]}" "$@"
code=$?
# All nodes agree on 75, stopped on request. It must not look like a bad exit, for which srun would end the nodes that
# take a moment longer to say it. slurm/train.sbatch reads in the run's folder that it is not finished.
((code == 75)) && code=0
exit "$code"
