"""Everything that can be configured, read from the environment and checked in one place.

Each field's alias is the name of its environment variable. With none of them set, mailpoll keeps
everything (SQLite, files, an embedded Valkey) under ``./data``.
"""

import base64
import binascii
import hashlib
import ipaddress
import os
import re
import secrets
import ssl
import stat
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from redis.connection import parse_url

#: Longest unix socket path that Linux takes, in bytes (sockaddr_un, unix(7)), less the final NUL.
UNIX_PATH_MAX = 107
KEY_BYTES = 32
MIN_TOKEN_CHARACTERS = 20
#: Different characters in a token: of 43 random ones there are over 20.
MIN_TOKEN_VARIETY = 8
#: What stands where a secret should be put in.
SAMPLE = re.compile(r"change.?me|your.?(key|token|secret)|example", re.IGNORECASE)
#: Stands for ``MAILPOLL_OAUTH_MICROSOFT_TENANT`` in addresses of OAuth 2 endpoints.
TENANT = "{tenant}"
#: Releases of Python that read what mail servers and archives send with known holes before these.
PATCHED_PYTHON = {(3, 11): (3, 11, 13), (3, 12): (3, 12, 11), (3, 13): (3, 13, 4)}

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


PORTS_WANTED = "should be ports from 1 to 65535, separated by commas, or ranges such as 9000-9100"


class SettingsError(Exception):
    """A variable is missing or invalid. The message names it and says what it should be."""


def _split(value: object) -> object:
    return (
        [item.strip() for item in value.split(",") if item.strip()]
        if isinstance(value, str)
        else value
    )


CommaSeparated = BeforeValidator(_split)


