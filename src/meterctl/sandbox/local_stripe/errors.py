"""Refusals in the words of Stripe's v1 API, and in the shapes of v1 and v2.

The wording of duplicates, old timestamps and digits was seen on the wire; other texts are in Stripe's manner, and a
client should not depend on them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorBody:
    """What an error answer says; `headers` go out beside it."""

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def document(self, *, log_url: str) -> dict[str, object]:
        """Return the JSON body; `code` and `param` only where there are any, as Stripe does."""
        error: dict[str, object] = {"message": self.message, "request_log_url": log_url, "type": self.type}
        if self.code is not None:
            error["code"] = self.code
            error["doc_url"] = f"https://stripe.com/docs/error-codes/{self.code.replace('_', '-')}"
        if self.param is not None:
            error["param"] = self.param
        return {"error": error}

    def document_v2(self) -> dict[str, object]:
        """Return the JSON body as v2 has it: always with a code."""
        code = "not_found" if self.status == HTTPStatus.NOT_FOUND else self.code or self.type
        return {"error": {"code": code, "message": self.message, "type": self.type}}


class Refusal(Exception):  # noqa: N818  # it is an expected answer of the API on its way out, not an error of ours
    """Ends the handling of a request with an error answer."""

    def __init__(self, body: ErrorBody) -> None:
        super().__init__(body.message)
        self.body = body


def invalid(message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> Refusal:
    """Return an `invalid_request_error`."""
    return Refusal(ErrorBody(status=status, message=message, param=param, code=code))


def missing_param(param: str) -> Refusal:
    """Return the refusal of a request that lacks a required parameter."""
    return invalid(f"Missing required param: {param}.", param=param, code="parameter_missing")


def unknown_param(param: str) -> Refusal:
    """Return the refusal of a parameter the call does not have."""
    return invalid(f"Received unknown parameter: {param}", param=param, code="parameter_unknown")


def no_such(what: str, object_id: str, *, param: str, status: int = 400) -> Refusal:
    """Return `No such customer: 'cus_…'` and the like; 404 where the id is in the path, 400 in a parameter."""
    return invalid(f"No such {what}: '{object_id}'", param=param, code="resource_missing", status=status)


def duplicate_identifier(identifier: str) -> Refusal:
    """Return the refusal of a repeated identifier: no code, and a header that tells the SDK not to retry."""
    message = f"An event already exists with identifier {identifier}."
    return Refusal(ErrorBody(status=400, message=message, headers={"stripe-should-retry": "false"}))


def unauthorized(message: str) -> Refusal:
    """Return a 401."""
    return Refusal(ErrorBody(status=401, message=message, headers={"WWW-Authenticate": 'Bearer realm="Stripe"'}))


def forbidden(message: str) -> Refusal:
    """Return a 403."""
    return invalid(message, status=403)


def idempotency_mismatch(key: str) -> Refusal:
    """Return the refusal of a key that came before with other parameters."""
    message = (
        "Keys for idempotent requests can only be used with the same parameters they were first used with. "
        f"Try using a key other than '{key}' if you meant to execute a different request."
    )
    return Refusal(ErrorBody(status=400, message=message, type="idempotency_error"))


def idempotency_in_use(key: str) -> Refusal:
    """Return the refusal of a key whose first request is still running."""
    message = f"There is currently another in-progress request using this idempotency key: {key}. Try again later."
    return Refusal(ErrorBody(status=409, message=message, type="idempotency_error", code="idempotency_key_in_use"))


def rate_limited(reason: str) -> Refusal:
    """Return a 429 of the rate limiter."""
    message = "Request rate limit exceeded. Learn more about rate limits here https://stripe.com/docs/rate-limits."
    headers = {"Stripe-Rate-Limited-Reason": reason}
    return Refusal(ErrorBody(status=429, message=message, code="rate_limit", headers=headers))


def lock_timeout() -> Refusal:
    """Return the 429 of an object that another call holds."""
    message = (
        "This object cannot be accessed right now because another API request or Stripe process is currently "
        "accessing it. If you see this error intermittently, retry the request."
    )
    headers = {"stripe-should-retry": "true"}
    return Refusal(ErrorBody(status=429, message=message, code="lock_timeout", headers=headers))


def unknown_url(method: str, path: str) -> Refusal:
    """Return the 404 of a path the API does not have."""
    return invalid(f"Unrecognized request URL ({method}: {path}).", status=404)
