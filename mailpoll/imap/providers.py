"""What is known of mail providers before the first connection: one table, read by everything else.

A preset is found by the domain of an address, by an IMAP host, or by a mail exchanger (MX) of a
hosted domain. ``source`` is the provider's own page. A limit that a provider does not publish is
``None``: the general ones of the configuration hold then.
"""

from dataclasses import dataclass
from typing import Literal

from .errors import TREATMENT, Fault, ImapError

Auth = Literal["password", "oauth2"]
PORTS = {"tls": 993, "starttls": 143, "plain": 143}


@dataclass(frozen=True, slots=True)
class Preset:
    """One provider.

    Parameters:
      name: a short name for logs and the API; unique.
      title: the name that people know.
      host, port, security: where its IMAP server is.
      domains: domains of its own addresses.
      hosts: further names of the same server or service.
      exchangers: ends of the MX names of domains that it hosts.
      auth: how it lets clients log in, best first.
      connections: connections at once that it allows to one account.
      logins_per_minute: logins a minute to it that do not get an address blocked.
      day_bytes: bytes a day that are fetched from one account at most.
      demands_id: it opens no folder for clients that have not sent ``ID`` (RFC 2971).
      skip_special_use: folders, by special use in lower case (RFC 6154, RFC 8457), that only show
        messages which other folders hold too. Leaving them out loses nothing.
      help: what its user must do before a login from here works.
      source: the provider's page that says so.
    """

    name: str
    title: str
    host: str
    domains: tuple[str, ...]
    help: str
    source: str
    port: int = 993
    security: str = "tls"
    hosts: tuple[str, ...] = ()
    exchangers: tuple[str, ...] = ()
    auth: tuple[Auth, ...] = ("password",)
    connections: int | None = None
    logins_per_minute: int | None = None
    day_bytes: int | None = None
    demands_id: bool = False
    skip_special_use: frozenset[str] = frozenset()

    @property
    def advice(self) -> str:
        """The help sentence with its source."""
        return f"{self.help} ({self.source})"


