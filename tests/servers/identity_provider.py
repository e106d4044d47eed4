"""An OAuth 2 provider where people sign in and agree: authorization codes with PKCE (RFC 7636)."""

import base64
import hashlib
import html
import json
import secrets
from dataclasses import dataclass, field
from urllib.parse import urlencode

from tests.servers.token_server import CLIENT_ID, TokenServer

PAGE = """<!doctype html><html lang="en"><title>Sign in</title><form method="post" action="/agree">
<input name="user" value="{user}"><input type="hidden" name="asked" value="{asked}">
<button name="agree" value="yes">Agree</button><button name="agree" value="no">Refuse</button>
</form></html>"""


@dataclass(slots=True)
class IdentityProvider(TokenServer):
    """As ``TokenServer``, with a page on which somebody agrees.

    Parameters:
      redirects: addresses that are registered for the client.
      gives_refresh_token, tells_address: what its answer to a code holds.
      answers_code: (status, document) that a code gets instead.
    """

    redirects: list[str] = field(default_factory=list)
    gives_refresh_token: bool = True
    tells_address: bool = True
    answers_code: tuple[int, bytes] | None = None
    #: What it was asked for on its page, each time.
    asked: list[dict[str, str]] = field(default_factory=list)
    #: What each code was asked for with, and who agreed.
    codes: dict[str, tuple[dict[str, str], str]] = field(default_factory=dict)
    #: All that it ever gave and nobody else may see.
    secrets: list[str] = field(default_factory=list)

    @property
    def authorization_url(self) -> str:
        return self.token_url.removesuffix("token") + "authorize"

    @property
    def variables(self) -> dict[str, str]:
        more = {"MAILPOLL_OAUTH_GENERIC_AUTHORIZATION_URL": self.authorization_url}
        return TokenServer.variables.__get__(self) | more

    def answer(self, path: str, fields: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        if path == "/authorize":
            return self._page(fields)
        if path == "/agree":
            return self._agreed(fields)
        if fields.get("grant_type") == "authorization_code":
            return (*self._redeem(fields), {"Content-Type": "application/json"})
        return TokenServer.answer(self, path, fields)

    def _page(self, asked: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        known = asked.get("client_id") == CLIENT_ID and asked["redirect_uri"] in self.redirects
        if not known or asked.get("response_type") != "code":
            return 400, b"unknown client or address", {}
        self.asked.append(asked)
        number, user = str(len(self.asked) - 1), html.escape(asked.get("login_hint", ""))
        page = PAGE.format(user=user, asked=number)
        return 200, page.encode(), {"Content-Type": "text/html; charset=utf-8"}

    def _agreed(self, form: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        asked = self.asked[int(form["asked"])]
        answer = {"state": asked["state"]}
        if form["agree"] == "yes":
            code = f"canary-code-{secrets.token_urlsafe(8)}"
            self.codes[code] = (asked, form["user"])
            self.secrets.append(code)
            answer["code"] = code
        else:
            answer["error"] = "access_denied"
        return 302, b"", {"Location": f"{asked['redirect_uri']}?{urlencode(answer)}"}

    def _redeem(self, form: dict[str, str]) -> tuple[int, bytes]:
        self.requests.append(form)
        asked, user = self.codes.pop(form["code"], ({}, ""))
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        self.secrets.append(form["code_verifier"])
        right = asked.get("redirect_uri") == form["redirect_uri"]
        if self.answers_code:
            return self.answers_code
        if not right or asked["code_challenge"] != challenge:
            document = {"error": "invalid_grant", "error_description": f"{form['code']} is wrong"}
            return 400, json.dumps(document).encode()
        access = f"canary-access-{secrets.token_urlsafe(8)}"
        self.tokens[access] = user
        answer = {"access_token": access, "token_type": "Bearer", "expires_in": self.lifetime}
        if self.gives_refresh_token:
            answer["refresh_token"] = self.new_refresh_token(user)
            self.secrets.append(answer["refresh_token"])
        if self.tells_address:
            claims = base64.urlsafe_b64encode(json.dumps({"email": user}).encode()).decode()
            answer["id_token"] = f"e30.{claims.rstrip('=')}.c2ln"
            self.secrets.append(answer["id_token"])
        self.secrets.append(access)
        return 200, json.dumps(answer).encode()
