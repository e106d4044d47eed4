"""What the console's pages have in common."""

from typing import Any
from urllib.parse import urlencode

import falcon

from ..problems import REQUEST_ID
from .client import Api


class Page:
    """A page, and the forms on it.

    Parameters:
      app: whose API it asks.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    def api(self, req: falcon.Request, resp: falcon.Response) -> Api:
        return Api(self._app, req, str(resp.get_header(REQUEST_ID)))


def go(resp: falcon.Response, path: str, done: str = "", n: int | None = None) -> None:
    """Send the browser to a page after a form, so that reloading it does nothing twice."""
    said = {name: value for name, value in (("done", done), ("n", n)) if value not in ("", None)}
    resp.status = falcon.HTTP_303
    resp.location = f"{path}?{urlencode(said)}" if said else path
