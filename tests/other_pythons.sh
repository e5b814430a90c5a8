#!/usr/bin/env bash
# Runs the suite on the other supported Pythons that are found; says which.  Interop tests run on the main one.
set -euo pipefail
cd "$(dirname "$0")/.."

for version in 3.12 3.13; do
    python=$(command -v "python$version" || true)
    if [ -z "$python" ] || ! "$python" -c '' 2>/dev/null; then
        python=$(ls -d "$HOME"/.pyenv/versions/"$version".*/bin/python 2>/dev/null | tail -n 1 || true)
    fi
    if [ -z "$python" ]; then
        echo "Python $version: not found on this machine, not tested"
        continue
    fi
    echo "Python $("$python" -c 'import platform; print(platform.python_version())')"
    "$python" -m venv ".venv-$version"
    ".venv-$version/bin/pip" install -q --disable-pip-version-check -e '.[test]'
    ".venv-$version/bin/python" -m pytest -q -n auto -m "not interop"
done
