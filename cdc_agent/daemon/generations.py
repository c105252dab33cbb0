"""Which generations this start runs, and what each is made of: today's configuration, or what the ledger kept of one.

Owns the form in which a generation remembers its part of the configuration (never a secret), and the comparison with
the configuration of today. What is in the index decides; a configuration that fits no generation is refused by name.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from cdc_agent.agents.indexer import AGENT
from cdc_agent.config import CollectionConfig, Config, EmbeddingConfig
from cdc_agent.config.specs import collection_spec
from cdc_agent.documents.collection import CollectionSpec
from cdc_agent.embedding.base import Embedder
from cdc_agent.errors import ConfigError, IdentityMismatch, UsageError
from cdc_agent.ledger.base import Generation, Ledger
from cdc_agent.migrate.names import agent_of, families, feed_agent_of, follows_feed, physical_name

__all__ = [
    "Embedders",
    "Planned",
    "changed_collections",
    "differences",
    "next_generations",
    "planned",
    "remembered_specs",
    "wanted_fingerprint",
]

_HINT = (
    "put the configuration back, or build it anew beside what is there: cdc-agent migrate plan, cdc-agent migrate start"
)


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A generation that is to run. ``spec`` has its physical name. ``is_new``: nothing of its collection was built."""

    generation: Generation
    spec: CollectionSpec
    embedding: EmbeddingConfig
    is_new: bool = False


class Embedders:
    """The models in use, each loaded once; equal sections of configuration share one."""

    def __init__(self, config: EmbeddingConfig, build: Callable[[EmbeddingConfig], Embedder]) -> None:
        self._config = config
        self._build = build
        self._open: dict[bytes, Embedder] = {}

    def of(self, section: EmbeddingConfig) -> Embedder:
        key = _json(_without_secret(section))
        if key not in self._open:
            log.info("loading model backend=%s model=%s", section.backend, section.model)
            self._open[key] = self._build(_with_secret(section, self._config))
        return self._open[key]

    def keep(self, sections: Sequence[EmbeddingConfig]) -> None:
        """Close every model that none of these needs."""
        needed = {_json(_without_secret(section)) for section in sections}
        for key in [key for key in self._open if key not in needed]:
            self._open.pop(key).close()

    def close(self) -> None:
        self.keep(())


def planned(config: Config, ledger: Ledger, embedders: Embedders) -> list[Planned]:
    """Every generation that is to run. Raises ``IdentityMismatch`` when the configuration fits none of a collection."""
    known = families(ledger.generations())
    found: list[Planned] = []
    for collection in config.collections:
        family = [g for g in known.get(collection.name, []) if g.state != "dropping"]
        if not family:
            found.append(_first(config, collection, ledger, embedders))
            continue
        fitting = _fitting(config, collection, family, embedders)
        if fitting is None:
            raise _changed(config, collection, family)
        found += [_of_config(config, collection, g) if g is fitting else _of_ledger(g) for g in family]
    return found


def _next(config: Config, collection: CollectionConfig, family: Sequence[Generation], fingerprint: str) -> Planned:
    """The next generation of a collection, as the configuration describes it; not recorded yet."""
    number = max(g.number for g in family) + 1
    physical = physical_name(collection.name, number)
    generation = Generation(
        collection=collection.name,
        number=number,
        physical=physical,
        agent=feed_agent_of(physical) if collection.feed else agent_of(physical),
        fingerprint=fingerprint,
        spec=_spec_json(collection, config.embedding),
        state="building",
        created_at=time.time(),
    )
    return _of_config(config, collection, generation)


def next_generations(
    config: Config, generations: Sequence[Generation], embedders: Embedders, collection: str | None
) -> list[Planned]:
    """What is to be built where the configuration (of one collection, or of all) fits nothing that was built.

    Raises ``UsageError`` when there is nothing to do, or a migration is under way.
    """
    wanted = [c for c in changed_collections(config, generations, embedders) if collection in (None, c.name)]
    if not wanted:
        raise UsageError(
            "nothing to migrate: the configuration describes what is built already",
            hint="change the configuration file first; cdc-agent migrate plan compares",
        )
    begun: list[Planned] = []
    for one in wanted:
        all_of_it = [g for g in generations if g.collection == one.name]
        _refuse_second(all_of_it)
        fingerprint = wanted_fingerprint(config, one, embedders)
        begun.append(_next(config, one, all_of_it, fingerprint))
    return begun


def _refuse_second(family: Sequence[Generation]) -> None:
    """A collection has one migration at a time."""
    for generation in family:
        if generation.state in ("building", "retired"):
            remedy = "abort" if generation.state == "building" else "finish"
            raise UsageError(
                f"collection {generation.collection} is in a migration: generation {generation.number} is "
                f"{generation.state}",
                hint=f"cdc-agent migrate {remedy} comes first",
            )


def changed_collections(
    config: Config, generations: Sequence[Generation], embedders: Embedders
) -> list[CollectionConfig]:
    """The configured collections that were built, and that the configuration describes otherwise than all builds."""
    known = families(generations)
    built = [(c, [g for g in known.get(c.name, []) if g.state != "dropping"]) for c in config.collections]
    return [c for c, family in built if family and _fitting(config, c, family, embedders) is None]


