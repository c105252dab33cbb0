"""The configuration: defaults, overrides, paths and secrets; every mistake is one error that says how to mend it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from cdc_agent.config import CollectionConfig, Config, load, redacted_dsn
from cdc_agent.config.dsn import unverified, verified
from cdc_agent.errors import ConfigError

DSN = "postgresql://app:hunter2secret@db.example:5433/shop"
SMALLEST = """\
source:
  dsn: {dsn}
collections:
  - name: articles
    table: public.articles
    text: "{{title}}"
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a configuration: the smallest one, with lines after it."""
    for name in ("CDC_AGENT_CONFIG", "CDC_AGENT_SOURCE__DSN"):
        monkeypatch.delenv(name, raising=False)

    def write(more: str = "", *, dsn: str = DSN) -> Path:
        path = tmp_path / "agent.yaml"
        path.write_text(SMALLEST.format(dsn=dsn) + more)
        return path

    return write


def error_of(path: Path | None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert "hunter2secret" not in str(caught.value)
    return caught.value


# What is right.


def test_two_keys_are_enough(write):
    # Given a file with a source and a collection
    # When it is loaded
    config = load(write())

    # Then everything else has its default
    assert config.source.slot_name == "cdc_agent"
    assert config.source.on_mismatch == "stop"
    assert config.stream.max_bytes == 4 * 1024**3
    assert config.retry.max_attempts == 3
    assert (config.http.host, config.http.port) == ("127.0.0.1", 8765)
    assert config.collections[0].table_name == ("public", "articles")


def test_relative_paths_start_at_the_folder_of_the_file(write, tmp_path):
    config = load(write("state_dir: state\nledger: {path: elsewhere/l.sqlite}\n"))

    assert config.state_dir == tmp_path / "state"
    assert config.stream_path == tmp_path / "state" / "stream.sqlite"
    assert config.ledger_path == tmp_path / "elsewhere" / "l.sqlite"
    assert config.vectorstore_path == tmp_path / "state" / "chroma"


def test_a_section_without_keys_means_its_defaults(write):
    # Given a section whose keys are all commented out
    config = load(write("http:\n  # port: 9999\n"))

    assert config.http.port == 8765


def test_the_environment_wins_over_the_file(write, monkeypatch):
    # Given variables for a nested key, a number and a top-level key
    monkeypatch.setenv("CDC_AGENT_SOURCE__SLOT_NAME", "from_env")
    monkeypatch.setenv("CDC_AGENT_HTTP__PORT", "9000")
    monkeypatch.setenv("CDC_AGENT_STATE_DIR", "/var/lib/cdc")

    # When a file that sets another value is loaded
    config = load(write("http: {port: 8000}\n"))

    # Then the variables count and the rest of the file stays
    assert config.source.slot_name == "from_env"
    assert config.http.port == 9000
    assert config.state_dir == Path("/var/lib/cdc")
    assert config.source.dsn.get_secret_value() == verified(DSN)


def test_the_environment_alone_can_be_the_configuration(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CDC_AGENT_SOURCE__DSN", DSN)
    monkeypatch.setenv("CDC_AGENT_COLLECTIONS", '[{"name": "articles", "table": "t", "text": "{a}"}]')

    config = load(None)

    assert config.collections[0].table_name == ("public", "t")
    assert config.state_dir == tmp_path / "var" / "cdc-agent"


def test_secrets_come_from_files_without_their_line_end(write, tmp_path):
    (tmp_path / "dsn").write_text(DSN + "\n")
    path = write()
    path.write_text(path.read_text().replace(f"dsn: {DSN}", "dsn_file: dsn"))

    assert load(path).source.dsn.get_secret_value() == verified(DSN)


def test_a_secret_in_the_environment_replaces_the_file_of_the_secret(write, tmp_path, monkeypatch):
    # Given a file that names a file with the secret
    path = write()
    path.write_text(path.read_text().replace(f"dsn: {DSN}", "dsn_file: not-there"))

    # When the environment brings the secret itself
    monkeypatch.setenv("CDC_AGENT_SOURCE__DSN", DSN)

    # Then the file is not even looked for
    assert load(path).source.dsn.get_secret_value() == verified(DSN)


def test_the_tree_is_frozen_and_does_not_print_secrets(write):
    config = load(write("embedding: {backend: openai, model: m, url: 'http://e/v1', api_key: hunter2secret}\n"))

    assert "hunter2secret" not in repr(config) + str(config) + config.model_dump_json()
    with pytest.raises(ValidationError):
        config.http.port = 1


def test_two_servers_cannot_have_one_port(write):
    error = error_of(write("http: {port: 8900}\n"))

    assert "http.port: 8900 is vectorstore.port, too" in error.message
    assert error.hint == "both are listened on here: give each its own port"
    assert load(write("http: {port: 8900}\nvectorstore: {mode: server, host: 127.0.0.2}\n")).http.port == 8900
    assert load(write("http: {port: 0}\nvectorstore: {port: 0}\n")).http.port == 0


def test_collections_become_specs(write):
    config = load(
        write("    metadata: [lang]\n    where: published\n    chunking: {max_tokens: 100, overlap_tokens: 10}\n")
    )

    (spec,) = config.collection_specs()

    assert (spec.name, spec.schema, spec.table) == ("articles", "public", "articles")
    assert spec.metadata == ("lang",)
    assert spec.predicate is not None
    assert (spec.max_tokens, spec.overlap_tokens) == (100, 10)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("articles", ("public", "articles")),
        ("cms.articles", ("cms", "articles")),
        ("CMS.Articles", ("CMS", "Articles")),
        ('"odd.schema"."odd ""name"""', ("odd.schema", 'odd "name"')),
        ('cms."a.b"', ("cms", "a.b")),
    ],
)
def test_names_of_tables_are_taken_as_written(write, text, name):
    path = write()
    path.write_text(path.read_text().replace("public.articles", f"'{text}'"))

    assert load(path).collections[0].table_name == name


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        (DSN, "user=app password=*** dbname=shop host=db.example port=5433"),
        ("host=h password='hunter2 secret' dbname=d", "host=h password=*** dbname=d"),
        ("postgresql://h/d?sslpassword=hunter2secret", "dbname=d host=h sslpassword=***"),
        ("postgresql://h/d", "dbname=d host=h"),
        ("not a dsn hunter2secret", "***"),
    ],
)
def test_a_dsn_is_shown_without_its_secrets(dsn, shown):
    shown_words = redacted_dsn(dsn).split()

    assert sorted(shown_words) == sorted(shown.split())


