"""The OpenAPI document, request validation by it, and the docs page, which works offline."""

from pathlib import Path
from typing import Any

import falcon
import swagger_ui
from pydantic import BaseModel
from spectree import SecurityScheme, SpecTree
from spectree.models import SecureType, SecuritySchemeData, Tag

from .. import __version__
from . import problems

ACCOUNTS = Tag(name="accounts", description="Mailboxes, their polling and figures")
MESSAGES = Tag(name="messages", description="Stored mail")
OPERATIONS = Tag(name="operations", description="Queues, tasks and health")

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>mailpoll API</title>
<link rel="icon" href="/docs/assets/favicon-32x32.png">
<link rel="stylesheet" href="/docs/assets/swagger-ui.css"></head>
<body><div id="ui"></div><script src="/docs/assets/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script></body></html>
"""
#: The whole address: a page that was opened as user:password@host may not fetch a relative one.
START = """SwaggerUIBundle({
  url: location.origin + "/openapi.json", dom_id: "#ui", deepLinking: true,
  persistAuthorization: true, validatorUrl: null,
  tryItOutEnabled: true, defaultModelsExpandDepth: 0, docExpansion: "list",
});
"""
CONTENT_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "base-uri 'none'; frame-ancestors 'none'"
)
ASSETS = Path(swagger_ui.__file__).parent / "static"


def _refuse(req: Any, resp: falcon.Response, error: Any, resource: Any, adapter: Any) -> None:
    """Turn a validation error into a problem document that names each field."""
    if error is None:
        return
    errors = [
        {
            "field": ".".join(str(part) for part in item["loc"]) or "body",
            "reason": item["msg"].removeprefix("Value error, "),
        }
        for item in error.errors()
    ]
    resp.media = None
    problems.send(resp, 422, "; ".join(f"{e['field']}: {e['reason']}" for e in errors), errors)


def _scheme(name: str) -> SecuritySchemeData:
    return SecuritySchemeData(type=SecureType.HTTP, scheme=name)


api = SpecTree(
    "falcon",
    title="mailpoll",
    description="The mail of many IMAP mailboxes in your own database and object store.",
    version=f"v{__version__}",
    before=_refuse,
    annotations=False,
    mode="strict",  # the docs page and this document are not listed in it
    security_schemes=[
        SecurityScheme(name="token", data=_scheme("bearer")),
        SecurityScheme(name="browser", data=_scheme("basic")),
    ],
    security=[{"token": []}, {"browser": []}],
)


def send(resp: falcon.Response, model: BaseModel) -> None:
    """Answer with a model as JSON."""
    resp.content_type = falcon.MEDIA_JSON
    resp.data = model.model_dump_json(by_alias=True).encode()


def document() -> dict[str, Any]:
    """SpecTree's document; it gives the bounds of integers in paths as strings."""
    for operations in api.spec["paths"].values():
        for operation in operations.values():
            for parameter in operation["parameters"]:
                schema = parameter["schema"]
                for bound in {"minimum", "maximum"} & schema.keys():
                    schema |= {bound: int(schema[bound]), "format": "int64"}
    return dict(api.spec)


class OpenApiDocument:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.media = document()


class DocsPage:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = falcon.MEDIA_HTML
        resp.set_header("Content-Security-Policy", CONTENT_POLICY)
        resp.text = PAGE


class DocsStart:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = "text/javascript"
        resp.text = START


def install(app: "falcon.App[Any, Any]") -> None:
    """Add the routes of the document and the page; call it after all others."""
    api.app = app
    app.add_route("/openapi.json", OpenApiDocument())
    app.add_route("/docs", DocsPage())
    app.add_route("/docs/start.js", DocsStart())
    app.add_static_route("/docs/assets", str(ASSETS))
