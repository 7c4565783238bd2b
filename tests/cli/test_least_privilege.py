"""The nightly job's role may do what it must and nothing more: these grants suffice, and each of them is needed."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from cli.conftest import Finished, Shell
from cli.waiting import until_sent
from meterctl.postgres.migrate import ledger_grants
from roles import as_role, open_roles

APPLICATION_GRANTS = (
    "GRANT SELECT ON usage_events, subscriptions TO {role};",
    "GRANT UPDATE (stripe_reported_at) ON usage_events TO {role};",
)
"""On the application's own tables: read what is billed and to whom, stamp what was reported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The command as a role without other rights, beside the same database as its owner sees it."""

    owner: Shell
    shell: Shell
    role: str

    def change(self, verb: str, right: str) -> None:
        """GRANT or REVOKE one right, such as `SELECT ON usage_events`."""
        self.owner.sql(f"{verb} {right} {'FROM' if verb == 'REVOKE' else 'TO'} {self.role}")

    def run(self, *arguments: str) -> Finished:
        return self.shell.run(*arguments)


@pytest.fixture
def job(shell: Shell) -> Iterator[Job]:
    with open_roles() as roles:
        role = roles.create(shell.database_url)
        for grant in (*ledger_grants(role), *(grant.format(role=role) for grant in APPLICATION_GRANTS)):
            shell.sql(grant)
        as_job = Shell(database_url=as_role(shell.database_url, role), stripe=shell.stripe, home=shell.home)
        yield Job(owner=shell, shell=as_job, role=role)


def unstamped(job: Job) -> int:
    return int(job.owner.sql("SELECT count(*) FROM usage_events WHERE stripe_reported_at IS NULL")[0][0])


# They suffice


def test_the_role_reports_and_stamps(job: Job) -> None:
    job.owner.usage(40, customers=4)
    assert "would send 40 events" in job.run("report-usage", "--dry-run").stdout
    done = job.run("report-usage", "-q")
    assert (done.code, done.stdout, done.stderr) == (0, "", "")
    assert (job.owner.total, unstamped(job)) == (40, 0)
    job.owner.assert_exact()


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("db", "check"), 0),
        (("summary",), 10),
        (("runs",), 0),
        (("ledger", "list"), 0),
        (("ledger", "show", "1"), 0),
        (("settle",), 0),
    ],
)
def test_the_role_looks_at_everything(job: Job, arguments: tuple[str, ...], code: int) -> None:
    job.owner.usage(2, known=False)
    assert job.run("report-usage").code == 10
    done = job.run(*arguments)
    assert done.code == code, done.stderr
    assert done.stdout


def test_the_role_issues_a_rejected_event_again_and_closes_another(job: Job) -> None:
    job.owner.usage(2, known=False)
    assert job.run("report-usage").code == 10
    job.owner.stripe.create_customer("cus_1")
    assert job.run("ledger", "waive", "1", "--reason", "a test of ours", "--yes").code == 0
    assert job.run("ledger", "retry", "2", "--reason", "the customer is known now", "--yes").code == 0
    assert job.run("report-usage", "-q").code == 0
    assert job.owner.total == 1


def test_the_role_takes_over_and_settles_what_a_killed_run_left(job: Job) -> None:
    job.owner.usage(200, customers=20)
    job.owner.stripe.set_options(latency_ms=100)
    child = job.shell.start("report-usage")
    until_sent(job.owner, 20)
    child.kill()
    child.communicate()
    job.owner.stripe.set_options(latency_ms=0)
    assert job.run("report-usage", "--lock-timeout", "20s").code == 0
    assert (job.owner.total, unstamped(job)) == (200, 0)
    job.owner.assert_exact()


def test_the_role_compares_with_stripe(job: Job) -> None:
    job.owner.usage(2)
    assert job.run("report-usage").code == 0
    assert (job.run("reconcile", "--since", "2026-01-01").code, job.run("summary").code) == (0, 0)


def test_the_role_cannot_change_what_it_only_reads(job: Job) -> None:
    """Nobody who gets hold of the job's password can change an amount, a payer or, by deleting, the books."""
    may = "SELECT has_column_privilege(%s, %s, %s, 'UPDATE')"
    assert job.owner.sql(may, job.role, "usage_events", "stripe_reported_at") == [(True,)]
    assert job.owner.sql(may, job.role, "usage_events", "quantity") == [(False,)]
    assert job.owner.sql(may, job.role, "subscriptions", "stripe_customer_id") == [(False,)]
    assert job.owner.sql("SELECT has_table_privilege(%s, 'meterctl.meter_events', 'DELETE')", job.role) == [(False,)]


