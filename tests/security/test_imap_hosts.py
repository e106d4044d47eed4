"""Server-side request forgery: which places mailpoll can be made to connect to."""

import gzip
import ipaddress
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mailpoll.imap import Fault, ImapError, Login, connect, hosts, https
from mailpoll.settings import Settings, from_environment
from tests.integration.conftest import SETS, run_system
from tests.integration.rows import account_row
from tests.integration.scripted import polled
from tests.integration.system import PASSWORD, System
from tests.servers.dns_server import DnsServer
from tests.servers.dovecot import Dovecot
from tests.servers.https_files import HttpsFiles
from tests.servers.process import HOST
from tests.servers.scripted_imap import ScriptedImap

URL = "/admin/email-accounts"

#: Addresses that are not on the internet, in every form that reaches the check.
LOCAL = [
    *(
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
    ),
    *("169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.1", "192.0.0.200", "192.0.2.1"),
    *("198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "224.0.0.1", "239.1.2.3"),
    *("240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::2", "::127.0.0.1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
    *("::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::1", "2002:7f00:1::1"),
    *("2002:a00:1::", "2001::1", "2001:db8::1", "3fff::1", "100::1", "fc00::1", "fd00::1"),
    *("fe80::1", "fec0::1", "ff02::1", "5f00::1", "4000::1"),
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1", "2a00:1450:4001::1", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", LOCAL)
def test_what_is_not_on_the_internet_is_refused(address: str) -> None:
    """S09"""
    assert not hosts.permitted(ipaddress.ip_address(address), [])


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_on_the_internet_is_not(address: str) -> None:
    """S09: the check above is no check that refuses all."""
    assert hosts.permitted(ipaddress.ip_address(address), [])


def test_an_allowed_network_allows_itself_alone() -> None:
    """S09: also in the forms that carry it inside an IPv6 address."""
    allowed = [ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00:1::/32")]
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "fd00:1::1"):
        assert hosts.permitted(ipaddress.ip_address(address), allowed)
    for address in ("10.2.0.1", "::ffff:10.2.0.1", "127.0.0.1", "fd00:2::1", "::10.1.2.3"):
        assert not hosts.permitted(ipaddress.ip_address(address), allowed)


FULL_WIDTH = "\uff11\uff12\uff17\u3002\uff10\u3002\uff10\u3002\uff11"
#: Spellings of the loopback address that a resolver understands, and some that none does.
SPELLINGS = [
    *("127.1", "127.0.1", "2130706433", "0x7f.1", "0x7f000001", "017700000001", "0177.0.0.1"),
    *("127.0.0.1", "::1", "::ffff:127.0.0.1", "0:0:0:0:0:0:0:1", "localhost", "LOCALHOST"),
    *("localhost.", "①②⑦.⓪.⓪.①", FULL_WIDTH, "127.0.0.1.", "[::1]", "xn--127-0-0-1"),
    *("::1%lo", "0", "0.0.0.0"),
]


@pytest.mark.parametrize("host", SPELLINGS)
def test_no_spelling_of_an_address_gets_around_the_check(host: str) -> None:
    """S09: integers, octal, hex, short, mapped, with a trailing dot, IDN digits."""
    with pytest.raises(ImapError) as caught:
        hosts.resolve(host, 993, from_environment({}))
    assert caught.value.fault in (Fault.BLOCKED_HOST, Fault.UNREACHABLE)
    if host in ("127.1", "2130706433", "0x7f.1", "①②⑦.⓪.⓪.①", "localhost"):
        assert caught.value.fault is Fault.BLOCKED_HOST


# --- names


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer() as running:
        yield running


def asking(dns: DnsServer, allowed: str = "127.0.0.1/32", **more: str) -> Settings:
    return from_environment(
        {
            "MAILPOLL_DNS_SERVER": f"127.0.0.1:{dns.port}",
            "MAILPOLL_IMAP_ALLOWED_NETWORKS": allowed,
            "MAILPOLL_IMAP_CONNECT_TIMEOUT": "3",
            **more,
        }
    )


@pytest.mark.parametrize(
    ("kind", "addresses"),
    [
        ("A", ["10.0.0.1"]),
        ("A", ["169.254.169.254"]),
        ("A", ["127.0.0.1", "10.0.0.1"]),
        ("A", ["10.0.0.1", "127.0.0.1"]),
        ("AAAA", ["::1"]),
        ("AAAA", ["64:ff9b::7f00:2"]),
        ("AAAA", ["::ffff:10.0.0.1"]),
    ],
)
def test_a_name_that_leads_inside_is_refused(
    dns: DnsServer, kind: str, addresses: list[str]
) -> None:
    """S09: one forbidden address among several is enough."""
    dns.records["evil.test.", kind] = addresses
    with pytest.raises(ImapError) as caught:
        hosts.resolve("evil.test", 993, asking(dns))
    assert caught.value.fault is Fault.BLOCKED_HOST


def test_a_name_is_looked_up_once_and_that_address_is_connected_to(dns: DnsServer) -> None:
    """S09: rebinding: the second answer would lead elsewhere."""
    # Given a name with an address that is allowed, and after one question with one that is not
    dns.records["rebind.test.", "A"] = ["127.0.0.1"]
    dns.later["rebind.test.", "A"] = ["127.0.0.2"]
    connected: list[Any] = []
    watched = threading.get_ident()

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and threading.get_ident() == watched:
            connected.append(arguments[1])

    sys.addaudithook(note)
    with ScriptedImap() as allowed:
        config = asking(dns, MAILPOLL_IMAP_ALLOW_PLAIN="yes")
        # When the name is connected to
        login = Login("rebind.test", allowed.port, "plain", "u", "password", "p")
        with connect(login, config, 10):
            pass
    tcp = [place for place in connected if place[1] == allowed.port]
    # Then it was asked for once, and the address of that answer was connected to, not the name
    assert dns.questions.count(("rebind.test.", "A")) == 1
    assert tcp == [(HOST, allowed.port)]
    # And the next connection is refused
    with pytest.raises(ImapError) as caught:
        hosts.resolve("rebind.test", 993, config)
    assert caught.value.fault is Fault.BLOCKED_HOST


@pytest.fixture
def rebinding(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot, dns: DnsServer
) -> Iterator[System]:
    yield from run_system(
        SETS["embedded"](request, tmp_path),
        tmp_path,
        dovecot,
        MAILPOLL_DNS_SERVER=f"127.0.0.1:{dns.port}",
        MAILPOLL_IMAP_ALLOWED_NETWORKS="127.0.0.1/32",
    )


def test_an_account_whose_name_is_rebound_later_is_not_connected_to(
    rebinding: System, dns: DnsServer, address: str
) -> None:
    """S09: the check is made at each connect, not only when an account is added."""
    dns.records["localhost.", "A"] = ["127.0.0.1"]
    account = rebinding.add_account(address)
    dns.records["localhost.", "A"] = ["169.254.169.254"]
    row = polled(account_row(account))
    assert row.last_error_kind == "blocked_host"


def test_a_new_account_with_a_name_that_leads_inside_is_refused(
    rebinding: System, dns: DnsServer, address: str
) -> None:
    """S09"""
    dns.records["inside.test.", "A"] = ["192.168.0.1"]
    body = rebinding.new_account(address, host="inside.test")
    answer = rebinding.api.simulate_post(URL, json=body)
    assert answer.status_code == 422
    assert answer.json["errors"][0]["field"] == "host"


# --- HTTPS: token servers and autoconfig files go the same way


def test_https_goes_to_the_address_that_was_checked(dns: DnsServer, dovecot: Dovecot) -> None:
    """S09: one look-up, that address, the certificate of the name."""
    dns.records["localhost.", "A"] = ["127.0.0.1"]
    dns.later["localhost.", "A"] = ["127.0.0.2"]
    config = asking(dns, MAILPOLL_IMAP_CA_FILE=str(dovecot.ca_file))
    with HttpsFiles(dovecot.ca_file.parent, {"/x": (200, b"ok")}) as server:
        assert https.request(f"https://localhost:{server.port}/x", config, 5).body == b"ok"
        assert dns.questions.count(("localhost.", "A")) == 1
        # A name that leads to the same address is not the certificate's
        dns.records["other.test.", "A"] = ["127.0.0.1"]
        with pytest.raises(ImapError) as caught:
            https.request(f"https://other.test:{server.port}/x", config, 5)
    assert caught.value.fault is Fault.TLS


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1:1/",
        "https://2130706433/",
        "https://[::ffff:127.0.0.1]/",
        "https://169.254.169.254/latest/meta-data/",
        "https://user:word@10.0.0.1/",
    ],
)
def test_https_goes_nowhere_inside(url: str) -> None:
    """S09"""
    with pytest.raises(ImapError) as caught:
        https.request(url, from_environment({}), 5)
    assert caught.value.fault is Fault.BLOCKED_HOST


