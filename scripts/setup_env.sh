#!/usr/bin/env bash
# Makes .venv and installs the project into it, once: a second run with an unchanged pyproject.toml returns at once.
#
#   bash scripts/setup_env.sh [EXTRAS]     EXTRAS as in pyproject.toml, e.g. dev or report,wandb (default: none)
#
# PYTHON=/path/to/python3.12 chooses the interpreter. Without an NVIDIA GPU the CPU build of torch is installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras="${1:-}"
# The build to install where no GPU decides: newer ones work too, this one is what the tests ran on.
torch_version="2.13.0"
python=.venv/bin/python

say() { printf '%s\n' "[setup] $*" >&2; }

supported='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'

find_python() {
    local candidate candidates=(python3.11 python3.12 python3 python)
    [[ -n "${PYTHON:-}" ]] && candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c "$supported" >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    say "No Python 3.11 or 3.12 with venv and pip was found (tried: ${candidates[*]})."
    say "Install one (Debian, Ubuntu: apt-get install python3.11 python3.11-venv)," \
        "or name it: PYTHON=/path/to/python3.11 $0"
    return 1
}

make_venv() {
    if [[ -d .venv ]] && ! "$python" -c "$supported" >/dev/null 2>&1; then
        say "Replacing .venv, which is incomplete or made for another Python."
        rm -rf .venv
    fi
    if [[ ! -d .venv ]]; then
        local base
        base="$(find_python)"
        say "Making .venv with $("$base" --version)."
        "$base" -m venv .venv
    fi
}

has_nvidia_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; }

pip_install() { "$python" -m pip install --disable-pip-version-check -qq "$@"; }

# The default wheels for Linux bring several GB of CUDA libraries. Without a GPU, look for a CPU build: first among
# wheels kept on this machine (pip's find-links), then on PyTorch's own index, and only then take what the package index
# has.
install_torch() {
    if "$python" -c 'import torch' >/dev/null 2>&1; then
        return
    fi
    if has_nvidia_gpu; then
        say "Installing torch with CUDA (an NVIDIA GPU is present)."
        pip_install "torch==$torch_version"
    elif pip_install --no-index --no-deps "torch==$torch_version" 2>/dev/null; then
        say "Installed torch $torch_version from a local wheel."
    elif [[ "$(uname -s)" == Linux ]] && pytorch_index_answers &&
        pip_install --index-url "$cpu_index" "torch==$torch_version"; then
        say "Installed the CPU build of torch $torch_version."
    else
        say "Installing torch $torch_version from the package index (on Linux a download of several GB)."
        pip_install "torch==$torch_version"
    fi
}

cpu_index=https://download.pytorch.org/whl/cpu

pytorch_index_answers() {
    "$python" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=10)' \
        "$cpu_index/torch/" 2>/dev/null
}

make_venv
fingerprint="$(cat pyproject.toml scripts/setup_env.sh | "$python" -c '
import hashlib, sys
print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest(), sys.version.split()[0], sys.argv[1])' "$PWD")"
stamp=".venv/.installed-${extras:-core}"
for done in "$stamp" .venv/.installed-dev; do
    if [[ -f "$done" && "$(cat "$done")" == "$fingerprint" ]]; then
        exit 0
    fi
done

say "Installing thrift-llama${extras:+[$extras]}; this takes a few minutes the first time."
install_torch
pip_install --editable ".${extras:+[$extras]}"
printf '%s\n' "$fingerprint" >"$stamp"
say "Ready: . .venv/bin/activate"