# Each is needed

RIGHTS = [
    *(
        (f"{privilege} ON meterctl.{table}", f"lacks {privilege} on {table}; GRANT")
        for table in ("meter_events", "runs", "identity", "settlements", "reconciliations")
        for privilege in ("SELECT", "INSERT", "UPDATE")
    ),
    ("SELECT ON meterctl.schema_migrations", "may not read the schema meterctl"),  # without it, no more is asked
    ("USAGE ON SCHEMA meterctl", "may not read the schema meterctl"),
    ("SELECT ON usage_events", "may not read id, quantity, created_at, stripe_reported_at"),
    ("UPDATE (stripe_reported_at) ON usage_events", "may not update stripe_reported_at of usage_events; GRANT UPDATE"),
    ("SELECT ON subscriptions", "may not read user_id, stripe_customer_id"),
]
"""Each right, and how its lack is told."""


@pytest.mark.long
@pytest.mark.parametrize(("right", "told"), RIGHTS)
def test_without_any_one_right_it_is_77_and_nothing_is_billed_twice(job: Job, right: str, told: str) -> None:
    """It is found out before anything is written or sent; with the right back, the next run does the rest."""
    job.owner.usage(2)
    assert job.run("report-usage").code == 0
    job.owner.usage(1, known=False)  # Stripe knows the customer from before
    sent_before = len(job.owner.stripe.requests())
    job.change("REVOKE", right)
    done = job.run("report-usage")
    assert done.code == 77, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert (job.owner.total, len(job.owner.stripe.requests())) == (2, sent_before)
    job.change("GRANT", right)
    assert job.run("report-usage", "-q").code == 0
    assert job.owner.total == 3
    job.owner.assert_exact()


def test_db_check_names_all_that_is_lacking_at_once(job: Job) -> None:
    """A person asks the administrator once."""
    for right, _ in RIGHTS:
        if not right.startswith("USAGE"):
            job.change("REVOKE", right)
    done = job.run("db", "check")
    assert done.code == 77
    for table in ("meter_events", "runs", "identity", "settlements", "reconciliations"):
        assert f"INSERT, SELECT, UPDATE on {table}" in done.stdout
    assert "SELECT on schema_migrations" in done.stdout
    for right, told in RIGHTS:
        assert "meterctl" in right or told in done.stdout


def test_the_record_of_migrations_need_only_be_read(job: Job) -> None:
    job.change("REVOKE", "INSERT, UPDATE ON meterctl.schema_migrations")
    job.owner.usage(1)
    assert job.run("db", "check").code == 0
    assert job.run("report-usage").code == 0
    assert job.owner.total == 1


# In mid-run


def test_a_right_on_the_ledger_lost_in_mid_run_is_77_and_costs_no_unit(job: Job) -> None:
    done = deprived_in_mid_run(job, "UPDATE ON meterctl.meter_events")
    assert done.code == 77, done.stderr
    assert "db check" in done.stderr
    assert 0 < job.owner.total < 300
    assert_next_run_completes(job, "UPDATE ON meterctl.meter_events")


def test_a_stamp_that_is_forbidden_in_mid_run_is_told_and_made_up_for(job: Job) -> None:
    """The ledger decides what was billed; the stamp is its cache, and the next run sets it."""
    done = deprived_in_mid_run(job, "UPDATE (stripe_reported_at) ON usage_events")
    assert "stamp_failed" in done.stderr
    assert "permission denied" in done.stderr
    assert job.owner.total == 300
    assert unstamped(job) > 0
    assert_next_run_completes(job, "UPDATE (stripe_reported_at) ON usage_events")


def deprived_in_mid_run(job: Job, right: str) -> Finished:
    job.owner.usage(300, customers=10)
    job.owner.stripe.set_options(latency_ms=50)
    child = job.shell.start("report-usage")
    until_sent(job.owner, 30)
    job.change("REVOKE", right)
    stdout, stderr = child.communicate(timeout=60)
    return Finished(child.returncode, stdout, stderr)


def assert_next_run_completes(job: Job, right: str) -> None:
    job.owner.stripe.set_options(latency_ms=0)
    job.change("GRANT", right)
    assert job.run("report-usage", "--lock-timeout", "20s").code == 0
    assert (job.owner.total, unstamped(job)) == (300, 0)
    job.owner.assert_exact()
