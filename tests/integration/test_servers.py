"""The test servers themselves: what other tests take for granted about them."""

import io
import ssl
from pathlib import Path

import imapclient
import psycopg
import pytest
import redis
from imapclient.exceptions import LoginError

from tests.servers.dovecot import Dovecot
from tests.servers.postgres import Postgres
from tests.servers.process import ServerMissingError, find_program
from tests.servers.seaweed import BUCKET, Seaweed
from tests.servers.valkey import Valkey


def log_in(dovecot: Dovecot, user: str, password: str | None = None) -> imapclient.IMAPClient:
    client = imapclient.IMAPClient(dovecot.host, dovecot.imap_port, ssl=False)
    client.login(user, password or dovecot.password)
    return client


def test_dovecot_serves_the_bytes_that_were_delivered(dovecot: Dovecot) -> None:
    # Given a message with CRLF line ends, lone CR, 8-bit bytes and no final line end
    raw = b"Subject: x\r\n\r\nline\r\n.\r\n\xff\xfe lone \r here\r\n\r\nlast"
    dovecot.deliver("exact@example.test", raw)

    # When it is fetched
    with log_in(dovecot, "exact@example.test") as client:
        client.select_folder("INBOX", readonly=True)
        answer = client.fetch([1], ["BODY.PEEK[]", "RFC822.SIZE"])

    # Then not a byte differs
    assert answer[1][b"BODY[]"] == raw
    assert answer[1][b"RFC822.SIZE"] == len(raw)


def test_dovecot_numbers_messages_in_order_of_delivery(dovecot: Dovecot) -> None:
    raws = [f"Subject: {n}\r\n\r\n{n}\r\n".encode() for n in range(50)]
    dovecot.deliver_many("Order@example.test", raws, received_at=1_000_000_000)

    with log_in(dovecot, "order@example.test") as client:
        client.select_folder("INBOX", readonly=True)
        answer = client.fetch(range(1, 51), ["BODY.PEEK[]", "INTERNALDATE"])

    assert [answer[uid][b"BODY[]"] for uid in sorted(answer)] == raws
    assert answer[1][b"INTERNALDATE"].timestamp() == 1_000_000_000


def test_dovecot_has_hierarchical_folders_with_any_name(dovecot: Dovecot) -> None:
    dovecot.deliver("folders", b"Subject: a\r\n\r\n", "Archive/2024")
    dovecot.deliver("folders", b"Subject: b\r\n\r\n", "Gelöscht & mehr/日本")

    with log_in(dovecot, "folders") as client:
        folders = {name: flags for flags, _, name in client.list_folders()}
        assert client.select_folder("Gelöscht & mehr/日本")[b"EXISTS"] == 1
        assert client.select_folder("Archive/2024")[b"EXISTS"] == 1

    assert rb"\Archive" in folders["Archive"]
    assert "INBOX" in folders


@pytest.mark.parametrize("way", ["imaps", "starttls"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_dovecot_offers_tls_that_its_authority_vouches_for(
    dovecot: Dovecot, way: str, host: str
) -> None:
    context = ssl.create_default_context(cafile=str(dovecot.ca_file))
    if way == "imaps":
        client = imapclient.IMAPClient(host, dovecot.imaps_port, ssl=True, ssl_context=context)
    else:
        client = imapclient.IMAPClient(host, dovecot.imap_port, ssl=False)
        client.starttls(context)
    with client:
        client.login("tls", dovecot.password)


def test_dovecot_refuses_a_wrong_password(dovecot: Dovecot) -> None:
    with pytest.raises(LoginError):
        log_in(dovecot, "someone", "wrong")


def test_dovecot_takes_many_connections_of_one_user(dovecot: Dovecot) -> None:
    clients = [log_in(dovecot, "busy") for _ in range(40)]
    for client in clients:
        client.logout()


def test_postgres_makes_and_drops_databases(postgres: Postgres) -> None:
    url = postgres.create_database("made_and_dropped")
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    postgres.drop_database("made_and_dropped")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)


@pytest.mark.parametrize("name", ["valkey", "redis_server"])
def test_valkey_and_redis_serve(name: str, request: pytest.FixtureRequest) -> None:
    server: Valkey = request.getfixturevalue(name)
    client = redis.Redis.from_url(server.url)
    client.set("test-servers", "1")
    assert client.get("test-servers") == b"1"


@pytest.mark.parametrize("empty", [True, False])
def test_valkey_restarts_with_and_without_its_keys(empty: bool, tmp_path: Path) -> None:
    with Valkey(tmp_path) as server:
        redis.Redis.from_url(server.url).set("key", "1")
        server.restart(empty=empty)
        assert redis.Redis.from_url(server.url).exists("key") == (0 if empty else 1)


def test_seaweed_takes_an_object(seaweed: Seaweed) -> None:
    client = seaweed.client()
    client.put_object(BUCKET, "test/servers", io.BytesIO(b"abc"), 3)
    assert client.get_object(BUCKET, "test/servers").data == b"abc"


def test_a_missing_server_is_an_error_that_names_the_remedy() -> None:
    with pytest.raises(ServerMissingError, match="tests/install-servers"):
        find_program("no-such-server")
