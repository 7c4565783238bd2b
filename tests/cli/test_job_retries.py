"""`--job-retries`: a bad minute does not cost the night, and says nothing once it is over."""

import time

from cli.conftest import Shell


def test_a_job_is_tried_again_until_stripe_is_back_and_stays_quiet(shell: Shell) -> None:
    shell.usage(3)
    shell.stripe.stop_listening()
    child = shell.start("report-usage", "-q", "--job-retries", "3", "--job-retry-delay", "1")
    time.sleep(2)
    shell.stripe.start_listening()
    stdout, stderr = child.communicate(timeout=60)
    assert (child.returncode, stdout, stderr) == (0, "", "")
    assert shell.total == 3


def test_the_last_attempts_failure_is_the_jobs(shell: Shell) -> None:
    shell.stripe.stop_listening()
    started = time.monotonic()
    done = shell.run("report-usage", "-q", "--job-retries", "2", "--job-retry-delay", "1")
    assert done.code == 69
    assert done.stderr.count("Stripe is away") == 1
    assert time.monotonic() - started >= 3, "it waited one second, then two"


def test_what_waiting_cannot_mend_is_not_tried_again(shell: Shell) -> None:
    shell.stripe.revoke_key(shell.stripe.api_key)
    started = time.monotonic()
    assert shell.run("report-usage", "--job-retries", "3", "--job-retry-delay", "60").code == 77
    assert time.monotonic() - started < 30


def test_problems_of_an_earlier_attempt_are_not_forgotten(shell: Shell) -> None:
    """The first attempt rejects a row and then runs out of time; the second ends well. The row is still news."""
    shell.usage(6)
    shell.sql("INSERT INTO usage_events (workspace_id, user_id, quantity) VALUES ('ws', 'u1', 'NaN')")
    shell.stripe.set_options(latency_ms=500)
    done = shell.run("report-usage", "-q", "--max-duration", "2s", "--job-retries", "5", "--job-retry-delay", "0")
    assert done.code == 10
    assert done.stderr.count("local:value_not_a_number (e.g.") == 1
    assert len(shell.sql("SELECT id FROM meterctl.runs")) > 1
    assert shell.total == 6