def wanted_fingerprint(config: Config, collection: CollectionConfig, embedders: Embedders) -> str:
    embedder = embedders.of(config.embedding)
    return collection_spec(collection).fingerprint(embedder.model, embedder.dimensions)


def remembered_specs(generations: Sequence[Generation], config: Config) -> list[CollectionSpec]:
    """The shapes that the ledger keeps, of configured collections of tables: those must be followed, too."""
    names = {collection.name for collection in config.collections}
    running = [g for family in families(generations).values() for g in family if g.state != "dropping"]
    return [_of_ledger(g).spec for g in running if g.collection in names and not follows_feed(g.agent)]


def differences(generation: Generation, collection: CollectionConfig, embedding: EmbeddingConfig) -> list[str]:
    """The keys of the configuration that say something else than the generation was built with."""
    then, now = orjson.loads(generation.spec), orjson.loads(_spec_json(collection, embedding))
    keys = [*_differing(then["collection"], now["collection"], "")]
    keys += _differing(then["embedding"], now["embedding"], "embedding.")
    return [key for key in keys if key not in _HARMLESS]


#: What may change without another result.
_HARMLESS = frozenset(
    {"embedding.device", "embedding.batch_tokens", "embedding.url", "embedding.api_key_file", "embedding.timeout_s"}
)


def _differing(then: Mapping[str, Any], now: Mapping[str, Any], above: str) -> list[str]:
    found: list[str] = []
    for key in now:
        if isinstance(now[key], dict) and isinstance(then.get(key), dict):
            found += _differing(then[key], now[key], f"{above}{key}.")
        elif then.get(key) != now[key]:
            found.append(f"{above}{key}")
    return found


def _fitting(
    config: Config, collection: CollectionConfig, family: Sequence[Generation], embedders: Embedders
) -> Generation | None:
    fingerprint = wanted_fingerprint(config, collection, embedders)
    table = collection_spec(collection).qualified_table
    same = [g for g in family if g.fingerprint == fingerprint and _of_ledger(g).spec.qualified_table == table]
    return next(iter(sorted(same, key=lambda g: g.state != "live")), None)


def _first(config: Config, collection: CollectionConfig, ledger: Ledger, embedders: Embedders) -> Planned:
    """A collection that was never built. It shares the first agent unless that one works with another model."""
    section = _json(_without_secret(config.embedding))
    shared = [g for g in ledger.generations() if g.agent == AGENT and g.state not in ("dropping", "dropped")]
    fits = all(_json(_of_ledger(g).embedding.model_dump(mode="json", exclude={"api_key"})) == section for g in shared)
    generation = Generation(
        collection=collection.name,
        number=1,
        physical=collection.name,
        agent=_first_agent(collection, fits=fits),
        fingerprint=wanted_fingerprint(config, collection, embedders),
        spec=_spec_json(collection, config.embedding),
        state="live",
        created_at=time.time(),
    )
    return replace(_of_config(config, collection, generation), is_new=True)


def _first_agent(collection: CollectionConfig, *, fits: bool) -> str:
    if collection.feed is not None:
        return feed_agent_of(collection.name)
    return AGENT if fits else agent_of(collection.name)


def _of_config(config: Config, collection: CollectionConfig, generation: Generation) -> Planned:
    current = replace(generation, spec=_spec_json(collection, config.embedding))
    spec = replace(collection_spec(collection), name=generation.physical)
    return Planned(generation=current, spec=spec, embedding=config.embedding)


def _of_ledger(generation: Generation) -> Planned:
    kept = orjson.loads(generation.spec)
    collection = CollectionConfig.model_validate(kept["collection"])
    spec = replace(collection_spec(collection), name=generation.physical)
    return Planned(generation=generation, spec=spec, embedding=EmbeddingConfig.model_validate(kept["embedding"]))


def _changed(config: Config, collection: CollectionConfig, family: Sequence[Generation]) -> IdentityMismatch:
    live = next(g for g in family if g.state == "live")
    keys = differences(live, collection, config.embedding)
    return IdentityMismatch(
        "CONFIG_CHANGED",
        f"collection {collection.name} was built with other settings ({', '.join(keys) or 'another version of us'})",
        hint=_HINT,
    )


def _spec_json(collection: CollectionConfig, embedding: EmbeddingConfig) -> str:
    parts = {"collection": collection.model_dump(mode="json"), "embedding": _without_secret(embedding)}
    return _json(parts).decode()


def _without_secret(section: EmbeddingConfig) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude={"api_key"})


def _with_secret(section: EmbeddingConfig, config: EmbeddingConfig) -> EmbeddingConfig:
    """The key comes from the configuration of today, but goes to the endpoint that it was given for, and no other."""
    if section.api_key is not None or section.backend != "openai":
        return section
    if section.url == config.url:
        return section.model_copy(update={"api_key": config.api_key})
    if section.api_key_file is None:
        return section
    return EmbeddingConfig.model_validate(
        {**section.model_dump(mode="json"), "api_key": _secret_in(section.api_key_file)}
    )


def _secret_in(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"the key of the generation that answers searches cannot be read: {path}",
            hint="keep embedding.api_key_file of the old model until `cdc-agent migrate finish`",
        ) from exc


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