# What is wrong.


def test_an_unknown_key_names_the_place_and_the_nearest_known_key(write):
    # Given a misspelt key on line 8
    path = write("http:\n  prot: 80\n")

    # When it is loaded
    error = error_of(path)

    # Then the error says where, what was meant, and what there is
    assert error.message == f"{path}:8: http.prot is not a known key; did you mean http.port?"
    assert error.hint == "known keys of http: host, port, tokens_file"
    assert error.exit_code == 78


@pytest.mark.parametrize("key", ["agent: []", "sagas: {}", "sorce: {}"])
def test_an_unknown_section_is_refused(write, key):
    error = error_of(write(key + "\n"))

    assert f"{key.split(':')[0]} is not a known key" in error.message
    assert "collections" in error.hint


def test_an_unknown_key_inside_a_collection_is_placed(write):
    error = error_of(write("    chunkin: {}\n"))

    assert "agent.yaml:7: collections[0].chunkin is not a known key" in error.message
    assert "did you mean collections[0].chunking?" in error.message


def test_an_unknown_variable_is_refused(write, monkeypatch):
    monkeypatch.setenv("CDC_AGENT_SORCE__DSN", DSN)

    error = error_of(write())

    assert (
        error.message == "environment: CDC_AGENT_SORCE__DSN names no section of the configuration; did you mean source?"
    )


def test_a_bad_variable_is_named_instead_of_the_file(write, monkeypatch):
    monkeypatch.setenv("CDC_AGENT_HTTP__PORT", "many")

    error = error_of(write())

    assert error.message.startswith("environment CDC_AGENT_HTTP__PORT: http.port should be a valid integer")


