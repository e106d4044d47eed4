"""Dovecot that takes OAuth 2 access tokens (XOAUTH2 and OAUTHBEARER) beside passwords."""

from pathlib import Path

from tests.servers.dovecot import Dovecot

PASSDB = """
passdb {{
  driver = oauth2
  mechanisms = {mechanisms}
  args = {settings}
}}
"""
SETTINGS = """
introspection_mode = get
introspection_url = {url}
username_attribute = username
active_attribute = active
active_value = true
timeout_msecs = 5000
"""


class OauthDovecot(Dovecot):
    """As ``Dovecot``; asks ``introspection_url`` whose an access token is.

    Parameters:
      mechanisms: ``xoauth2``, ``oauthbearer``, or both.
    """

    def __init__(
        self, directory: Path, introspection_url: str, mechanisms: str = "xoauth2 oauthbearer"
    ) -> None:
        super().__init__(directory)
        self._url = introspection_url
        self._mechanisms = mechanisms

    def _configuration(self) -> str:
        settings = self.directory / "oauth2.conf.ext"
        settings.write_text(SETTINGS.format(url=self._url))
        passdb = PASSDB.format(mechanisms=self._mechanisms, settings=settings)
        before, word, after = super()._configuration().partition("passdb {")
        plain = "auth_mechanisms = plain login"
        return before.replace(plain, f"{plain} {self._mechanisms}") + passdb + word + after
