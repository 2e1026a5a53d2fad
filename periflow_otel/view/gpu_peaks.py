"""What GPUs can do at most: dense matrix multiplications of bfloat16, as their maker's data sheets have it.

NVIDIA's tables show numbers with sparsity for most; without it is half of that. A GPU that is not known here has no
peak, and needs ``peak_flops``: https://www.nvidia.com/en-us/data-center/ has a page and a data sheet for each of these.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from periflow_otel import conventions, names

TERA: Final = 1e12
PEAKS: Final = {
    # nvidia.com/en-us/data-center/gb200-nvl72: 5 PFLOPS with sparsity; dgx-b200: 36 of eight
    r"GB200": 2500 * TERA,
    r"B200": 2250 * TERA,
    # grace-hopper-superchip, h200, h100
    r"GH200": 990 * TERA,
    r"H200 NVL": 836 * TERA,
    r"H200": 989 * TERA,
    r"H100 NVL": 835 * TERA,
    r"H100 PCIe": 756 * TERA,
    r"H100": 989 * TERA,
    # a100, a40, products/a30-gpu, products/a10-gpu: dense as they stand
    r"A100\b.*": 312 * TERA,
    r"A40": 149.7 * TERA,
    r"A30": 165 * TERA,
    r"A10": 125 * TERA,
    # l40s, l40, l4
    r"L40S": 362 * TERA,
    r"L40": 181 * TERA,
    r"L4": 121 * TERA,
}
"""By what a driver calls a GPU, as a pattern after the maker's name; the first that fits."""
_KNOWN: Final = [(re.compile(rf"(NVIDIA )?{name}( \d+GB.*)?"), peak) for name, peak in PEAKS.items()]


def peak_of(model: str) -> float | None:
    """Return the floating-point operations per second that a GPU can do; None of one that is not known."""
    return next((peak for name, peak in _KNOWN if name.fullmatch(model)), None)


def peaks_of_ranks(streams: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Return what the GPUs of each rank can do together, where all of them are known.

    Args:
        streams: Attributes of what is known of GPUs.
    """
    models = {
        (int(each[names.RANK]), each[conventions.HW_ID]): _peak_of_device(each)
        for each in streams
        if names.RANK in each and conventions.HW_ID in each
    }
    peaks: dict[int, list[float | None]] = {}
    for (rank, _), peak in models.items():
        peaks.setdefault(rank, []).append(peak)
    return {rank: sum(filter(None, each)) for rank, each in peaks.items() if all(each)}


def _peak_of_device(attributes: Mapping[str, Any]) -> float | None:
    """Return the peak of a whole GPU; what a part of one can do depends on how it was cut."""
    is_part = conventions.HW_PARENT in attributes
    return None if is_part else peak_of(str(attributes.get(conventions.HW_MODEL, "")))
