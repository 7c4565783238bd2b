"""meterctl: metered usage from PostgreSQL to Stripe Billing Meters, every unit billed exactly once."""

__version__ = "0.1.0"
