"""What the table of providers says, and how a preset is found in it."""

import pytest

from mailpoll.imap import providers
from mailpoll.imap.providers import PRESETS, preset_for, preset_of, preset_of_exchanger


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("a@gmail.com", "imap.gmail.com"),
        ("a@GoogleMail.com", "imap.gmail.com"),
        ("a@hotmail.com", "outlook.office365.com"),
        ("a@live.com", "outlook.office365.com"),
        ("a@yahoo.com", "imap.mail.yahoo.com"),
        ("a@aol.com", "imap.aol.com"),
        ("a@me.com", "imap.mail.me.com"),
        ("a@fastmail.fm", "imap.fastmail.com"),
        ("a@foxmail.com", "imap.qq.com"),
        ("a@163.com", "imap.163.com"),
        ("a@126.com", "imap.126.com"),
        ("a@yeah.net", "imap.yeah.net"),
        ("a@ya.ru", "imap.yandex.com"),
        ("a@zoho.com", "imap.zoho.com"),
        ("a@gmx.de", "imap.gmx.net"),
        ("a@gmx.com", "imap.gmx.com"),
        ("a@web.de", "imap.web.de"),
        ("a@list.ru", "imap.mail.ru"),
        ("a@t-online.de", "secureimap.t-online.de"),
        ("a@posteo.net", "posteo.de"),
        ("odd@name@gmail.com.", "imap.gmail.com"),
    ],
)
def test_an_address_of_a_provider_finds_its_server(address: str, host: str) -> None:
    preset = preset_for(address)
    assert preset is not None
    assert preset.host == host


@pytest.mark.parametrize("address", ["a@example.org", "a@notgmail.com", "gmail.com.example.org"])
def test_other_addresses_find_none(address: str) -> None:
    assert preset_for(address) is None


@pytest.mark.parametrize(
    ("exchanger", "name"),
    [
        ("aspmx.l.google.com.", "gmail"),
        ("SMTP.GOOGLE.COM", "gmail"),
        ("example-org.mail.protection.outlook.com", "microsoft"),
        ("example-org.r-v1.mx.microsoft", "microsoft"),
        ("in1-smtp.messagingengine.com", "fastmail"),
        ("mxbiz1.qq.com", "exmail"),
        ("mx.zoho.eu", "zoho-eu"),
        ("mx.yandex.net", "yandex"),
        ("mx01.mail.icloud.com", "icloud"),
        ("qiye163mx01.mxmail.netease.com", "netease-enterprise"),
        ("mx1.emailsrvr.com", "rackspace"),
    ],
)
def test_a_mail_exchanger_finds_the_provider_of_a_hosted_domain(exchanger: str, name: str) -> None:
    preset = preset_of_exchanger(exchanger)
    assert preset is not None
    assert preset.name == name


@pytest.mark.parametrize(
    "exchanger", ["mx.example.org", "evilgoogle.com", "google.com.example.org"]
)
def test_an_exchanger_that_only_looks_like_a_provider_finds_none(exchanger: str) -> None:
    assert preset_of_exchanger(exchanger) is None


def test_a_host_finds_its_preset_however_it_is_written() -> None:
    assert preset_of("IMAP.Gmail.com.") is preset_for("a@gmail.com")
    assert preset_of("imap.googlemail.com") is preset_for("a@gmail.com")
    assert preset_of("imap.example.org") is None


def test_no_name_domain_host_or_exchanger_belongs_to_two_providers() -> None:
    for values in (
        [preset.name for preset in PRESETS],
        [domain for preset in PRESETS for domain in preset.domains],
        [host for preset in PRESETS for host in (preset.host, *preset.hosts)],
        [end for preset in PRESETS for end in preset.exchangers],
    ):
        assert len(values) == len(set(values))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_every_preset_can_be_connected_to_safely_and_helps(preset: providers.Preset) -> None:
    assert preset.security == "tls"
    assert preset.port == 993
    assert preset.auth
    assert preset.help
    assert preset.source.startswith("https://")
    assert preset.domains or preset.exchangers


def test_the_providers_that_demand_an_identity_are_known() -> None:
    assert {p.host for p in PRESETS if p.demands_id} == {
        "imap.163.com",
        "imap.126.com",
        "imap.yeah.net",
        "imap.qiye.163.com",
    }


def test_gmails_folders_that_only_repeat_others_can_be_left_out_and_all_mail_cannot() -> None:
    assert providers.skipped("imap.gmail.com", "\\important")
    assert providers.skipped("imap.gmail.com", "\\flagged")
    # Archived mail lies in All Mail only.
    assert not providers.skipped("imap.gmail.com", "\\all")
    assert not providers.skipped("imap.gmail.com", None)
    assert not providers.skipped("imap.example.org", "\\flagged")
