"""From command line, environment, file and shipped defaults to Settings, or to the list of all that is wrong.

Precedence: flag > environment > file > shipped defaults. A file's [stripe] keys count singly; its lookups replace all
shipped lookups and its meters all shipped meters, so that a file says in one place what is billed. An environment
variable that is set to nothing counts as not set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from pydantic import SecretStr, ValidationError

from meterctl.errors import ConfigurationError
from meterctl.settings.database_url import database_passwords, database_url_faults
from meterctl.settings.document import COMMAND_LINE, SYSTEM_CONFIG_FILE, Document, read_configuration
from meterctl.settings.meters import METER_KINDS, MeterSettings
from meterctl.settings.model import LookupSettings, Section, StripeSettings, environment_fields
from meterctl.settings.problems import ENVIRONMENT, Findings, Origins, did_you_mean, dotted, explained, kind_of
from meterctl.settings.rules import faults_between
from meterctl.settings.secrets import Secret, checked_key, checked_webhook_secrets, read_secret, webhook_secrets_in
from meterctl.settings.stripe_address import local_address
from meterctl.settings.webhooks import WebhookSettings

RENAMED_METER = "ai_suggestion"
"""The shipped meter whose event_name STRIPE_METER_EVENT_NAME gives, as in the services meterctl replaces."""

VARIABLES = ("METERCTL_CONFIG", "METERCTL_STRIPE_API_BASE", "METERCTL_STRIPE_METER_EVENTS_BASE")
"""Variables of our own. METERCTL_PG_BIN and METERCTL_TEST_… are the sandbox's and the tests'."""

_NOT_OURS = ("METERCTL_PG_BIN", "METERCTL_TEST_")
_BASES = {"api_base": "METERCTL_STRIPE_API_BASE", "meter_events_base": "METERCTL_STRIPE_METER_EVENTS_BASE"}
_LIBPQ_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE")

_S = TypeVar("_S", bound=Section)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """All of the configuration, sound in itself. Whether the database has its tables is found out elsewhere.

    `database_url` is empty where libpq's own PG* variables name the database. `lookups` and `meters` are keyed by their
    tables' names in the file; a meter's key is its name in the ledger. `warnings` are lines for a person. `file` is the
    configuration file that was read, None if there is none.
    """

    stripe: StripeSettings
    lookups: Mapping[str, LookupSettings]
    meters: Mapping[str, MeterSettings]
    database_url: SecretStr
    webhooks: WebhookSettings = field(default_factory=WebhookSettings)
    warnings: tuple[str, ...] = ()
    origins: Origins = field(default_factory=Origins)
    database_password: SecretStr | None = None
    file: Path | None = None

    def where(self, key: str) -> str:
        """Given a dotted key (`meters.ai_suggestion.table`), return where a person finds it: `FILE: key`."""
        return self.origins.where(key)

    @property
    def levels(self) -> set[str]:
        """The event_names of meters of which Stripe keeps the last value."""
        return {meter.event_name for meter in self.meters.values() if meter.formula == "last"}

    @property
    def enabled_meters(self) -> dict[str, MeterSettings]:
        """The meters that are reported, in the order of the file."""
        return {key: meter for key, meter in self.meters.items() if meter.enabled}

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every secret text, for redaction."""
        held = (self.stripe.api_key, self.database_password, *self.stripe.webhook_secrets)
        texts = (secret.get_secret_value() for secret in held if secret)
        return (*texts, *database_passwords(self.database_url.get_secret_value()))


