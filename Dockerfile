# The service's container image. `docker build .` builds an image that runs the bundled model on a CPU.
# See docs/how-to/container.md.
#   --target cpu (the default)  OpenVINO, without torch and without a compiler
#   --target gpu                ultralytics and torch with CUDA (several GB)
#   --build-arg MODEL=          cpu: empty (the bundled demo model), an official name (yolo26n.pt,
#                               downloaded during the build), models/NAME.pt, or an exported
#                               models/NAME_openvino_model. gpu: yolo26n.pt or models/NAME.pt
#   --build-arg CALIBRATION=    cpu: models/FOLDER of images, to quantise the model to int8
#   --build-arg IMAGE_SIZE=     cpu: longer side of the exported model's input, in pixels. Default: the
#                               size that the weights were trained with
#   --build-arg HEIC=false      leave out the decoder for HEIC, because HEVC is patented. Then HEIC files
#                               get the error unsupported_media
#   --build-arg REVISION=       the revision that the image is built from, for its label
#
# To pin the base image, pass --build-arg BASE=python:3.13-slim-bookworm@sha256:... No digest is set
# here, because a mirror's copy may have another digest.
ARG BASE=python:3.13-slim-bookworm

# --- the package itself ------------------------------------------------------------------------
FROM ${BASE} AS wheel
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY requirements/build.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --quiet --no-deps --require-hashes --requirement requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY service service
RUN python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels .

# --- dependencies on a CPU ---------------------------------------------------------------------
# --no-deps everywhere: a lock lists all packages, except those that it omits on purpose (Makefile,
# target lock).
FROM ${BASE} AS cpu-dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY requirements/cpu.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/yolo-batch \
 && python -m pip --python /opt/yolo-batch/bin/python install --quiet --no-compile --no-deps \
      --require-hashes --requirement requirements/cpu.txt
ARG HEIC=true
RUN if [ "$HEIC" = false ]; then \
      python -m pip --python /opt/yolo-batch/bin/python uninstall --quiet --yes pi-heif; fi
COPY container/prune.py container/
# unchecked-hash: bytecode that ignores the source's time stamp, which a copied layer may change.
RUN python container/prune.py /opt/yolo-batch/lib/python3.*/site-packages \
 && /opt/yolo-batch/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash \
      /opt/yolo-batch/lib \
 && find /opt/yolo-batch/bin -type f ! -name gunicorn -delete

# --- dependencies on a GPU ---------------------------------------------------------------------
FROM ${BASE} AS gpu-dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY requirements/gpu.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/yolo-batch \
 && python -m pip --python /opt/yolo-batch/bin/python install --quiet --no-compile --no-deps \
      --require-hashes --requirement requirements/gpu.txt
ARG HEIC=true
RUN if [ "$HEIC" = false ]; then \
      python -m pip --python /opt/yolo-batch/bin/python uninstall --quiet --yes pi-heif; fi \
 && /opt/yolo-batch/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash \
      /opt/yolo-batch/lib

# --- the package -------------------------------------------------------------------------------
FROM ${BASE} AS application
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY --from=wheel /wheels /wheels
# The venv only sets the interpreter of the installed scripts.
RUN python -m venv --without-pip /opt/yolo-batch \
 && python -m pip --python /opt/yolo-batch/bin/python install --quiet --no-compile --no-deps \
      --no-index --target /app /wheels/*.whl \
 && python -m compileall -q --invalidation-mode unchecked-hash /app

# --- the model: exported for a CPU, weights for a GPU ------------------------------------------
FROM ${BASE} AS export
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore YOLO_AUTOINSTALL=false
WORKDIR /build
ARG MODEL=
ARG CALIBRATION=
ARG IMAGE_SIZE=
COPY requirements/export.txt requirements/
COPY container/install-export.sh container/
RUN --mount=type=cache,target=/root/.cache/pip sh container/install-export.sh
COPY models models
COPY container/export.sh container/
COPY --from=wheel /wheels /wheels
RUN sh container/export.sh /model

FROM gpu-dependencies AS weights
ENV YOLO_AUTOINSTALL=false
ARG MODEL=yolo26n.pt
COPY models models
COPY container/weights.sh container/
RUN PATH=/opt/yolo-batch/bin:$PATH sh container/weights.sh /model

# --- the runtime -------------------------------------------------------------------------------
FROM ${BASE} AS runtime
# Compile the standard library, because the base image has no bytecode, and a read-only container would
# compile it at every start. Remove what installs packages.
RUN rm -rf /usr/local/lib/python3.*/site-packages/* /usr/local/lib/python3.*/ensurepip \
      /usr/local/lib/python3.*/idlelib /usr/local/lib/python3.*/tkinter \
      /usr/local/lib/python3.*/turtledemo /usr/local/lib/python3.*/test \
      /usr/local/bin/pip* /usr/local/bin/idle* \
 && mkdir /app \
 && python -m compileall -q -j 0 --invalidation-mode unchecked-hash /usr/local/lib/python3.*
ENV PATH=/app/bin:/opt/yolo-batch/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
EXPOSE 8080
# Numeric, so that a platform can see that it is not root. This user owns no file.
USER 10001:10001
# Exec form, so that gunicorn is process 1 and receives SIGTERM.
CMD ["python", "-m", "gunicorn", "--config", "python:service.server.gunicorn_conf", "service.server.wsgi:build_app()"]

FROM runtime AS gpu
COPY --from=gpu-dependencies /opt/yolo-batch /opt/yolo-batch
ARG MODEL=yolo26n.pt
# The user has no name and no home, so ultralytics, matplotlib and torch write their files to /tmp.
ENV DEVICE=0 \
    MODEL_PATH=/model/${MODEL} \
    HOME=/tmp \
    USER=yolo-batch \
    YOLO_CONFIG_DIR=/tmp \
    MPLCONFIGDIR=/tmp \
    YOLO_AUTOINSTALL=false \
    YOLO_OFFLINE=true
COPY --from=weights /model /model
COPY --from=application /app /app
ARG REVISION=unknown
LABEL org.opencontainers.image.title="yolo-batch" \
      org.opencontainers.image.licenses="AGPL-3.0-only" \
      org.opencontainers.image.revision="${REVISION}"

FROM runtime AS cpu
COPY --from=cpu-dependencies /opt/yolo-batch /opt/yolo-batch
ENV MODEL_PATH=/model
COPY --from=export /model /model
COPY --from=application /app /app
ARG REVISION=unknown
LABEL org.opencontainers.image.title="yolo-batch" \
      org.opencontainers.image.licenses="AGPL-3.0-only" \
      org.opencontainers.image.revision="${REVISION}"
