"""What every test shares. Servers and databases are in `postgres_fixtures`."""

import hypothesis

pytest_plugins = ["postgres_fixtures", "stripe_fixtures"]

# A loaded machine is no failure: pytest-timeout bounds a test, hypothesis need not time its examples as well.
hypothesis.settings.register_profile("meterctl", deadline=None)
hypothesis.settings.load_profile("meterctl")
