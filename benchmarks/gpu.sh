#!/bin/sh
# Everything that needs a GPU, in one command: see gpu.py, which takes the same options; with --checklist first, see
# gpu_checklist.py.
# What the machine lacks may lie beside the checkout's files as wheels, in .whl/ (no network is used):
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_17_x86_64 -d .whl \
#     keras namex optree pydantic pydantic-core annotated-types typing-inspection
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if ls .whl/*.whl >/dev/null 2>&1; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl
fi
export PYTHONPATH="$PWD/src:/tmp/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if [ "${1:-}" = --checklist ]; then
  shift
  exec "$python" benchmarks/gpu_checklist.py "$@"
fi
exec "$python" benchmarks/gpu.py "$@"
