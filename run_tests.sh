#!/usr/bin/env bash
# Every check that CI runs: formatting, lint, types, tests. Arguments go to pytest: ./run_tests.sh -k packing
# Three files of tests run at a time, also on two cores, as many tests wait, in the order of tests/conftest.py;
# -n 0 runs one after the other.
set -euo pipefail
cd "$(dirname "$0")"
. ./environment.sh
ruff format --check .
ruff check .
mypy
python -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"
