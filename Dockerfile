# dropkey with CUDA for linux/amd64. Without --gpus the same image runs on the CPU.
#
#   docker build --platform linux/amd64 --tag dropkey .
#
#   mkdir -p runs ~/.cache/dropkey        # else docker makes them, owned by root
#   docker run --rm --init --gpus all --shm-size=4g --user "$(id -u):$(id -g)" \
#     -v ~/.cache/dropkey:/cache -v /path/to/images:/data:ro -v "$PWD/runs:/workspace/runs" \
#     dropkey fit --help
#
# --init      passes SIGTERM on and collects data-loader workers; Python as process 1 does neither by itself
# --shm-size  data-loader workers hand over batches in shared memory, of which docker gives 64 MB
# --user      runs and caches belong to you, whatever your uid is
# /cache      pretrained weights and compiled kernels, kept between containers
# /workspace       the working folder: the recipes are in configs/, results go to runs/

# Pinned by digest: a tag moves. Python 3.12.14 on Debian trixie, as of September 2026; another base: --build-arg BASE=…
ARG BASE=python:3.12-slim@sha256:78387bc3881b8273120a12ebe6c1ab22b018ccc2c9adf565ae1ac9b536e184ea

# One base for both stages: the environment's python is a link into it
FROM ${BASE} AS base

FROM base AS builder
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# Before the source: the dependencies (several GB) are installed again only when the lock changes. It holds the extras onnx,
# parquet and tensorboard, since nothing can be installed into a running container.
COPY requirements.lock /src/
RUN pip install --no-cache-dir --require-hashes -r /src/requirements.lock
COPY . /src
# With the lock's own setuptools, so that nothing without a hash is fetched
RUN pip install --no-cache-dir --no-deps --no-build-isolation /src

FROM base
# Triton builds its launchers, and torch.compile its CPU code, when they are first used
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY --from=builder /opt/venv /opt/venv
COPY configs /workspace/configs
# Writable by everyone (sticky, as /tmp), since --user may be any uid
RUN useradd --uid 1000 --no-create-home --home-dir /cache dropkey \
    && mkdir -p /cache /data /workspace/runs \
    && chmod 1777 /cache /workspace /workspace/runs
# HOME, USER, LOGNAME: a uid of --user has no passwd entry, so getpass.getuser() and ~ have nothing else to go by.
# PYTHONUNBUFFERED: without a terminal, output would come in blocks.
# NVIDIA_*: what the container toolkit hands in (CUDA itself comes with the torch wheels).
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/cache \
    USER=dropkey \
    LOGNAME=dropkey \
    HF_HOME=/cache/huggingface \
    MPLCONFIGDIR=/cache/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# A number, so that Kubernetes can tell that it is not root
USER 1000
WORKDIR /workspace
ENTRYPOINT ["dropkey"]
CMD ["--help"]
