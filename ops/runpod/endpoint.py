"""RUNPOD_API_URL: which addresses the API key may be sent to, and the connections to one."""

import urllib.parse
import urllib.request
from contextlib import suppress
from ipaddress import ip_address

import urllib3

from worker.errors import BadInput


def checked(url: str) -> str:
    """The address, without a slash at its end. Raises BadInput for one that the key must not go to."""
    url = url.rstrip("/")
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname if parts.port != 0 else None  # reading a port that is none raises
    except ValueError:
        host = None
    if not host or parts.scheme not in ("https", "http") or parts.query or parts.username:
        raise BadInput("RUNPOD_API_URL is not an address; write it like https://api.runpod.io")
    if parts.path.endswith("/v2"):
        raise BadInput("RUNPOD_API_URL ends in /v2, which is added to it; remove that")
    if parts.scheme == "http" and not _is_here(host):
        raise BadInput("RUNPOD_API_URL would send the API key unencrypted; write it with https://")
    return url


def _is_here(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def pool(url: str) -> urllib3.PoolManager:
    """Connections to the address, through the proxy that the system has for it."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    host = parts.hostname or ""
    if not proxy or _is_here(host) or urllib.request.proxy_bypass(host):
        return urllib3.PoolManager()
    return urllib3.ProxyManager(proxy)
