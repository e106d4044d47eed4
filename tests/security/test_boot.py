"""What mailpoll does not start with: no secrets, sample secrets, open queues, files open to all."""

import base64
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mailpoll.settings import (
    PATCHED_PYTHON,
    Settings,
    SettingsError,
    from_environment,
    new_key,
    new_token,
)
from tests.integration.test_cli import clean, run

REMOTE = "redis://redis.invalid:6379/0"


def encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode()


SAMPLES = [
    "x",
    "changeme",
    encoded(bytes(32)),
    encoded(b"\xff" * 32),
    encoded(bytes(range(32))),
    encoded(b"change-me-change-me-change-me-ch"),
    encoded(b"0123456789abcdef0123456789abcdef"),
    encoded(bytes([0x80, 0x81, 0x82, 0x83] * 8)),
    "change-me-" * 4 + "abc=",
    encoded(os.urandom(16)),
    encoded(os.urandom(31)),
    encoded(os.urandom(64)),
]


@pytest.mark.parametrize("command", ["web", "poller"])
@pytest.mark.parametrize("key", SAMPLES[1:3])
def test_no_process_starts_with_a_short_or_sample_key(
    command: str, key: str, tmp_path: Path
) -> None:
    """S43"""
    variables = {"MAILPOLL_API_TOKEN": new_token(), "MAILPOLL_SECRET_KEY": key}
    result = run(command, variables=variables, cwd=tmp_path)
    (line,) = result.stderr.decode().splitlines()
    assert result.returncode == 1
    assert line.startswith("mailpoll: MAILPOLL_SECRET_KEY: ")
    assert key not in line
    assert "keys new" in line


@pytest.mark.parametrize("key", SAMPLES, ids=map(str, range(len(SAMPLES))))
@pytest.mark.parametrize("position", ["alone", "first", "last"])
def test_a_key_that_is_no_secret_is_refused(key: str, position: str) -> None:
    """S43: anywhere in the ring."""
    value = {"alone": key, "first": f"{key},{new_key()}", "last": f"{new_key()},{key}"}[position]
    with pytest.raises(SettingsError, match="MAILPOLL_SECRET_KEY"):
        from_environment({"MAILPOLL_SECRET_KEY": value})


def test_every_new_key_and_token_is_accepted() -> None:
    """S43: what looks for samples mistakes no secret for one."""
    for _ in range(2_000):
        from_environment({"MAILPOLL_SECRET_KEY": new_key(), "MAILPOLL_API_TOKEN": new_token()})


@pytest.mark.parametrize(
    "token",
    [
        "short",
        "a" * 40,
        "change-me-change-me-change-me",
        "your-token-goes-here-1234567890",
        "abab" * 9,
    ],
)
def test_a_token_that_is_no_secret_is_refused(token: str) -> None:
    """S43"""
    with pytest.raises(SettingsError, match="MAILPOLL_API_TOKEN") as refusal:
        from_environment({"MAILPOLL_API_TOKEN": f"{new_token()},{token}"})
    assert token not in str(refusal.value)


def test_there_is_no_secret_by_default(tmp_path: Path) -> None:
    """S43"""
    config = from_environment({"MAILPOLL_DATA_DIR": str(tmp_path)})
    for needed in (config.require_keys, config.require_tokens):
        with pytest.raises(SettingsError, match="is not set"):
            needed()


@pytest.mark.parametrize(
    "file", [".env.example", "docker/.env.example", "docker/compose.yaml", "docs/configuration.md"]
)
def test_no_file_of_ours_holds_a_secret_to_copy(file: str) -> None:
    """S43: the samples are empty."""
    text = (Path(__file__).parents[2] / file).read_text()
    for name in ("MAILPOLL_SECRET_KEY", "MAILPOLL_API_TOKEN"):
        given = [line for line in text.splitlines() if line.strip().startswith(f"{name}=")]
        assert all(line.strip() == f"{name}=" for line in given)


# --- files


def data_directory(tmp_path: Path, **contents: str) -> Settings:
    for name, text in contents.items():
        file = tmp_path / name.replace("_", ".")
        file.touch(0o600)
        file.write_text(text)
    return from_environment({"MAILPOLL_DATA_DIR": str(tmp_path)})


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o602, 0o666, 0o777])
def test_a_secret_that_others_can_read_is_not_used(tmp_path: Path, mode: int) -> None:
    """S43"""
    config = data_directory(tmp_path, secret_key=new_key(), api_token=new_token())
    assert config.require_keys()
    assert config.require_tokens()
    for name, needed in (("secret.key", config.require_keys), ("api.token", config.require_tokens)):
        (tmp_path / name).chmod(mode)
        with pytest.raises(SettingsError, match=r"others can read .*chmod 600"):
            needed()
        (tmp_path / name).chmod(0o600)


