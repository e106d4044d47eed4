"""Where well-known providers have their IMAP servers, by the domain of the address.

From the providers' help pages. Every other domain is tried as ``imap.<domain>``.
"""

HOSTS = {
    "imap.163.com": ("163.com",),
    "imap.126.com": ("126.com",),
    "imap.aol.com": ("aol.com",),
    "imap.fastmail.com": ("fastmail.com", "fastmail.fm"),
    "imap.gmail.com": ("gmail.com", "googlemail.com"),
    "imap.gmx.net": ("gmx.de", "gmx.net", "gmx.at", "gmx.ch"),
    "imap.ionos.de": ("online.de",),
    "imap.mail.me.com": ("icloud.com", "me.com", "mac.com"),
    "imap.mail.ru": ("mail.ru", "bk.ru", "inbox.ru", "list.ru"),
    "imap.mail.yahoo.com": ("yahoo.com", "yahoo.co.uk", "yahoo.de", "yahoo.fr", "ymail.com"),
    "imap.qq.com": ("qq.com", "foxmail.com"),
    "imap.web.de": ("web.de",),
    "imap.yandex.com": ("yandex.com", "yandex.ru", "ya.ru"),
    "imap.zoho.com": ("zoho.com", "zohomail.com"),
    "outlook.office365.com": ("outlook.com", "hotmail.com", "live.com", "msn.com"),
    "posteo.de": ("posteo.de", "posteo.net"),
    "secureimap.t-online.de": ("t-online.de",),
}
BY_DOMAIN = {domain: host for host, domains in HOSTS.items() for domain in domains}
PORTS = {"tls": 993, "starttls": 143, "plain": 143}


def imap_host(address: str) -> str:
    """The server to try for an address."""
    domain = address.rpartition("@")[2].lower()
    return BY_DOMAIN.get(domain, f"imap.{domain}")
