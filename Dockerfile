# The program in a container; docs/get-started.md has the commands.
# BASE: an image of Debian or Ubuntu, for GPUs one with CUDA. TORCH: cpu, or empty for torch with CUDA.
ARG BASE=python:3.12-slim

FROM ${BASE} AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# git: a run records the commit. gcc: Triton compiles its kernels with it.
RUN apt-get update \
 && packages="git gcc libc6-dev make" \
 && { command -v python3 || packages="$packages python3 python3-dev python3-venv"; } \
 && apt-get install -y --no-install-recommends $packages \
 && rm -rf /var/lib/apt/lists/*

FROM base
ARG TORCH=cpu
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH
RUN python3 -m venv "$VIRTUAL_ENV" && pip install --no-cache-dir uv==0.13.9
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY conf conf
COPY sseg_nase sseg_nase
RUN uv pip install --no-cache ${TORCH:+--torch-backend="$TORCH"} -c constraints.txt '.[export]'
# Runs, data and mlflow.db are in the working directory: mount what is to stay.
RUN useradd --create-home user && install -d -o user /data
USER user
WORKDIR /data
ENTRYPOINT ["sseg-nase"]
CMD ["--help"]
