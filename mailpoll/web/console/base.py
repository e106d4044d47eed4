"""What the console's pages have in common."""

from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlencode

import falcon

from ..problems import REQUEST_ID
from .client import Api

#: Of a download's headers, those that say what it is and how it may be used.
PASSED_ON = (
    "content-type",
    "content-disposition",
    "content-length",
    "etag",
    "content-security-policy",
)


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


def pass_on(resp: falcon.Response, api: Api, path: str) -> None:
    """Stream an answer of the API as it is."""
    answer = api.call("GET", path)
    for name in PASSED_ON:
        if name in answer.headers:
            resp.set_header(name, answer.headers[name])
    resp.stream = _Body(answer.body)


class _Body:
    """An answer's body, closed with the response that it goes out with."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = parts
        self.close: Callable[[], None] = getattr(parts, "close", lambda: None)

    def __iter__(self) -> Any:
        return iter(self._parts)
