#!/usr/bin/env bash
# The checks and figures that need a GPU, in one command that needs no network:
#
#     benchmarks/gpu.sh CIFAR10 OUT [BUDGET_S] [PART or ITEM ...] [--rehearse]
#
# CIFAR10 is anything that `cifar-dist pack` reads. BUDGET_S (540) bounds the whole call: what does not fit is skipped.
# PART is correctness, speed or recipes. On one GPU and 16 cores, correctness takes under six minutes (four items run at a time)
# and speed under thirteen; recipes take what is left, and resume from OUT in the next call. On several GPUs, correctness takes
# under thirteen: items that use several run one at a time, and are skipped if the first one, an exchange between all, fails.
# What passed on the same machine is not repeated. OUT receives results.md, results.json, a log for each part, runs.tar.gz (run
# folders without weights and figures) and unfinished.tar (runs to resume). Without a GPU this is a rehearsal, in OUT/rehearsal: a
# few steps of each item that a CPU can do.
#
# PYTHON names a Python that has torch; WHEELS a folder of wheels, filled by benchmarks/gpu_wheels.sh, of what that lacks;
# AIRBENCH94 and HIVERGE the paths of airbench94_muon.py and cifar10_speedrun.py, to time them beside speedrun-94; LIMIT_MIB the
# size of the largest file that can be fetched from this machine: a run whose checkpoint makes unfinished.tar larger is left out
# of it, and the table says so.
root=$(cd "$(dirname "$0")/.." && pwd) || exit
PYTHONPATH=$root:$root/benchmarks${PYTHONPATH:+:$PYTHONPATH} exec "${PYTHON:-python3}" "$root/benchmarks/gpu" "$@"