class PortRange(NamedTuple):
    """Ports from ``first`` to ``last``, as ``9000-9100``, or one."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def _port_ranges(value: object) -> object:
    if not isinstance(value, str):
        return value
    found = []
    for item in value.split(","):
        ports = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", item, re.ASCII)
        if not ports:
            raise ValueError(PORTS_WANTED)
        found.append((ports[1], ports[2] or ports[1]))
    return found


def _split_urls(value: object) -> object:
    """Addresses separated by spaces or commas; a comma within one separates nothing."""
    if not isinstance(value, str):
        return value
    # From the start of a run of blanks only, so that long ones do not take the square of time.
    between = r"(?<![\s,])[\s,]++(?=[A-Za-z][\w+.-]*://)"
    return [url for url in re.split(between, value.strip(" ,\n")) if url]


def _endpoint(value: object) -> object:
    """``address[:port]`` of a DNS server as (address, port)."""
    if not isinstance(value, str):
        return value
    try:
        parts = urlsplit(f"//{value}")
        return str(ipaddress.ip_address(parts.hostname or "")), parts.port or 53
    except ValueError:
        raise ValueError("should be an IP address, with a port if it is not 53") from None


def _open_to_others(url: str) -> bool:
    """Whether a Redis is reached over a network without a password, as the library reads it."""
    found = parse_url(url) if url else {}
    host = found.get("host", "localhost")
    if found.get("password") or "path" in found or host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


def _checked_keys(keys: list[str]) -> list[str]:
    for key in keys:
        try:
            raw = base64.urlsafe_b64decode(key)
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != KEY_BYTES:
            raise ValueError("each key should be 32 random bytes in base64: mailpoll keys new")
        # Of 2**32 random keys one is all ASCII, and none has so few different bytes.
        if raw.isascii() or len(set(raw)) < KEY_BYTES // 2 or SAMPLE.search(key):
            raise ValueError(
                "a key looks like an example, not like 32 random bytes: mailpoll keys new"
            )
    return keys


def _checked_tokens(tokens: list[str]) -> list[str]:
    if any(len(token) < MIN_TOKEN_CHARACTERS for token in tokens):
        raise ValueError(f"each token should have at least {MIN_TOKEN_CHARACTERS} characters")
    if any(len(set(token)) < MIN_TOKEN_VARIETY or SAMPLE.search(token) for token in tokens):
        raise ValueError("a token looks like an example, not like chance: mailpoll tokens new")
    return tokens


#: Fields that are not shown, as those without a ``repr``; and those that may hold a password.
SECRETS = frozenset(("secret_keys", "api_tokens"))
URLS = frozenset(
    (
        "database_url",
        "redis_url",
        "storage_url",
        "oauth_generic_token_url",
        "oauth_generic_authorization_url",
    )
)


@dataclass(frozen=True, slots=True)
class Shown:
    """A variable as people may see it; ``value`` is ``None`` where it is a secret."""

    name: str
    value: str | None
    is_set: bool


def _public(url: str) -> str:
    """An address without what may be secret: user, password and query."""
    if not url:
        return ""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}{parts.path}"


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


class Settings(BaseModel):
    """The whole configuration. Times are in seconds and sizes in bytes."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, hide_input_in_errors=True)

    data_dir: Path = Field(Path("data"), alias="MAILPOLL_DATA_DIR", validate_default=True)
    database_url: str = Field("", alias="DATABASE_URL")
    database_pool: int = Field(8, alias="MAILPOLL_DATABASE_POOL", ge=1, le=200)
    database_pooler: bool = Field(False, alias="MAILPOLL_DATABASE_POOLER")
    #: Before the field whose check asks for it.
    redis_allow_open: bool = Field(False, alias="MAILPOLL_REDIS_ALLOW_OPEN")
    redis_url: str = Field("", alias="REDIS_URL")
    storage_url: str = Field("", alias="STORAGE_URL")
    storage_fallback: bool = Field(True, alias="MAILPOLL_STORAGE_FALLBACK")
    blob_compression_level: int = Field(1, alias="MAILPOLL_BLOB_COMPRESSION_LEVEL", ge=-7, le=19)
    blob_encryption: bool = Field(False, alias="MAILPOLL_BLOB_ENCRYPTION")
    scrub_days: float = Field(30, alias="MAILPOLL_SCRUB_DAYS", ge=0, le=3_650)
    scrub_rate: int = Field(5_000_000, alias="MAILPOLL_SCRUB_RATE", ge=10_000)

    secret_keys: Annotated[list[str], CommaSeparated] = Field([], alias="MAILPOLL_SECRET_KEY")
    allow_missing_keys: bool = Field(False, alias="MAILPOLL_ALLOW_MISSING_KEYS")
    api_tokens: Annotated[list[str], CommaSeparated] = Field([], alias="MAILPOLL_API_TOKEN")
    trusted_proxies: Annotated[list[Network], CommaSeparated] = Field(
        [], alias="MAILPOLL_TRUSTED_PROXIES"
    )
    dashboard: bool = Field(False, alias="MAILPOLL_DASHBOARD")
    audit_days: int = Field(365, alias="MAILPOLL_AUDIT_DAYS", ge=1, le=36_500)

    poll_interval: int = Field(60, alias="MAILPOLL_POLL_INTERVAL", ge=5, le=86_400)
    poll_slice: int = Field(20, alias="MAILPOLL_POLL_SLICE", ge=1, le=600)
    poll_deadline: int = Field(600, alias="MAILPOLL_POLL_DEADLINE", ge=10, le=3_600)
    sweep_after: int = Field(120, alias="MAILPOLL_SWEEP_AFTER", ge=1, le=3_600)
    max_attempts: int = Field(3, alias="MAILPOLL_MAX_ATTEMPTS", ge=1, le=20)

    batch_messages: int = Field(100, alias="MAILPOLL_BATCH_MESSAGES", ge=1, le=1_000)
    batch_bytes: int = Field(2_000_000, alias="MAILPOLL_BATCH_BYTES", ge=10_000)
    part_bytes: int = Field(1_000_000, alias="MAILPOLL_PART_BYTES", ge=10_000)
    max_message_bytes: int = Field(256_000_000, alias="MAILPOLL_MAX_MESSAGE_BYTES", ge=1_000)

    search_text: int = Field(100_000, alias="MAILPOLL_SEARCH_TEXT", ge=0, le=1_000_000)

    account_messages: int = Field(0, alias="MAILPOLL_ACCOUNT_MESSAGES", ge=0)
    account_bytes: int = Field(0, alias="MAILPOLL_ACCOUNT_BYTES", ge=0)

    imap_connect_timeout: float = Field(10, alias="MAILPOLL_IMAP_CONNECT_TIMEOUT", gt=0, le=120)
    imap_read_timeout: float = Field(60, alias="MAILPOLL_IMAP_READ_TIMEOUT", gt=0, le=600)
    imap_ca_file: Path | None = Field(None, alias="MAILPOLL_IMAP_CA_FILE")
    imap_ports: Annotated[list[PortRange], BeforeValidator(_port_ranges)] = Field(
        [PortRange(143, 143), PortRange(993, 993)], alias="MAILPOLL_IMAP_PORTS"
    )
    imap_allowed_networks: Annotated[list[Network], CommaSeparated] = Field(
        [], alias="MAILPOLL_IMAP_ALLOWED_NETWORKS"
    )
    imap_allow_plain: bool = Field(False, alias="MAILPOLL_IMAP_ALLOW_PLAIN")
    imap_account_connections: int = Field(3, alias="MAILPOLL_IMAP_ACCOUNT_CONNECTIONS", ge=1)
    imap_day_bytes: int = Field(0, alias="MAILPOLL_IMAP_DAY_BYTES", ge=0)
    imap_host_connections: int = Field(50, alias="MAILPOLL_IMAP_HOST_CONNECTIONS", ge=1)
    imap_host_logins_per_minute: int = Field(1_200, alias="MAILPOLL_IMAP_HOST_LOGINS", ge=1)

    push_poll_interval: int = Field(900, alias="MAILPOLL_PUSH_POLL_INTERVAL", ge=60, le=86_400)
    push_renew: int = Field(780, alias="MAILPOLL_PUSH_RENEW", ge=5, le=1_740)
    watcher_connections: int = Field(5_000, alias="MAILPOLL_WATCHER_CONNECTIONS", ge=1)
    watcher_logins: int = Field(24, alias="MAILPOLL_WATCHER_LOGINS", ge=1, le=100)

    event_days: int = Field(30, alias="MAILPOLL_EVENT_DAYS", ge=1, le=3_650)
    webhook_allowed_networks: Annotated[list[Network], CommaSeparated] = Field(
        [], alias="MAILPOLL_WEBHOOK_ALLOWED_NETWORKS"
    )
    webhook_timeout: float = Field(10, alias="MAILPOLL_WEBHOOK_TIMEOUT", gt=0, le=60)
    webhook_log_days: int = Field(7, alias="MAILPOLL_WEBHOOK_LOG_DAYS", ge=1, le=365)
    notifier_threads: int = Field(8, alias="MAILPOLL_NOTIFIER_THREADS", ge=1, le=256)

    dns_server: Annotated[tuple[str, int] | None, BeforeValidator(_endpoint)] = Field(
        None, alias="MAILPOLL_DNS_SERVER"
    )
    autoconfig_urls: Annotated[list[str], CommaSeparated] = Field(
        [
            "https://autoconfig.{domain}/mail/config-v1.1.xml",
            "https://{domain}/.well-known/autoconfig/mail/config-v1.1.xml",
        ],
        alias="MAILPOLL_AUTOCONFIG_URLS",
    )

    oauth_google_client_id: str = Field("", alias="MAILPOLL_OAUTH_GOOGLE_CLIENT_ID")
    oauth_google_client_secret: str = Field(
        "", alias="MAILPOLL_OAUTH_GOOGLE_CLIENT_SECRET", repr=False
    )
    oauth_microsoft_client_id: str = Field("", alias="MAILPOLL_OAUTH_MICROSOFT_CLIENT_ID")
    oauth_microsoft_client_secret: str = Field(
        "", alias="MAILPOLL_OAUTH_MICROSOFT_CLIENT_SECRET", repr=False
    )
    oauth_microsoft_tenant: str = Field(
        "common", alias="MAILPOLL_OAUTH_MICROSOFT_TENANT", pattern=r"^[A-Za-z0-9.-]+$"
    )
    oauth_generic_client_id: str = Field("", alias="MAILPOLL_OAUTH_GENERIC_CLIENT_ID")
    oauth_generic_client_secret: str = Field(
        "", alias="MAILPOLL_OAUTH_GENERIC_CLIENT_SECRET", repr=False
    )
    oauth_generic_token_url: str = Field("", alias="MAILPOLL_OAUTH_GENERIC_TOKEN_URL")
    oauth_generic_authorization_url: str = Field(
        "", alias="MAILPOLL_OAUTH_GENERIC_AUTHORIZATION_URL"
    )
    oauth_generic_scope: str = Field("", alias="MAILPOLL_OAUTH_GENERIC_SCOPE")

    retention_days: int = Field(0, alias="MAILPOLL_RETENTION_DAYS", ge=0, le=36_500)
    retention_expunged_days: int = Field(
        0, alias="MAILPOLL_RETENTION_EXPUNGED_DAYS", ge=0, le=36_500
    )
    export_hours: int = Field(72, alias="MAILPOLL_EXPORT_HOURS", ge=1, le=8_760)
    export_limit: int = Field(5, alias="MAILPOLL_EXPORT_LIMIT", ge=1, le=1_000)
    import_bytes: int = Field(1_000_000_000, alias="MAILPOLL_IMPORT_BYTES", ge=1_000)

    receipt_days: int = Field(365, alias="MAILPOLL_RECEIPT_DAYS", ge=0, le=36_500)
    receipt_address_hash: bool = Field(False, alias="MAILPOLL_RECEIPT_ADDRESS_HASH")
    notify_urls: Annotated[list[str], BeforeValidator(_split_urls)] = Field(
        [], alias="MAILPOLL_NOTIFY_URLS", repr=False
    )
    notify_repeat: float = Field(24, alias="MAILPOLL_NOTIFY_REPEAT", ge=1, le=720)
    notify_queue_age: int = Field(900, alias="MAILPOLL_NOTIFY_QUEUE_AGE", ge=60, le=86_400)

    public_url: str = Field("", alias="MAILPOLL_PUBLIC_URL")
    bind: str = Field("127.0.0.1", alias="MAILPOLL_BIND")
    port: int = Field(8025, alias="PORT", ge=1, le=65_535)
    web_workers: int = Field(1, alias="WEB_CONCURRENCY", ge=1, le=64)
    web_threads: int = Field(8, alias="MAILPOLL_WEB_THREADS", ge=1, le=256)
    poller_threads: int = Field(32, alias="MAILPOLL_POLLER_THREADS", ge=1, le=1_000)
    worker_processes: int = Field(
        default_factory=lambda: os.cpu_count() or 1, alias="MAILPOLL_WORKER_PROCESSES", ge=1, le=256
    )
    worker_threads: int = Field(2, alias="MAILPOLL_WORKER_THREADS", ge=1, le=256)
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", alias="MAILPOLL_LOG_LEVEL"
    )
    log_format: Literal["console", "json"] = Field("console", alias="MAILPOLL_LOG_FORMAT")

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @field_validator("database_url")
    @classmethod
    def _database(cls, value: str) -> str:
        if value and urlsplit(value).scheme not in ("sqlite", "postgresql", "postgres"):
            raise ValueError("should be sqlite:///file or postgresql://user:password@host/database")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: str, info: ValidationInfo) -> str:
        try:
            parse_url(value or "redis://")
        except ValueError:
            raise ValueError(
                "should be redis://[:password@]host:port/0, rediss://… or unix:///socket"
            ) from None
        if _open_to_others(value) and not info.data.get("redis_allow_open"):
            raise ValueError(
                "has no password, and its host is not this one: who can reach it can do as it "
                "likes with the queues. MAILPOLL_REDIS_ALLOW_OPEN=yes allows that"
            )
        return value

    @field_validator("storage_url")
    @classmethod
    def _storage(cls, value: str) -> str:
        if value and urlsplit(value).scheme not in ("file", "s3"):
            raise ValueError("should be file:///directory or s3://key:secret@host:port/bucket")
        return value

    @field_validator("oauth_generic_token_url", "oauth_generic_authorization_url")
    @classmethod
    def _endpoint_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme != "https" or not parts.hostname or parts.fragment):
            raise ValueError("should be the https:// address of an OAuth 2 endpoint")
        if "@" in parts.netloc:
            raise ValueError("should have no user name and no password in it")
        rest = value.replace(TENANT, "")
        if "{" in rest or "}" in rest:
            raise ValueError(f"knows no placeholder but {TENANT}")
        return value

    @field_validator("public_url")
    @classmethod
    def _origin(cls, value: str) -> str:
        """Codes of OAuth 2 come to it: without TLS only where nobody is in between."""
        if not value:
            return value
        value = value.rstrip("/")
        try:
            parts = urlsplit(value)
            port = "" if parts.port is None else f":{parts.port}"
        except ValueError:
            parts, port = urlsplit(""), ""
        host = parts.hostname or ""
        plain = f"{parts.scheme}://{parts.netloc}" == value and parts.netloc.lower() in (
            f"{host}{port}",
            f"[{host}]{port}",
        )
        here = parts.scheme == "http" and host in ("localhost", "127.0.0.1", "::1")
        if not host or not plain or not (here or parts.scheme == "https"):
            raise ValueError(
                "should be where browsers find the console: https://host[:port] without a path, "
                "or http:// on localhost"
            )
        return value.lower()

    _checked_keys = field_validator("secret_keys")(_checked_keys)
    _checked_tokens = field_validator("api_tokens")(_checked_tokens)

    @field_validator("notify_urls")
    @classmethod
    def _receivers(cls, value: list[str]) -> list[str]:
        if not value:
            return value
        from .notify import valid  # takes a while to load, and many have no use for it

        if not all(map(valid, value)):
            raise ValueError(
                "should be addresses as Apprise takes them, separated by spaces, such as "
                "mailtos://user:password@example.org or slack://token"
            )
        return value

    @field_validator("imap_ports")
    @classmethod
    def _ports(cls, value: list[PortRange]) -> list[PortRange]:
        if any(not 1 <= first <= last <= 65_535 for first, last in value):
            raise ValueError(PORTS_WANTED)
        return value

    @field_validator("autoconfig_urls")
    @classmethod
    def _templates(cls, value: list[str]) -> list[str]:
        for template in value:
            try:
                parts = urlsplit(template.format(domain="example.org"))
            except (KeyError, IndexError, ValueError, AttributeError):
                parts = urlsplit("")
            if parts.scheme != "https" or not parts.hostname:
                raise ValueError("should be https:// addresses with {domain} in them")
        return value

    @field_validator("imap_ca_file")
    @classmethod
    def _file(cls, value: Path | None) -> Path | None:
        if value:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(value)
            except OSError:  # as all errors of ssl are
                words = "should be a readable file of CA certificates in PEM form"
                raise ValueError(words) from None
        return value

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'mailpoll.db'}"

    @property
    def storage(self) -> str:
        return self.storage_url or f"file://{self.data_dir / 'blobs'}"

    def allows_port(self, port: int) -> bool:
        """Whether mail servers may be connected to at this port."""
        return any(first <= port <= last for first, last in self.imap_ports)

    @property
    def fallback_dir(self) -> Path | None:
        """Where blobs go while the object store is away.

        The same directory that is the store when there is no object store, so that an
        installation which gets one later has its files moved there.
        """
        return self.data_dir / "blobs" if self.storage_fallback else None

    @property
    def spool_dir(self) -> Path:
        """Where large messages wait while they are downloaded; nothing in it outlives a poll."""
        return self.data_dir / "spool"

    @property
    def redis(self) -> str:
        return self.redis_url or f"unix://{self.embedded_socket}"

    @property
    def embedded_socket(self) -> Path:
        """The embedded Valkey's socket: in the data directory unless that path is too long."""
        path = self.data_dir / "valkey.sock"
        if len(os.fsencode(path)) <= UNIX_PATH_MAX:
            return path
        digest = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"mailpoll-{os.getuid()}-{digest}" / "valkey.sock"

    def require_keys(self) -> list[str]:
        """The encryption keys, newest first, from the environment or the data directory.

        Raises:
          SettingsError: there is none, or one that is no secret.
        """
        return self.secret_keys or self._kept(
            "secret.key", "MAILPOLL_SECRET_KEY", "mailpoll keys new", _checked_keys
        )

    def require_tokens(self) -> list[str]:
        """The API tokens, from the environment or the data directory.

        Raises:
          SettingsError: there is none, or one that is no secret.
        """
        return self.api_tokens or self._kept(
            "api.token", "MAILPOLL_API_TOKEN", "mailpoll tokens new", _checked_tokens
        )

    def _kept(
        self, name: str, variable: str, command: str, check: Callable[[list[str]], list[str]]
    ) -> list[str]:
        path = self.data_dir / name
        if not path.is_file():
            raise SettingsError(
                f"{variable}: is not set. Make one with `{command}` and set it for every process "
                "(`mailpoll up` makes and keeps one by itself)"
            )
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise SettingsError(
                f"{variable}: others can read {path}. If they may have, replace what is in it; "
                f"then: chmod 600 {path}"
            )
        secrets_in_it = path.read_text().split()
        try:
            if not secrets_in_it:
                raise ValueError("it is empty")
            return check(secrets_in_it)
        except ValueError as error:
            raise SettingsError(f"{variable}: {path}: {error}") from None

    def create_secrets(self) -> None:
        """Make the key and the token of a one-machine installation, once, readable by its owner."""
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, given, new in (
            ("secret.key", self.secret_keys, new_key),
            ("api.token", self.api_tokens, new_token),
        ):
            path = self.data_dir / name
            if not given and not path.exists():
                _write_secret(path, new())

    def keep_keys(self, keys: list[str]) -> bool:
        """Let the ring be these keys from the next start on, where it is kept in a file.

        Returns:
          whether it is: the environment is not mailpoll's to change.
        """
        if self.secret_keys:
            return False
        path = self.data_dir / "secret.key"
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        _write_secret(new, "\n".join(keys))
        new.replace(path)
        return True

    def public(self) -> list["Shown"]:
        """Every variable with its value as people may see it, by name."""
        found = []
        for name, field in type(self).model_fields.items():
            value = _public(str(getattr(self, name))) if name in URLS else getattr(self, name)
            secret = name in SECRETS or not field.repr
            text = None if secret else _in_words(value)
            found.append(Shown(str(field.alias), text, name in self.model_fields_set))
        return sorted(found, key=lambda shown: shown.name)

    def concerns(self) -> list[str]:
        """What is allowed and should not stay so, in words, for the log of each start."""
        found = []
        if _open_to_others(self.redis_url):
            found.append("REDIS_URL has no password: MAILPOLL_REDIS_ALLOW_OPEN lets anyone in")
        if self.allow_missing_keys:
            found.append("MAILPOLL_ALLOW_MISSING_KEYS is set: secrets may be unreadable")
        patched = PATCHED_PYTHON.get(sys.version_info[:2], (0,))
        if sys.version_info[:3] < patched:
            wanted = ".".join(map(str, patched))
            found.append(f"this Python has known holes that {wanted} has mended")
        return found


