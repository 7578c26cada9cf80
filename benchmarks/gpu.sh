#!/bin/sh
# On a machine with a GPU, without network: the tests of what it computes, `resnetlab compare`, then gpu.py.
#
#   sh benchmarks/gpu.sh                     all three; the machine must allow half an hour
#   sh benchmarks/gpu.sh tests|compare|bench [OPTIONS OF gpu.py]      one of them, ten minutes at most
#
# What is written goes below $OUT, or into results/. What the machine lacks may lie beside the checkout's files as wheels,
# in .whl/, for its Python:
#   pip download --no-deps --only-binary=:all: -c requirements/constraints.txt --python-version 3.12 \
#     --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 -d .whl \
#     keras namex optree pydantic pydantic-core annotated-types typing-inspection pytest pluggy iniconfig
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if ls .whl/*.whl >/dev/null 2>&1; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl
fi
export PYTHONPATH="$PWD/src:/tmp/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
out=${OUT:-results}
case "${1:-}" in
  tests | compare | bench) stages=$1 && shift ;;
  *) stages="tests compare bench" ;;
esac
for stage in $stages; do
  case "$stage" in
    tests) "$python" -m pytest -m gpu tests/gpu -p no:cacheprovider || failed=1 ;;
    compare)
      "$python" -m resnetlab.cli compare digits --model resnet20 --batch-sizes 64,1024 --repeats 1 --budget 0.5 \
        --devices cpu,gpu --output "$out/compare" || failed=1
      ;;
    bench) "$python" benchmarks/gpu.py "$@" || failed=1 ;;
  esac
done
exit "${failed:-0}"
