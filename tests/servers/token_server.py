"""An OAuth 2 token server: buys access tokens for refresh tokens, and tells an IMAP server whose.

The token endpoint is HTTPS with the certificate of the test's Dovecot. Introspection (RFC 7662) is
plain HTTP on another port, as Dovecot's oauth2 passdb asks for it.
"""

import json
import secrets
import ssl
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

CLIENT_ID, CLIENT_SECRET = "mailpoll-client", "canary-client-secret"


@dataclass(slots=True)
class TokenServer:
    """Serves in threads on loopback ports.

    Parameters:
      directory: holds ``server.pem`` and ``server.key``.
      users: whose refresh token is whose.
      lifetime: seconds for which access tokens are good.
      rotates: each refresh token is good once, as with Microsoft.
      delay: seconds that an answer takes.
      failure: (status, document) that every request for a token gets instead.
    """

    directory: Path
    users: dict[str, str] = field(default_factory=dict)
    lifetime: int = 3_600
    rotates: bool = False
    delay: float = 0
    failure: tuple[int, bytes] | None = None
    #: The forms of all requests for a token.
    requests: list[dict[str, str]] = field(default_factory=list)
    #: The headers of all requests.
    headers: list[dict[str, str]] = field(default_factory=list)
    #: Good access tokens and whose they are.
    tokens: dict[str, str] = field(default_factory=dict)
    _servers: list[ThreadingHTTPServer] = field(default_factory=list)

    @property
    def token_url(self) -> str:
        return f"https://localhost:{self._servers[0].server_port}/token"

    @property
    def introspection_url(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_port}/introspect?token="

    @property
    def variables(self) -> dict[str, str]:
        """What makes mailpoll use it as its generic provider."""
        return {
            "MAILPOLL_OAUTH_GENERIC_CLIENT_ID": CLIENT_ID,
            "MAILPOLL_OAUTH_GENERIC_CLIENT_SECRET": CLIENT_SECRET,
            "MAILPOLL_OAUTH_GENERIC_TOKEN_URL": self.token_url,
            "MAILPOLL_OAUTH_GENERIC_SCOPE": "imap",
        }

    def new_refresh_token(self, user: str) -> str:
        token = f"canary-refresh-{secrets.token_urlsafe(8)}"
        self.users[token] = user
        return token

    def __enter__(self) -> Self:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "server.pem", self.directory / "server.key")
        for tls in (True, False):
            server = ThreadingHTTPServer(("127.0.0.1", 0), _answering(self))
            if tls:
                server.socket = context.wrap_socket(server.socket, server_side=True)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self._servers.append(server)
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def token(self, form: dict[str, str]) -> tuple[int, bytes]:
        self.requests.append(form)
        time.sleep(self.delay)
        if self.failure:
            return self.failure
        if (form.get("client_id"), form.get("client_secret")) != (CLIENT_ID, CLIENT_SECRET):
            return 401, b'{"error": "invalid_client"}'
        user = self.users.get(form.get("refresh_token", ""))
        if user is None or form.get("grant_type") != "refresh_token":
            given = form.get("refresh_token", "")
            document = {"error": "invalid_grant", "error_description": f"{given} is not known"}
            return 400, json.dumps(document).encode()
        token = f"canary-access-{secrets.token_urlsafe(8)}"
        self.tokens[token] = user
        document = {"access_token": token, "token_type": "Bearer", "expires_in": self.lifetime}
        if self.rotates:
            del self.users[form["refresh_token"]]
            document["refresh_token"] = self.new_refresh_token(user)
        return 200, json.dumps(document).encode()

    def answer(self, path: str, fields: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        """Status, content and further headers of what is asked for, by POST or by GET."""
        asks = self.introspect(fields.get("token", "")) if path == "/introspect" else None
        return (*(asks or self.token(fields)), {"Content-Type": "application/json"})

    def introspect(self, token: str) -> tuple[int, bytes]:
        user = self.tokens.get(token)
        return 200, json.dumps({"active": user is not None, "username": user}).encode()


def _answering(server: TokenServer) -> type[BaseHTTPRequestHandler]:
    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self._answer(body)

        def do_GET(self) -> None:
            self._answer(urlsplit(self.path).query)

        def _answer(self, text: str) -> None:
            fields = {name: values[0] for name, values in parse_qs(text).items()}
            server.headers.append(dict(self.headers))
            status, body, headers = server.answer(urlsplit(self.path).path, fields)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    return Answers