def test_a_missing_dsn_says_the_ways_to_give_it(write):
    path = write()
    path.write_text(path.read_text().replace(f"dsn: {DSN}", "slot_name: x"))

    error = error_of(path)

    assert error.message == f"{path}:1: source.dsn is missing"
    assert error.hint == "set source.dsn, source.dsn_file or the environment variable CDC_AGENT_SOURCE__DSN"


def test_several_faults_are_told_at_once(write):
    error = error_of(write("http: {port: 99999}\nlog: {level: loud}\n"))

    assert error.message.startswith("2 things are wrong")
    assert "http.port should be less than or equal to 65535, not 99999" in error.message
    assert "log.level should be 'debug', 'info', 'warning' or 'error', not 'loud'" in error.message


def test_a_broken_dsn_is_not_repeated(write):
    error = error_of(write(dsn="'postgresql://app:hunter2secret@db:nope/x y%zz'"))

    assert "source.dsn is not a Postgres connection string" in error.message


@pytest.mark.parametrize("secret", ["[hunter2secret]", "{a: hunter2secret}"])
def test_a_secret_of_the_wrong_type_is_not_repeated(write, secret):
    error = error_of(write(dsn=secret))

    assert "source.dsn should be a valid string" in error.message


def test_both_forms_of_a_secret_are_refused(write):
    path = write()
    path.write_text(path.read_text().replace("collections:", "  dsn_file: x\ncollections:"))

    assert "source.dsn_file and source.dsn are both set" in error_of(path).message


@pytest.mark.parametrize(("content", "fault"), [(None, "cannot be read"), ("  \n", "is empty")])
def test_a_useless_secret_file_is_named(write, tmp_path, content, fault):
    if content is not None:
        (tmp_path / "dsn").write_text(content)
    path = write()
    path.write_text(path.read_text().replace(f"dsn: {DSN}", "dsn_file: dsn"))

    error = error_of(path)

    assert error.message.startswith(f"{path}:2: source.dsn_file: {tmp_path / 'dsn'} {fault}")


@pytest.mark.parametrize(
    ("yaml", "message", "hint"),
    [
        ("http: {host: 0.0.0.0}", "http.host 0.0.0.0 can be reached from other machines", "http.tokens_file"),
        ("http: {host: db.example}", "can be reached from other machines", "127.0.0.1"),
        ("vectorstore: {host: 10.0.0.1}", "Chroma has no authentication", "mode to server"),
        ("embedding: {backend: openai, url: 'http://e/v1'}", "embedding.model is missing", "no default"),
        ("embedding: {backend: openai, model: m}", "embedding.url is missing", "embedding.url"),
        ("embedding: {url: 'ftp://e'}", "embedding.url should match pattern", "CONFIG.md"),
        ("retry: {initial_s: 90}", "retry.maximum_s is smaller than retry.initial_s", "at least"),
        ("retry: {initial_s: .nan}", "retry.initial_s should be a finite number", ""),
        ("stream: {max_bytes: 4GiB}", "stream.max_bytes should be a valid integer", ""),
        ("source: {dsn: x}", "source is set twice, first at", "keep one"),
        ("log: loud", "log should hold keys", ""),
    ],
)
def test_values_that_cannot_work_are_refused(write, yaml, message, hint):
    error = error_of(write(yaml + "\n"))

    assert message in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("name: articles", "the name 'articles' is used 2 times"),
        ("name: a", "'a' cannot be the name of a collection"),
        ("name: 'über alles'", "cannot be the name of a collection"),
        ("table: a.b.c", "'a.b.c' is not the name of a table"),
        ("table: ''", "'' is not the name of a table"),
        ("text: no columns", "names no column"),
        ("text: '{a'", "template '{a'"),
        ("metadata: [cdc_lsn]", "'cdc_lsn' starts with cdc_, which is reserved"),
        ("metadata: [a, a]", "names a column twice"),
        ("metadata: lang", "metadata should be a list, not 'lang'"),
        ("where: 'a ='", "collections[1] (second)"),
        ("chunking: {max_tokens: 10, overlap_tokens: 10}", "overlap_tokens 10 is not smaller than max_tokens"),
    ],
)
def test_collections_that_cannot_work_are_refused(write, line, message):
    # Given a second collection with one key that is wrong
    keys = {"name": "second", "table": "t", "text": "'{a}'"}
    key, _, value = line.partition(": ")
    keys[key] = value
    entry = "".join(f"    {key}: {value}\n" for key, value in keys.items()).replace("    ", "  - ", 1)

    # When it is loaded
    error = error_of(write(entry))

    # Then the error names it
    assert message in error.message
    assert error.hint


