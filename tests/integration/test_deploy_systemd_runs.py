"""The services of deploy/systemd/ under a systemd of the test's own, with all their restrictions in force.

This takes root and some seconds, so it is asked for with METERCTL_TEST_SYSTEMD=1.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meterctl.sandbox.local_stripe import Fault, FaultKind
from private_machine import PrivateMachine, private_machine, require_private_machine

RUN_UNIT = """
echo 0 >"$CGROUP/cgroup.procs"
mkdir -p /run/units /run/host
cp "$UNITS"/*.service /run/units/
echo private >/run/host/container-manager
for target in test sysinit basic shutdown umount network-online; do
    printf '[Unit]\\nDefaultDependencies=no\\n' >"/run/units/$target.target"
done
mkdir "/run/units/$UNIT.d"
printf '%s\\n' "$DROP_IN" >"/run/units/$UNIT.d/sandbox.conf"
mount -t tmpfs tmpfs /var/lib/systemd
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
umount -R /sys/fs/cgroup
mount --make-rshared /
cat >/run/operator <<'END'
until systemctl list-units >/dev/null 2>&1; do sleep 0.1; done
sh -c "$MEANWHILE" &
systemctl start "$UNIT"
while systemctl show --value -p ActiveState "$UNIT" | grep -q activating; do sleep 0.1; done # or deactivating
systemctl show -p ActiveState,Result,ExecMainStatus,NRestarts "$UNIT" >/run/outcome
mv /run/outcome /opt/meterctl/record/outcome
END
exec unshare --cgroup /bin/sh -c '
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    sh /run/operator &
    exec env -i container=private SYSTEMD_UNIT_PATH=/run/units PATH="$PATH" \
        /lib/systemd/systemd --system --unit=test.target --log-target=console --show-status=no
'
"""

DROP_IN = """
[Service]
Environment=METERCTL_STRIPE_API_BASE={stripe}
ReadWritePaths=/opt/meterctl/record
RestartSec=100ms
"""
"""What a test adds: where the local Stripe is, a place for the wrapper's notes, and no long waits."""

OUTCOME_WITHIN_S = 60


def _cgroup_root() -> Path | None:
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return next((Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"), None)


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A control group of the test's own, under which its systemd makes others."""
    if not os.environ.get("METERCTL_TEST_SYSTEMD"):
        pytest.skip("set METERCTL_TEST_SYSTEMD=1 to run the units under a systemd of the test's own (as root)")
    if not Path("/lib/systemd/systemd").exists():
        pytest.skip("no systemd here")
    require_private_machine()
    root = _cgroup_root()
    if root is None:
        pytest.skip("no cgroup2 here")
    made = root / f"meterctl-test-{os.getpid()}"
    made.mkdir()
    yield made
    for _ in range(100):
        with contextlib.suppress(OSError):  # while the last processes in it are going away
            for directory, _, _ in os.walk(made, topdown=False):
                Path(directory).rmdir()
        if not made.exists():
            return
        time.sleep(0.05)
    pytest.fail(f"{made} could not be removed")


@pytest.fixture
def machine(cgroup: Path) -> Iterator[PrivateMachine]:
    del cgroup  # is made before the machine, and removed after it
    with private_machine() as made:
        yield made


def outcome(
    machine: PrivateMachine, cgroup: Path, unit: str, *, stripe: str | None = None, meanwhile: str = ":"
) -> dict[str, str]:
    """Start the unit, wait until systemd is done with it, and return what systemd says of it.

    A service that did not fail is forgotten at once, so that of such a one only ActiveState says something.
    """
    machine.start(
        RUN_UNIT,
        CGROUP=str(cgroup),
        UNIT=f"{unit}.service",
        DROP_IN=DROP_IN.format(stripe=stripe or machine.stripe.url),
        MEANWHILE=meanwhile,
    )
    file, give_up_s = machine.record / "outcome", time.monotonic() + OUTCOME_WITHIN_S
    while not file.exists():
        if machine.ended or time.monotonic() > give_up_s:
            pytest.fail(f"no outcome; {machine.console}")
        time.sleep(0.1)
    return dict(line.partition("=")[::2] for line in file.read_text().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["meterctl-report", "meterctl-recent"])
def test_service_reports_under_all_its_restrictions(machine: PrivateMachine, cgroup: Path, unit: str) -> None:
    """PostgreSQL, Stripe and the credentials are reached; capabilities are gone, and system calls are filtered."""
    machine.usage(40)
    assert outcome(machine, cgroup, unit)["ActiveState"] == "inactive"
    (job,) = machine.jobs()
    assert (job.code, job.output, job.user) == (0, "", "meterctl")
    assert job.environment["CREDENTIALS_DIRECTORY"] == f"/run/credentials/{unit}.service"
    assert {name: job.status[name] for name in ("CapBnd", "CapEff", "NoNewPrivs", "Seccomp")} == {
        "CapBnd": "0" * 16,
        "CapEff": "0" * 16,
        "NoNewPrivs": "1",
        "Seccomp": "2",
    }
    assert machine.stripe.totals() == {("ai_suggestion", "cus_u1"): 40}


@pytest.mark.slow
def test_problems_fail_the_service_and_start_nothing_again(machine: PrivateMachine, cgroup: Path) -> None:
    machine.usage(1, user="unknown", known=False)
    assert outcome(machine, cgroup, "meterctl-report") == {
        "ActiveState": "failed",
        "Result": "exit-code",
        "ExecMainStatus": "10",
        "NRestarts": "0",
    }
    assert len(machine.jobs()) == 1


@pytest.mark.slow
def test_stripe_away_is_tried_again_but_not_for_ever(machine: PrivateMachine, cgroup: Path) -> None:
    """Nobody listens on port 9 (discard). Four starts, then the service stays failed."""
    machine.usage(1)
    found = outcome(machine, cgroup, "meterctl-recent", stripe="http://127.0.0.1:9")
    assert (found["ActiveState"], found["ExecMainStatus"], found["NRestarts"]) == ("failed", "69", "4")
    assert [job.code for job in machine.jobs()] == [69] * 4


@pytest.mark.slow
def test_stopping_the_service_is_orderly_and_no_failure(machine: PrivateMachine, cgroup: Path) -> None:
    """The call under way gets its answer, which is recorded; what was not sent yet is left for the next run."""
    machine.usage(3)
    machine.stripe.add_fault(Fault(kind=FaultKind.SLOW, delay_s=4, times=None))
    stop = (
        "until ls /opt/meterctl/record/note-*.arguments >/dev/null 2>&1; do sleep 0.1; done;"
        " sleep 3; systemctl stop meterctl-report.service"
    )
    assert outcome(machine, cgroup, "meterctl-report", meanwhile=stop)["ActiveState"] == "inactive"
    assert [job.code for job in machine.jobs()] == [143]
    assert machine.stripe.totals() == {("ai_suggestion", "cus_u1"): 1}
    assert machine.sql("SELECT state, count(*) FROM meterctl.meter_events GROUP BY 1 ORDER BY 1") == [
        ("accepted", 1),
        ("pending", 2),
    ]
