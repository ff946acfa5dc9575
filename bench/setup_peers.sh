#!/bin/sh
# Creates .bench/venv, where the peers that Shoal is measured against live: apart from Shoal's own environment, so
# that neither side pins the other's versions. Safe to run again: it does nothing while the requirements are the same.
# `bench/setup_peers.sh llama` adds llama.cpp for bench/decode.py, which compiles for many minutes.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
requirements=$root/bench/peers/requirements.txt
environment=$root/.bench/venv
pip="$environment/bin/python -m pip --disable-pip-version-check"

add_llama() {
    if [ "${1:-}" = llama ]; then $pip install --quiet 'llama-cpp-python>=0.3.16'; fi
}

if cmp -s "$requirements" "$environment/installed.txt"; then
    add_llama "$@"
    echo "peers are installed in $environment"
    exit 0
fi
[ -x "$environment/bin/python" ] || "${PYTHON:-python3}" -m venv "$environment"
# DeepSpeed's build imports torch, and its optional kernels are not needed at ZeRO stage 0.
$pip install --quiet setuptools wheel ninja "$(grep '^torch==' "$requirements")"
DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $pip install --quiet --no-build-isolation --requirement "$requirements"
# DeepSpeed compiles this on first use, for a minute or two: that is installation, not training, so do it here.
DS_ACCELERATOR=cpu "$environment/bin/python" -c \
    "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder; ShareMemCommBuilder().load()"
cp "$requirements" "$environment/installed.txt"
add_llama "$@"
echo "peers are installed in $environment"
