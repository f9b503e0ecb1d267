# syntax=docker/dockerfile:1
#
# ComfyUI on a GPU pod, with the supervisor as entrypoint. The torch wheels bring their own
# CUDA libraries, so that a base with nothing but the driver's interface is enough.
#
#   docker build -t my/comfyui .
#   docker build --build-arg BASE_IMAGE=… --build-arg COMFYUI_REF=… -t my/comfyui .

ARG BASE_IMAGE=nvidia/cuda:12.8.1-base-ubuntu24.04

# ---- packages that every stage needs --------------------------------------------------
FROM ${BASE_IMAGE} AS base
ARG DEBIAN_FRONTEND=noninteractive
# procps, curl, less: for people who open a shell in the pod.
ARG APT_PACKAGES="ca-certificates curl ffmpeg git less libgl1 libglib2.0-0 libgoogle-perftools4 openssh-server procps python3 python3-venv"
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    rm -f /etc/apt/apt.conf.d/docker-clean \
    && apt-get update \
    && apt-get install -y --no-install-recommends ${APT_PACKAGES} \
    && rm -f /etc/ssh/ssh_host_*

# ---- the supervisor, in an environment of its own -------------------------------------
FROM base AS supervisor
# Extra arguments for pip, such as a find-links folder for builds without a network.
ARG PIP_ARGS=""
WORKDIR /src
COPY pyproject.toml README.md LICENSE requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/supervisor \
    && /opt/supervisor/bin/pip install --require-hashes ${PIP_ARGS} -r requirements.lock
COPY supervisor ./supervisor
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/supervisor/bin/pip install --no-deps ${PIP_ARGS} . \
    && /opt/supervisor/bin/python -m compileall -q -j 0 /opt/supervisor/lib \
    && /opt/supervisor/bin/pip uninstall -y -q pip

# ---- ComfyUI, its environment and its nodes -------------------------------------------
FROM base AS comfyui
ARG PIP_ARGS=""
ARG COMFYUI_REPOSITORY=https://github.com/Comfy-Org/ComfyUI.git
ARG COMFYUI_REF=v0.17.2
# torch first and alone: the layer is large and changes rarely.
ARG TORCH_PACKAGES="torch torchvision torchaudio"
# JupyterLab is started when a token is given (RunPod sets JUPYTER_PASSWORD);
# ComfyUI-Manager 4 is a package; COMFYUI_ARGS=--enable-manager turns it on.
ARG EXTRA_PACKAGES="jupyterlab comfyui-manager==4.3"
# Custom nodes as URL@REF, separated by spaces; pinned, because they are code from strangers.
ARG CUSTOM_NODES=""
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/comfyui-venv \
    && if [ -n "${TORCH_PACKAGES}" ]; then /opt/comfyui-venv/bin/pip install ${PIP_ARGS} ${TORCH_PACKAGES}; fi
RUN git clone --quiet --filter=blob:none "${COMFYUI_REPOSITORY}" /opt/ComfyUI \
    && git -C /opt/ComfyUI -c advice.detachedHead=false checkout --quiet "${COMFYUI_REF}"
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/comfyui-venv/bin/pip freeze > /tmp/torch.txt \
    && /opt/comfyui-venv/bin/pip install ${PIP_ARGS} -c /tmp/torch.txt \
       -r /opt/ComfyUI/requirements.txt ${EXTRA_PACKAGES} \
    && for node in ${CUSTOM_NODES}; do \
         url="${node%@*}"; name="$(basename "${url}" .git)"; \
         git clone --quiet "${url}" "/opt/ComfyUI/custom_nodes/${name}" \
         && git -C "/opt/ComfyUI/custom_nodes/${name}" -c advice.detachedHead=false checkout --quiet "${node##*@}" \
         && if [ -f "/opt/ComfyUI/custom_nodes/${name}/requirements.txt" ]; then \
              /opt/comfyui-venv/bin/pip install ${PIP_ARGS} -c /tmp/torch.txt \
                -r "/opt/ComfyUI/custom_nodes/${name}/requirements.txt"; fi \
         || exit 1; \
       done

# ---- the image ------------------------------------------------------------------------
FROM base AS image
COPY --from=comfyui /opt/comfyui-venv /opt/comfyui-venv
COPY --from=comfyui /opt/ComfyUI /opt/ComfyUI
COPY --from=supervisor /opt/supervisor /opt/supervisor
COPY supervisor.toml /etc/supervisor/supervisor.toml
RUN ln -s /opt/supervisor/bin/supervisor /usr/local/bin/supervisor \
    && mkdir -p /workspace /var/lib/supervisor /run/sshd \
    && install -d -m 0700 /run/supervisor
ENV PATH=/opt/comfyui-venv/bin:$PATH \
    SUPERVISOR_COMFYUI__PYTHON=/opt/comfyui-venv/bin/python \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
WORKDIR /opt/ComfyUI
# ComfyUI, JupyterLab, health port and page, SSH.
EXPOSE 8188 8888 8000 22
# PID 1 must get the signal itself: no shell form, no tini (the supervisor is the init).
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["supervisor", "status", "--check"]
ENTRYPOINT ["supervisor", "run"]
