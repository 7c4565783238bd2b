"""`doctor`: what is sound passes, what is broken is named with a remedy, and hides nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Finished, Shell
from cli.test_least_privilege import APPLICATION_GRANTS
from cli.test_summary_and_ledger import on_a_terminal
from meterctl.postgres.migrate import ledger_grants
from roles import Roles, as_role, open_roles

ALL = [
    *("configuration", "secrets", "database", "replica", "role", "schema", "tables", "indexes", "plans", "triggers"),
    *(
        "lock",
        "key",
        "stripe",
        "account",
        "meters",
        "write",
        "totals",
        "events",
        "clocks",
        "identity",
        "waiting",
        "periods",
    ),
]
"""Every check, in order."""

OF_STRIPE = ["stripe", "account", "meters", "write", "totals", "events"]

NEEDED = (
    "events.list",
    "core_events.list",
    "account.retrieve",
    "meters.list",
    "meter_events.create",
    "event_summaries.list",
    "prices.list",
)
"""What a restricted key must be allowed for everything."""


def long(case: str) -> Any:
    return pytest.param(case, marks=pytest.mark.long)


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """A document, by check."""

    done: Finished

    def of(self, check: str) -> list[tuple[str, str]]:
        return [(one["status"], one["message"]) for one in self.checks if one["check"] == check]

    def remedy(self, words: str) -> str:
        (found,) = (one["remedy"] for one in self.checks if words in one["message"])
        return str(found)

    def names(self, status: str) -> list[str]:
        return list(dict.fromkeys(one["check"] for one in self.checks if one["status"] == status))

    @property
    def checks(self) -> list[dict[str, Any]]:
        return list(self.done.document["checks"])


def examined(shell: Shell, *arguments: str, code: int) -> Told:
    done = shell.run("doctor", "--json", *arguments)
    assert "Traceback" not in done.stderr
    assert (done.code, done.document["exit_code"], done.document["schema"]) == (code, code, "meterctl.doctor/1"), (
        done.stdout,
        done.stderr,
    )
    return Told(done=done)


@pytest.fixture
def roles() -> Iterator[Roles]:
    with open_roles() as opened:
        yield opened


@pytest.fixture
def sound(shell: Shell, roles: Roles, tmp_path: Path) -> Shell:
    """The job as it should be: a role of its own, secrets in files, a priced meter, a period that ends in time."""
    shell.stripe.create_price(shell.stripe.meters()[0].id)
    shell.usage(2)
    shell.sql("UPDATE subscriptions SET current_period_end = date_trunc('day', now()) + interval '1 day 90 minutes'")
    role = roles.create(shell.database_url)
    for grant in (*ledger_grants(role), *(grant.format(role=role) for grant in APPLICATION_GRANTS)):
        shell.sql(grant)
    as_job = Shell(database_url=as_role(shell.database_url, role), stripe=shell.stripe, home=tmp_path)
    for name, text in (("DATABASE_URL", as_job.database_url), ("STRIPE_SECRET_KEY", shell.stripe.api_key)):
        keep_in_file(as_job, name, text)
    return as_job


def keep_in_file(shell: Shell, name: str, text: str, mode: int = 0o640) -> Path:
    file = shell.home / name.lower()
    file.write_text(text, encoding="utf-8")
    file.chmod(mode)
    shell.extra |= {name: "", f"{name}_FILE": str(file)}
    return file


# Sound


def test_what_is_sound_is_0_and_nothing_was_written_or_billed(shell: Shell, sound: Shell) -> None:
    told = examined(sound, code=0)
    assert list(dict.fromkeys(one["check"] for one in told.checks)) == ALL
    assert told.names("ok") == ALL
    assert told.of("periods") == [
        ("ok", "your 02:00 UTC run is in time for all 1 renewals this month (31 days); grace is 1 h")
    ]
    assert told.done.document["counts"]["fail"] == 0
    quiet = sound.run("doctor", "-q")
    assert (quiet.code, quiet.stdout, quiet.stderr) == (0, "", "")
    assert (shell.stripe.events(), shell.stripe.async_rejections()) == ([], [])
    for table in ("identity", "runs", "meter_events"):
        assert shell.sql(f"SELECT count(*) FROM meterctl.{table}") == [(0,)]  # noqa: S608 -- our own words
    assert shell.sql("SELECT count(*) FROM usage_events WHERE stripe_reported_at IS NULL") == [(2,)]
    assert sound.run("report-usage", "-q").code == 0, "and a report does what was promised"
    lines = sound.run("doctor").stdout.splitlines()
    assert all(line.startswith("OK    ") for line in lines)
    assert any("identity: the ledger is that of acct_sandboxexample in test mode" in line for line in lines)


def test_a_restricted_key_needs_seven_permissions_and_each_lack_is_named(sound: Shell) -> None:
    key = "rk_test_restricted"
    keep_in_file(sound, "STRIPE_SECRET_KEY", key)
    sound.stripe.add_key(key, allowed=NEEDED)
    examined(sound, code=0)
    for lacking, check, status, code in (
        ("account.retrieve", "account", "fail", 77),
        ("meters.list", "meters", "fail", 77),
        ("meter_events.create", "write", "fail", 77),
        ("event_summaries.list", "totals", "warn", 10),
        ("events.list", "events", "warn", 10),
        ("core_events.list", "events", "warn", 10),
        ("prices.list", "meters", "warn", 10),
    ):
        sound.stripe.add_key(key, allowed=[name for name in NEEDED if name != lacking])
        told = examined(sound, code=code)
        assert told.names(status) == [check]
        assert any(f"Having the permission for '{lacking}'" in message for _, message in told.of(check))
        assert key not in told.done.stdout + told.done.stderr
    assert sound.stripe.events() == []


def test_a_key_that_cannot_read_the_account_does_where_the_account_is_stated(sound: Shell, tmp_path: Path) -> None:
    configured(sound, tmp_path, f'[stripe]\naccount = "{sound.stripe.account_id}"\n')
    sound.stripe.add_key(sound.stripe.api_key, allowed=[name for name in NEEDED if name != "account.retrieve"])
    told = examined(sound, code=0)
    assert told.of("account") == [("ok", "account acct_sandboxexample; as stripe.account says")]
    assert told.of("clocks")[1] == ("ok", "Stripe's clock and PostgreSQL's agree")


def configured(shell: Shell, tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text, encoding="utf-8")
    shell.extra["METERCTL_CONFIG"] = str(file)


# Works, but somebody should know


def test_each_thing_that_somebody_should_know_is_10_and_none_hides_another(shell: Shell, tmp_path: Path) -> None:
    """A superuser, a file open to everybody, a trigger, an unpriced meter, old rows, and a schedule too thin."""
    keep_in_file(shell, "STRIPE_SECRET_KEY", shell.stripe.api_key, mode=0o644)
    shell.extra["METERCTL_STRIPE_APIBASE"] = "x"
    shell.usage(1)
    shell.sql("UPDATE subscriptions SET current_period_end = now() + interval '9 days' WHERE user_id = 'u1'")
    shell.sql(
        "INSERT INTO subscriptions (user_id, stripe_customer_id, ended_at, current_period_end) VALUES"
        " ('undated', 'cus_undated', NULL, NULL), ('unpaid', NULL, NULL, now() + interval '9 days'),"
        " ('ended', 'cus_ended', now() - interval '1 hour', now() + interval '9 days'),"
        " ('yearly', 'cus_yearly', NULL, now() + interval '90 days'),"
        " ('past', 'cus_past', NULL, now() - interval '1 hour')"
    )
    shell.sql(
        "INSERT INTO usage_events (workspace_id, user_id, quantity, created_at) VALUES"
        " ('ws', 'u1', 5, now() - interval '31 days'), ('ws', 'u1', 7, now() - interval '400 days'),"
        " ('ws', 'u1', 'NaN', now() - interval '32 days'), ('ws', 'free', 9, now() - interval '33 days')"
    )
    shell.sql(
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER touches BEFORE UPDATE ON usage_events FOR EACH ROW EXECUTE FUNCTION touch();"
        "CREATE TRIGGER stamped AFTER UPDATE OF stripe_reported_at ON usage_events EXECUTE FUNCTION touch();"
        "CREATE TRIGGER other AFTER UPDATE OF quantity ON usage_events EXECUTE FUNCTION touch();"
        "CREATE TRIGGER off AFTER UPDATE ON usage_events EXECUTE FUNCTION touch();"
        "ALTER TABLE usage_events DISABLE TRIGGER off;"
        "CREATE TRIGGER added AFTER INSERT ON usage_events EXECUTE FUNCTION touch()"
    )
    configured(shell, tmp_path, "[stripe]\ninvoice_grace_h = 2\n")
    told = examined(shell, "--runs-at", hour_of(shell, timedelta(days=9, hours=3)), code=10)
    assert told.names("fail") == told.names("skip") == []
    assert told.names("warn") == ["configuration", "secrets", "role", "triggers", "meters", "waiting", "periods"]
    assert told.remedy("METERCTL_STRIPE_APIBASE") == "did you mean `METERCTL_STRIPE_API_BASE`?"
    assert told.remedy("can be read by everybody on this machine") == "chmod 600 it"
    assert [message for _, message in told.of("triggers")] == [
        "stamping fires trigger stamped of usage_events, for each statement",
        "stamping fires trigger touches of usage_events, for each row",
    ]
    assert "public.touch suits it" in told.remedy("trigger touches")
    assert [message.partition(" rows")[0] + message.partition(")")[2] for _, message in told.of("waiting")] == [
        "1, 7 units, were not reported within 35 days: Stripe takes them no more",
        "1, 5 units, older than 30 days, wait to be reported",
        "1, older than 30 days, cannot be billed as they are",
    ]
    first, second = told.of("periods")
    assert first[1].startswith("of 1 customers with a subscription in force no period's end is known")
    assert second[1].endswith("run misses 1 of 1 renewals this month (31 days); grace is 2 h")
    assert "--runs-at" in told.remedy("misses")

    hourly = examined(shell, "--runs-at", "02:00", "--runs-at", "*:30", code=10)
    assert hourly.of("periods")[1] == (
        "ok",
        "your 02:00 and *:30 UTC run is in time for all 1 renewals this month (31 days); grace is 2 h",
    )


def hour_of(shell: Shell, ahead: timedelta) -> str:
    ((text,),) = shell.sql("SELECT to_char((now() + %s) AT TIME ZONE 'UTC', 'HH24:MI')", ahead)
    return str(text)


def test_a_lookup_without_periods_is_10(sound: Shell, tmp_path: Path) -> None:
    configured(
        sound,
        tmp_path,
        """
