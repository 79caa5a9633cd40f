#!/usr/bin/env bash
# Train on this machine: launch/local.sh CONFIG [--ACCELERATE_OPTION=VALUE ...] RECIPE [--section.field VALUE ...]
#
#   launch/local.sh cpu demo --run.name first
#   launch/local.sh ddp --num_processes=4 custom-resnet --train.epochs 30
#
# CONFIG is a file in launch/ without its .yaml. TERM, USR1, HUP and Ctrl-C finish the step, save and end with 75; the same
# command then goes on from there. A second Ctrl-C ends it at once. The other exit codes are train.py's: 0 done,
# 2 bad input. Python is that of $CIFAR_DIST_VENV, else of .venv beside launch/, else the first on the PATH.
set -euo pipefail

launch=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=${launch%/*}

refuse() {
    echo "launch/local.sh: $*" >&2
    exit 2
}

configs=("$launch"/*.yaml)
configs=("${configs[@]##*/}")
known=${configs[*]%.yaml}
usage="usage: launch/local.sh CONFIG [--ACCELERATE_OPTION=VALUE ...] RECIPE [--section.field VALUE ...]; configs: $known"

(($# > 0)) || refuse "$usage"
if [[ $1 == -h || $1 == --help ]]; then
    echo "$usage"
    exit 0
fi
config=$launch/$1.yaml
[[ -f $config ]] || refuse "there is no launch/$1.yaml; configs: $known"
shift

options=()
while [[ ${1-} == -* ]]; do
    [[ $1 == --*=* ]] || refuse "'$1' stands before the recipe, so it is for accelerate launch; write it as $1=VALUE"
    options+=("$1")
    shift
done
(($# > 0)) || refuse "which recipe? $usage"

venv=${CIFAR_DIST_VENV:-$repository/.venv}
python=$venv/bin/python
if [[ ! -x $python ]]; then
    [[ -z ${CIFAR_DIST_VENV:-} ]] || refuse "CIFAR_DIST_VENV is $venv, and there is no $python"
    python=$(command -v python) || refuse "no .venv in $repository and no python on the PATH; run: make setup"
fi
PATH=${python%/*}:$PATH  # DeepSpeed looks programs up by name
exec "$python" "$launch/agent.py" --config_file "$config" ${options[@]+"${options[@]}"} "$repository/train.py" "$@"
