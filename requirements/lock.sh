#!/usr/bin/env bash
# Write requirements/py311.txt from what is installed in .venv, after the tests pass with it.
set -euo pipefail
cd "$(dirname "$0")"
{
  echo "# Versions that the tests pass with on Python 3.11; written by requirements/lock.sh."
  ../.venv/bin/python -m pip freeze --exclude-editable --exclude mlflow-deploy | sed 's/+cpu$//'
} > py311.txt