def test_a_configuration_without_collections_is_refused(write):
    path = write()
    path.write_text(f"source: {{dsn: '{DSN}'}}\ncollections: []\n")

    assert "collections should have at least one entry" in error_of(path).message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1,\nb: 2", "agent.yaml:2:5: not valid YAML"),
        ("source:\n\tdsn: hunter2secret", "agent.yaml:2:1: not valid YAML"),
        ("- a list", "agent.yaml: the file holds a list, not keys"),
        ("just text", "agent.yaml: the file holds a str, not keys"),
        ("a: " + "[" * 3000, "not valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content, message):
    path = tmp_path / "agent.yaml"
    path.write_text(content)

    assert message in error_of(path).message


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_bytes(b"\xff\xfe\x00")

    assert "is not UTF-8" in error_of(path).message


def test_a_missing_file_is_named(tmp_path):
    error = error_of(tmp_path / "nowhere.yaml")

    assert error.message == f"{tmp_path / 'nowhere.yaml'}: no such file"
    assert "CDC_AGENT_CONFIG" in error.hint


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    assert "cannot be read: Is a directory" in error_of(tmp_path).message


def test_an_alias_that_contains_itself_ends(tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text("source: &a\n  dsn: *a\n")

    assert "source" in error_of(path).message


def test_a_config_built_in_code_ignores_the_environment(monkeypatch):
    monkeypatch.setenv("CDC_AGENT_HTTP__PORT", "9000")

    config = Config(source={"dsn": DSN}, collections=[{"name": "abc", "table": "t", "text": "{a}"}])

    assert config.http.port == 8765


# Whose server it is.


@pytest.mark.parametrize(
    ("dsn", "added"),
    [
        ("postgresql://u:p%3F@db.example/x", True),
        ("host=db.example dbname=x", True),
        ("host=localhost,db.example", True),
        ("host=db.example hostaddr=127.0.0.1", True),
        ("hostaddr=192.0.2.1", True),
        ("postgresql://u@db.example/x?sslmode=verify-full", False),
        ("postgresql://localhost/x", False),
        ("host=127.0.0.1 hostaddr=127.0.0.1", False),
        ("host=/run/postgresql", False),
        ("dbname=x", False),
        ("host=localhost sslmode=disable", False),
    ],
)
def test_a_server_elsewhere_has_to_prove_who_it_is(dsn: str, added: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PGHOST", "PGHOSTADDR", "PGSSLMODE"):
        monkeypatch.delenv(variable, raising=False)

    assert ("sslmode=verify-full" in verified(dsn).split()) is added
    assert unverified(dsn) == ""


def test_what_the_environment_says_of_the_server_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example")
    monkeypatch.delenv("PGSSLMODE", raising=False)
    assert "sslmode=verify-full" in verified("dbname=x")

    monkeypatch.setenv("PGSSLMODE", "require")
    assert unverified("dbname=x") == "require"
    assert verified("dbname=x") == "dbname=x"


def test_a_collection_that_is_wrong_is_not_also_missing(write):
    # Given the only collection, whose name cannot be one
    path = write()
    path.write_text(path.read_text().replace("name: articles", "name: a_"))

    # When it is loaded, then that is the only fault
    with pytest.raises(ConfigError, match="cannot be the name of a collection") as caught:
        load(path)
    assert "at least one entry" not in str(caught.value)


# Feeds.

FEED = """\
  - name: handbook
    feed: {{kind: github, repository: octo/handbook{more}}}
    text: "{{title}}: {{body}}"
"""

NOTION = """\
  - name: wiki
    feed: {{kind: notion, token_file: ./token{more}}}
    text: "{{title}}: {{body}}"
"""


@pytest.mark.parametrize("feed", [FEED, NOTION])
def test_a_feed_is_the_same_when_the_ledger_remembers_it(write, feed):
    collection = load(write(feed.format(more=""))).collections[1]

    assert CollectionConfig.model_validate(collection.model_dump(mode="json")) == collection


def test_a_feed_takes_the_place_of_a_table(write):
    config = load(write(FEED.format(more=", token_file: ./token")))

    assert config.collections[1].table_name == ("github", "handbook")
    assert config.collections[1].feed.token_file.is_absolute()
    assert [spec.name for spec in config.table_specs()] == ["articles"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (FEED.format(more=", brnch: main"), "did you mean collections[1].feed.branch?"),
        (FEED.format(more=", api_url: 'http://git.example/api/v3'"), "send the token to another machine without TLS"),
        (FEED.format(more=", api_url: 'https://user@git.example'"), "feed.api_url should match pattern"),
        (FEED.format(more=", webhook: hub"), "webhooks has no github sender 'hub'"),
        (FEED.format(more=", paths: []"), "feed.paths should have at least one entry"),
        (FEED.format(more="").replace("octo/handbook", "../handbook/x"), "feed.repository should match pattern"),
        (FEED.format(more="").replace(", repository: octo/handbook", ""), "feed.repository is missing"),
        (NOTION.format(more=", branch: other"), "feed.branch is for github only"),
        (NOTION.format(more="").replace(", token_file: ./token", ""), "feed.token_file is missing"),
        (NOTION.format(more=", webhook: hub"), "webhooks has no notion sender 'hub'"),
        (NOTION.format(more="").replace("body", "path"), "no column 'path'"),
        (FEED.format(more="").replace("body", "boddy"), "no column 'boddy'; did you mean body?"),
        (FEED.format(more="") + "    table: t\n", "has table and feed"),
        ("  - {name: second, text: '{a}'}\n", "has neither table nor feed"),
        ("  - {name: second, text: '{a}', table: github.handbook}\n" + FEED.format(more=""), "github.handbook"),
    ],
)
def test_a_feed_that_cannot_work_is_refused(write, entry, message):
    error = error_of(write(entry))

    assert message in error.message
    assert error.hint


def test_feeds_alone_are_not_enough_yet(write):
    path = write(FEED.format(more=""))
    path.write_text(
        path.read_text().replace('  - name: articles\n    table: public.articles\n    text: "{title}"\n', "")
    )

    assert "has feeds alone" in error_of(path).message


# MQTT.

MQTT = "mqtt:\n  factory:\n    host: {host}\n    topics: [{{filter: 'a/+', type: t{topic}}}]\n{more}"


def test_a_broker_needs_a_place_and_topics(write):
    config = load(write(MQTT.format(host="127.0.0.1", topic="", more="    username: u\n    password_file: ./p\n")))

    assert config.mqtt["factory"].port == 1883
    assert config.mqtt["factory"].password_file.is_absolute()
    assert config.mqtt["factory"].topics[0].key == "{topic}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            MQTT.format(host="broker.example", topic="", more=""),
            "broker.example is another machine, and there is no TLS",
        ),
        (MQTT.format(host="127.0.0.1", topic=", kee: x", more=""), "did you mean mqtt.factory.topics[0].key?"),
        (MQTT.format(host="127.0.0.1", topic="", more="    hots: x\n"), "did you mean mqtt.factory.host?"),
        (MQTT.format(host="127.0.0.1", topic="", more="    key_file: ./k\n"), "key_file needs cert_file"),
        (MQTT.format(host="127.0.0.1", topic="", more="    password_file: ./p\n"), "username is missing"),
        (
            MQTT.format(host="127.0.0.1", topic="", more="webhooks: {factory: {kind: github, secret: s}}\n"),
            "'factory' is a webhook, too",
        ),
    ],
)
def test_a_broker_that_cannot_work_is_refused(write, text, message):
    error = error_of(write(text))

    assert message in error.message
    assert error.hint


