"""``Llm``: a question to a model from within a handler, with a time, a budget, and a fact that records it."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cdc_agent.embedding.openai import estimate_tokens
from cdc_agent.errors import ConfigError, LlmError, LlmUnavailable
from cdc_agent.events import Event
from cdc_agent.llm.budget import Budget
from cdc_agent.llm.endpoint import Answer, Endpoint
from cdc_agent.reactions.context import Context
from cdc_agent.retry import Backoff

__all__ = ["CALLED", "Llm"]

#: The type of the fact that records a call.
CALLED = "llm.called"
#: What a message costs beside its words, generously.
_TOKENS_PER_MESSAGE = 8


class Llm:
    """A model behind an OpenAI-compatible endpoint, for handlers of agents::

        llm = Llm(url="http://127.0.0.1:11434/v1", model="llama3.2", daily_tokens=200_000)

        @app.on("payment_failed")
        def word_it(event, context):
            text = llm.chat(context, {"role": "system", "content": "Two friendly sentences."}, event.data["why"])

    ``timeout_s`` is for one ``chat``, tries and waits together; keep it below the agent's own. The key is read from
    ``api_key_file``, or from the variable ``api_key_env``, at every call. ``daily_tokens`` is for all agents together,
    ``daily_tokens_per_agent`` for each; ``name`` (the model's unless given) is whose budget that is. ``options`` go
    into every request (``{"temperature": 0}``). ``record_prompts`` puts messages and answer into the fact, too.
    """

    def __init__(
        self,
        *,
        url: str,
        model: str,
        name: str = "",
        api_key_file: str | Path | None = None,
        api_key_env: str = "",
        timeout_s: float = 30.0,
        attempts: int = 3,
        max_tokens: int = 512,
        daily_tokens: int | None = None,
        daily_tokens_per_agent: int | None = None,
        options: Mapping[str, Any] | None = None,
        record_prompts: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if timeout_s <= 0 or attempts < 1 or max_tokens < 1:
            raise ConfigError(
                "a model needs time, an attempt and a token", hint="timeout_s above 0, attempts and max_tokens from 1"
            )
        self.name = name or model
        self.model = model
        self._key_file = Path(api_key_file) if api_key_file else None
        self._key_env = api_key_env
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._max_tokens = max_tokens
        self._record_prompts = record_prompts
        self._clock = clock
        self._sleep = sleep
        self._backoff = Backoff(initial_s=0.5, maximum_s=8.0)
        self._endpoint = Endpoint(url, model, api_key=self._key, options=options)
        self._budget = Budget(self.name, daily_tokens=daily_tokens, daily_tokens_per_agent=daily_tokens_per_agent)

    def chat(self, context: Context, *messages: str | Mapping[str, Any], max_tokens: int | None = None) -> str:
        """What the model says to these messages; a plain text is the user's. The call is recorded as a fact
        (``llm.called``) when the handler ends well.

        Raises ``BudgetSpent`` without having asked, ``LlmUnavailable`` when the endpoint does not answer in time (the
        event is then tried again, after the time that it asked for), ``LlmError`` for what another try will not mend.
        In a coroutine: ``await asyncio.to_thread(llm.chat, context, …)``.
        """
        asked = [{"role": "user", "content": m} if isinstance(m, str) else dict(m) for m in messages]
        written = json.dumps(asked, sort_keys=True)
        most = max_tokens or self._max_tokens
        prompt_tokens = estimate_tokens(written) + _TOKENS_PER_MESSAGE * len(asked)
        began = self._clock()
        answer, attempts = self._asked(context, asked, most, prompt_tokens)
        if not answer.text:
            raise LlmError(
                f"the model said nothing (finish_reason {answer.finish_reason or 'unknown'})",
                hint="it may need more max_tokens, or refuse the request",
            )
        self._record(context, answer, asked, written, self._clock() - began, attempts)
        return answer.text

    def close(self) -> None:
        """Let go of its connections."""
        self._endpoint.close()

    def _asked(
        self, context: Context, messages: list[dict[str, Any]], max_tokens: int, prompt_tokens: int
    ) -> tuple[Answer, int]:
        """The answer with all its token counts, and how often it was asked for."""
        deadline = self._clock() + self._timeout_s
        for attempt in range(1, self._attempts + 1):
            try:
                return self._once(context, messages, max_tokens, prompt_tokens, deadline), attempt
            except LlmUnavailable as exc:
                delay_s = self._backoff.delay_s(attempt, exc.retry_after_s)
                if attempt == self._attempts or self._clock() + delay_s >= deadline:
                    raise
                self._sleep(delay_s)
        raise AssertionError("there is at least one attempt")

    def _once(
        self, context: Context, messages: list[dict[str, Any]], max_tokens: int, prompt_tokens: int, deadline: float
    ) -> Answer:
        most = prompt_tokens + max_tokens
        day = self._budget.reserve(context.agent, most, context.now(), lambda since: _calls(context, since))
        used = 0
        try:
            answer = self._endpoint.ask(messages, max_tokens=max_tokens, timeout_s=max(0.001, deadline - self._clock()))
            answer = _counted(answer, prompt_tokens)
            used = (answer.prompt_tokens or 0) + (answer.completion_tokens or 0)
            return answer
        except LlmUnavailable as exc:
            # Nobody tells what a call cost that broke off.
            used = most if exc.billed else 0
            raise
        finally:
            self._budget.settle(context.agent, day, most, used)

    def _record(
        self,
        context: Context,
        answer: Answer,
        messages: list[dict[str, Any]],
        written: str,
        seconds: float,
        attempts: int,
    ) -> None:
        fact: dict[str, Any] = {
            "llm": self.name,
            "model": self.model,
            "agent": context.agent,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "finish_reason": answer.finish_reason,
            "seconds": round(seconds, 3),
            "attempts": attempts,
            "prompt_sha256": hashlib.sha256(written.encode()).hexdigest(),
        }
        if self._record_prompts:
            fact |= {"messages": messages, "answer": answer.text}
        context.emit(CALLED, fact)

    def _key(self) -> str | None:
        if self._key_file is not None:
            try:
                return self._key_file.read_text().strip()
            except OSError as exc:
                raise LlmError(f"the key cannot be read: {exc.strerror}", hint=f"see {self._key_file}") from exc
        if not self._key_env:
            return None
        if not (key := os.environ.get(self._key_env)):
            raise LlmError(f"{self._key_env} is not set", hint="it is to hold the key of the chat endpoint")
        return key


def _calls(context: Context, since: dt.datetime) -> Iterator[Event]:
    return context.facts(CALLED, since=since)


def _counted(answer: Answer, prompt_tokens: int) -> Answer:
    """With an over-estimate where the endpoint did not count."""
    return Answer(
        text=answer.text,
        finish_reason=answer.finish_reason,
        prompt_tokens=prompt_tokens if answer.prompt_tokens is None else answer.prompt_tokens,
        completion_tokens=estimate_tokens(answer.text)
        if answer.completion_tokens is None
        else answer.completion_tokens,
    )