def test_no_process_starts_with_a_key_file_that_others_can_read(tmp_path: Path) -> None:
    """S43"""
    data_directory(tmp_path, secret_key=new_key(), api_token=new_token())
    (tmp_path / "secret.key").chmod(0o644)
    for command in ("web", "poller", "up"):
        result = run(command, variables={"MAILPOLL_DATA_DIR": str(tmp_path)}, cwd=tmp_path)
        (line,) = result.stderr.decode().splitlines()
        assert result.returncode == 1
        assert line.startswith("mailpoll: MAILPOLL_SECRET_KEY: others can read")


@pytest.mark.parametrize(
    "text", ["", "\n", "x", encoded(bytes(32)), f"{new_key()} short"], ids=map(str, range(5))
)
def test_a_key_file_without_a_good_key_is_not_used(tmp_path: Path, text: str) -> None:
    """S43"""
    with pytest.raises(SettingsError, match="MAILPOLL_SECRET_KEY: "):
        data_directory(tmp_path, secret_key=text).require_keys()


def test_what_mailpoll_makes_is_its_owners_alone(tmp_path: Path) -> None:
    """S43, whatever the umask is."""
    config = from_environment({"MAILPOLL_DATA_DIR": str(tmp_path / "data")})
    before = os.umask(0)
    try:
        config.create_secrets()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    for name in ("secret.key", "api.token"):
        assert stat.S_IMODE((tmp_path / "data" / name).stat().st_mode) == 0o600
    assert config.require_keys()
    assert config.require_tokens()


# --- the queue


@pytest.mark.parametrize(
    "url",
    [
        REMOTE,
        "redis://10.0.0.5",
        "redis://@redis",
        "redis://:@redis",
        "redis://user@redis",
        "rediss://redis.example.net:6380/0",
        "redis://localhost.example.net",
        "redis://0.0.0.0",
        "redis://[2001:db8::1]:6379/0",
        "redis://redis?password=",
        "redis:///0?host=10.0.0.5",
    ],
)
def test_a_queue_that_anyone_can_reach_is_refused(url: str) -> None:
    """S57"""
    with pytest.raises(
        SettingsError, match=r"REDIS_URL: has no password.*MAILPOLL_REDIS_ALLOW_OPEN"
    ):
        from_environment({"REDIS_URL": url})
    config = from_environment({"REDIS_URL": url, "MAILPOLL_REDIS_ALLOW_OPEN": "yes"})
    assert any("MAILPOLL_REDIS_ALLOW_OPEN" in concern for concern in config.concerns())


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:6379/0",
        "redis://127.0.0.1:6379/0",
        "redis://127.8.8.8/0",
        "redis://[::1]:6379/0",
        "redis://:word@redis:6379/0",
        "rediss://user:word@redis.example.net:6380/0",
        "redis://redis?password=word",
        "unix:///run/valkey.sock",
    ],
)
def test_a_queue_that_others_cannot_reach_is_taken(url: str) -> None:
    """S57"""
    config = from_environment({"REDIS_URL": url})
    assert not any("REDIS" in concern for concern in config.concerns())


@pytest.mark.parametrize("command", ["web", "worker"])
def test_no_process_starts_with_an_open_queue(command: str, tmp_path: Path) -> None:
    """S57"""
    result = run(command, variables={"REDIS_URL": REMOTE}, cwd=tmp_path)
    (line,) = result.stderr.decode().splitlines()
    assert result.returncode == 1
    assert line.startswith("mailpoll: REDIS_URL: has no password")


def test_the_override_is_loud_in_the_log(tmp_path: Path) -> None:
    """S57"""
    variables = {"REDIS_URL": REMOTE, "MAILPOLL_REDIS_ALLOW_OPEN": "yes"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mailpoll", "scheduler"],
        cwd=tmp_path,
        env=clean(variables),
        stderr=subprocess.PIPE,
    )
    try:
        assert b"REDIS_URL has no password" in process.stderr.readline()
    finally:
        process.terminate()
        process.wait(30)
        process.stderr.close()


def test_an_old_python_is_said_to_be_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """S62"""
    for minor, patched in PATCHED_PYTHON.items():
        for version, old in (((*minor, 0), True), (patched, False)):
            monkeypatch.setattr(sys, "version_info", version)
            concerns = from_environment({}).concerns()
            assert any("Python has known holes" in concern for concern in concerns) == old
