"""Everything that can be configured, read from the environment and checked in one place.

Each field's alias is the name of its environment variable. With none of them set, mailpoll keeps
everything (SQLite, files, an embedded Valkey) under ``./data``.
"""

import base64
import binascii
import hashlib
import ipaddress
import os
import secrets
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

#: Longest unix socket path that Linux takes, in bytes (sockaddr_un, unix(7)), less the final NUL.
UNIX_PATH_MAX = 107
KEY_BYTES = 32
MIN_TOKEN_CHARACTERS = 20

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class SettingsError(Exception):
    """A variable is missing or invalid. The message names it and says what it should be."""


def _split(value: object) -> object:
    return (
        [item.strip() for item in value.split(",") if item.strip()]
        if isinstance(value, str)
        else value
    )


CommaSeparated = BeforeValidator(_split)


def _endpoint(value: object) -> object:
    """``address[:port]`` of a DNS server as (address, port)."""
    if not isinstance(value, str):
        return value
    try:
        parts = urlsplit(f"//{value}")
        return str(ipaddress.ip_address(parts.hostname or "")), parts.port or 53
    except ValueError:
        raise ValueError("should be an IP address, with a port if it is not 53") from None


class Settings(BaseModel):
    """The whole configuration. Times are in seconds and sizes in bytes."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, hide_input_in_errors=True)

    data_dir: Path = Field(Path("data"), alias="MAILPOLL_DATA_DIR", validate_default=True)
    database_url: str = Field("", alias="DATABASE_URL")
    database_pool: int = Field(8, alias="MAILPOLL_DATABASE_POOL", ge=1, le=200)
    redis_url: str = Field("", alias="REDIS_URL")
    storage_url: str = Field("", alias="STORAGE_URL")
    storage_fallback: bool = Field(True, alias="MAILPOLL_STORAGE_FALLBACK")

    secret_keys: Annotated[list[str], CommaSeparated] = Field([], alias="MAILPOLL_SECRET_KEY")
    api_tokens: Annotated[list[str], CommaSeparated] = Field([], alias="MAILPOLL_API_TOKEN")

    poll_interval: int = Field(60, alias="MAILPOLL_POLL_INTERVAL", ge=5, le=86_400)
    poll_slice: int = Field(20, alias="MAILPOLL_POLL_SLICE", ge=1, le=600)
    poll_deadline: int = Field(600, alias="MAILPOLL_POLL_DEADLINE", ge=10, le=3_600)
    sweep_after: int = Field(120, alias="MAILPOLL_SWEEP_AFTER", ge=1, le=3_600)
    max_attempts: int = Field(3, alias="MAILPOLL_MAX_ATTEMPTS", ge=1, le=20)

    batch_messages: int = Field(100, alias="MAILPOLL_BATCH_MESSAGES", ge=1, le=1_000)
    batch_bytes: int = Field(2_000_000, alias="MAILPOLL_BATCH_BYTES", ge=10_000)
    part_bytes: int = Field(1_000_000, alias="MAILPOLL_PART_BYTES", ge=10_000)
    max_message_bytes: int = Field(256_000_000, alias="MAILPOLL_MAX_MESSAGE_BYTES", ge=1_000)

    imap_connect_timeout: float = Field(10, alias="MAILPOLL_IMAP_CONNECT_TIMEOUT", gt=0, le=120)
    imap_read_timeout: float = Field(60, alias="MAILPOLL_IMAP_READ_TIMEOUT", gt=0, le=600)
    imap_ca_file: Path | None = Field(None, alias="MAILPOLL_IMAP_CA_FILE")
    imap_ports: Annotated[list[int], CommaSeparated] = Field(
        [143, 993], alias="MAILPOLL_IMAP_PORTS"
    )
    imap_allowed_networks: Annotated[list[Network], CommaSeparated] = Field(
        [], alias="MAILPOLL_IMAP_ALLOWED_NETWORKS"
    )
    imap_allow_plain: bool = Field(False, alias="MAILPOLL_IMAP_ALLOW_PLAIN")
    imap_account_connections: int = Field(3, alias="MAILPOLL_IMAP_ACCOUNT_CONNECTIONS", ge=1)
    imap_day_bytes: int = Field(0, alias="MAILPOLL_IMAP_DAY_BYTES", ge=0)
    imap_host_connections: int = Field(50, alias="MAILPOLL_IMAP_HOST_CONNECTIONS", ge=1)
    imap_host_logins_per_minute: int = Field(1_200, alias="MAILPOLL_IMAP_HOST_LOGINS", ge=1)

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
    oauth_generic_scope: str = Field("", alias="MAILPOLL_OAUTH_GENERIC_SCOPE")

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
    def _redis(cls, value: str) -> str:
        if value and urlsplit(value).scheme not in ("redis", "rediss", "unix"):
            raise ValueError(
                "should be redis://[:password@]host:port/0, rediss://… or unix:///socket"
            )
        return value

    @field_validator("storage_url")
    @classmethod
    def _storage(cls, value: str) -> str:
        if value and urlsplit(value).scheme not in ("file", "s3"):
            raise ValueError("should be file:///directory or s3://key:secret@host:port/bucket")
        return value

    @field_validator("oauth_generic_token_url")
    @classmethod
    def _token_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme != "https" or not parts.hostname):
            raise ValueError("should be the https:// address of an OAuth 2 token endpoint")
        return value

    @field_validator("secret_keys")
    @classmethod
    def _keys(cls, value: list[str]) -> list[str]:
        for key in value:
            try:
                size = len(base64.urlsafe_b64decode(key))
            except (binascii.Error, ValueError):
                size = 0
            if size != KEY_BYTES:
                raise ValueError("each key should be 32 random bytes in base64: mailpoll keys new")
        return value

    @field_validator("api_tokens")
    @classmethod
    def _tokens(cls, value: list[str]) -> list[str]:
        if any(len(token) < MIN_TOKEN_CHARACTERS for token in value):
            raise ValueError(f"each token should have at least {MIN_TOKEN_CHARACTERS} characters")
        return value

    @field_validator("imap_ports")
    @classmethod
    def _ports(cls, value: list[int]) -> list[int]:
        if any(not 1 <= port <= 65_535 for port in value):
            raise ValueError("should be port numbers from 1 to 65535, separated by commas")
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
        if value and not value.is_file():
            raise ValueError("should be a readable file of CA certificates in PEM form")
        return value

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'mailpoll.db'}"

    @property
    def storage(self) -> str:
        return self.storage_url or f"file://{self.data_dir / 'blobs'}"

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
          SettingsError: there is none.
        """
        return self.secret_keys or self._kept(
            "secret.key", "MAILPOLL_SECRET_KEY", "mailpoll keys new"
        )

    def require_tokens(self) -> list[str]:
        """The API tokens, from the environment or the data directory.

        Raises:
          SettingsError: there is none.
        """
        return self.api_tokens or self._kept(
            "api.token", "MAILPOLL_API_TOKEN", "mailpoll tokens new"
        )

    def _kept(self, name: str, variable: str, command: str) -> list[str]:
        path = self.data_dir / name
        if path.is_file():
            return path.read_text().split()
        raise SettingsError(
            f"{variable}: is not set. Make one with `{command}` and set it for every process "
            "(`mailpoll up` makes and keeps one by itself)"
        )

    def create_secrets(self) -> None:
        """Make the key and the token of a one-machine installation, once, readable by its owner."""
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, given, new in (
            ("secret.key", self.secret_keys, new_key),
            ("api.token", self.api_tokens, new_token),
        ):
            path = self.data_dir / name
            if given or path.exists():
                continue
            with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                file.write(new() + "\n")
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
