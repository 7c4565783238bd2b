"""Stripe, through its official SDK. What it answers becomes Outcome values here."""

import os

# The SDK reads this on import and would print requests and answers straight to stderr, past our redaction.
os.environ.pop("STRIPE_LOG", None)
