#!/bin/sh
# Makes a video from a photograph in a real ComfyUI; see scripts/demo.py.
set -e
cd "$(dirname "$0")/.."
"${PYTHON:-python3}" scripts/environment.py --also requirements-demo.txt
exec .venv/bin/python scripts/demo.py
