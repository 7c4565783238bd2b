"""What `--limit` leaves to a command."""

from dataclasses import dataclass


@dataclass(slots=True)
class Allowance:
    """How many events a command may still see accepted or rejected, over all its meters and attempts.

    `left` None: any number.
    """

    left: int | None

    def spend(self, count: int) -> None:
        """Take off what moved on."""
        if self.left is not None:
            self.left -= count
