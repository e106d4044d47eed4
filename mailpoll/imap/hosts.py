"""Which address a host name is connected to, and whether that is allowed.

A host is resolved once, every answer is checked, and exactly the checked address is connected to,
so that a name cannot point elsewhere between check and use (CWE-918, server-side request forgery).
"""

import ipaddress
import socket
from collections.abc import Sequence

import dns.exception
import dns.resolver

from .. import turns
from ..settings import Network, Settings
from .errors import Fault, ImapError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Where the internet's IPv6 addresses are (RFC 4291): outside are local, reserved and translated
#: ones, of which Python calls some global.
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
#: An IPv6 prefix that carries an IPv4 address: NAT64 (RFC 6052).
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: Special networks that Python, or its older versions, call global: protocol assignments
#: (RFC 6890), 6to4 relays (RFC 7526), documentation (RFC 9637).
SPECIAL = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20")))


def resolve(
    host: str, port: int, config: Settings, allowed: Sequence[Network] | None = None
) -> str:
    """The address to connect to for ``host``.

    Parameters:
      allowed: networks that may be connected to, instead of those for IMAP.

    Raises:
      ImapError: the name does not resolve, or to an address that is not allowed.
    """
    addresses = _lookup(host, port, config)
    networks = config.imap_allowed_networks if allowed is None else allowed
    if not all(permitted(address, networks) for address in addresses):
        variable = "IMAP" if allowed is None else "WEBHOOK"
        raise ImapError(
            Fault.BLOCKED_HOST,
            f"{host} is a private or loopback address; "
            f"MAILPOLL_{variable}_ALLOWED_NETWORKS can allow it",
        )
    return str(addresses[0])


def permitted(address: Address, allowed: Sequence[Network]) -> bool:
    """Whether mailpoll may connect to ``address``: public, or inside an allowed network."""
    inner = _carried(address)
    if inner is not None:
        return permitted(inner, allowed)
    if any(address in network for network in allowed):
        return True
    if address.version == 6 and address not in GLOBAL_UNICAST:
        return False
    special = address.is_multicast or any(address in network for network in SPECIAL)
    return address.is_global and not special


def resolver(config: Settings) -> dns.resolver.Resolver:
    """The system's DNS servers, or the one of the configuration."""
    if config.dns_server is None:
        return dns.resolver.Resolver()
    chosen = dns.resolver.Resolver(configure=False)
    address, port = config.dns_server
    chosen.nameservers = [address]
    chosen.port = port
    return chosen


def _carried(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that packets to an IPv6 one end at: mapped, 6to4 (RFC 3056) or NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _lookup(host: str, port: int, config: Settings) -> list[Address]:
    """All addresses of a host, the one to prefer first.

    The system is asked, which knows more than DNS, unless a DNS server is configured.
    """
    try:
        with turns.waiting():
            if config.dns_server is None:
                answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                return [_address(str(answer[4][0])) for answer in answers]
            return _ask(host, config)
    except (OSError, UnicodeError, dns.exception.DNSException) as error:
        raise ImapError(Fault.UNREACHABLE, f"{host} does not resolve ({error})") from None


def _ask(host: str, config: Settings) -> list[Address]:
    try:
        return [_address(host)]
    except ValueError:
        found = resolver(config).resolve_name(host, lifetime=config.imap_connect_timeout)
        # IPv4 first: few networks are without it.
        return sorted(map(_address, found.addresses()), key=lambda one: one.version)


def _address(text: str) -> Address:
    return ipaddress.ip_address(text.partition("%")[0])