def load_settings(
    *,
    config_file: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, object],
    system_file: Path = SYSTEM_CONFIG_FILE,
    require_database: bool = True,
    webhook_secret_files: Sequence[Path] = (),
) -> Settings:
    """Return the settings, or raise ConfigurationError with every problem found.

    `config_file` is `-c`. `flags` holds dotted keys and values of those flags that were given. `system_file` is read
    if nothing names another. Without `require_database` a missing DATABASE_URL is fine; a faulty one never is.
    `webhook_secret_files` is `--secret-file`: their secrets instead of the environment's.
    """
    findings = Findings()
    document = read_configuration(findings, config_file=config_file, environ=environ, system_file=system_file)
    _rename_meter(findings, document, environ)
    for key, value in flags.items():
        document.put(tuple(key.split(".")), value, COMMAND_LINE)
    reader = _Reader(findings=findings, document=document)
    stripe = reader.section(StripeSettings, ("stripe",), document.values["stripe"])
    from_environment = _environment_of_stripe(findings, document, environ)
    if webhook_secret_files:
        from_environment["webhook_secrets"] = webhook_secrets_in(findings, webhook_secret_files)
        document.sources["stripe.webhook_secrets"] = COMMAND_LINE
    lookups = reader.lookups()
    meters = reader.meters()
    webhooks = reader.section(WebhookSettings, ("webhooks",), document.values["webhooks"])
    database = _database(findings, document, environ, required=require_database)
    _warn_of_unknown_variables(findings, environ)
    if findings.problems or stripe is None or webhooks is None:
        raise _refusal(findings)
    return Settings(
        stripe=stripe.model_copy(update=from_environment),
        lookups=MappingProxyType(lookups),
        meters=MappingProxyType(meters),
        webhooks=webhooks,
        database_url=database,
        warnings=tuple(findings.warnings),
        origins=document.origins,
        database_password=SecretStr(environ["PGPASSWORD"]) if environ.get("PGPASSWORD") else None,
        file=document.file,
    )


def _refusal(findings: Findings) -> ConfigurationError:
    count = len(findings.problems)
    return ConfigurationError(
        f"the configuration has {count} problem{'' if count == 1 else 's'}", problems=tuple(findings.problems)
    )


