#!/bin/sh
# install.sh PYTHON VENV LOCK: make the virtual environment with the locked versions and this package in it.
set -eu
python=$1 venv=$2 lock=$3

sh "$(dirname "$0")/venv.sh" "$python" "$venv" "$lock"
# The build tool is locked too, so nothing is fetched for the build.
"$venv/bin/python" -m pip --quiet --disable-pip-version-check install --no-deps --no-build-isolation --editable .
