#!/usr/bin/env bash
# Every check that CI runs: formatting, lint, types, tests. Arguments go to pytest: ./run_tests.sh -k packing
set -euo pipefail
cd "$(dirname "$0")"
. ./environment.sh
ruff format --check .
ruff check .
mypy
python -m pytest "$@"
