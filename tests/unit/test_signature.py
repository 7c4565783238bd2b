"""Whether a webhook is from Stripe. Signatures here are made with hashlib's own HMAC, not with the code under test."""

import hmac
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from meterctl.core.signature import WebhookEvent, WebhookRefusedError, parse_event, verify

SECRET, OLD, OTHER = "whsec_example", "whsec_old", "whsec_other"
NOW = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
T = int(NOW.timestamp())
BODY = b'{"id": "evt_1", "object": "event", "type": "invoice.paid"}'


def v1(body: bytes = BODY, secret: str = SECRET, t: int | str = T) -> str:
    return "v1=" + hmac.new(secret.encode(), f"{t}.".encode() + body, "sha256").hexdigest()


def signed(body: bytes = BODY, secret: str = SECRET, t: int | str = T) -> str:
    return f"t={t},{v1(body, secret, t)}"


def verified(
    header: str, body: bytes = BODY, secrets: Sequence[str] = (SECRET,), *, now: datetime = NOW, tolerance_s: int = 300
) -> datetime:
    return verify(body, header, secrets, now=now, tolerance=timedelta(seconds=tolerance_s))


def refusal(header: str, body: bytes = BODY, secrets: Sequence[str] = (SECRET,)) -> tuple[str, str]:
    with pytest.raises(WebhookRefusedError) as caught:
        verified(header, body, secrets)
    assert caught.value.exit_code == 65
    assert caught.value.hint
    return caught.value.code, caught.value.message


@pytest.mark.parametrize(
    "body",
    [
        BODY,
        b"",
        BODY + b"\n",
        b"\r\n" + BODY,
        '{"id": "evt_ü", "name": "日本語 \U0001f600"}'.encode(),
        b"\xff\xfe\x00 not text",
        b"%s %d %(x)s",
        b'{"x": "' + b"a" * 1_000_000 + b'"}',
    ],
    ids=["event", "empty", "line break after", "before", "not ASCII", "not text", "percent", "1 MB"],
)
def test_any_bytes_that_were_signed_are_genuine_and_those_without_their_last_are_not(body: bytes) -> None:
    assert verified(signed(body), body) == NOW
    assert refusal(signed(body), body + b" ")[0] == "no_match"
    assert not body or refusal(signed(body), body[:-1])[0] == "no_match"


def test_a_signature_of_another_instant_is_none() -> None:
    """Else a stolen request could be given a new time."""
    assert refusal(f"t={T + 1},{v1()}")[0] == "no_match"


@pytest.mark.parametrize(
    ("secrets", "header"),
    [
        ((SECRET, OLD), signed(secret=SECRET)),
        ((SECRET, OLD), signed(secret=OLD)),
        ((OTHER,) * 9 + (OLD,), signed(secret=OLD)),
        ((SECRET,), f"t={T},{v1(secret=OLD)},{v1(secret=SECRET)}"),
        ((SECRET,), f"t={T},{v1(secret=SECRET)},{v1(secret=OLD)}"),
        ((OTHER, SECRET), f"t={T},{v1(secret=OLD)},{v1(secret=SECRET)},v0={'0' * 64}"),
        ((SECRET,), f"{v1()},t={T}"),
        ((SECRET,), f"v9=x,t={T},anything,{v1()},"),
    ],
)
def test_one_signature_with_one_of_the_secrets_is_enough(secrets: Sequence[str], header: str) -> None:
    assert verified(header, secrets=secrets) == NOW


@pytest.mark.parametrize(
    ("secrets", "message"),
    [
        ((OTHER,), "no v1 signature matches the secret"),
        ((OTHER, OLD), "no v1 signature matches any of the 2 secrets"),
        ((SECRET.upper(),), "no v1 signature matches the secret"),
        ((SECRET.removeprefix("whsec_"),), "no v1 signature matches the secret"),
    ],
)
def test_other_secrets_are_said_not_to_match_and_are_not_shown(secrets: Sequence[str], message: str) -> None:
    assert refusal(signed(), secrets=secrets) == ("no_match", message)


@pytest.mark.parametrize(
    ("offset_s", "tolerance_s", "code"),
    [
        (-300, 300, None),
        (-301, 300, "too_old"),
        (300, 300, None),
        (301, 300, "in_future"),
        (-3600, 3600, None),
        (-2, 1, "too_old"),
        (2, 1, "in_future"),
    ],
)
def test_a_signature_may_be_off_by_the_tolerance_either_way(offset_s: int, tolerance_s: int, code: str | None) -> None:
    """Of a future one the real age is not known; it could be used again until its time has come and gone."""
    header = signed(t=T + offset_s)
    if code is None:
        assert verified(header, tolerance_s=tolerance_s) == NOW + timedelta(seconds=offset_s)
        return
    with pytest.raises(WebhookRefusedError, match=f"{abs(offset_s)} s .*more than the {tolerance_s} s") as caught:
        verified(header, tolerance_s=tolerance_s)
    assert caught.value.code == code


