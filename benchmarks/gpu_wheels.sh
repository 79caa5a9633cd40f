#!/usr/bin/env bash
# Fill a folder with the packages that benchmarks/gpu.sh needs and a machine with torch lacks, in the versions of
# constraints.txt. Run it where there is a network, after `make setup`:
#
#     benchmarks/gpu_wheels.sh WHEELS [PACKAGE ...]
#
# PACKAGE are others that the machine lacks. TARGET_PYTHON (3.12) is its Python's version.
exec "${PYTHON:-$(dirname "$0")/../.venv/bin/python}" "$(dirname "$0")/gpu/wheels.py" "$@"
