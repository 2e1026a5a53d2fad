"""What even root may do without."""

import os
from typing import Final

UNPRIVILEGED: Final = (
    (
        "setpriv",
        *(part for each in ("--bounding-set", "--inh-caps") for part in (each, "-dac_override,-dac_read_search")),
    )
    if os.geteuid() == 0
    else ()
)
"""What begins a command that may only read what the mode of a file allows its user to."""
