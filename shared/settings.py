"""What the settings of server and agent have in common: addresses, sizes, and the error that a bad setting is.

Only text is judged here. Whether a name resolves or a port is free shows when it is used.
"""

import ipaddress
import re
from dataclasses import dataclass
from datetime import timedelta

from shared.durations import parse_duration

__all__ = [
    "DEFAULT_DRAIN_TIME",
    "HostPort",
    "SettingsError",
    "parse_drain_time",
    "parse_host_port",
    "parse_memory_bytes",
]

# Kubernetes kills a pod 30 s after it was asked to stop, unless its
# terminationGracePeriodSeconds says otherwise. What comes before (the news reaches a load
# balancer) and behind (last words, files) takes seconds; the rest is for streams.
DEFAULT_DRAIN_TIME = timedelta(seconds=20)

# A night's download ends. A watch never does: who waits longer for it waits for ever.
MAX_DRAIN_TIME = timedelta(hours=12)

MAX_PORT = 65535

# RFC 1123 2.1: labels of 63 characters, 253 in all. Underscores too: container networks have them.
MAX_DNS_NAME_CHARS = 253
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.IGNORECASE)


# As Kubernetes writes them; with a B, as people do. More digits than memory has are a mistake.
_MEMORY = re.compile(r"([0-9]{1,9})(Mi|Gi)B?")
_UNIT_BYTES = {"Mi": 1024**2, "Gi": 1024**3}


class SettingsError(ValueError):
    """A setting cannot be used; the message is one sentence that says which, why, and what to write.

    The command lines print it and exit with status 2.
    """


@dataclass(frozen=True, kw_only=True)
class HostPort:
    """Where something listens or is reached. `host` has no brackets, `str()` puts them where needed."""

    host: str
    port: int

    def __str__(self) -> str:
        return (
            f"[{self.host}]:{self.port}"
            if ":" in self.host
            else f"{self.host}:{self.port}"
        )

    @property
    def is_wildcard(self) -> bool:
        """True for 0.0.0.0 and ::, which can be listened on and never connected to."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False

    @property
    def is_loopback(self) -> bool:
        """True for 127.0.0.0/8, ::1 and `localhost`: nobody outside this machine gets there."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"


def parse_host_port(
    text: str, *, setting: str, port_zero_allowed: bool = False
) -> HostPort:
    """Read `HOST:PORT`, `1.2.3.4:PORT` or `[IPv6]:PORT`.

    `setting` names the option in the error. Port 0 (the system chooses) makes sense for listening only.

    Raises:
        SettingsError: If it is anything else.
    """
    host, colon, port_text = text.rpartition(":")
    if not colon:
        raise SettingsError(
            f"{setting} {text!r} has no port: write HOST:PORT, such as 127.0.0.1:8443."
        )
    if not (port_text.isascii() and port_text.isdigit()) or int(port_text) > MAX_PORT:
        raise SettingsError(
            f"{setting} {text!r} has no port number (0 to {MAX_PORT}) after the last colon: write HOST:PORT."
        )
    if port_text.strip("0") == "" and not port_zero_allowed:
        raise SettingsError(
            f"{setting} {text!r} cannot have port 0: others have to know the port."
        )
    return HostPort(host=_parse_host(host, text, setting), port=int(port_text))


def parse_memory_bytes(text: str, *, setting: str, at_least_bytes: int) -> int:
    """Read a size of memory: `256Mi` or `1Gi`, also `256MiB` or `1GiB`.

    Raises:
        SettingsError: If it is anything else, or too little to work with.
    """
    match = _MEMORY.fullmatch(text)
    if match is None:
        raise SettingsError(
            f"{setting} {text!r} is not a size of memory: write a number with Mi or Gi, such as 256Mi."
        )
    size_bytes = int(match[1]) * _UNIT_BYTES[match[2]]
    if size_bytes < at_least_bytes:
        raise SettingsError(
            f"{setting} {text} is too little to work with: write {at_least_bytes // 1024**2}Mi or more."
        )
    return size_bytes


def parse_drain_time(text: str) -> timedelta:
    """Read the time that running streams get when a program is asked to stop.

    Raises:
        SettingsError: If it is no span of time, or too long a one.
    """
    try:
        time = parse_duration(text)
    except ValueError as error:
        raise SettingsError(f"--drain-time: {error}") from None
    if time > MAX_DRAIN_TIME:
        raise SettingsError(
            f"--drain-time {text} is longer than {MAX_DRAIN_TIME.seconds // 3600} hours: streams that have not "
            "ended by then do not end by themselves."
        )
    return time


def _parse_host(host: str, text: str, setting: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError as error:
            raise SettingsError(
                f"{setting} {text!r} has no IPv6 address between its brackets: write it like [2001:db8::1]:8443."
            ) from error
    if ":" in host:
        raise SettingsError(
            f"{setting} {text!r} is ambiguous: put an IPv6 address in brackets, like [2001:db8::1]:8443."
        )
    if not host:
        raise SettingsError(
            f"{setting} {text!r} has no host: write 0.0.0.0{text} for all addresses, 127.0.0.1{text} for this machine."
        )
    if re.fullmatch(r"[0-9.]+", host):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError as error:
            raise SettingsError(
                f"{setting} {text!r} has no IPv4 address before the port: it needs four numbers from 0 to 255."
            ) from error
    if len(host) > MAX_DNS_NAME_CHARS or _DNS_NAME.fullmatch(host) is None:
        raise SettingsError(
            f"{setting} {text!r} has no host name or address before the port."
        )
    return host
