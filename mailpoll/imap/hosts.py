"""Which address a host name is connected to, and whether that is allowed.

A host is resolved once, every answer is checked, and exactly the checked address is connected to,
so that a name cannot point elsewhere between check and use (CWE-918, server-side request forgery).
"""

import ipaddress
import socket
from collections.abc import Sequence

from .. import turns
from ..settings import Network
from .errors import Fault, ImapError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Prefixes that carry an IPv4 address inside an IPv6 one: NAT64 (RFC 6052) and 6to4 (RFC 3056).
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def resolve(host: str, port: int, allowed: Sequence[Network]) -> str:
    """The address to connect to for ``host``.

    Parameters:
      allowed: networks that may be connected to although they are private or loopback.

    Raises:
      ImapError: the name does not resolve, or to an address that is not allowed.
    """
    try:
        with turns.waiting():
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ImapError(Fault.UNREACHABLE, f"{host} does not resolve ({error})") from None
    addresses = [ipaddress.ip_address(str(answer[4][0]).split("%")[0]) for answer in answers]
    for address in addresses:
        if not permitted(address, allowed):
            raise ImapError(
                Fault.BLOCKED_HOST,
                f"{host} is a private or loopback address; MAILPOLL_IMAP_ALLOWED_NETWORKS can "
                "allow it",
            )
    return str(addresses[0])


def permitted(address: Address, allowed: Sequence[Network]) -> bool:
    """Whether mailpoll may connect to ``address``: public, or inside an allowed network."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return permitted(inner, allowed)
    if any(address.version == network.version and address in network for network in allowed):
        return True
    return address.is_global and not address.is_multicast
