"""Finding the server of an address: presets, SRV, autoconfig, MX, usual names; safe and bounded."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mailpoll.imap.discovery import NotFound, discover
from mailpoll.settings import SettingsError, from_environment
from tests.integration.conftest import SETS, run_system
from tests.integration.system import PASSWORD, System
from tests.servers.dns_server import DnsServer
from tests.servers.dovecot import Dovecot
from tests.servers.https_files import HttpsFiles

URL = "/admin/email-accounts"
CONFIG = """<?xml version="1.0" encoding="UTF-8"?>
<clientConfig version="1.1"><emailProvider id="corp.test">
  <domain>corp.test</domain>
  <incomingServer type="pop3"><hostname>pop.corp.test</hostname><port>995</port>
    <socketType>SSL</socketType></incomingServer>
  %s
</emailProvider></clientConfig>"""


def server(host: str, port: int, kind: str = "SSL", username: str = "%EMAILADDRESS%") -> str:
    return (
        f'<incomingServer type="imap"><hostname>{host}</hostname><port>{port}</port>'
        f"<socketType>{kind}</socketType><username>{username}</username></incomingServer>"
    )


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer({("localhost.", "A"): ["127.0.0.1"]}) as running:
        yield running


@pytest.fixture
def files(dovecot: Dovecot) -> Iterator[HttpsFiles]:
    with HttpsFiles(dovecot.ca_file.parent) as running:
        yield running


@pytest.fixture
def system(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    dovecot: Dovecot,
    dns: DnsServer,
    files: HttpsFiles,
) -> Iterator[System]:
    yield from run_system(
        SETS["embedded"](request, tmp_path),
        tmp_path,
        dovecot,
        MAILPOLL_IMAP_PORTS=f"{dovecot.imap_port},{dovecot.imaps_port},993",
        MAILPOLL_DNS_SERVER=f"127.0.0.1:{dns.port}",
        MAILPOLL_AUTOCONFIG_URLS=f"https://localhost:{files.port}/{{domain}}/config-v1.1.xml",
    )


def put(files: HttpsFiles, *servers: str, domain: str = "corp.test") -> None:
    files.files[f"/{domain}/config-v1.1.xml"] = (200, (CONFIG % "".join(servers)).encode())


def found(system: System, address: str = "ann@corp.test") -> dict[str, Any]:
    return system.post("/admin/discover", address=address)


def not_found(system: System, address: str = "ann@corp.test") -> str:
    answer = system.api.simulate_post("/admin/discover", json={"address": address})
    assert answer.status_code == 422, answer.text
    (error,) = answer.json["errors"]
    assert error["field"] == "host"
    return str(error["reason"])


# --- the sources, in their order


def test_a_known_domain_asks_nobody(system: System, dns: DnsServer, files: HttpsFiles) -> None:
    place = found(system, "ann@gmail.com")
    assert (place["host"], place["port"], place["security"]) == ("imap.gmail.com", 993, "tls")
    assert place["source"] == "preset gmail"
    assert place["auth"] == ["oauth2", "password"]
    assert "app password" in place["help"]
    assert dns.questions == []
    assert files.asked == []


def test_srv_records_win_over_the_file_and_tls_over_starttls(
    system: System, dns: DnsServer, files: HttpsFiles
) -> None:
    dovecot = system.dovecot
    put(files, server("other.corp.test", 993))
    dns.records |= {
        ("_imap._tcp.corp.test.", "SRV"): [f"0 1 {dovecot.imap_port} plain.corp.test."],
        ("_imaps._tcp.corp.test.", "SRV"): [
            f"20 1 {dovecot.imaps_port} second.corp.test.",
            f"10 1 {dovecot.imaps_port} Imap.corp.test.",
        ],
    }
    place = found(system)
    assert (place["host"], place["port"]) == ("imap.corp.test", dovecot.imaps_port)
    assert place["security"] == "tls"
    assert place["source"] == "SRV _imaps._tcp.corp.test"
    assert place["provider"] is None
    del dns.records["_imaps._tcp.corp.test.", "SRV"]
    assert found(system)["security"] == "starttls"


def test_a_dot_says_that_the_service_is_not_offered(
    system: System, dns: DnsServer, files: HttpsFiles
) -> None:
    dns.records["_imaps._tcp.corp.test.", "SRV"] = ["0 0 0 ."]
    put(files, server("imap.corp.test", 993))
    assert found(system)["source"].startswith("https://")


def test_the_file_names_server_and_user(system: System, files: HttpsFiles) -> None:
    put(
        files,
        server("plain.corp.test", 993, "plain"),
        server("late.corp.test", system.dovecot.imap_port, "STARTTLS"),
        server("imap.%EMAILDOMAIN%", 993, username="%EMAILLOCALPART%"),
    )
    place = found(system)
    assert (place["host"], place["port"], place["security"]) == ("imap.corp.test", 993, "tls")
    assert place["username"] == "ann"


@pytest.mark.parametrize(
    ("exchanger", "host"),
    [
        ("aspmx.l.google.com.", "imap.gmail.com"),
        ("corp-test.mail.protection.outlook.com.", "outlook.office365.com"),
        ("in1-smtp.messagingengine.com.", "imap.fastmail.com"),
        ("mxbiz1.qq.com.", "imap.exmail.qq.com"),
        ("mx.zoho.eu.", "imap.zoho.eu"),
        ("mx.yandex.net.", "imap.yandex.com"),
    ],
)
def test_a_hosted_domain_is_found_by_its_mail_exchanger(
    system: System, dns: DnsServer, exchanger: str, host: str
) -> None:
    dns.records["corp.test.", "MX"] = ["50 backup.example.org.", f"10 {exchanger}"]
    place = found(system)
    assert place["host"] == host
    assert place["help"]
    assert exchanger.rstrip(".") in place["source"]


def test_a_usual_name_that_answers_is_found_last(system: System) -> None:
    place = found(system, "ann@localhost")
    assert (place["host"], place["port"]) == ("localhost", system.dovecot.imaps_port)
    assert place["source"] == "localhost answers"


def test_when_all_fails_it_says_what_was_tried(
    system: System, dns: DnsServer, files: HttpsFiles
) -> None:
    dns.records["corp.test.", "MX"] = ["10 mx.corp.test."]
    reason = not_found(system)
    for tried in (
        "give the host",
        "SRV _imaps._tcp.corp.test: none",
        "SRV _imap._tcp.corp.test: none",
        "corp.test/config-v1.1.xml: status 404",
        "MX corp.test: no provider that is known",
        "imap.corp.test: none",
        "mail.corp.test: none",
    ):
        assert tried in reason
    # And nothing is kept: what is there now is found
    put(files, server("imap.corp.test", 993))
    assert found(system)["host"] == "imap.corp.test"


# --- accounts without a host


def test_an_account_without_a_host_is_connected(
    system: System, dns: DnsServer, address: str
) -> None:
    dns.records["_imaps._tcp.example.org.", "SRV"] = [f"0 1 {system.dovecot.imaps_port} localhost."]
    given = {"address": address, "password": PASSWORD}
    shown = system.post(URL, 201, **given)
    assert (shown["host"], shown["port"]) == ("localhost", system.dovecot.imaps_port)
    assert shown["username"] == address


def test_what_is_given_wins_over_what_is_found(
    system: System, dns: DnsServer, files: HttpsFiles, address: str
) -> None:
    dovecot = system.dovecot
    put(files, server("localhost", 993, username="nobody"), domain="example.org")
    given = {
        "address": address,
        "password": PASSWORD,
        "port": dovecot.imap_port,
        "security": "starttls",
        "username": address,
    }
    shown = system.post(URL, 201, **given)
    assert (shown["host"], shown["port"], shown["security"], shown["username"]) == (
        "localhost",
        dovecot.imap_port,
        "starttls",
        address,
    )


def test_a_host_that_is_given_is_not_looked_for(
    system: System, dns: DnsServer, address: str
) -> None:
    system.add_account(address)
    assert {kind for _, kind in dns.questions} <= {"A", "AAAA"}  # its address alone


def test_a_search_in_vain_refuses_the_account_and_names_the_host(system: System) -> None:
    given = {"address": "ann@corp.test", "password": PASSWORD, "test": False}
    answer = system.api.simulate_post(URL, json=given)
    assert answer.status_code == 422
    (error,) = answer.json["errors"]
    assert error["field"] == "host"
    assert "SRV _imaps._tcp.corp.test" in error["reason"]
    assert system.get(URL)["items"] == []


def test_the_command_line_finds_the_server_too(
    system: System, dns: DnsServer, address: str
) -> None:
    import os

    dns.records["_imaps._tcp.example.org.", "SRV"] = [f"0 1 {system.dovecot.imaps_port} localhost."]
    command = ["accounts", "add", address, "--password-stdin", "--json"]
    result = subprocess.run(
        [sys.executable, "-m", "mailpoll", *command],
        env=dict(os.environ),
        input=PASSWORD.encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["address"] == address
    in_vain = subprocess.run(
        [sys.executable, "-m", "mailpoll", "accounts", "add", "ann@corp.test", "--password-stdin"],
        env=dict(os.environ),
        input=b"secret",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert in_vain.returncode == 1
    assert b"host: no IMAP server was found" in in_vain.stderr
    assert b"Traceback" not in in_vain.stderr


# --- strangers' answers


BOMB = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;">]><clientConfig>&c;</clientConfig>"""
OUTSIDE = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>
<clientConfig><incomingServer type="imap"><hostname>&a;</hostname><port>993</port>
<socketType>SSL</socketType></incomingServer></clientConfig>"""


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (BOMB.encode(), "not valid XML"),
        (OUTSIDE.encode(), "not valid XML"),
        (b"<html><body>Welcome", "not valid XML"),
        (b"\xff\xfe\x00", "not valid XML"),
        (b"", "not valid XML"),
        (b"<clientConfig/>", "names no IMAP server"),
        (("<clientConfig>" * 100_000).encode(), "protocol_error"),
        ((CONFIG % server("a b", 993)).encode(), "names no IMAP server"),
        ((CONFIG % server("imap.corp.test", 0)).encode(), "not in MAILPOLL_IMAP_PORTS"),
        ((CONFIG % server("imap.corp.test", 22)).encode(), "not in MAILPOLL_IMAP_PORTS"),
        ((CONFIG % server("imap.corp.test", 993, "plain")).encode(), "names no IMAP server"),
    ],
)
def test_a_file_that_cannot_be_used_is_left_and_said(
    system: System, files: HttpsFiles, content: bytes, why: str
) -> None:
    files.files["/corp.test/config-v1.1.xml"] = (200, content)
    assert why in not_found(system)


def test_a_redirect_is_not_followed(system: System, files: HttpsFiles) -> None:
    files.files["/corp.test/config-v1.1.xml"] = (302, b"")
    assert "status 302" in not_found(system)


def test_private_networks_are_not_connected_to(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    dovecot: Dovecot,
    dns: DnsServer,
    files: HttpsFiles,
) -> None:
    # Given a mailpoll that may not connect to the loopback network
    variables = {
        **SETS["embedded"](request, tmp_path),
        "MAILPOLL_DNS_SERVER": f"127.0.0.1:{dns.port}",
        "MAILPOLL_AUTOCONFIG_URLS": f"https://localhost:{files.port}/{{domain}}/config-v1.1.xml",
        "MAILPOLL_IMAP_ALLOWED_NETWORKS": "10.9.9.0/24",
    }
    for system in run_system({}, tmp_path, dovecot, **variables):
        reason = not_found(system, "ann@localhost")
        # Then neither the file nor the server is asked
        assert "config-v1.1.xml: blocked_host" in reason
        assert f"localhost:{dovecot.imaps_port}: blocked_host" in reason
        assert files.asked == []
        # And a record that points there ends before the connection
        dns.records["_imaps._tcp.corp.test.", "SRV"] = [f"0 1 {dovecot.imaps_port} localhost."]
        answer = system.api.simulate_post(
            URL, json={"address": "ann@corp.test", "password": PASSWORD}
        )
        assert answer.status_code == 422
        (error,) = answer.json["errors"]
        assert "private or loopback" in error["reason"]


def test_a_port_that_is_not_allowed_is_left_and_said(system: System, dns: DnsServer) -> None:
    dns.records["_imaps._tcp.corp.test.", "SRV"] = ["0 1 6379 imap.corp.test."]
    assert "port 6379 is not in MAILPOLL_IMAP_PORTS" in not_found(system)


@pytest.mark.parametrize(
    "address", ["ann@-/../..", "ann@" + "d" * 300, "ann@a..b", "ann@corp.test/x", "ann@[10.0.0.1]"]
)
def test_what_is_no_domain_is_not_asked_for(
    system: System, dns: DnsServer, files: HttpsFiles, address: str
) -> None:
    assert "is no domain name" in not_found(system, address)
    assert dns.questions == []
    assert files.asked == []


def test_silent_and_slow_servers_end_with_the_time(
    system: System, dns: DnsServer, files: HttpsFiles
) -> None:
    # Given a file that comes a byte at a time, and then a DNS server that says nothing
    put(files, server("imap.corp.test", 993))
    files.drips = True
    with pytest.raises(NotFound) as slow:
        discover("ann@corp.test", system.settings, seconds=3)
    dns.silent = True
    with pytest.raises(NotFound) as silent:
        discover("ann@corp.test", system.settings, seconds=1)
    # Then each search ended, and says that its time was over
    assert "timed_out" in str(slow.value)
    assert "LifetimeTimeout" in str(silent.value)


# --- settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAILPOLL_DNS_SERVER", "dns.example.org"),
        ("MAILPOLL_DNS_SERVER", "127.0.0.1:port"),
        ("MAILPOLL_AUTOCONFIG_URLS", "http://autoconfig.{domain}/"),
        ("MAILPOLL_AUTOCONFIG_URLS", "https://{host}/"),
        ("MAILPOLL_OAUTH_GENERIC_TOKEN_URL", "http://example.org/token"),
        ("MAILPOLL_OAUTH_MICROSOFT_TENANT", "a/b"),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        from_environment({name: value})


@pytest.mark.parametrize("name", ["TOKEN_URL", "AUTHORIZATION_URL"])
@pytest.mark.parametrize("path", ["{realm}/token", "{tenant}/{realm}", "{}/token", "token}", "{"])
def test_an_unknown_placeholder_is_refused_with_the_one_that_is_known(name: str, path: str) -> None:
    variable = f"MAILPOLL_OAUTH_GENERIC_{name}"
    with pytest.raises(SettingsError) as refused:
        from_environment({variable: f"https://login.example.org/{path}"})
    assert str(refused.value) == f"{variable}: knows no placeholder but {{tenant}}"


def test_a_dns_server_is_an_address_with_or_without_a_port() -> None:
    assert from_environment({"MAILPOLL_DNS_SERVER": "9.9.9.9"}).dns_server == ("9.9.9.9", 53)
    assert from_environment({"MAILPOLL_DNS_SERVER": "[::1]:5353"}).dns_server == ("::1", 5353)
