# Sourced by run_training.sh and run_tests.sh: makes .venv with everything pinned if it is missing or out of date.
# PYTHON=python3.12 ./run_tests.sh chooses another interpreter.

CPU_WHEELS=${CPU_WHEELS:-https://download.pytorch.org/whl/cpu}

recent() {  # is this a Python that the project runs on?
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

cpu_wheel() {  # torch without CUDA, some gigabytes less, where there is no GPU and its index answers
  local torch
  torch=$(grep -o '^torch==[0-9.]*' constraints.txt)
  if nvidia-smi -L >/dev/null 2>&1 || [ -n "${PIP_NO_INDEX:-}" ] || .venv/bin/python -c 'import torch' 2>/dev/null; then return 0; fi
  if .venv/bin/python -c "import urllib.request as r; r.urlopen('$CPU_WHEELS/torch/', timeout=5)" 2>/dev/null; then
    echo "== no GPU here: $torch for CPUs comes from $CPU_WHEELS"
    .venv/bin/python -m pip install --disable-pip-version-check --no-deps --index-url "$CPU_WHEELS" "$torch" || true
  else
    echo "== no GPU here, and $CPU_WHEELS does not answer: $torch comes from pip's own index, maybe with CUDA"
  fi
}

make_environment() {
  local wanted python candidate done_mark=.venv/.installed
  wanted=$(cat pyproject.toml constraints.txt | cksum)
  if [ -e .venv ] && ! recent .venv/bin/python; then
    echo "error: .venv has no Python of 3.11 or newer that runs: delete the folder .venv and start again" >&2
    return 2
  fi
  if [ ! -f "$done_mark" ] || [ "$(cat "$done_mark")" != "$wanted" ]; then
    python=${PYTHON:-}
    if [ -n "$python" ] && ! recent "$python"; then
      echo "error: PYTHON=$python is $("$python" --version 2>/dev/null || echo "no Python that runs"); 3.11 or newer is needed" >&2
      return 2
    fi
    for candidate in python3.11 python3.12 python3.13 python3.14 python3 python; do
      [ -n "$python" ] && break
      if recent "$candidate"; then python=$candidate; fi
    done
    if [ -z "$python" ]; then
      echo "error: Python 3.11 or newer is needed, and none was found; set PYTHON=/path/to/python3" >&2
      return 2
    fi
    echo "== making the environment in .venv ($("$python" --version); a few minutes, once)"
    # also where it was left without pip: by an interrupt, or by another tool
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1 && ! "$python" -m venv .venv; then
      echo "error: $python cannot make an environment (the lines above say why; Debian and Ubuntu: apt install python3-venv)" >&2
      return 2
    fi
    cpu_wheel
    # what is fetched is told, a line each; what is there already is not
    if ! .venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' \
        > >(grep --line-buffered -E '^ *(Downloading|Installing|Successfully)'); then
      echo "error: the packages could not be installed (the lines above say why); start again to go on from here" >&2
      echo "  without a network: pip download -d wheels -c constraints.txt '.[dev]' 'setuptools>=77' where there is one, and" >&2
      echo "  here PIP_NO_INDEX=1 PIP_FIND_LINKS=/path/to/wheels before the same command; a mirror: PIP_INDEX_URL=..." >&2
      return 2
    fi
    echo "$wanted" > "$done_mark"
  fi
  PATH="$PWD/.venv/bin:$PATH"
  export PATH
}

make_environment || exit
