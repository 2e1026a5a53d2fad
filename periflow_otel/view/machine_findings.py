"""What stands out of the machine that a run is on: what is full, what is held back, what is broken."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from periflow_otel import conventions, names
from periflow_otel.view.finding import Finding, View
from periflow_otel.view.rank_view import growth_of
from periflow_otel.view.words import duration_words, ranks_words

FULL_SHARE: Final = 0.95
"""A disk or a node's memory is nearly full."""
SWAPPED_IN: Final = 50.0
"""Pages a second that come back from the disk: somebody waits for them."""
THROTTLED_SHARE: Final = 0.1
"""A container may be kept from running for so much of the time before it is worth a word."""
STALLED_SHARE: Final = 0.5
"""Some process may wait for the disk or for memory for so much of the time before it is worth a word."""
_WAITED_FOR: Final = {"io": "the disk", "memory": "memory"}
"""Where there are more processes than processors, some process always waits for one."""
LASTING_S: Final = 600.0
"""Memory that has grown for so long does not fill a cache,"""
SOON_S: Final = 3600.0
"""and whatever it does will end the run where there is none left so soon."""
MIB: Final = 1 << 20
GIB: Final = 1 << 30

Value = Mapping[str, Any]


def machine_findings(ranks: Sequence[View]) -> Iterator[Finding]:
    """Look at the latest that each node, and each rank, has told of its machine."""
    for rank in ranks:
        node = f" of node {rank['host']}" if rank["host"] else ""
        for each in rank["machine"]:
            for look in (_full, _held_back, _broken):
                if (text := look(each["name"], each["attributes"], each["value"], node)) is not None:
                    yield Finding("machine", text)
    for node in sorted({rank["node_rank"] for rank in ranks}):
        yield from _memory_that_grows([rank for rank in ranks if rank["node_rank"] == node])


def _memory_that_grows(ranks: Sequence[View]) -> Iterator[Finding]:
    """Name the ranks of a node whose memory grows, once that has lasted, or will soon have come to its end."""
    open_ended = [rank for rank in ranks if rank["outcome"] in (None, "killed")]
    growing = {rank["rank"]: rank["memory_growth"] for rank in open_ended if rank["memory_growth"]}
    if not growing:
        return
    rates = [growth["rate"] for growth in growing.values()]
    limit, used = _memory_of(ranks)
    left_s = (limit - used) / sum(rates) if limit and used else float("inf")
    if left_s > SOON_S and max(growth["over_s"] for growth in growing.values()) < LASTING_S:
        return
    each = "" if len(growing) == 1 else " each"
    text = f"The memory of {ranks_words(growing).lower()} grows by {max(rates) * 60 / MIB:,.0f} MiB a minute{each}"
    if limit and used:
        text += f": the {limit / GIB:,.0f} GiB that there are will be full in {duration_words(max(0.0, left_s))}"
    yield Finding("memory", f"{text}.", sorted(growing), is_fault=left_s < SOON_S)


def _memory_of(ranks: Sequence[View]) -> tuple[float, float]:
    """Return how much memory the node, or the container, may use, and how much is used; 0: not known."""
    values = {(each["name"], each["attributes"].get(conventions.MEMORY_STATE)): each["value"]
              for rank in ranks for each in rank["machine"]}  # fmt: skip
    limit = values.get((conventions.SYSTEM_MEMORY_LIMIT.name, None), 0.0)
    return limit, values.get((conventions.SYSTEM_MEMORY_USAGE.name, "used"), 0.0)


def _full(name: str, attributes: Value, value: float, node: str) -> str | None:
    if value < FULL_SHARE:
        return None
    if name == conventions.SYSTEM_FILESYSTEM_UTILIZATION.name:
        return f"The disk at {attributes.get(conventions.MOUNTPOINT)}{node} is {value:.0%} full."
    if name == conventions.SYSTEM_MEMORY_UTILIZATION.name and attributes.get(conventions.MEMORY_STATE) == "used":
        return f"The memory{node} is {value:.0%} full."
    return None


def _held_back(name: str, attributes: Value, value: float, node: str) -> str | None:
    if name == growth_of(conventions.SYSTEM_PAGING_OPERATIONS.name):
        is_in = attributes.get(conventions.PAGING_DIRECTION) == "in"
        return f"{value:.0f} pages a second{node} come back from swap space." if is_in and value > SWAPPED_IN else None
    if name == growth_of(names.MACHINE_CPU_THROTTLED.name):
        text = f"The container{node} is kept from running {value:.0%} of the time by its processor limit."
        return text if value > THROTTLED_SHARE else None
    if name == growth_of(names.MACHINE_STALLED.name):
        what = _WAITED_FOR.get(attributes.get(names.MACHINE_RESOURCE, ""))
        return f"Processes{node} wait for {what} {value:.0%} of the time." if what and value > STALLED_SHARE else None
    state = attributes.get(conventions.HW_STATE)
    if name == conventions.HW_STATUS.name and value and state != "ok":
        what, why = attributes.get(conventions.HW_NAME), attributes.get(conventions.HW_TYPE)
        if state == "failed":
            return f"{what}{node} does not answer its driver."
        return f"{what}{node} is held back by its {str(why).replace('_', ' ')}." if why != "gpu" else None
    return None


def _broken(name: str, attributes: Value, value: float, node: str) -> str | None:
    error = str(attributes.get(conventions.ERROR_TYPE, ""))
    if name != conventions.HW_ERRORS.name or not value or error == "corrected":
        return None
    what = "uncorrectable memory errors" if error == "uncorrected" else f"error {error.replace('_', ' ').upper()}"
    return f"{attributes.get(conventions.HW_NAME)}{node} has had {what}, {value:.0f} times."