def test_an_unknown_key_of_a_webhook_is_named_with_the_nearest_one(write):
    error = error_of(write("webhooks: {hub: {kind: github, secrt: s}}\n"))

    assert "did you mean webhooks.hub.secret?" in error.message


# NATS.

NATS = "stream:\n  backend: jetstream\n  url: {url}\n{more}"


def test_a_stream_on_nats_needs_a_server(write):
    config = load(write(NATS.format(url="nats://127.0.0.1:4222", more="  user: u\n  password: p\n  ca_file: ./ca\n")))

    assert config.stream.urls == ("nats://127.0.0.1:4222",)
    assert config.stream.ca_file.is_absolute()
    assert "p" not in str(config.stream.password)


def test_a_cluster_has_several(write):
    config = load(write(NATS.format(url="tls://a.example:4222, tls://b.example:4222", more="")))

    assert config.stream.urls == ("tls://a.example:4222", "tls://b.example:4222")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stream: {backend: jetstream}\n", "url is missing"),
        (NATS.format(url="nats://nats.example:4222", more=""), "leads to another machine without TLS"),
        (NATS.format(url="nats://127.0.0.1:1,nats://nats.example:2", more=""), "leads to another machine without TLS"),
        (NATS.format(url="nats://name:secret@127.0.0.1:4222", more=""), "stream.url"),
        (NATS.format(url="nats://127.0.0.1:4222", more="  password: p\n"), "user is missing"),
        (NATS.format(url="nats://127.0.0.1:4222", more="  user: u\n  token: t\n"), "has user and token"),
        (NATS.format(url="nats://127.0.0.1:4222", more="  name: a.b\n"), "stream.name"),
    ],
)
def test_a_stream_on_nats_that_cannot_work_is_refused(write, text, message):
    error = error_of(write(text))

    assert message in error.message
    assert "secret" not in str(error)