def known_secrets(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the secrets in the environment itself, for redaction while there are no sound settings."""
    plain = (environ.get(name) for name in ("STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "PGPASSWORD"))
    return (*(text for text in plain if text), *database_passwords(environ.get("DATABASE_URL", "")))


@dataclass(kw_only=True, slots=True)
class _Reader:
    """Turns the document's tables into sections, noting what is wrong with each."""

    findings: Findings
    document: Document

    def problem(self, path: tuple[str | int, ...], what: str) -> None:
        self.findings.problem(self.document.origins.where(dotted(path)), what)

    def section(self, kind: type[_S], path: tuple[str, ...], values: object) -> _S | None:
        if not isinstance(values, dict):
            self.problem(path, f"must be a table, not {kind_of(values)}; write [{dotted(path)}]")
            return None
        try:
            return kind.model_validate(self._without_environment_fields(kind, path, values))
        except ValidationError as error:
            for inner, what in explained(error, kind):
                self.problem((*path, *inner), what)
            return None

    def _without_environment_fields(
        self, kind: type[Section], path: tuple[str, ...], values: dict[str, object]
    ) -> dict[str, object]:
        refused = {key: reason for key, reason in kind.refused_keys().items() if key in environment_fields(kind)}
        for key in values.keys() & refused.keys():
            self.problem((*path, key), refused[key])
        return {key: value for key, value in values.items() if key not in refused}

    def lookups(self) -> dict[str, LookupSettings]:
        read = {
            name: self.section(LookupSettings, ("lookups", name), values)
            for name, values in self.document.values["lookups"].items()
        }
        return {name: lookup for name, lookup in read.items() if lookup is not None}

    def meters(self) -> dict[str, MeterSettings]:
        read = {key: self._meter(key, values) for key, values in self.document.values["meters"].items()}
        sound = {key: meter for key, meter in read.items() if meter is not None}
        for key, what in faults_between(sound, set(self.document.values["lookups"])):
            self.findings.problem(self.document.origins.where(key), what)
        return sound

    def _meter(self, key: str, values: object) -> MeterSettings | None:
        path = ("meters", key)
        source = values.get("source") if isinstance(values, dict) else None
        kind = METER_KINDS.get(source) if isinstance(source, str) else None
        if isinstance(values, dict) and kind is None:
            what = "is missing" if source is None else "is not one of them"
            near = did_you_mean(source, METER_KINDS) if isinstance(source, str) else "; known: rows, gauge, counter"
            self.problem((*path, "source"), f"{what}{near}")
            return None
        if isinstance(values, dict):
            values = {"event_name": key, **values}
        return self.section(kind or METER_KINDS["rows"], path, values)


def _environment_of_stripe(findings: Findings, document: Document, environ: Mapping[str, str]) -> dict[str, object]:
    """Return the fields of [stripe] that only the environment gives, those that are sound."""
    key = read_secret(findings, "STRIPE_SECRET_KEY", environ)
    webhook = read_secret(findings, "STRIPE_WEBHOOK_SECRET", environ)
    api_key = checked_key(findings, key)
    values: dict[str, object] = {
        "api_key": api_key,
        "webhook_secrets": checked_webhook_secrets(findings, webhook),
    }
    for name, secret in (("api_key", key), ("webhook_secrets", webhook)):
        if secret is not None:
            document.sources[f"stripe.{name}"] = secret.source
    key_mode = StripeSettings(api_key=api_key).key_mode
    for name, variable in _BASES.items():
        if given := environ.get(variable):
            document.sources[f"stripe.{name}"] = f"{ENVIRONMENT}{variable}"
            try:
                values[name] = local_address(given, key_mode=key_mode)
            except ValueError as error:
                findings.problem(f"{ENVIRONMENT}{variable}", str(error))
    return values


def _rename_meter(findings: Findings, document: Document, environ: Mapping[str, str]) -> None:
    event_name = environ.get("STRIPE_METER_EVENT_NAME")
    if not event_name:
        return
    source = f"{ENVIRONMENT}STRIPE_METER_EVENT_NAME"
    meter = document.values["meters"].get(RENAMED_METER)
    if not isinstance(meter, dict):
        findings.warning(source, f"changes nothing: there is no [meters.{RENAMED_METER}]; remove it")
    elif "event_name" in meter:
        where = document.origins.where(f"meters.{RENAMED_METER}.event_name")
        findings.warning(source, f"changes nothing: {where} names the event; remove one of them")
    else:
        document.put(("meters", RENAMED_METER, "event_name"), event_name, source)


def _database(findings: Findings, document: Document, environ: Mapping[str, str], *, required: bool) -> SecretStr:
    """Return the database's address, empty where libpq finds the database by itself or none is needed."""
    problems_before = len(findings.problems)
    secret: Secret | None = read_secret(findings, "DATABASE_URL", environ)
    if secret is not None:
        document.sources["database_url"] = secret.source
        for fault in database_url_faults(secret.text):
            findings.problem(secret.source, fault)
        return secret.value
    by_libpq = next((name for name in _LIBPQ_VARIABLES if environ.get(name)), None)
    document.sources["database_url"] = f"{ENVIRONMENT}{by_libpq or 'DATABASE_URL'}"
    if required and by_libpq is None and len(findings.problems) == problems_before:
        findings.problem(
            f"{ENVIRONMENT}DATABASE_URL",
            "is not set; set it to postgresql://USER@HOST:PORT/DATABASE, or set libpq's PGHOST and PGDATABASE",
        )
    return SecretStr("")


def _warn_of_unknown_variables(findings: Findings, environ: Mapping[str, str]) -> None:
    for name in sorted(environ):
        if name.startswith("METERCTL_") and name not in VARIABLES and not name.startswith(_NOT_OURS):
            findings.warning(f"{ENVIRONMENT}{name}", f"is not a variable of meterctl{did_you_mean(name, VARIABLES)}")