PRESETS = (
    Preset(
        name="gmail",
        title="Gmail and Google Workspace",
        host="imap.gmail.com",
        hosts=("imap.googlemail.com",),
        domains=("gmail.com", "googlemail.com"),
        exchangers=("google.com", "googlemail.com"),
        auth=("oauth2", "password"),
        # https://support.google.com/mail/answer/7126229
        connections=15,
        # Google stops an account for a day at 2,500 MB (https://support.google.com/a/answer/1071518);
        # the rest is left to the owner's own clients.
        day_bytes=2_000_000_000,
        # All Mail is not left out: archived mail lies nowhere else.
        skip_special_use=frozenset(("\\flagged", "\\important")),
        help="Gmail takes no account password: use OAuth 2, or turn on 2-step verification and"
        " make an app password",
        source="https://support.google.com/accounts/answer/185833",
    ),
    Preset(
        name="microsoft",
        title="Outlook.com and Microsoft 365",
        host="outlook.office365.com",
        hosts=("imap-mail.outlook.com", "outlook.com"),
        domains=(
            *("outlook.com", "outlook.de", "outlook.fr", "live.com", "live.co.uk", "live.fr"),
            *("hotmail.com", "hotmail.co.uk", "hotmail.fr", "hotmail.de", "msn.com"),
        ),
        exchangers=("protection.outlook.com", "mx.microsoft"),
        auth=("oauth2",),
        help="Microsoft takes no passwords for IMAP: use OAuth 2 with the scope"
        " IMAP.AccessAsUser.All, and let the administrator allow IMAP for the mailbox",
        source="https://learn.microsoft.com/exchange/client-developer/legacy-protocols/"
        "how-to-authenticate-an-imap-pop-smtp-application-by-using-oauth",
    ),
    Preset(
        name="yahoo",
        title="Yahoo Mail",
        host="imap.mail.yahoo.com",
        domains=(
            *("yahoo.com", "yahoo.co.uk", "yahoo.de", "yahoo.fr", "yahoo.it", "yahoo.es"),
            *("yahoo.ca", "yahoo.com.br", "yahoo.co.in", "ymail.com", "rocketmail.com"),
        ),
        exchangers=("yahoodns.net",),
        auth=("password", "oauth2"),
        help="Yahoo takes no account password: make an app password under Account security",
        source="https://help.yahoo.com/kb/SLN15241.html",
    ),
    Preset(
        name="aol",
        title="AOL Mail",
        host="imap.aol.com",
        domains=("aol.com", "aim.com"),
        help="AOL takes no account password: make an app password under Account security",
        source="https://help.aol.com/articles/Create-and-manage-app-password",
    ),
    Preset(
        name="icloud",
        title="iCloud Mail",
        host="imap.mail.me.com",
        domains=("icloud.com", "me.com", "mac.com"),
        exchangers=("mail.icloud.com",),
        help="Apple takes no account password: make an app-specific password",
        source="https://support.apple.com/102654",
    ),
    Preset(
        name="fastmail",
        title="Fastmail",
        host="imap.fastmail.com",
        hosts=("mail.messagingengine.com",),
        domains=("fastmail.com", "fastmail.fm", "fastmail.net", "fastmail.org"),
        exchangers=("messagingengine.com",),
        help="Fastmail takes no account password: make an app password with access to IMAP",
        source="https://www.fastmail.help/hc/en-us/articles/1500000279921",
    ),
    Preset(
        name="qq",
        title="QQ Mail",
        host="imap.qq.com",
        domains=("qq.com", "vip.qq.com", "foxmail.com"),
        # QQ says "login frequency limited" and not from how many on: a cautious guess.
        logins_per_minute=120,
        help="switch IMAP on in the settings of QQ Mail and use the authorisation code"
        " (授权码) that it shows in place of the password",
        source="https://help.mail.qq.com/detail/108/1023",
    ),
    Preset(
        name="exmail",
        title="Tencent Exmail",
        host="imap.exmail.qq.com",
        hosts=("hwimap.exmail.qq.com",),
        domains=(),
        exchangers=("mxbiz1.qq.com", "mxbiz2.qq.com", "exmail.qq.com"),
        logins_per_minute=120,  # as QQ
        help="switch IMAP on in the settings of the mailbox; with secure login on, use a client"
        " password (客户端专用密码)",
        source="https://exmail.qq.com/",
    ),
    Preset(
        name="163",
        title="NetEase 163 Mail",
        host="imap.163.com",
        domains=("163.com",),
        demands_id=True,
        help="switch IMAP on in the settings of the mailbox and use the authorisation code"
        " (授权码) that it shows in place of the password",
        source="https://help.mail.163.com/",
    ),
    Preset(
        name="126",
        title="NetEase 126 Mail",
        host="imap.126.com",
        domains=("126.com",),
        demands_id=True,
        help="switch IMAP on in the settings of the mailbox and use the authorisation code"
        " (授权码) that it shows in place of the password",
        source="https://help.mail.163.com/",
    ),
    Preset(
        name="yeah",
        title="NetEase yeah.net",
        host="imap.yeah.net",
        domains=("yeah.net",),
        demands_id=True,
        help="switch IMAP on in the settings of the mailbox and use the authorisation code"
        " (授权码) that it shows in place of the password",
        source="https://help.mail.163.com/",
    ),
    Preset(
        name="netease-enterprise",
        title="NetEase enterprise mail",
        host="imap.qiye.163.com",
        hosts=("imaphz.qiye.163.com",),
        domains=(),
        exchangers=("mxmail.netease.com",),
        demands_id=True,
        help="the administrator must allow IMAP, and the mailbox may need a client password",
        source="https://qiye.163.com/",
    ),
    Preset(
        name="aliyun",
        title="Alibaba Mail",
        host="imap.qiye.aliyun.com",
        domains=(),
        exchangers=("mxhichina.com", "aliyun.com"),
        help="the administrator must allow third-party clients; the mailbox may need a client"
        " password",
        source="https://help.aliyun.com/",
    ),
    Preset(
        name="yandex",
        title="Yandex Mail",
        host="imap.yandex.com",
        hosts=("imap.yandex.ru",),
        domains=("yandex.com", "yandex.ru", "ya.ru", "yandex.kz", "yandex.by"),
        exchangers=("mx.yandex.net", "mx.yandex.ru"),
        auth=("password", "oauth2"),
        # Yandex locks accounts that log in often, without saying how often: a cautious guess.
        logins_per_minute=120,
        help="switch IMAP on in the settings of Yandex Mail and make an app password",
        source="https://yandex.com/support/mail/mail-clients.html",
    ),
    Preset(
        name="zoho",
        title="Zoho Mail",
        host="imap.zoho.com",
        hosts=("imappro.zoho.com",),
        domains=("zoho.com", "zohomail.com"),
        exchangers=("zoho.com",),
        help="switch IMAP access on in the settings of Zoho Mail; with two-factor authentication,"
        " use an application-specific password",
        source="https://www.zoho.com/mail/help/imap-access.html",
    ),
    Preset(
        name="zoho-eu",
        title="Zoho Mail (Europe)",
        host="imap.zoho.eu",
        hosts=("imappro.zoho.eu",),
        domains=("zoho.eu", "zohomail.eu"),
        exchangers=("zoho.eu",),
        help="switch IMAP access on in the settings of Zoho Mail; with two-factor authentication,"
        " use an application-specific password",
        source="https://www.zoho.com/mail/help/imap-access.html",
    ),
    Preset(
        name="gmx",
        title="GMX",
        host="imap.gmx.net",
        domains=("gmx.de", "gmx.net", "gmx.at", "gmx.ch", "gmx.eu"),
        help="allow POP3 and IMAP in the settings of GMX; with two-factor authentication, use an"
        " application-specific password",
        source="https://hilfe.gmx.net/pop-imap/",
    ),
    Preset(
        name="gmx-com",
        title="GMX (international)",
        host="imap.gmx.com",
        domains=("gmx.com", "gmx.us", "gmx.co.uk", "gmx.fr"),
        help="allow POP3 and IMAP in the settings of GMX; with two-factor authentication, use an"
        " application-specific password",
        source="https://support.gmx.com/pop-imap/",
    ),
    Preset(
        name="web.de",
        title="WEB.DE",
        host="imap.web.de",
        domains=("web.de", "email.de"),
        help="allow POP3 and IMAP in the settings of WEB.DE; with two-factor authentication, use an"
        " application-specific password",
        source="https://hilfe.web.de/pop-imap/",
    ),
    Preset(
        name="mail.ru",
        title="Mail.ru",
        host="imap.mail.ru",
        domains=("mail.ru", "bk.ru", "inbox.ru", "list.ru", "internet.ru"),
        exchangers=("emx.mail.ru",),
        auth=("password", "oauth2"),
        help="Mail.ru takes no account password: make a password for external applications",
        source="https://help.mail.ru/mail/security/protection/external",
    ),
    Preset(
        name="t-online",
        title="Telekom Mail",
        host="secureimap.t-online.de",
        domains=("t-online.de", "magenta.de"),
        help="set a password for e-mail programs in the customer centre",
        source="https://www.telekom.de/hilfe/",
    ),
    Preset(
        name="ionos",
        title="IONOS",
        host="imap.ionos.de",
        hosts=("imap.1und1.de",),
        domains=("online.de", "onlinehome.de"),
        exchangers=("kundenserver.de",),
        help="use the password of the mailbox, not that of the customer account",
        source="https://www.ionos.de/hilfe/",
    ),
    Preset(
        name="posteo",
        title="Posteo",
        host="posteo.de",
        domains=("posteo.de", "posteo.net", "posteo.org"),
        exchangers=("posteo.de",),
        help="use the password of the account",
        source="https://posteo.de/en/help",
    ),
    Preset(
        name="mailbox.org",
        title="mailbox.org",
        host="imap.mailbox.org",
        domains=("mailbox.org",),
        exchangers=("mailbox.org",),
        help="with two-factor authentication, use an application password",
        source="https://kb.mailbox.org/",
    ),
    Preset(
        name="rackspace",
        title="Rackspace Email",
        host="secure.emailsrvr.com",
        domains=(),
        exchangers=("emailsrvr.com",),
        help="use the full address as the user name",
        source="https://docs.rackspace.com/docs/rackspace-email",
    ),
    Preset(
        name="migadu",
        title="Migadu",
        host="imap.migadu.com",
        domains=(),
        exchangers=("migadu.com",),
        help="use the password of the mailbox or of an identity",
        source="https://migadu.com/guides/",
    ),
    Preset(
        name="privateemail",
        title="Namecheap Private Email",
        host="mail.privateemail.com",
        domains=(),
        exchangers=("privateemail.com",),
        help="use the full address as the user name",
        source="https://www.namecheap.com/support/knowledgebase/",
    ),
    Preset(
        name="hostinger",
        title="Hostinger Email",
        host="imap.hostinger.com",
        domains=(),
        exchangers=("hostinger.com",),
        help="use the password of the mailbox, not that of the customer account",
        source="https://support.hostinger.com/",
    ),
    Preset(
        name="ovh",
        title="OVHcloud MX Plan",
        host="ssl0.ovh.net",
        domains=(),
        exchangers=("mail.ovh.net",),
        help="use the full address as the user name",
        source="https://help.ovhcloud.com/",
    ),
)

