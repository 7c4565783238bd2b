"""Standard streams as everything else expects them: open, and able to take any text."""

import os
import sys

STDERR_FD = 2


def prepare_streams() -> None:
    """Give closed streams (`>&-`) a null device, and let text that the encoding lacks be written escaped.

    A closed number would go to the next socket, and what is meant for stdout or stderr would be written into it.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= STDERR_FD:
        pass
    os.close(fd)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(STDERR_FD, "w", encoding="utf-8")
    if hasattr(sys.stdout, "reconfigure"):  # whoever runs us within a process may have put something else there
        sys.stdout.reconfigure(errors="backslashreplace")