def test_another_machine_without_tls_may_be_allowed(write):
    config = load(write(NATS.format(url="nats://nats.example:4222", more="  insecure: true\n")))

    assert config.stream.urls == ("nats://nats.example:4222",)


# The ledger on a server.


def test_a_ledger_on_postgres_needs_a_database_and_has_its_own_schema(write):
    config = load(write("ledger: {backend: postgres, dsn: postgresql://l:hunter2secret@localhost/l}\n"))

    assert config.ledger.schema_name == "cdc_agent"
    assert "hunter2secret" not in repr(config)
    assert "ledger.dsn is required with backend postgres" in error_of(write("ledger: {backend: postgres}\n")).message


def test_a_database_for_a_ledger_in_a_file_is_a_mistake(write):
    error = error_of(write("ledger: {dsn: dbname=l}\n"))

    assert "ledger.dsn is for backend postgres" in error.message
    assert "ledger.backend" in error.hint


def test_the_database_of_a_ledger_is_verified_like_the_source(write):
    elsewhere = "postgresql://l:hunter2secret@db.example/l"
    given = "ledger: {{backend: postgres, dsn: '{}'{}}}\n"

    config = load(write(given.format(elsewhere, "")))
    assert "sslmode=verify-full" in config.ledger.dsn.get_secret_value()
    assert "ledger.insecure" in error_of(write(given.format(f"{elsewhere}?sslmode=require", ""))).hint
    open_to_all = load(write(given.format(f"{elsewhere}?sslmode=require", ", insecure: true")))
    assert open_to_all.ledger.dsn.get_secret_value().endswith("sslmode=require")
    assert "is not a Postgres connection string" in error_of(write(given.format("hunter2secret", ""))).message


def test_the_database_of_a_ledger_may_be_told_by_a_file(write, tmp_path):
    (tmp_path / "secret").write_text("dbname=l host=localhost\n")

    config = load(write("ledger: {backend: postgres, dsn_file: secret}\n"))

    assert config.ledger.dsn.get_secret_value() == "dbname=l host=localhost"
    both = "ledger: {backend: postgres, dsn_file: secret, dsn: dbname=l}\n"
    assert "ledger.dsn_file and ledger.dsn are both set" in error_of(write(both)).message


@pytest.mark.parametrize("name", ["public", "pg_catalog", "information_schema", "ü" * 32, "''"])
def test_a_schema_that_is_not_ours_or_is_no_name_is_refused(write, name):
    path = write(f"ledger: {{backend: postgres, dsn: dbname=l host=localhost, schema_name: {name}}}\n")

    assert "ledger.schema_name" in error_of(path).message
