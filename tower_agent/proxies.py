"""Which HTTP proxy leads to the server: HTTPS_PROXY and NO_PROXY as curl and Go read them.

Pure: the environment is an argument. We do not use urllib's reader because it knows no networks
(`NO_PROXY=10.0.0.0/8`), which operators write, nor aiohttp's, which also reads ~/.netrc.
"""

import ipaddress
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from shared.outbound import Proxy

__all__ = ["proxy_for"]


def proxy_for(host: str, port: int, environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for an HTTPS connection to host:port; None for a direct one.

    Raises:
        ValueError: If HTTPS_PROXY is not the URL of an HTTP proxy; the message shows no credentials.
    """
    text = _variable(environ, "https_proxy")
    if not text or _is_excepted(host, port, _variable(environ, "no_proxy")):
        return None
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        proxy_port = parts.port or 80
    except ValueError:
        raise _bad_proxy() from None  # urllib's message may quote the password
    # We simplify by not speaking TLS to the proxy itself: what goes through it is TLS anyway.
    if parts.scheme != "http" or not parts.hostname:
        raise _bad_proxy()
    return Proxy(
        host=parts.hostname,
        port=proxy_port,
        user=unquote(parts.username) if parts.username is not None else None,
        password=unquote(parts.password) if parts.password is not None else None,
    )


def _bad_proxy() -> ValueError:
    return ValueError(
        "HTTPS_PROXY is not the URL of an HTTP proxy: set it to http://HOST:PORT or "
        "http://USER:PASSWORD@HOST:PORT, or unset it."
    )


def _variable(environ: Mapping[str, str], name: str) -> str:
    # The small letters win, as with curl.
    return (environ.get(name) or environ.get(name.upper()) or "").strip()


def _is_excepted(host: str, port: int, no_proxy: str) -> bool:
    """Say whether NO_PROXY names the host: `*`, a name and what is below it, an address, a network."""
    host = host.lower().rstrip(".")
    address = _address(host)
    # Loopback never goes through a proxy: the proxy's loopback is another machine's.
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    return any(
        _entry_matches(entry.strip().lower(), host, address, port)
        for entry in no_proxy.split(",")
        if entry.strip()
    )


def _entry_matches(
    entry: str,
    host: str,
    address: ipaddress.IPv4Address | ipaddress.IPv6Address | None,
    port: int,
) -> bool:
    if entry == "*":
        return True
    if address is not None and "/" in entry:
        try:
            return address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name, colon, entry_port = entry.rpartition(":")
    if colon and entry_port.isdigit() and _address(entry) is None:
        if int(entry_port) != port:
            return False
        entry = name
    if address is not None:
        return _address(entry.strip("[]")) == address
    suffix = entry.removeprefix("*").lstrip(".")
    return host == suffix or host.endswith(f".{suffix}")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