def _write_secret(path: Path, text: str) -> None:
    """Make a file that only its owner can read, and that is on the disk."""
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def new_key() -> str:
    """A new encryption key: 32 random bytes in URL-safe base64."""
    return base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def new_token() -> str:
    """A new API token with 256 bits of randomness."""
    return secrets.token_urlsafe(32)


def from_environment(environ: Mapping[str, str]) -> Settings:
    """Read and check the configuration.

    Raises:
      SettingsError: one line that names each wrong variable and says what it should be.
    """
    known = {str(field.alias) for field in Settings.model_fields.values()}
    values: dict[str, Any] = {name: environ[name] for name in known if environ.get(name, "") != ""}
    if "MAILPOLL_STORAGE_FALLBACK" not in values and "DYNO" in environ:
        # A dyno's disk is wiped at each restart: falling back to it would lose mail.
        values["MAILPOLL_STORAGE_FALLBACK"] = "no"
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsError("; ".join(_line(e["loc"], e["msg"]) for e in error.errors())) from None


def _line(location: tuple[int | str, ...], message: str) -> str:
    name = str(location[0])
    alias = Settings.model_fields[name].alias if name in Settings.model_fields else name
    return f"{alias}: {message.removeprefix('Value error, ')}"


@cache
def settings() -> Settings:
    """The configuration of this process, read once.

    Raises:
      SettingsError: a variable is invalid.
    """
    return from_environment(os.environ)
