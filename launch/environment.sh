# shellcheck shell=bash
# A virtual environment with the project in it, made once and kept in step with setup.py. Sourced by the other scripts.

# find_python: python3 where it is 3.11 to 3.13, else any of these that is there.
find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
    if [ -n "$candidate" ] &&
        "$candidate" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "Python 3.11, 3.12 or 3.13 with the venv module is needed; install one, or name it:" \
    "PYTHON=/path/to/python bash $0" >&2
  return 1
}

# environment FOLDER [EXTRAS]: makes FOLDER and installs the project with the extras, unless that is done already.
# Fails, and leaves no stamp, where the installation fails.
environment() {
  local folder=$1 extras=${2:-} python stamp
  stamp=$(cat setup.py pyproject.toml | cksum)$extras
  [ -f "$folder/stamp" ] && [ "$(cat "$folder/stamp")" = "$stamp" ] && return
  python=$(find_python) || return
  echo "installing into $folder with $("$python" --version)"
  "$python" -m venv "$folder" || return
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip || return
  "$folder/bin/python" -m pip install --disable-pip-version-check --progress-bar on --quiet \
    --editable ".${extras:+[$extras]}" || return
  echo "$stamp" > "$folder/stamp"
}
