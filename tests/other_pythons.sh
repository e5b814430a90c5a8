#!/usr/bin/env bash
# Runs the suite on the other supported Pythons that are found, at the same time; says which.  Interop tests and long ones run on the
# main one.
set -euo pipefail
cd "$(dirname "$0")/.."

find_python() {
    local python
    python=$(command -v "python$1" || true)
    if [ -z "$python" ] || ! "$python" -c '' 2>/dev/null; then
        python=$(ls -d "$HOME"/.pyenv/versions/"$1".*/bin/python 2>/dev/null | tail -n 1 || true)
    fi
    echo "$python"
}

declare -A running=()
for version in 3.12 3.13; do
    python=$(find_python "$version")
    if [ -z "$python" ]; then
        echo "Python $version: not found on this machine, not tested"
        continue
    fi
    echo "Python $("$python" -c 'import platform; print(platform.python_version())')"
    venv=.venv-$version
    "$python" -m venv "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check -e '.[test]'
    "$venv/bin/python" -m pytest -q -n auto -m "not interop and not long" -o cache_dir="$venv/cache" >"$venv/output" 2>&1 &
    running[$version]=$!
done

failed=0
for version in "${!running[@]}"; do
    wait "${running[$version]}" || failed=1
    echo "Python $version:"
    cat ".venv-$version/output"
done
exit "$failed"