BY_DOMAIN = {domain: preset for preset in PRESETS for domain in preset.domains}
BY_HOST = {host: preset for preset in PRESETS for host in (preset.host, *preset.hosts)}


def domain_of(address: str) -> str:
    """The domain of an address, in lower case."""
    return address.rpartition("@")[2].strip().rstrip(".").lower()


def preset_for(address: str) -> Preset | None:
    """The preset of an address's own domain."""
    return BY_DOMAIN.get(domain_of(address))


def preset_of(host: str) -> Preset | None:
    """The preset of an IMAP host; ``None`` when nothing is known of it."""
    return BY_HOST.get(host.rstrip(".").lower())


def preset_of_exchanger(exchanger: str) -> Preset | None:
    """The preset of the provider that a mail exchanger (MX) belongs to."""
    name = "." + exchanger.rstrip(".").lower()
    for preset in PRESETS:
        if any(name.endswith("." + end) for end in preset.exchangers):
            return preset
    return None


def skipped(host: str, special_use: str | None) -> bool:
    """Whether a folder at this host only repeats what other folders hold.

    Parameters:
      special_use: in lower case with its backslash, as ``Folder.special_use``.
    """
    preset = preset_of(host)
    return preset is not None and special_use in preset.skip_special_use


def explained(error: ImapError, host: str) -> str:
    """What went wrong, and what its user must do at the provider where that is known."""
    preset = preset_of(host)
    blamed = TREATMENT[error.fault].refusals or error.fault is Fault.UNSAFE_LOGIN
    return f"{error}. {preset.title}: {preset.advice}" if preset and blamed else str(error)
