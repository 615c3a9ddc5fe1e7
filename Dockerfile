# dnapretrain on NVIDIA's PyTorch image, whose torch, Transformer Engine and CUDA libraries are kept as they are.
#
#   docker build --build-arg COMMIT="$(git rev-parse HEAD)" -t dnapretrain .
#   docker run --gpus all --ipc=host --ulimit memlock=-1 -v "$PWD:/workspace" dnapretrain pretrain my.yaml
#   docker run --gpus all --ipc=host dnapretrain doctor --node
#
# The tests, without a GPU, in an image that has what they need:
#
#   docker build --build-arg EXTRAS='[dev]' -t dnapretrain-test .
#   docker run --rm --user "$(id -u):$(id -g)" --env HOME=/tmp -v "$PWD:/src" -w /src --entrypoint bash dnapretrain-test \
#     -c 'python setup.py -q build_ext --inplace && python -m pytest -m "not gpu and not slurm"'
#
# For Slurm's pyxis: enroot import dockerd://dnapretrain:latest; for Apptainer: apptainer build dnapretrain.sif docker-daemon:dnapretrain:latest
#
# Apex, where the base image has it, is NVIDIA's. `pip install apex` is another project of that name: never add it. Nothing here needs
# Apex; without it Megatron takes torch's norms and optimizers.
#
# NOT VERIFIED: this file was linted, but the base image could not be pulled where it was written, so it was never built on
# it. Unknown are the versions of torch, Transformer Engine and Apex inside (the build prints and keeps them in
# /opt/dnapretrain/versions.txt; megatron-core 0.16.1 asks for Transformer Engine below 2.12), and whether the image's own
# packages satisfy all of ours. Packages come from PyPI at build time; running needs no network.
ARG BASE=nvcr.io/nvidia/pytorch:26.04-py3
# hadolint ignore=DL3006
FROM ${BASE}

ARG EXTRAS=""
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The image pins pip to its own versions through this variable, and that would hold in build environments too. What must not
# change is pinned below instead, and compared after the installation.
ENV PIP_CONSTRAINT="" \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1

WORKDIR /opt/dnapretrain
COPY pyproject.toml setup.py README.md ./
COPY csrc csrc
COPY dnapretrain dnapretrain

# `kept.txt`: the image's packages that nothing may replace, as pip constraints. The native core is built, and tried on two contigs.
RUN printf '%s\n' \
      'import importlib.metadata, re' \
      'kept = re.compile(r"(torch|triton|pytorch[-_]triton|transformer[-_]engine|flash[-_]attn|apex|nvidia|numpy)", re.IGNORECASE)' \
      'found = {(d.metadata["Name"], d.version) for d in importlib.metadata.distributions() if kept.match(d.metadata["Name"] or "")}' \
      'print(*(f"{name}=={version}" for name, version in sorted(found)), sep="\n")' > kept.py \
    && python kept.py > kept.txt \
    && pip install --no-cache-dir --constraint kept.txt ".${EXTRAS}" \
    && python kept.py | diff kept.txt - \
    && printf '>chr1\nACGTNNNNNNNNNNNNacgtacgt\n' > /tmp/two.fa \
    && dnapretrain preprocess /tmp/two.fa --output /tmp/two \
    && [ "$(tr --delete --complement 'ACGTacgt' < /tmp/two.bin)" = ACGTacgtacgt ] \
    && rm /tmp/two.* \
    && dnapretrain --version | tee versions.txt \
    && python --version | tee --append versions.txt \
    && pip list --format=freeze \
       | grep --ignore-case --extended-regexp 'torch|transformer|triton|flash|apex|megatron|numpy|nvidia' | tee --append versions.txt \
    && rm --recursive --force kept.py build ./*.egg-info

ARG COMMIT=unknown
LABEL org.opencontainers.image.title="dnapretrain" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${COMMIT}"

# Mounted folders keep their owner: start with `--user "$(id -u):$(id -g)"` to write into your own.
RUN useradd --create-home --uid 65532 --shell /bin/bash dnapretrain \
    && mkdir --parents /workspace \
    && chown dnapretrain /workspace
USER 65532
WORKDIR /workspace

# In place of the image's own entry point, whose banner would stand before the output of `--json`. A driver older than the
# image's CUDA needs that one: --entrypoint /opt/nvidia/nvidia_entrypoint.sh IMAGE dnapretrain ...
ENTRYPOINT ["dnapretrain"]
CMD ["--help"]
