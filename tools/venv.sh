#!/bin/sh
# Make a virtual environment with pip, or say in words why that cannot be done here.
# Usage: tools/venv.sh PYTHON DIRECTORY
set -eu

python=$1
venv=$2

stop() {
    printf 'lume_diff: %s\n' "$@" >&2
    exit 1
}

command -v "$python" >/dev/null 2>&1 || stop \
    "there is no command '$python'." \
    "Give a Python of version 3.11 or newer: make PYTHON=/path/to/python3 ..."

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') && [ -n "$version" ] || stop \
    "'$python' does not run as a Python interpreter."

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || stop \
    "Python 3.11 or newer is needed, and '$python' is version $version." \
    "Give another one: make PYTHON=python3.12 ..."

"$python" -c 'import ensurepip, venv' 2>/dev/null || stop \
    "'$python' (version $version) cannot make a virtual environment: its module 'ensurepip' is missing." \
    "On Debian and Ubuntu install it with: apt install python$version-venv (or python3-venv)" \
    "Or give a Python that has it: make PYTHON=/path/to/python3 ..."

echo "Making an environment in $venv with Python $version"
"$python" -m venv "$venv" || stop "'$python -m venv $venv' failed, see above."
