"""Where the server is: a URL taken apart, without its secrets where it is shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from aiodatastore.errors import BadArgumentError

__all__ = ["TLS_SETTINGS", "Address", "parse_address"]

TLS_SETTINGS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")


@dataclass(frozen=True, slots=True)
class Address:
    """A server and one of its databases. ``shown`` has no password, and neither has the repr."""

    scheme: str
    host: str = "localhost"
    port: int = 6379
    path: str = ""
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """The address as a URL, without the password."""
        user = f"{quote(self.username, safe='')}@" if self.username else ""
        if self.scheme == "unix":
            return f"unix://{user}{quote(self.path)}" + (f"?db={self.database}" if self.database else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{user}{host}:{self.port}/{self.database}"

    def arguments(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What redis-py's connection classes take."""
        place: dict[str, Any] = {"path": self.path} if self.scheme == "unix" else {"host": self.host, "port": self.port}
        secure = {name: settings[name] for name in TLS_SETTINGS if name in settings} if self.scheme == "rediss" else {}
        return {**place, "db": self.database, "username": self.username, "password": self.password, **secure}


def parse_address(scheme: str, location: str, database: int | None = None) -> Address:
    """The address of ``redis://[user[:password]@]host[:port][/database]`` (``rediss`` alike) or
    ``unix://[user[:password]@]/path/of/the/socket``, percent signs decoded. ``scheme`` and what follows ``://``.

    :raises BadArgumentError: if it is malformed; the text is not repeated, as there may be a password in it
    """
    try:
        parts = urlsplit(f"{scheme}://{location}")
        username, password = (
            None if part is None else unquote(part, errors="strict") for part in (parts.username, parts.password)
        )
        host, port, path = parts.hostname, parts.port, unquote(parts.path, errors="strict")
    except (ValueError, UnicodeDecodeError):
        raise BadArgumentError(f"{scheme}:// URL: the address is malformed") from None
    if scheme == "unix":
        if host or port or not path.strip("/"):
            raise BadArgumentError("unix:// URL: expected unix:///path/of/the/socket")
        return Address(scheme, path=path, database=database or 0, username=username or None, password=password)
    name = path.strip("/")
    if name and (not re.fullmatch(r"[0-9]{1,6}", name) or database is not None):
        raise BadArgumentError(f"{scheme}:// URL: expected {scheme}://host:port/0, with the number of a database once")
    return Address(
        scheme,
        host=unquote(host or "localhost"),
        port=port or 6379,
        database=int(name) if name else database or 0,
        username=username or None,
        password=password,
    )
