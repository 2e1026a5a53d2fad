"""Whom a request may mean: a web page elsewhere can make its own name lead here (DNS rebinding), and read along.

A browser says in ``Host`` which name it was given. The names of loopback and literal addresses cannot be made to lead
elsewhere first, so they are answered; any other name must be one that the user has given.
"""

import ipaddress
import re
from collections.abc import Collection
from typing import NamedTuple

_NAME_AND_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]/@\s]+)(?::\d{1,5})?")


class Hosts(NamedTuple):
    """The names that are answered."""

    address: str
    """What is listened on."""
    names: Collection[str] = ()
    """What the user calls this place."""

    @property
    def is_open(self) -> bool:
        """Whether other machines can ask."""
        return not ipaddress.ip_address(self.address).is_loopback

    def includes(self, host: str) -> bool:
        """Tell whether a ``Host`` header, with or without a port, names this place."""
        match = _NAME_AND_PORT.fullmatch(host)
        if match is None:
            return False
        name = _plain(match.group(1))
        return name == "localhost" or name in map(_plain, self.names) or self._is_own_address(name)

    def _is_own_address(self, name: str) -> bool:
        try:
            asked, own = ipaddress.ip_address(name), ipaddress.ip_address(self.address)
        except ValueError:
            return False
        return asked.is_loopback or asked == own or own.is_unspecified


def _plain(name: str) -> str:
    return name.strip("[]").rstrip(".").lower()
