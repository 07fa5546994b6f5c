# The library and the command `ecsfusion`, for a user who is not root.
#
#   docker build -t ecsfusion .                             # for the CPU
#   docker build --target cuda -t ecsfusion-cuda .          # run it with `docker run --gpus all`
#   docker build --build-arg EXTRAS=recipes,demo -t ecsfusion .
#   docker run --rm --volume "$PWD:/work" ecsfusion pid data.npz --label y --modality image=x1 --modality audio=x2

ARG PYTHON=3.12.12-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY ecsfusion ecsfusion
COPY kernels/torch-ext kernels/torch-ext
COPY hf_recipes hf_recipes
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON} AS common
RUN useradd --create-home user && mkdir /work && chown user /work
WORKDIR /work
ENTRYPOINT ["ecsfusion"]
CMD ["--help"]

FROM common AS cuda
# Triton compiles with it what starts a kernel.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ARG TORCH=2.13.0
ARG EXTRAS=recipes,export,triton
# On PyPI, torch for Linux is the one with CUDA.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir "torch==${TORCH}" && \
    pip install --no-cache-dir "$(echo /wheels/ecsfusion-*.whl)[${EXTRAS}]" && pip check
USER user

FROM common AS cpu
ARG TORCH=2.13.0
ARG EXTRAS=recipes,export
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch==${TORCH}" && \
    pip install --no-cache-dir "$(echo /wheels/ecsfusion-*.whl)[${EXTRAS}]" && pip check
USER user
