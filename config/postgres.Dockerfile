# Postgres with wal2json, for docker-compose.yml. With pgoutput any Postgres that has wal_level=logical will do.

# The official image, or one like it: it has PG_MAJOR, and a source of packages for that version.
ARG BASE=postgres:16-bookworm
FROM ${BASE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends "postgresql-${PG_MAJOR}-wal2json" \
    && rm -rf /var/lib/apt/lists/*
# New minor releases load only the plugins that this setting names, older ones refuse to start with it.
RUN if postgres --describe-config | grep -q '^output_plugin_libraries'; then \
        echo "output_plugin_libraries = 'pgoutput, test_decoding, wal2json'" \
            >> "/usr/share/postgresql/${PG_MAJOR}/postgresql.conf.sample"; \
    fi
