# Sourced by run_training.sh and run_tests.sh: makes .venv with everything pinned if it is missing or out of date.
# PYTHON=python3.12 ./run_tests.sh chooses another interpreter.

make_environment() {
  local wanted done_mark=.venv/.installed
  wanted=$(cat pyproject.toml constraints.txt | cksum)
  if [ ! -f "$done_mark" ] || [ "$(cat "$done_mark")" != "$wanted" ]; then
    local python=${PYTHON:-}
    for candidate in python3.11 python3 python; do
      [ -n "$python" ] && break
      if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$candidate; fi
    done
    if [ -z "$python" ]; then
      echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3" >&2
      return 1
    fi
    echo "== making the environment in .venv ($("$python" --version); a few minutes, once)"
    [ -x .venv/bin/python ] || "$python" -m venv .venv || return 1
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' || return 1
    echo "$wanted" > "$done_mark"
  fi
  PATH="$PWD/.venv/bin:$PATH"
  export PATH
}

make_environment || exit 1
