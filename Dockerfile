# Serves a run folder that is mounted at /model, or an export of one:
#
#     docker build -t resnetlab .
#     docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/runs/photos:/model:ro" resnetlab
#
# The mount is read-only, so export before: `resnetlab export RUN`. An export alone needs neither TensorFlow nor its
# 1.5 GB: `docker build --build-arg EXTRAS=onnx,serve`, and mount RUN/export/onnx-float32.
FROM python:3.12-slim

ARG EXTRAS=cpu,onnx,serve
ENV PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RESNETLAB_CACHE=/tmp/resnetlab \
    MPLCONFIGDIR=/tmp/matplotlib

WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY requirements/constraints.txt requirements/constraints.txt
COPY src src
RUN pip install -c requirements/constraints.txt ".[${EXTRAS}]"

RUN useradd --create-home --uid 10001 resnetlab
USER 10001
WORKDIR /home/resnetlab
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.build_opener(urllib.request.ProxyHandler({})).open('http://127.0.0.1:8000/readyz', timeout=4)"]
# 0.0.0.0 is the container's own network; what reaches it is decided by docker run -p.
ENTRYPOINT ["resnetlab", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/model"]
