#!/usr/bin/env bash
# The figures of docs/results.md that two CPU cores can give, in one command and about an hour with bf16 arithmetic:
#
#     benchmarks/cpu.sh CIFAR10_SOURCE [OUT_FOLDER]
#
# custom-resnet in 3 epochs, the first 3 epochs of resnet34-scratch, and speedrun-94 with three seeds.
# CIFAR10_SOURCE is anything that `cifar-dist pack` reads. If it is interrupted, run the command again: it resumes, and
# trains no finished run twice. Ends with the figures written into docs/results.md.
set -euo pipefail
source_data=${1:?usage: benchmarks/cpu.sh CIFAR10_SOURCE [OUT_FOLDER]}
mkdir -p "${2:-cpu-out}"
source_data=$(realpath "$source_data")
out=$(realpath "${2:-cpu-out}")
cd "$(dirname "$0")/.."

job=
end() { # the training under way saves first
    [[ -z $job ]] || { kill -TERM "$job" && wait "$job"; } || true
    exit 143
}
trap end TERM INT HUP

pack() { [[ -f $1/manifest.json ]] || .venv/bin/cifar-dist pack "$source_data" "$@"; }
train() { # NAME RECIPE [SETTINGS]: to its end
    local name=$1
    shift
    echo "== $name"
    launch/local.sh cpu "$@" --run.dir "$out/runs" --run.name "$name" &
    job=$!
    wait "$job"
}
begin() { # EPOCHS NAME RECIPE: the recipe as it is, stopped after so many epochs
    local epochs=$1 name=$2 recipe=$3
    echo "== $name, $epochs epochs"
    evaluated() { cat "$out/runs/$name/metrics.jsonl" 2>/dev/null | grep -c '"split":"val"' || true; }
    (($(evaluated) < epochs)) || return 0
    launch/local.sh cpu "$recipe" --data.path "$out/cifar10" --run.dir "$out/runs" --run.name "$name" &
    job=$!
    while kill -0 "$job" 2>/dev/null && (($(evaluated) < epochs)); do sleep 1; done
    kill -TERM "$job" 2>/dev/null || true # it saves, and ends with 75
    wait "$job" || (($? == 75))
}

pack "$out/cifar10"
train custom-resnet.3-epochs custom-resnet --data.path "$out/cifar10" --data.hold_out true --train.epochs 3 --schedule.warmup 0.6
begin 3 resnet34-scratch resnet34-scratch
for seed in 0 1 2; do
    train "speedrun-94.s$seed" speedrun-94 --data.path "$out/cifar10" --run.seed "$seed"
done
.venv/bin/python docs/make_results.py "$out"/runs/*