[lookups.owner]
table = "subscriptions"
subject = "user_id"
customer = "stripe_customer_id"
status = "status"

[meters.ai_suggestion]
source = "rows"
formula = "sum"
table = "usage_events"
value = "quantity"
occurred_at = "created_at"
identifier = "{user_id}-{id}"
payers = [{ lookup = "owner", column = "user_id" }]
""",
    )
    told = examined(sound, code=10)
    assert told.names("warn") == ["periods"]
    assert "lookups.owner: no period_end" in told.of("periods")[0][1]


def test_meters_of_every_source_are_examined(shell: Shell, tmp_path: Path) -> None:
    """A counter's table needs its trigger, and each meter's claims an index."""
    shipped = (Path(__file__).parents[2] / "src/meterctl/settings/defaults.toml").read_text(encoding="utf-8")
    configured(shell, tmp_path, shipped.replace("enabled = false", "enabled = true"))
    for name, formula in (("active_sensors", "last"), ("temperature_readings", "sum")):
        made = shell.stripe.create_meter(event_name=name, formula=formula)  # type: ignore[arg-type] # literals both
        shell.stripe.create_price(made.id)
    told = examined(shell, code=78)
    assert told.names("fail") == ["tables"]
    assert "readings" in told.remedy("has no trigger that counts its rows")
    claims = [message for _, message in told.of("plans") if "to be sent are found by" in message]
    assert [message.split()[2] for message in claims] == ["ai_suggestion", "active_sensors", "temperature_readings"]
    assert [status for status, _ in told.of("meters")] == ["warn", "ok", "ok"]
    assert shell.run("db", "adopt", "readings", "--yes").code == 0
    assert examined(shell, code=10).names("fail") == []


# Broken


def test_everything_broken_in_the_database_is_told_at_once(shell: Shell, tmp_path: Path) -> None:
    """Tables that do not fit, an index of each side gone, somebody else's ledger; Stripe's side is still proven."""
    shell.sql("DROP INDEX usage_events_unreported; DROP INDEX meterctl.claimable; DROP INDEX meterctl.not_at_rest")
    shell.sql("INSERT INTO meterctl.identity (account, livemode, since) VALUES ('acct_other', true, now())")
    rows = (
        '[meters.{key}]\nsource = "rows"\nformula = "count"\ntable = "usage_events"\noccurred_at = "created_at"\n'
        'identifier = "{key}-{{id}}"\npayers = [{{ lookup = "individual", column = "{column}" }}]\nwhere = "{where}"\n'
    )
    text = rows.format(key="ai_suggestion", column="user_id", where="event_type = 'a'")
    text += rows.format(key="bad", column="usr_id", where="event_type = 'b'")
    configured(shell, tmp_path, text)
    told = examined(shell, code=78)
    assert told.names("fail") == ["tables", "indexes", "plans", "meters", "identity"]
    assert told.names("skip") == ["plans", "waiting", "periods"]
    assert told.remedy('no column "usr_id"') == 'did you mean "user_id"?'
    assert told.of("plans") == [
        ("fail", "for a page of unreported rows PostgreSQL reads all of usage_events: no index serves"),
        ("fail", "for every claim PostgreSQL reads the whole ledger: an index of meterctl.meter_events is gone"),
        ("skip", "skipped: the tables of meter bad do not fit, see above"),
    ]
    assert "this ledger belongs to account acct_other in live mode" in told.of("identity")[0][1]
    assert told.of("write")[0][0] == "ok"


def test_a_role_that_lacks_rights_is_77_and_each_grant_is_named(shell: Shell, sound: Shell) -> None:
    role = sound.database_url.partition("//")[2].partition("@")[0]
    shell.sql(f"REVOKE UPDATE (stripe_reported_at) ON usage_events FROM {role}")
    shell.sql(f"REVOKE INSERT ON meterctl.runs FROM {role}")
    told = examined(sound, code=77)
    assert told.names("fail") == ["tables"]
    assert f"GRANT UPDATE (stripe_reported_at) ON public.usage_events TO {role};" in told.remedy("may not update")
    assert any("lacks INSERT on runs" in message for _, message in told.of("tables"))


def test_a_database_without_our_schema_or_of_a_newer_one(sound: Shell, shell: Shell) -> None:
    shell.sql("INSERT INTO meterctl.schema_migrations (version, name) VALUES (998, 'later')")
    told = examined(sound, code=78)
    assert told.names("fail") == ["schema"]
    assert told.remedy("has schema version 998") == "upgrade meterctl on this host"
    assert told.names("skip") == ["plans", "identity", "waiting", "periods"]
    assert ("skip", "skipped: it needs schema, see above") in told.of("plans")
    shell.sql("DROP SCHEMA meterctl CASCADE")
    assert "meterctl db migrate" in examined(sound, code=78).remedy("has no meterctl schema")


def test_a_ledger_of_another_past_is_78(shell: Shell, sound: Shell) -> None:
    assert sound.run("report-usage").code == 0
    shell.sql("UPDATE meterctl.identity SET timeline = '000000FF'")
    assert "its timeline was 000000FF" in examined(sound, "--offline", code=78).of("identity")[0][1]


@pytest.mark.parametrize("case", ["missing", "malformed", "unreachable", "stripe key", long("both"), "file"])
def test_a_fault_of_one_side_leaves_the_other_proven(sound: Shell, tmp_path: Path, case: str) -> None:
    of_database = ALL[2:11]
    told = None
    if case == "missing":
        sound.extra |= {"DATABASE_URL_FILE": ""}
        sound.database_url = ""
        told = examined(sound, code=78)
        assert "environment DATABASE_URL: is not set" in told.of("configuration")[0][1]
    if case == "malformed":
        keep_in_file(sound, "DATABASE_URL", "mysql://user:hush@nowhere/app")
        told = examined(sound, code=78)
        assert "hush" not in told.done.stdout + told.done.stderr
        assert told.names("fail") == ["configuration"]
    if case == "unreachable":
        keep_in_file(sound, "DATABASE_URL", f"postgresql://postgres@/app?host={tmp_path}")
        told = examined(sound, code=69)
        assert told.names("fail") == ["database"]
    if told is not None:
        assert set(told.names("ok")) >= set(OF_STRIPE)
        assert set(told.names("skip")) >= set(of_database[1:])
    if case == "stripe key":
        keep_in_file(sound, "STRIPE_SECRET_KEY", "pk_test_published")
        told = examined(sound, code=78)
        assert set(told.names("ok")) >= {*of_database, "identity", "waiting", "periods"}
        assert told.names("skip") == ["key", *OF_STRIPE, "clocks"]
    if case == "both":
        keep_in_file(sound, "STRIPE_SECRET_KEY", "pk_test_published")
        keep_in_file(sound, "DATABASE_URL", "mysql://nowhere")
        told = examined(sound, code=78)
        assert [status for status, _ in told.of("configuration")] == ["fail", "fail", "ok"]
    if case == "file":
        configured(sound, tmp_path, '[stripe]\nmode = "tset"\n')
        told = examined(sound, code=78)
        assert [one["check"] for one in told.checks] == ["configuration", "everything else"]
        assert told.remedy('must be "test" or "live"').startswith("did you mean")


@pytest.mark.parametrize("case", ["away", "revoked", long("no key"), "live", long("other account"), "clock"])
def test_a_stripe_in_trouble_leaves_the_database_proven(sound: Shell, tmp_path: Path, case: str) -> None:
    code, check, words = {
        "away": (69, "stripe", "Stripe is away"),
        "revoked": (77, "stripe", "Stripe refuses the key (401)"),
        "no key": (78, "key", "no Stripe key is set"),
        "live": (78, "key", "the key is a test-mode key"),
        "other account": (78, "account", "allows only acct_other"),
        "clock": (69, "clocks", "are > 5 min apart"),
    }[case]
    if case == "away":
        sound.stripe.stop_listening()
    if case == "revoked":
        sound.stripe.revoke_key(sound.stripe.api_key)
    if case == "no key":
        sound.extra["STRIPE_SECRET_KEY_FILE"] = ""
    if case == "other account":
        configured(sound, tmp_path, '[stripe]\naccount = "acct_other"\n')
    if case == "clock":
        sound.stripe.clock.advance(timedelta(minutes=10))
    told = examined(sound, *(["--live"] if case == "live" else []), code=code)
    assert told.names("fail") == [check]
    assert any(words in message for status, message in told.of(check) if status == "fail")
    assert set(told.names("ok")) >= {"database", "tables", "plans", "lock", "identity", "waiting", "periods"}
    if check in {"stripe", "key"}:
        assert set(told.names("skip")) == {"stripe", "account", "meters", "write", "totals", "events", "clocks"} - {
            check
        }


def test_offline_asks_nothing_of_stripe_and_can_be_0(sound: Shell) -> None:
    told = examined(sound, "--offline", code=0)
    assert told.names("skip") == [*OF_STRIPE, "clocks"]
    assert sound.stripe.requests() == []


def test_a_time_that_is_none_is_2(shell: Shell) -> None:
    done = shell.run("doctor", "--runs-at", "2:00")
    assert (done.code, done.stdout) == (2, "")
    assert "is no time of day" in done.stderr


def test_on_a_terminal_it_is_a_table_with_a_column_for_the_remedy(shell: Shell) -> None:
    done = on_a_terminal(shell, "doctor", "--offline", "--no-color", columns=160)
    assert done.code == 10
    heads, *lines = done.stdout.splitlines()
    assert heads.split() == ["check", "found", "what", "to", "do"]
    superuser = next(line for line in lines if "is a superuser" in line)
    assert superuser.split()[:2] == ["WARN", "role"]
    assert superuser.index("give the job a role") == heads.index("what to do")