@pytest.mark.parametrize(("micros", "code"), [(300_000_001, "too_old"), (-300_000_001, "in_future")])
def test_a_little_too_much_is_too_much_and_does_not_look_like_just_enough(micros: int, code: str) -> None:
    with pytest.raises(WebhookRefusedError, match=r"301 s .*more than the 300 s allowed") as caught:
        verified(signed(), now=NOW + timedelta(microseconds=micros))
    assert caught.value.code == code


def test_a_forgery_is_not_told_that_only_its_time_is_wrong() -> None:
    assert refusal(signed(secret=OTHER, t=T - 9999))[0] == "no_match"


HEX = v1().removeprefix("v1=")


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        (",", "has no t"),
        (v1(), "has no t"),
        (f"T={T},{v1()}", "has no t"),
        (f"Stripe-Signature: t={T},{v1()}", "has no t"),
        (f"t={T},{signed()}", "has more than one t"),
        (f"t={T},t={T + 1},{v1()}", "has more than one t"),
        (f"t={'9' * 5000},{v1()}", "has a t that is no Unix time in whole seconds"),
        *(
            (f"t={t},{v1(t=t)}", "has a t that is no Unix time in whole seconds")
            for t in ("", "0", f"0{T}", f" {T}", f"+{T}", f"-{T}", f"{T}.0", "1_000", "٣", "²", "now", "9" * 12)
        ),
        (f"t={T}", "has no v1 signature; a v0 proves nothing"),
        (f"t={T},v0={HEX}", "has no v1 signature; a v0 proves nothing"),
        (f"t={T}, v1={HEX}", "has no v1 signature; a v0 proves nothing"),
        (f"t={T},V1={HEX}", "has no v1 signature; a v0 proves nothing"),
        *(
            (f"t={T},{part}", "has a v1 that is not 64 hexadecimal digits")
            for part in (
                "v1",
                "v1=",
                f"v1={HEX[:-1]}",
                f"v1={HEX}0",
                f"v1={HEX}\n",
                f"v1={HEX}=",
                f"v1={HEX.upper()}",
                f"v1={'é' * 64}",
                "v1=" + "\udcff" * 64,
                f"v1=,v1={HEX}",
                f"v1={HEX},v1",
            )
        ),
    ],
)
def test_a_malformed_header_is_named_as_such(header: str, what: str) -> None:
    assert refusal(header) == ("malformed_header", f"the Stripe-Signature header {what}")


def test_the_latest_time_that_can_be_written_is_still_an_instant() -> None:
    assert refusal(signed(t=99_999_999_999))[0] == "in_future"


@pytest.mark.parametrize("kind", ["event", "v2.core.event"])
def test_snapshots_and_thin_events_are_read(kind: str) -> None:
    document = {"id": "evt_1", "object": kind, "type": "v1.billing.meter.no_meter_found", "livemode": False, "data": {}}
    expected = WebhookEvent(id="evt_1", type="v1.billing.meter.no_meter_found", object=kind)
    assert parse_event(json.dumps(document).encode()) == expected


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"", "is empty"),
        (b"{", "is not JSON in UTF-8"),
        (b"\xff", "is not JSON in UTF-8"),
        ('{"id": "é"}'.encode("utf-16"), "is not JSON in UTF-8"),
        (b"[" * 100_000, "is not JSON in UTF-8"),
        (b"[]", "is no object of the kind"),
        (b"null", "is no object of the kind"),
        (b"{}", "is no object of the kind"),
        (b'{"id": "cus_1", "object": "customer", "type": "x"}', "is no object of the kind"),
        (b'{"id": "evt_1", "object": ["event"], "type": "x"}', "is no object of the kind"),
        (b'{"object": "event", "type": "x"}', "has no id or no type"),
        (b'{"id": 1, "object": "event", "type": "x"}', "has no id or no type"),
        (b'{"id": "evt_1", "object": "event", "type": ""}', "has no id or no type"),
    ],
)
def test_what_is_signed_but_no_event_is_refused(body: bytes, what: str) -> None:
    with pytest.raises(WebhookRefusedError) as caught:
        parse_event(body)
    assert caught.value.code == "no_event"
    assert what in caught.value.message
