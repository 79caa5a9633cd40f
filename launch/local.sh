#!/usr/bin/env bash
# `cifar-dist launch`, with the Python of $CIFAR_DIST_VENV, else of .venv beside launch/, else the first on the PATH:
#   launch/local.sh CONFIG [--ACCELERATE_OPTION=VALUE ...] RECIPE [--section.field VALUE ...]
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PATH=${CIFAR_DIST_VENV:-$repository/.venv}/bin:$PATH PYTHONSAFEPATH=1 PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}
refuse() { echo "launch/local.sh: $*" >&2; exit 2; }
[[ -z ${CIFAR_DIST_VENV-} || -x $CIFAR_DIST_VENV/bin/python ]] ||
    refuse "CIFAR_DIST_VENV is $CIFAR_DIST_VENV, but $CIFAR_DIST_VENV/bin/python does not exist"
command -v python >/dev/null || refuse "no .venv in $repository and no python on the PATH; run: make setup"
printf -v CIFAR_DIST_COMMAND %q "$0"  # how `cifar-dist launch` was typed
export CIFAR_DIST_COMMAND
exec python -m cifar_dist launch "$@"
