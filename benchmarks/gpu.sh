#!/usr/bin/env bash
# The checks and figures that need a GPU:
#
#     benchmarks/gpu.sh CIFAR10_SOURCE [OUT_FOLDER]             # what must work, in under ten minutes on one GPU
#     benchmarks/gpu.sh CIFAR10_SOURCE [OUT_FOLDER] speedruns   # 94 % and 96 %, three seeds each
#     benchmarks/gpu.sh CIFAR10_SOURCE [OUT_FOLDER] recipes     # every recipe that takes over a figure, whole
#
# CIFAR10_SOURCE is anything that `cifar-dist pack` reads. Uses the Python on PATH (or $PYTHON). A run that is cut off goes
# on when the command is given again, and a finished one is not trained again. The figures of all finished runs are
# written into docs/results.md, with the hardware's name.
set -euo pipefail
source_data=${1:?usage: benchmarks/gpu.sh CIFAR10_SOURCE [OUT_FOLDER] [checks|speedruns|recipes]}
out=${2:-gpu-out}
part=${3:-checks}
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
mkdir -p "$out"
"$python" -c 'import torch, sys
if not torch.cuda.is_available(): sys.exit("benchmarks/gpu.sh: this machine shows no CUDA device")
print(torch.cuda.get_device_name(0), "torch", torch.__version__)'
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')

[[ -f $out/cifar10/manifest.json ]] || "$python" -m cifar_dist pack "$source_data" "$out/cifar10" --codec raw
[[ -f $out/digits/manifest.json ]] || "$python" -m cifar_dist pack digits "$out/digits"

timed() { # NAME COMMAND...: how long it took, and the last lines it said
    local name=$1 begin=$SECONDS
    shift
    echo "== $name"
    "$@" >"$out/$name.log" 2>&1 || { tail -n 20 "$out/$name.log"; echo "== $name FAILED"; return 1; }
    tail -n 4 "$out/$name.log"
    echo "== $name: $((SECONDS - begin)) s"
}
train() { timed "$1" "$python" -m torch.distributed.run --standalone --nproc-per-node "$gpus" train.py "${@:2}" \
    --run.dir "$out/runs" --run.name "$1"; }

case $part in
checks)
    # fp32, bf16 and fp16 (with its loss scaler), NCCL, compile: each must train, resume and evaluate.
    for precision in no bf16 fp16; do
        train "demo-$precision" demo --data.path "$out/digits" --train.precision "$precision"
    done
    train demo-compile demo --data.path "$out/digits" --train.compile
    for sharding in zero2 fsdp; do
        timed "$sharding" "$python" -m accelerate.commands.launch --config_file "launch/$sharding.yaml" \
            --num_processes "$gpus" train.py demo --data.path "$out/digits" --run.dir "$out/runs" --run.name "$sharding"
    done
    # The real job, whole.
    train cpu-quick cpu-quick --data.path "$out/cifar10"
    train custom-resnet custom-resnet --data.path "$out/cifar10"
    ;;
speedruns)
    for seed in 0 1 2; do
        for goal in 94 96; do
            train "speedrun-$goal.s$seed" "speedrun-$goal" --data.path "$out/cifar10" --run.seed "$seed"
        done
    done
    ;;
recipes)
    for recipe in custom-resnet se-resnet se-resnet-randaugment se-resnet-stochastic-depth small-resnet/baseline \
        small-resnet resnet34-scratch resnet18; do
        train "${recipe//\//-}" "$recipe" --data.path "$out/cifar10"
    done
    ;;
*)
    echo "benchmarks/gpu.sh: no part is called '$part'; checks, speedruns or recipes" >&2
    exit 2
    ;;
esac
"$python" docs/make_results.py "$out"/runs/*
