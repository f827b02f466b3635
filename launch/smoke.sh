#!/usr/bin/env bash
# The tests marked `smoke`, on each Python from 3.11 to 3.13 that is on this machine, in an environment of its own; not on
# the one that launch/test.sh runs all tests on: bash launch/smoke.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
export JAX_PLATFORMS=cpu

# python_of VERSION: a working Python of that version, from the path or from pyenv.
python_of() {
  local candidate
  for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
    if "$candidate" -c 'import venv' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

failed=''
for version in 3.11 3.12 3.13; do
  if [ -e ".venv-test/lib/python$version" ]; then continue; fi
  if ! PYTHON=$(python_of "$version"); then
    echo "Python $version is not here"
    continue
  fi
  environment ".venv-$version" test
  ".venv-$version/bin/python" -m pytest -n "$(nproc)" --dist loadgroup -m smoke || failed="$failed $version"
done
if [ -n "$failed" ]; then
  echo "the smoke tests fail on Python$failed" >&2
  exit 1
fi
