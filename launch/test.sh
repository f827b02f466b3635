#!/usr/bin/env bash
# The tests, in an environment of their own: bash launch/test.sh [arguments of pytest]
# EXTRAS=test,parity adds PyTorch, for the tests against published models; without it they are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
environment .venv-test "${EXTRAS:-test}"
export JAX_PLATFORMS=cpu
exec .venv-test/bin/python -m pytest -n "$(nproc)" --dist loadgroup "$@"
