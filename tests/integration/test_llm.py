"""A model as a step of a handler: asked in time, within a budget, and recorded once; whatever its endpoint does."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from cdc_agent.errors import BudgetSpent, ConfigError, LlmError, LlmUnavailable
from cdc_agent.events import Event
from cdc_agent.llm import Llm
from cdc_agent.reactions import Agents, Context, Retries
from cdc_agent.testing import Bench
from tests.support.fake_chat import FakeChat, silent, uncounted
from tests.support.fake_openai import garbage, hang, rate_limited, server_error

PROMPT = "Customer Ada Lovelace's card was declined."


@pytest.fixture
def fake() -> Iterator[FakeChat]:
    with FakeChat() as server:
        yield server


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def new_llm(fake: FakeChat, slept: list[float]) -> Iterator[Callable[..., Llm]]:
    with ExitStack() as things:

        def make(**options: Any) -> Llm:
            known = {"url": fake.base_url, "model": "small", "sleep": slept.append, **options}
            return things.enter_context(closing(Llm(**known)))

        yield make


def asking(llm: Llm, *, attempts: int = 1, name: str = "word_it", then: Callable[[], None] = lambda: None) -> Agents:
    app = Agents()

    @app.on("payment_failed", name=name, retries=Retries(attempts=attempts))
    def word_it(event: Event, context: Context) -> None:
        context.emit("worded", llm.chat(context, {"role": "system", "content": "Be kind."}, PROMPT))
        then()

    return app


def raised_by(llm: Llm) -> BaseException:
    """What the handler got instead of an answer."""
    app, caught = Agents(), []

    @app.on("payment_failed")
    def word_it(event: Event, context: Context) -> None:
        try:
            llm.chat(context, PROMPT)
        except LlmError as exc:
            caught.append(exc)

    with Bench(app) as bench:
        bench.emit("payment_failed")
        bench.run()
        assert bench.facts("llm.called") == []
    return caught[0]


def test_an_answer_is_had_and_the_call_is_a_fact_without_its_words(
    fake: FakeChat, new_llm: Callable[..., Llm], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a key in the environment
    monkeypatch.setenv("SHOP_LLM_KEY", "sk-secret")

    # When a handler asks
    with Bench(asking(new_llm(api_key_env="SHOP_LLM_KEY", max_tokens=64, options={"temperature": 0}))) as bench:
        bench.emit("payment_failed", key="order-7")
        bench.run()
        [worded], [called] = bench.facts("worded"), bench.facts("llm.called")

    # Then it has its answer, and what is kept tells what it cost, and not what was said
    assert worded.data == "Try another card."
    [request] = fake.requests
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": PROMPT}]
    assert request.body == {"model": "small", "messages": messages, "max_tokens": 64, "temperature": 0}
    assert request.authorization == "Bearer sk-secret"
    assert called.key == "order-7"
    digest = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()
    seconds = called.data.pop("seconds")
    assert 0 <= seconds < 30
    assert called.data == {
        "llm": "small",
        "model": "small",
        "agent": "word_it",
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "finish_reason": "stop",
        "attempts": 1,
        "prompt_sha256": digest,
    }


def test_words_are_kept_where_somebody_wants_them(new_llm: Callable[..., Llm]) -> None:
    with Bench(asking(new_llm(record_prompts=True))) as bench:
        bench.emit("payment_failed")
        bench.run()
        [called] = bench.facts("llm.called")
    assert called.data["messages"][1]["content"] == PROMPT
    assert called.data["answer"] == "Try another card."


def test_the_call_of_an_attempt_that_failed_is_no_fact(fake: FakeChat, new_llm: Callable[..., Llm]) -> None:
    # Given a handler that fails after it asked, the first time
    failures = iter([RuntimeError("too late"), None])

    def fail() -> None:
        if (failure := next(failures)) is not None:
            raise failure

    with Bench(asking(new_llm(), attempts=2, then=fail)) as bench:
        bench.emit("payment_failed")
        bench.run()

        # Then the model was asked twice, and one call belongs to what happened
        assert len(fake.requests) == 2
        assert len(bench.facts("llm.called")) == len(bench.facts("worded")) == 1


def test_what_another_try_mends_is_tried_again_when_the_endpoint_says(
    fake: FakeChat, new_llm: Callable[..., Llm], slept: list[float]
) -> None:
    fake.script(rate_limited(retry_after_s=3), server_error(503))
    with Bench(asking(new_llm())) as bench:
        bench.emit("payment_failed")
        bench.run()
        [called] = bench.facts("llm.called")
    assert called.data["attempts"] == 3
    assert slept[0] == 3.0
    assert 0 < slept[1] <= 2.0


@pytest.mark.parametrize(
    ("faults", "options", "said"),
    [
        ([rate_limited(retry_after_s=120)], {}, "HTTP 429 (rate_limit_exceeded)"),
        ([server_error()] * 3, {}, "HTTP 500"),
        ([garbage()] * 3, {}, "no completion"),
        ([hang()], {"timeout_s": 0.2}, "did not answer in 0.2 s"),
    ],
)
def test_an_endpoint_that_does_not_answer_in_time_leaves_the_event_to_be_tried_again(
    fake: FakeChat,
    new_llm: Callable[..., Llm],
    faults: list[Any],
    options: dict[str, Any],
    said: str,
) -> None:
    fake.script(*faults)
    exc = raised_by(new_llm(**options))
    assert isinstance(exc, LlmUnavailable)
    assert said in exc.message
    assert len(fake.requests) == len(faults)
    assert exc.retry_after_s == (120 if "429" in said else None)


def test_nobody_there_is_unavailable_too() -> None:
    with closing(Llm(url="http://127.0.0.1:9", model="small", sleep=lambda _: None)) as llm:
        exc = raised_by(llm)
    assert isinstance(exc, LlmUnavailable)
    assert "cannot be reached" in exc.message


@pytest.mark.parametrize(
    ("status", "said"), [(401, "does not accept our key"), (400, "refuses the request"), (404, "not where url= says")]
)
def test_what_no_other_try_mends_is_asked_once(
    fake: FakeChat, new_llm: Callable[..., Llm], status: int, said: str
) -> None:
    fake.script(server_error(status))
    exc = raised_by(new_llm())
    assert not isinstance(exc, LlmUnavailable)
    assert said in str(exc)
    assert len(fake.requests) == 1


def test_a_model_that_says_nothing_is_an_error(fake: FakeChat, new_llm: Callable[..., Llm]) -> None:
    fake.script(silent())
    assert "said nothing (finish_reason stop)" in str(raised_by(new_llm()))


def test_a_key_that_is_not_there_is_said(new_llm: Callable[..., Llm], tmp_path: Path) -> None:
    assert "NO_SUCH_KEY is not set" in str(raised_by(new_llm(api_key_env="NO_SUCH_KEY")))
    assert "the key cannot be read" in str(raised_by(new_llm(api_key_file=tmp_path / "missing")))


def test_neither_prompt_nor_key_is_ever_logged_or_raised(
    fake: FakeChat, new_llm: Callable[..., Llm], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a key in a file, and an endpoint whose errors quote what they were asked
    (tmp_path / "key").write_text("sk-secret\n")
    fake.script(server_error(503), garbage(), server_error(400))
    with caplog.at_level(logging.DEBUG), Bench(asking(new_llm(api_key_file=tmp_path / "key"))) as bench:
        bench.emit("payment_failed")
        bench.run()
        [letter] = bench.letters
    assert fake.requests[0].authorization == "Bearer sk-secret"
    for secret in ("sk-secret", "Lovelace"):
        assert secret not in caplog.text
        assert secret not in letter.error


class TestBudget:
    def test_it_refuses_without_asking_and_begins_anew_at_midnight(
        self, fake: FakeChat, new_llm: Callable[..., Llm]
    ) -> None:
        # Given a budget for two calls of some hundred tokens at most
        llm = new_llm(daily_tokens=250, max_tokens=50)
        with Bench(asking(llm), now=dt.datetime(2026, 1, 1, 23, 50, tzinfo=dt.UTC)) as bench:
            for _ in range(20):
                bench.emit("payment_failed")
            bench.run()

            # Then it is used up by what calls really cost, 15 each, as far as one more might go beyond it
            asked = len(fake.requests)
            assert 5 < asked < 15
            assert {letter.error.partition(":")[0] for letter in bench.letters} == {"small"}
            assert "tokens for today" in bench.letters[0].error
            assert sum(f.data["prompt_tokens"] + f.data["completion_tokens"] for f in bench.facts("llm.called")) <= 250

            # and there is a new one the next day.
            bench.advance(11 * 60)
            bench.emit("payment_failed")
            bench.run()
            assert len(fake.requests) == asked + 1

    def test_it_knows_after_a_restart_what_was_used_before(self, fake: FakeChat, new_llm: Callable[..., Llm]) -> None:
        # Given a day's budget that is nearly used
        with Bench(asking(new_llm(daily_tokens=250, max_tokens=50))) as bench:
            for _ in range(20):
                bench.emit("payment_failed")
            bench.run()
            asked = len(fake.requests)

            # When another process reads what that one recorded
            reborn = new_llm(daily_tokens=250, max_tokens=50)
            other = Context(agent="x", event=bench.facts()[0], key="", attempt=1, tools=tools_of(bench))
            with pytest.raises(BudgetSpent):
                reborn.chat(other, {"role": "system", "content": "Be kind."}, PROMPT)
            assert len(fake.requests) == asked

            # Then the calls of another name are not its own
            apart = new_llm(daily_tokens=250, max_tokens=50, name="other")
            assert apart.chat(other, {"role": "system", "content": "Be kind."}, PROMPT)

    def test_a_greedy_agent_leaves_the_others_theirs(self, fake: FakeChat, new_llm: Callable[..., Llm]) -> None:
        llm = new_llm(daily_tokens_per_agent=150, max_tokens=50)
        app = asking(llm, name="greedy")

        @app.on("question")
        def modest(event: Event, context: Context) -> None:
            context.emit("answer", llm.chat(context, "Why?"))

        with Bench(app) as bench:
            for _ in range(20):
                bench.emit("payment_failed")
            bench.emit("question")
            bench.run()
            assert {letter.agent for letter in bench.letters} == {"greedy"}
            assert len(bench.facts("answer")) == 1

    def test_what_broke_off_counts_as_if_it_had_been_carried_out(
        self, fake: FakeChat, new_llm: Callable[..., Llm]
    ) -> None:
        # Given a budget for one call
        llm = new_llm(daily_tokens=200, max_tokens=50)
        fake.script(server_error(503), garbage())
        app = asking(llm)
        with Bench(app) as bench:
            bench.emit("payment_failed")
            bench.run()

            # Then the refusal cost nothing, the garbage all that it might, and there is no third try
            [letter] = bench.letters
            assert "tokens for today" in letter.error
        assert len(fake.requests) == 2

    def test_what_the_endpoint_does_not_count_is_estimated(self, fake: FakeChat, new_llm: Callable[..., Llm]) -> None:
        fake.script(uncounted())
        with Bench(asking(new_llm())) as bench:
            bench.emit("payment_failed")
            bench.run()
            [called] = bench.facts("llm.called")
        assert called.data["prompt_tokens"] > 20
        assert called.data["completion_tokens"] > 3


@pytest.mark.parametrize("wrong", [{"timeout_s": 0}, {"attempts": 0}, {"max_tokens": 0}])
def test_what_can_never_ask_is_said_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs time"):
        Llm(url="http://127.0.0.1:9", model="small", **wrong)


def tools_of(bench: Bench) -> Any:
    return bench._runners[0]._tools
