#!/usr/bin/env bash
# Fill a folder with the packages that benchmarks/gpu.sh needs and a machine with torch lacks, in the versions of
# constraints.txt. Run it where there is a network, after `make setup`:
#
#     benchmarks/gpu_wheels.sh WHEELS [PACKAGE ...]
#
# PACKAGE are others that the machine lacks. TARGET_PYTHON (3.12) is its Python's version.
root=$(cd "$(dirname "$0")/.." && pwd) || exit
python=${PYTHON:-$root/.venv/bin/python}
if ! command -v "$python" >/dev/null; then
    echo "benchmarks/gpu_wheels.sh: $python does not exist; run make setup, or set PYTHON to a Python that has this project's packages" >&2
    exit 2
fi
exec "$python" "$root/benchmarks/gpu/wheels.py" "$@"
