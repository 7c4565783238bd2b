"""Answers against Stripe's published OpenAPI description, where a copy lies beside the repository."""

import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from meterctl.sandbox.local_stripe import LocalStripe, RelatedObject

DESCRIPTION = Path(__file__).parents[2] / ".." / "shared" / "reference" / "stripe-openapi-meters.json"

NOON_S = 1_795_262_400

TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "array": list,
}


@pytest.fixture(scope="module")
def description() -> Any:
    if not DESCRIPTION.exists():
        pytest.skip("no copy of Stripe's OpenAPI description beside the repository")
    return json.loads(DESCRIPTION.read_text())


def call(server: LocalStripe, method: str, path: str, params: dict[str, str]) -> tuple[int, Any]:
    form = urllib.parse.urlencode(params)
    url = f"{server.url}{path}" if method == "POST" else f"{server.url}{path}?{form}"
    body = form.encode() if method == "POST" else None
    request = urllib.request.Request(url, data=body, method=method)  # noqa: S310  # our own server
    request.add_header("Authorization", f"Bearer {server.api_key}")
    request.add_header("Stripe-Version", "2026-10-28.endive")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def assert_fits(document: Any, schema: dict[str, Any], description: Any, where: str) -> None:
    """Check presence, type and choice of what the schema declares, and that nothing undeclared is sent."""
    while "$ref" in schema:
        schema = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema or "x-cut" in schema:
        return
    if document is None:
        assert schema.get("nullable"), f"{where} is null"
        return
    assert isinstance(document, TYPES[schema["type"]]), f"{where} is {document!r}"
    assert document in schema.get("enum", [document]), f"{where} is {document!r}"
    if schema["type"] == "object" and "properties" in schema:
        missing = set(schema.get("required", ())) - set(document)
        assert not missing, f"{where} lacks {missing}"
        undeclared = set(document) - set(schema["properties"])
        assert not undeclared, f"{where} has {undeclared}"
        for name, value in document.items():
            assert_fits(value, schema["properties"][name], description, f"{where}.{name}")
    for number, item in enumerate(document if schema["type"] == "array" else ()):
        assert_fits(item, schema["items"], description, f"{where}[{number}]")


METER = {"display_name": "Calls", "event_name": "calls", "default_aggregation[formula]": "count"}
EVENT = {"event_name": "ai_suggestion", "payload[stripe_customer_id]": "cus_known", "payload[value]": "1.5"}
DAY = {"customer": "cus_known", "start_time": str(NOON_S - 43200), "end_time": str(NOON_S + 43200)}


@pytest.mark.parametrize(
    ("method", "template", "params", "status"),
    [
        ("GET", "/v1/customers/{customer}", {}, 200),
        ("GET", "/v1/customers/{customer}", {"colour": "red"}, 400),
        ("POST", "/v1/billing/meters", METER, 200),
        ("POST", "/v1/billing/meters", {}, 400),
        ("GET", "/v1/billing/meters", {}, 200),
        ("GET", "/v1/billing/meters/{id}", {}, 200),
        ("POST", "/v1/billing/meters/{id}/deactivate", {}, 200),
        ("POST", "/v1/billing/meters/{id}/reactivate", {}, 400),
        ("POST", "/v1/billing/meter_events", EVENT, 200),
        ("POST", "/v1/billing/meter_events", {**EVENT, "payload[value]": "NaN"}, 400),
        ("POST", "/v1/billing/meter_events", {**EVENT, "payload[stripe_customer_id]": "cus_nobody"}, 400),
        ("GET", "/v1/billing/meters/{id}/event_summaries", DAY, 200),
        ("GET", "/v1/billing/meters/{id}/event_summaries", {**DAY, "value_grouping_window": "hour"}, 200),
    ],
)
def test_answers_have_the_published_shape(
    frozen: LocalStripe, description: Any, method: str, template: str, params: dict[str, str], status: int
) -> None:
    call(frozen, "POST", "/v1/billing/meter_events", EVENT)
    path = template.replace("{customer}", "cus_known").replace("{id}", frozen.meters()[0].id)
    answered, document = call(frozen, method, path, params)
    assert answered == status
    responses = description["paths"][template][method.lower()]["responses"]
    schema = responses.get(str(status), responses["default"])["content"]["application/json"]["schema"]
    assert_fits(document, schema, description, template)


