"""The configured meters beside Stripe's: there, active, of the same kind, and priced."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from meterctl.core.diagnosis import Finding, failed, passed, warned
from meterctl.core.meter_check import StripeMeter, WantedMeter, chosen, faults_of
from meterctl.errors import MeterctlError, NotPermittedError
from meterctl.ports import MeterCatalog
from meterctl.settings import GaugeMeter, MeterSettings
from meterctl.settings.problems import did_you_mean


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedMeter:
    """A configured meter, the one that Stripe has, and what is to be said of both. `is_priced` None: not known."""

    key: str
    event_name: str
    source: str
    found: StripeMeter | None
    is_priced: bool | None
    findings: tuple[Finding, ...]

    @property
    def named_findings(self) -> list[Finding]:
        """The findings with the meter's name before them."""
        return [replace(finding, message=f"{self.event_name}: {finding.message}") for finding in self.findings]


def check_meters(
    meters: Mapping[str, MeterSettings], catalog: MeterCatalog, *, livemode: bool
) -> Iterator[CheckedMeter]:
    """Compare each meter. Raises the MeterctlError of a Stripe that does not list its meters."""
    listed = catalog.meters()
    for key, meter in meters.items():
        found = chosen(meter.event_name, listed)
        if found is None:
            is_priced, findings = None, [_missing(meter, listed, livemode=livemode)]
        else:
            is_priced, price_findings = _priced(found, catalog)
            findings = [*faults_of(found, _wanted(meter, livemode=livemode)), *price_findings]
            findings = findings or [passed(f"{found.id} is active, formula {found.formula}, and has a price")]
        yield CheckedMeter(
            key=key,
            event_name=meter.event_name,
            source=meter.source,
            found=found,
            is_priced=is_priced,
            findings=tuple(findings),
        )


def _wanted(meter: MeterSettings, *, livemode: bool) -> WantedMeter:
    return WantedMeter(
        event_name=meter.event_name,
        formula=meter.formula,
        customer_key=meter.customer_payload_key,
        value_key=meter.value_payload_key,
        every_event_counts=not isinstance(meter, GaugeMeter),
        livemode=livemode,
    )


def _missing(meter: MeterSettings, listed: list[StripeMeter], *, livemode: bool) -> Finding:
    near = did_you_mean(meter.event_name, {one.event_name for one in listed if one.active})
    remedy = f"make it (docs/stripe-setup.md), or correct event_name{near}"
    return failed(f"Stripe has no such meter in {'live' if livemode else 'test'} mode", remedy)


def _priced(found: StripeMeter, catalog: MeterCatalog) -> tuple[bool | None, list[Finding]]:
    try:
        is_priced = catalog.is_priced(found.id)
    except NotPermittedError as error:
        message = f"whether {found.id} has a price cannot be seen: {error.message}"
        return None, [warned(message, "let the key read prices, or look in the Dashboard")]
    except MeterctlError as error:
        return None, [failed(f"whether {found.id} has a price: {error.message}", error.hint, error.exit_code)]
    if is_priced:
        return True, []
    message = f"no active price is linked to {found.id}: all is accepted and nothing is billed"
    return False, [warned(message, "link a metered price to it (docs/stripe-setup.md)")]
