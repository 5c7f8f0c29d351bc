# The worker in a container, for a CPU or a GPU: the TORCH argument is what pip is asked for.
#   CPU:  docker build -t moshi-server --build-arg TORCH="torch==2.13.0+cpu --extra-index-url URL-OF-PYTORCH-CPU-WHEELS" .
#   GPU:  docker build -t moshi-server .            (the plain wheel brings CUDA; run with --gpus all)
#   run:  docker run -p 8080:8080 -e MOSHI_API_KEY=... -v moshi-hub:/hub -v moshi-logs:/srv/logs moshi-server
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build
ARG TORCH="torch==2.13.0"
RUN python -m venv /opt/moshi
RUN /opt/moshi/bin/pip install --no-cache-dir ${TORCH}
COPY . /src
RUN /opt/moshi/bin/pip install --no-cache-dir '/src[fast-cpu]'

FROM python:${PYTHON}-slim
# On a GPU, kernels are compiled when the server first starts. For a CPU: --build-arg COMPILER=
ARG COMPILER="gcc libc6-dev"
RUN test -z "$COMPILER" || (apt-get update && apt-get install -y --no-install-recommends $COMPILER \
    && rm -rf /var/lib/apt/lists/*)
COPY --from=build /opt/moshi /opt/moshi
ENV PATH=/opt/moshi/bin:$PATH HF_HOME=/hub PYTHONUNBUFFERED=1
RUN useradd --create-home moshi && install -d -o moshi /hub /srv/logs
USER moshi
WORKDIR /srv
VOLUME ["/hub", "/srv/logs"]
EXPOSE 8080
HEALTHCHECK --start-period=300s --interval=15s --timeout=5s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/api/health', timeout=4)"]
ENTRYPOINT ["moshi-server"]
CMD ["worker", "--config", "demo"]