@pytest.mark.parametrize("url", ["http://8.8.8.8/", "file:///etc/passwd", "ftp://x/", "https:///x"])
def test_only_https_is_asked(url: str) -> None:
    """S09"""
    with pytest.raises(ImapError):
        https.request(url, from_environment({}), 5)


def test_a_packed_answer_is_not_unpacked(dns: DnsServer, dovecot: Dovecot) -> None:
    """S09, S23: a few bytes of an autoconfig file or token answer could become gigabytes."""
    dns.records["localhost.", "A"] = ["127.0.0.1"]
    config = asking(dns, MAILPOLL_IMAP_CA_FILE=str(dovecot.ca_file))
    bomb = gzip.compress(bytes(100_000_000))
    assert len(bomb) < https.LIMIT
    with HttpsFiles(dovecot.ca_file.parent, {"/x": (200, bomb)}, packed=True) as server:
        tracemalloc.start()
        try:
            answer = https.request(f"https://localhost:{server.port}/x", config, 5)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert answer.body == bomb
    assert peak < 5_000_000


# --- other services


@pytest.mark.parametrize(
    "banner",
    [
        b"SSH-2.0-canary_9.2\r\n",
        b"220 canary ESMTP\r\n",
        b"-ERR canary\r\n",
        b"HTTP/1.1 400 canary\r\n\r\n",
    ],
)
def test_the_banner_of_another_service_is_not_told(scripted: System, banner: bytes) -> None:
    """S10: an account cannot be used to look into what answers at a place."""
    with ScriptedImap(greeting=banner) as server:
        answer = scripted.api.simulate_post(
            URL,
            json={
                "address": "a@b.example",
                "password": PASSWORD,
                "host": HOST,
                "port": server.port,
                "security": "plain",
            },
        )
    assert answer.status_code == 422
    assert "canary" not in answer.text
    assert "not greet like an IMAP server" in answer.text
