#!/usr/bin/env bash
# Makes .venv and installs the project into it, once: a second run with an unchanged pyproject.toml returns at once.
#
#   bash scripts/setup_env.sh [--cuda|--cpu] [EXTRAS]     EXTRAS as in pyproject.toml, e.g. dev or report,wandb
#
# --cuda and --cpu choose the build of torch. Without them: CUDA where this machine has an NVIDIA driver or its Slurm has
# nodes with GPUs, CPU where neither is so. A login node of another batch system is not judged: say which. PYTHON names
# the interpreter (3.11 to 3.14); TORCH_INDEX_URL names an index of torch, for older drivers (docs/install.md).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build="" extras=""
for word in "$@"; do
    case "$word" in
        --cuda | --cpu) build="${word#--}" ;;
        -*)
            echo "$word: unknown; usage: bash scripts/setup_env.sh [--cuda|--cpu] [EXTRAS]" >&2
            exit 2
            ;;
        *) extras="$word" ;;
    esac
done
# The build to install where no GPU decides: newer ones work too, this one is what the tests ran on.
torch_version="2.13.0"
python=.venv/bin/python

say() { printf '%s\n' "[setup] $*" >&2; }

supported='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'

find_python() {
    local candidate candidates=(python3.11 python3.12 python3.13 python3.14 python3 python)
    [[ -n "${PYTHON:-}" ]] && candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c "$supported" >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    say "No Python from 3.11 to 3.14 with venv and pip was found (tried: ${candidates[*]})."
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

# The driver, not the GPU, is what a CUDA build needs: it is also there where no GPU is free.
has_nvidia_driver() { [[ -e "${NVIDIA_DRIVER:-/proc/driver/nvidia/version}" ]] || nvidia-smi -L >/dev/null 2>&1; }

slurm_has_gpus() { timeout 20 sinfo --noheader --format=%G 2>/dev/null | grep -q gpu; }

# cuda or cpu. Exits with status 2 where a wrong guess would cost a cluster its GPUs.
choose_build() {
    if [[ -n "$build" ]]; then
        echo "$build"
    elif has_nvidia_driver || slurm_has_gpus; then
        echo cuda
    elif command -v qsub bsub >/dev/null 2>&1; then
        say "This machine has no NVIDIA driver, but it submits jobs to others, which may have one:" \
            "say --cuda or --cpu."
        return 2
    else
        echo cpu
    fi
}

pip_install() { "$python" -m pip install --disable-pip-version-check -qq "$@"; }

# The default wheels for Linux bring several GB of CUDA libraries. Without a GPU, look for a CPU build: first among
# wheels kept on this machine (pip's find-links), then on PyTorch's own index, and only then take what the package index
# has.
install_torch() {
    if "$python" -c 'import torch' >/dev/null 2>&1; then
        return
    fi
    local chosen
    chosen="$(choose_build)" || exit 2
    if [[ "$chosen" == cuda ]]; then
        say "Installing torch with CUDA (--cpu would choose the CPU build)."
        pip_install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "torch==$torch_version"
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
