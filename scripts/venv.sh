#!/bin/sh
# venv.sh PYTHON VENV LOCK: make a virtual environment with the versions of a complete lock file.
set -eu
python=$1 venv=$2 lock=$3
here=$(dirname "$0")

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

command -v "$python" >/dev/null 2>&1 ||
    fail "There is no '$python' here. Install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "etl-dagster needs Python 3.11 or newer, and '$python' is $("$python" --version 2>&1)." \
        "Name another one: make PYTHON=python3.12"

rm -rf "$venv"
echo "Installing the locked versions into $venv ..."
"$python" -m venv "$venv" || {
    rm -rf "$venv"
    fail "'$python' cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"
}

quiet_pip() {
    "$venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"
}

# uv does in seconds what takes pip minutes. It does not read pip's settings, so it is told where pip looks; where it
# cannot work all the same, pip does.
with_uv() {
    index=${PIP_INDEX_URL:-$("$venv/bin/python" -m pip config get global.index-url 2>/dev/null || true)}
    if [ -n "$index" ]; then
        UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}
        export UV_DEFAULT_INDEX
    fi
    quiet_pip install --require-hashes --no-deps --requirement "$venv/uv.lock" &&
        UV_LINK_MODE=copy "$venv/bin/uv" pip install --quiet --compile-bytecode --python "$venv/bin/python" \
            --require-hashes --no-deps --requirement "$lock"
}

# A lock is complete, so nothing is resolved here. The project's has an entry for uv, with its hashes.
awk '/^[^ ]/ {found = /^uv==/} found' "$here/../requirements.lock" >"$venv/uv.lock"
with_uv || {
    echo "uv could not install; pip does, which takes longer ..."
    quiet_pip install --require-hashes --no-deps --requirement "$lock"
}
