#!/usr/bin/env bash
# Make a virtual environment, also on a Debian whose Python came without the venv module's installer.
set -euo pipefail
python=$1
venv=$2

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "Error: $python is not Python 3.11 or newer. Set PYTHON to one that is: make PYTHON=python3.11 demo" >&2
  exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  package="python$version-venv"
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing $package, which this Python lacks ..."
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null
  else
    echo "Error: $python cannot make virtual environments. Install $package: sudo apt-get install $package" >&2
    exit 1
  fi
fi
echo "Making $venv ..."
"$python" -m venv "$venv"
