"""Finished spans and points as OTLP, in protobuf and in JSON: two writers, one model.

What is here is what both say with the same numbers.
"""

from typing import Final

SPAN_KIND_INTERNAL: Final = 1
STATUS_CODE_ERROR: Final = 2
DELTA: Final = 1
CUMULATIVE: Final = 2
FLAGS: Final = 0x100
"""That it is known whether a parent is remote, and that none is: as the SDK has it, every parent counts as local. A
rank does not tell whether its parent is another one."""
SMALL: Final = 1024
"""An attribute with an integer below this is written once and remembered: ranks are such."""
