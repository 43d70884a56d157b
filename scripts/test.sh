#!/bin/sh
# Sets up, then runs every check there is; see scripts/check.py.
set -e
cd "$(dirname "$0")/.."
"${PYTHON:-python3}" scripts/environment.py --also requirements-dev.txt
exec .venv/bin/python scripts/check.py "$@"