def test_prices_have_the_published_shape(frozen: LocalStripe, description: Any) -> None:
    """The copy describes the objects, not the calls."""
    frozen.create_price(frozen.meters()[0].id)
    plain = {"currency": "usd", "unit_amount": "5", "product": "prod_known"}
    assert call(frozen, "POST", "/v1/prices", plain)[0] == 200
    status, page = call(frozen, "GET", "/v1/prices", {})
    assert (status, page["object"], page["url"], len(page["data"])) == (200, "list", "/v1/prices", 2)
    schemas = description["components"]["schemas"]
    for price in page["data"]:
        assert_fits(price, schemas["price"], description, "price")
    (metered,) = (price for price in page["data"] if price["recurring"])
    assert_fits(metered["recurring"], schemas["recurring"], description, "recurring")


def test_events_carry_objects_of_the_published_shape(frozen: LocalStripe, description: Any) -> None:
    subscription_id = frozen.create_subscription("cus_known")
    frozen.end_subscription(subscription_id)
    frozen.fail_invoice(subscription_id)
    status, page = call(frozen, "GET", "/v1/events", {"created[gte]": "0"})
    assert status == 200
    published = description["paths"]["/v1/events"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert_fits(page, published, description, "events")
    assert call(frozen, "GET", f"/v1/events/{page['data'][0]['id']}", {}) == (200, page["data"][0])
    for event in page["data"]:
        document = event["data"]["object"]
        assert_fits(document, description["components"]["schemas"][document["object"]], description, event["type"])


@pytest.mark.parametrize("with_data", [False, True])
def test_thin_events_have_the_published_shape(frozen: LocalStripe, description: Any, with_data: bool) -> None:  # noqa: FBT001  # a case
    frozen.set_options(v2_list_has_data=with_data)
    related = RelatedObject(id="mtr_7", type="billing.meter", url="/v1/billing/meters/mtr_7")
    for _ in range(2):
        event_id = frozen.emit_thin("v1.billing.meter.error_report_triggered", {"reason": {}}, related=related)
    answers = description["paths"]["/v2/core/events"]["get"]["responses"]
    for params in ({}, {"limit": "1"}):
        page = call(frozen, "GET", "/v2/core/events", params)[1]
        assert_fits(page, answers["200"]["content"]["application/json"]["schema"], description, "page")
    schemas = description["components"]["schemas"]
    assert_fits(
        call(frozen, "GET", f"/v2/core/events/{event_id}", {})[1], schemas["v2.core.event"], description, "event"
    )
    assert_fits(call(frozen, "GET", "/v2/core/events", {"limit": "0"})[1], schemas["v2.error"], description, "error")
    missing = call(frozen, "GET", "/v2/core/events/evt_nobody", {})[1]
    assert missing["error"].pop("type") == "invalid_request_error"  # the copy declares it for other errors alone
    assert_fits(missing, schemas["v2.error.not_found"], description, "not_found")


def test_parameters_are_the_published_ones(description: Any) -> None:
    """What the local Stripe takes, required or not, is what Stripe takes."""
    from meterctl.sandbox.local_stripe.routes import OPERATIONS  # noqa: PLC0415  # the table under test, of no other use

    for operation in OPERATIONS:
        published = description["paths"].get(operation.path, {}).get(operation.method.lower())
        if published is None or operation.path.startswith("/v1/customers"):
            continue
        form = published.get("requestBody", {}).get("content", {}).get("application/x-www-form-urlencoded", {})
        declared = set(form.get("schema", {}).get("properties", {}))
        declared |= {param["name"] for param in published.get("parameters", ()) if param["in"] == "query"}
        assert set(operation.shape) == declared, operation.name
