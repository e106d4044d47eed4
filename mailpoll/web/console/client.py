"""The API as the console asks it: within the process, with the token of whoever looks."""

from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from urllib.parse import urlencode

import falcon
import orjson

from .. import problems

#: What of a request is passed on: where it comes from and how, never what it asks for.
PASSED_ON = (
    "REMOTE_ADDR",
    "REMOTE_PORT",
    "SERVER_NAME",
    "SERVER_PORT",
    "SERVER_PROTOCOL",
    "HTTP_HOST",
    "HTTP_X_FORWARDED_FOR",
    "HTTP_X_FORWARDED_PROTO",
)


class Refused(Exception):
    """The API answered with a problem.

    Parameters:
      status: the HTTP status.
      problem: the document (RFC 9457).
    """

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.detail: str = problem.get("detail") or problem.get("title") or "it did not work"
        self.fields: dict[str, str] = {
            error["field"]: error["reason"] for error in problem.get("errors") or ()
        }
        super().__init__(self.detail)


@dataclass(slots=True)
class Answer:
    """What the API answers; ``body`` is read by whoever needs it, and closed."""

    status: int
    headers: dict[str, str]
    body: Iterable[bytes]

    def read(self, limit: int | None = None) -> bytes:
        """The body, or its beginning."""
        found = bytearray()
        try:
            for part in self.body:
                found += part
                if limit is not None and len(found) >= limit:
                    break
        finally:
            close = getattr(self.body, "close", None)
            if close:
                close()
        return bytes(found[:limit])


class Api:
    """The API for one request of the console.

    Parameters:
      app: the application, which is the API too.
      req: the console's request.
      request_id: its name, which the API's log and audit events get as well.
    """

    def __init__(self, app: Any, req: falcon.Request, request_id: str) -> None:
        self._app = app
        passed = {name: req.env[name] for name in PASSED_ON if name in req.env}
        wsgi = {name: value for name, value in req.env.items() if name.startswith("wsgi.")}
        self._environ = {
            **passed,
            **wsgi,
            "SCRIPT_NAME": "",
            "HTTP_ACCEPT": falcon.MEDIA_JSON,
            "HTTP_AUTHORIZATION": f"Bearer {req.context.token}",
            problems.REQUEST_ID_OF_CONSOLE: request_id,
        }

    def get(self, path: str, **params: Any) -> Any:
        """The JSON of an answer.

        Raises:
          Refused: it is a problem.
        """
        return self._json(self.call("GET", path, params=params))

    def post(self, path: str, body: Any = None) -> Any:
        """As ``get``; the body is sent as JSON."""
        return self._json(self.call("POST", path, body=body))

    def patch(self, path: str, body: Any) -> Any:
        return self._json(self.call("PATCH", path, body=body))

    def put(self, path: str, body: Any) -> Any:
        return self._json(self.call("PUT", path, body=body))

    def delete(self, path: str) -> Any:
        return self._json(self.call("DELETE", path))

    def call(
        self, method: str, path: str, *, params: dict[str, Any] | None = None, body: Any = None
    ) -> Answer:
        """An answer as it comes.

        Raises:
          Refused: it is a problem.
        """
        given = {
            name: str(value).lower() if isinstance(value, bool) else value
            for name, value in (params or {}).items()
            if value not in (None, "")
        }
        data = b"" if body is None else orjson.dumps(body)
        environ = {
            **self._environ,
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": urlencode(given),
            "CONTENT_LENGTH": str(len(data)),
            "wsgi.input": BytesIO(data),
        }
        if body is not None:
            environ["CONTENT_TYPE"] = falcon.MEDIA_JSON
        start: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], _: Any = None) -> None:
            start[:] = [int(status.split(" ", 1)[0]), {name.lower(): v for name, v in headers}]

        parts = self._app(environ, start_response)
        answer = Answer(start[0], start[1], parts)
        if answer.status >= 400:
            raise Refused(answer.status, _document(answer.read()))
        return answer

    @staticmethod
    def _json(answer: Answer) -> Any:
        data = answer.read()
        return orjson.loads(data) if data else None


def _document(data: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
