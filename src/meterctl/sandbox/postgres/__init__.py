"""A private PostgreSQL server for the demo, the sandbox and the tests: nothing to install, nothing left behind."""

from meterctl.sandbox.postgres.launcher import EmbeddedPostgres

__all__ = ["EmbeddedPostgres"]
