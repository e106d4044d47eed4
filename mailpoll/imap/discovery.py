"""Where the IMAP server of an address is, when nobody says.

In this order, because each is surer than the next: the presets by the address's domain; SRV records
(RFC 6186); the domain's own autoconfig file (https://wiki.mozilla.org/Thunderbird:Autoconfiguration);
the presets by mail exchanger (MX), for domains that a provider hosts; well-known names that answer.
Nothing is kept: servers move.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element, ParseError

import defusedxml
import defusedxml.ElementTree
import dns.exception
import dns.name
import dns.rdatatype
import dns.resolver

from ..settings import Settings
from . import hosts, https, providers
from .connection import greets
from .errors import Fault, ImapError, printable
from .providers import Preset

#: Seconds for all of it.
TIMEOUT = 20
#: Seconds that one DNS question, file or connection may take.
STEP = 5
#: What autoconfig files call it.
SECURITY = {"SSL": "tls", "STARTTLS": "starttls"}
HOST = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")


@dataclass(frozen=True, slots=True)
class Place:
    """Where to connect to, and what told so."""

    host: str
    port: int
    security: str
    source: str
    username: str | None = None

    @property
    def preset(self) -> Preset | None:
        return providers.preset_of(self.host)


class NotFound(Exception):
    """No IMAP server was found; ``tried`` says where."""

    def __init__(self, tried: list[str]) -> None:
        self.tried = tried
        super().__init__(f"no IMAP server was found: give the host ({'; '.join(tried)})")


def discover(address: str, config: Settings, seconds: float = TIMEOUT) -> Place:
    """Where the server of an address is.

    Parameters:
      seconds: for all of it.

    Raises:
      NotFound: nothing told of a server that may be connected to.
    """
    domain = providers.domain_of(address)
    preset = providers.preset_for(address)
    if preset:
        return _of_preset(preset, f"preset {preset.name}")
    try:
        name = dns.name.from_text(domain).to_text(omit_final_dot=True).lower()
    except dns.exception.DNSException:
        name = ""
    if not HOST.fullmatch(name):
        raise NotFound([f"{printable(domain, 80)} is no domain name"])
    search = _Search(address, name, config, time.monotonic() + seconds)
    for step in (search.services, search.files, search.exchangers, search.names):
        for place in step():
            return place
    raise NotFound(search.tried)


def _of_preset(preset: Preset, source: str) -> Place:
    return Place(preset.host, preset.port, preset.security, source)


@dataclass(slots=True)
class _Search:
    """The steps for one address, and what became of each."""

    address: str
    domain: str
    config: Settings
    deadline: float
    tried: list[str] = field(default_factory=list)

    def services(self) -> Iterator[Place]:
        """SRV records, TLS from the first byte before STARTTLS, by priority (RFC 6186, 3.2)."""
        for service, security in (("_imaps", "tls"), ("_imap", "starttls")):
            name = f"{service}._tcp.{self.domain}"
            found = [
                (record.priority, -record.weight, record.target.to_text(True), record.port)
                for record in self._ask(name, dns.rdatatype.SRV)
            ]
            for _, _, host, port in sorted(found):
                # A single dot says that the service is not offered.
                if host and self._allowed(port, f"SRV {name}"):
                    yield Place(host.lower(), port, security, f"SRV {name}")

    def files(self) -> Iterator[Place]:
        """The autoconfig files that the domain's owner publishes."""
        for template in self.config.autoconfig_urls:
            url = template.format(domain=self.domain)
            if not self._resolves(urlsplit(url).hostname or ""):
                continue
            try:
                answer = https.request(url, self.config, self._left())
            except ImapError as error:
                self._note(url, error.fault)
                continue
            if answer.status != 200:
                self._note(url, f"status {answer.status}")
                continue
            yield from self._servers(answer.body, url)

    def _servers(self, document: bytes, url: str) -> Iterator[Place]:
        try:
            # No entities, no external references: files of strangers (CWE-611, CWE-776).
            root = defusedxml.ElementTree.fromstring(document, forbid_dtd=True)
        except (ParseError, defusedxml.DefusedXmlException, ValueError):
            self._note(url, "not valid XML")
            return
        found = [self._place(server, url) for server in root.iter("incomingServer")]
        servers = [place for place in found if place]
        # Servers stand in the owner's order; those with TLS from the first byte go first.
        yield from sorted(servers, key=lambda place: place.security != "tls")
        if not servers:
            self._note(url, "names no IMAP server with TLS")

    def _place(self, server: Element, url: str) -> Place | None:
        if server.get("type") != "imap":
            return None
        host, port, kind = (
            (server.findtext(name) or "").strip() for name in ("hostname", "port", "socketType")
        )
        security = SECURITY.get(kind.upper())
        host = self._filled(host).lower()
        if security is None or not port.isdecimal() or not HOST.fullmatch(host):
            return None
        if not self._allowed(int(port), url):
            return None
        username = self._filled((server.findtext("username") or "").strip())
        return Place(host, int(port), security, url, username or None)

    def _filled(self, text: str) -> str:
        local, _, domain = self.address.rpartition("@")
        for name, value in (
            ("%EMAILADDRESS%", self.address),
            ("%EMAILLOCALPART%", local),
            ("%EMAILDOMAIN%", domain),
        ):
            text = text.replace(name, value)
        return printable(text)

    def exchangers(self) -> Iterator[Place]:
        """The provider that takes the domain's mail, if it is one of the presets."""
        records = sorted(
            (record.preference, record.exchange.to_text(True))
            for record in self._ask(self.domain, dns.rdatatype.MX)
        )
        for _, exchanger in records:
            preset = providers.preset_of_exchanger(exchanger)
            if preset:
                yield _of_preset(preset, f"MX {exchanger}, preset {preset.name}")
        if records:
            self._note(f"MX {self.domain}", "no provider that is known")

    def names(self) -> Iterator[Place]:
        """Names that servers usually have, if one answers with a certificate for that name."""
        single = [first for first, last in self.config.imap_ports if first == last]
        ports = [port for port in single if port != providers.PORTS["starttls"]]
        for host in (f"imap.{self.domain}", f"mail.{self.domain}", self.domain):
            if not self._resolves(host):
                continue
            for port in ports:
                try:
                    greets(host, port, self.config, self._left())
                except ImapError as error:
                    self._note(f"{host}:{port}", error.fault)
                    continue
                yield Place(host, port, "tls", f"{host} answers")

    def _resolves(self, host: str) -> bool:
        """Whether a host has an address: asked here, because the system's resolver is unbounded."""
        try:
            hosts.resolver(self.config).resolve_name(host, lifetime=self._left())
        except (ImapError, dns.exception.DNSException, OSError) as error:
            self._note(host, _reason(error))
            return False
        return True

    def _ask(self, name: str, kind: dns.rdatatype.RdataType) -> list[Any]:
        try:
            ask = hosts.resolver(self.config).resolve
            answer = ask(name, kind, lifetime=self._left(), search=False)
        except (ImapError, dns.exception.DNSException, OSError) as error:
            self._note(f"{kind.name} {name}", _reason(error))
            return []
        return list(answer)

    def _allowed(self, port: int, source: str) -> bool:
        if self.config.allows_port(port):
            return True
        self._note(source, f"port {port} is not in MAILPOLL_IMAP_PORTS")
        return False

    def _left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise ImapError(Fault.TIMED_OUT, "the time for the search is over")
        return min(left, STEP)

    def _note(self, what: str, why: str) -> None:
        self.tried.append(f"{what}: {why}")


def _reason(error: Exception) -> str:
    if isinstance(error, ImapError):
        return error.fault
    if isinstance(error, dns.resolver.NXDOMAIN | dns.resolver.NoAnswer):
        return "none"
    return type(error).__name__
