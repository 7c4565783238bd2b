"""Our verdict on a webhook beside that of Stripe's own library: the same, but for the differences listed here."""

import hmac
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import freezegun
import stripe

from meterctl.core.signature import WebhookRefusedError, verify

NOW = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
T = int(NOW.timestamp())
SECRETS = ("whsec_new", "whsec_old")
TOLERANCE_S = 300
CASES = 20_000
NO_TEXT = b"\xff{}"

TAKEN_BY_THEM_ALONE = {
    "in_future": "they do not mind a time in the future",
    "has more than one t": "they take the first t",
    "has a t that is no Unix time in whole seconds": "they read 01, +1, ' 1', 1_0 and ٣ as numbers, of any length",
    "has a v1 that is not 64 hexadecimal digits": "they cut a v1 at its second =, and mind no bad v1 after a good one",
}
"""Why we refuse what Stripe's library takes, and how the two differ there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A request, and the secrets that it may have been signed with."""

    body: bytes
    header: str
    secrets: Sequence[str]


def made(seed: int) -> Case:
    """Return a request that is mostly right, so that each thing wrong with it is often the only one."""
    chance = random.Random(seed)  # noqa: S311 -- a seed, not a secret
    body = chance.choice((b"", b"{}", b"{} \n", '{"é": "日本"}'.encode(), NO_TEXT))
    t = T + chance.choice((0, 0, 0, 1, -1, 300, -300, 301, -301, -(10**6), 10**6, 10**11))
    written = chance.choice(
        (f"{t}",) * 9 + (f"0{t}", f" {t}", f"+{t}", f"{t}.0", f"{t:_}", f"{t}".replace("3", "٣"), "")
    )
    parts = [f"t={written}", *(_signature(chance, body, t) for _ in range(chance.choice((1, 1, 2, 3))))]
    if chance.random() < 0.3:
        parts.append(chance.choice((f"t={t}", f"t={t - 1}", "t", "v0=" + "0" * 64, "v2=x", "", " ", "x")))
    if chance.random() < 0.1:
        parts.pop(chance.randrange(len(parts)))
    if chance.random() < 0.3:
        chance.shuffle(parts)
    separator = chance.choice((",",) * 19 + (", ",))
    return Case(body=body, header=separator.join(parts), secrets=SECRETS[: chance.choice((1, 2))])


def _signature(chance: random.Random, body: bytes, t: int) -> str:
    """Return a v1 made with some secret, or something near."""
    secret = chance.choice((*SECRETS, "whsec_other"))
    value = hmac.new(secret.encode(), f"{t}.".encode() + body, "sha256").hexdigest()
    near = ("v1", "v1=", f"v1={value[:-1]}", f"v1={value}=x", f"v1={value.upper()}", f"v1={value} ", "v1=" + "é" * 64)
    others = (*near, f"v0={value}", f" v1={value}", f"V1={value}")
    return chance.choice(others) if chance.random() < 0.2 else f"v1={value}"


def ours(case: Case) -> str:
    try:
        verify(case.body, case.header, case.secrets, now=NOW, tolerance=timedelta(seconds=TOLERANCE_S))
    except WebhookRefusedError as refusal:
        malformed = refusal.code == "malformed_header"
        return refusal.message.removeprefix("the Stripe-Signature header ") if malformed else refusal.code
    return "taken"


def theirs(case: Case) -> bool:
    """Their function knows one secret: asked for each, a request is taken if one is right."""
    return any(_taken_by_them(case, secret) for secret in case.secrets)


def _taken_by_them(case: Case, secret: str) -> bool:
    """Beside their own error, text beyond ASCII in a v1 and bytes that are no text let them end with Python's."""
    try:
        stripe.WebhookSignature.verify_header(case.body, case.header, secret, TOLERANCE_S)
    except (stripe.SignatureVerificationError, TypeError, UnicodeDecodeError):
        return False
    return True


def test_the_verdicts_differ_only_where_it_is_known() -> None:
    """What we take they take, unless its body is no text; what they take we take, but for the reasons above."""
    seen: Counter[tuple[str, bool]] = Counter()
    with freezegun.freeze_time(NOW):
        for seed in range(CASES):
            case = made(seed)
            verdict, taken_by_them = ours(case), theirs(case)
            seen[verdict, taken_by_them] += 1
            if verdict == "taken":
                assert taken_by_them or NO_TEXT in case.body, f"seed {seed}: {case}"
            else:
                assert not taken_by_them or verdict in TAKEN_BY_THEM_ALONE, f"seed {seed}: {verdict}: {case}"
    assert {verdict for verdict, taken in seen if taken} == {"taken", *TAKEN_BY_THEM_ALONE}  # each difference is real
    assert {"taken", "no_match", "too_old"} <= {verdict for verdict, taken in seen if not taken}
