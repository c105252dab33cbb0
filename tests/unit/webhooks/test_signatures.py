"""Who sent a delivery is proven by its signature, and by nothing else."""

from __future__ import annotations

import random

import pytest

from cdc_agent.errors import ConfigError, WebhookRefused
from cdc_agent.webhooks.signatures import check_standard_secret, verify_hex, verify_standard, verify_stripe
from tests.support import senders

NOW_S = 1_614_265_330.0
BODY = b'{"test": 2432232314}'


# -- what the senders publish ----------------------------------------------------------------------------------------


def test_the_example_of_githubs_documentation_is_right() -> None:
    # https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries
    verify_hex(
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
        b"Hello, World!",
        ["It's a Secret to Everybody"],
    )


def test_the_example_of_the_standard_webhooks_specification_is_right() -> None:
    # https://github.com/standard-webhooks/standard-webhooks: the vector that its libraries are tested with
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }

    found = verify_standard(headers, BODY, ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], NOW_S)

    assert found == "msg_p5jXN8AQM9LWM0D4loKWxJek"


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [None, "", "sha256", "sha256=", "sha1=abc", "SHA256=abc", "sha256=é", "sha256=\udc80", "=", "sha256==", "a" * 9000],
)
@pytest.mark.fault("webhook-malformed")
def test_a_header_that_is_no_signature_is_refused(header: str | None) -> None:
    with pytest.raises(WebhookRefused):
        verify_hex(header, BODY, ["secret"])


@pytest.mark.fault("webhook-forged")
def test_without_a_secret_nothing_is_right() -> None:
    headers, body = senders.github({}, "")

    with pytest.raises(WebhookRefused, match="no secret"):
        verify_hex(headers["X-Hub-Signature-256"], body, [])


def test_while_keys_rotate_both_are_right_and_no_other() -> None:
    for used, known in (("new", True), ("old", True), ("older", False)):
        headers, body = senders.stripe({"id": 1}, used, NOW_S)
        if known:
            verify_stripe(headers["Stripe-Signature"], body, ["new", "old"], NOW_S)
        else:
            with pytest.raises(WebhookRefused):
                verify_stripe(headers["Stripe-Signature"], body, ["new", "old"], NOW_S)


@pytest.mark.parametrize(("away_s", "taken"), [(-301, False), (-300, True), (0, True), (300, True), (301, False)])
@pytest.mark.fault("webhook-replayed")
def test_a_delivery_of_another_time_is_refused(away_s: float, taken: bool) -> None:
    stripe_headers, body = senders.stripe({}, "secret", NOW_S + away_s)
    standard_headers, _ = senders.standard({}, senders.STANDARD_SECRET, NOW_S + away_s)

    for verify in (
        lambda: verify_stripe(stripe_headers["Stripe-Signature"], body, ["secret"], NOW_S),
        lambda: verify_standard(standard_headers, body, [senders.STANDARD_SECRET], NOW_S),
    ):
        if taken:
            verify()
        else:
            with pytest.raises(WebhookRefused, match="300 s"):
                verify()


@pytest.mark.parametrize(
    "seconds", ["", "1.5", "1_614_265_330", " 1614265330", "+1614265330", "1614265330e0", "١٦١", "9" * 13]
)
def test_a_time_that_is_not_written_in_digits_is_refused(seconds: str) -> None:
    # Given a delivery whose signature would be right for that text
    headers, body = senders.standard({}, senders.STANDARD_SECRET, NOW_S)

    with pytest.raises(WebhookRefused, match="seconds"):
        verify_standard({**headers, "webhook-timestamp": seconds}, body, [senders.STANDARD_SECRET], NOW_S)


def test_several_signatures_are_tried_but_not_any_number() -> None:
    headers, body = senders.standard({}, senders.STANDARD_SECRET, NOW_S)
    right = headers["webhook-signature"]

    some = {**headers, "webhook-signature": f"v1,wrong v1a,other {right}"}
    many = {**headers, "webhook-signature": " ".join(["v1,wrong"] * 10 + [right])}

    assert verify_standard(some, body, [senders.STANDARD_SECRET], NOW_S) == "msg_1"
    with pytest.raises(WebhookRefused, match="too many"):
        verify_standard(many, body, [senders.STANDARD_SECRET], NOW_S)


def test_of_stripes_times_there_may_be_only_one() -> None:
    headers, body = senders.stripe({}, "secret", NOW_S)

    with pytest.raises(WebhookRefused, match="no time"):
        verify_stripe(f"t=1,{headers['Stripe-Signature']}", body, ["secret"], NOW_S)


@pytest.mark.parametrize("secret", ["", "whsec_", "secret", "whsec_!!!", "whsec_" + "QUJD" * 5, "whsec_" + "QUJD" * 22])
def test_a_key_that_standard_webhooks_does_not_know_is_refused(secret: str) -> None:
    with pytest.raises(ConfigError, match="24 to 64"):
        check_standard_secret(secret)


# -- whatever comes --------------------------------------------------------------------------------------------------


@pytest.mark.fault("webhook-malformed", "webhook-forged")
def test_no_change_of_a_delivery_is_taken_and_none_breaks_us() -> None:
    """A hundred thousand of them, seeded."""
    rng = random.Random(4711)
    headers, body = senders.standard({"a": "b" * 20}, senders.STANDARD_SECRET, NOW_S)
    stripe_headers, _ = senders.stripe({"a": "b" * 20}, "secret", NOW_S)
    github_headers, _ = senders.github({"a": "b" * 20}, "secret")
    cases = [
        (headers, lambda h, b: verify_standard(h, b, [senders.STANDARD_SECRET], NOW_S)),
        (stripe_headers, lambda h, b: verify_stripe(h["Stripe-Signature"], b, ["secret"], NOW_S)),
        (github_headers, lambda h, b: verify_hex(h["X-Hub-Signature-256"], b, ["secret"])),
    ]
    signed = ("webhook-id", "webhook-timestamp", "webhook-signature", "Stripe-Signature", "X-Hub-Signature-256")

    taken = []
    for turn in range(100_000):
        original, verify = cases[turn % len(cases)]
        changed, other = dict(original), bytearray(body)
        name = rng.choice([name for name in original if name in signed])
        if rng.random() < 0.3:
            other[rng.randrange(len(other))] ^= 1 << rng.randrange(8)
        else:
            changed[name] = _mutated(rng, changed[name])
        if changed == original and bytes(other) == body:
            continue
        try:
            verify(changed, bytes(other))
        except WebhookRefused:
            continue
        taken.append(changed)

    assert [case for case in taken if not _says_the_same(case)] == []


def _mutated(rng: random.Random, text: str) -> str:
    place = rng.randrange(len(text))
    piece = "".join(rng.choice("0123456789abcdef=,. v1+/\x00é\udc80") for _ in range(rng.randrange(4)))
    return text[:place] + piece + text[place + rng.randrange(3) :]


def _says_the_same(headers: dict[str, str]) -> bool:
    """Parts that are not signed may be anything: more signatures, other versions, blanks between Stripe's parts."""
    right = senders.stripe({"a": "b" * 20}, "secret", NOW_S)[0]["Stripe-Signature"].partition(",v1=")[2]
    standard = senders.standard({"a": "b" * 20}, senders.STANDARD_SECRET, NOW_S)[0]["webhook-signature"]
    return right in headers.get("Stripe-Signature", "") or standard in headers.get("webhook-signature", "").split(" ")
