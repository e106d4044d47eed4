"""The OpenAPI document, request validation by it, and the docs page, which works offline."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import falcon
import swagger_ui
from pydantic import BaseModel, ValidationError
from spectree import SecurityScheme, SpecTree
from spectree.models import SecureType, SecuritySchemeData, Tag

from .. import __version__
from ..models import Scope
from . import problems, schemas
from .auth import needs

ACCOUNTS = Tag(name="accounts", description="Mailboxes, their polling and figures")
MESSAGES = Tag(name="messages", description="Stored mail")
SEARCH = Tag(name="search", description="Full-text search, and conversations")
ARCHIVES = Tag(name="archives", description="Mail out to files, and in from them")
EVENTS = Tag(name="events", description="What happened, in order")
WEBHOOKS = Tag(name="webhooks", description="Programs that are told of events")
OPERATIONS = Tag(name="operations", description="Queues, tasks and health")
RETENTION = Tag(name="retention", description="Legal holds")
ACCESS = Tag(name="access", description="API keys and the audit log")

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
PROBLEM_JSON = "application/problem+json"
#: What any operation may answer that needs a key, and any that takes a body.
BEHIND_THE_KEY, WITH_BODY = (401, 403, 429, 503), (400, 411, 413, 415)
#: The one operation that takes a file.
IMPORT = "/admin/email-accounts/{account_id}/import"
FILE = {
    "required": True,
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}
ASSETS = Path(swagger_ui.__file__).parent / "static"


def field_errors(error: ValidationError) -> list[dict[str, str]]:
    """Each wrong field of a request, and why."""
    return [
        {
            "field": ".".join(str(part) for part in item["loc"]) or "body",
            "reason": item["msg"].removeprefix("Value error, "),
        }
        for item in error.errors()
    ]


def _refuse(req: Any, resp: falcon.Response, error: Any, resource: Any, adapter: Any) -> None:
    """Turn a validation error into a problem document that names each field."""
    if error is None:
        return
    errors = field_errors(error)
    resp.media = None
    problems.send(resp, 422, "; ".join(f"{e['field']}: {e['reason']}" for e in errors), errors)


def _scheme(name: str) -> SecuritySchemeData:
    return SecuritySchemeData(type=SecureType.HTTP, scheme=name)


def _scopes(scope: Scope) -> list[dict[str, list[str]]]:
    """What the document says of a responder (OpenAPI 3.1, Security Requirement Object)."""
    return [{"token": [scope.value]}, {"browser": [scope.value]}]


api = SpecTree(
    "falcon",
    title="mailpoll",
    description="The mail of many IMAP mailboxes in your own database and object store.",
    version=f"v{__version__}",
    before=_refuse,
    validation_error_model=schemas.Problem,
    # No two schemas have the same name: clients that are generated get plain ones.
    naming_strategy=lambda model: model.__name__,
    nested_naming_strategy=lambda _parent, child: child,
    annotations=False,
    mode="strict",  # the docs page and this document are not listed in it
    security_schemes=[
        SecurityScheme(name="token", data=_scheme("bearer")),
        SecurityScheme(name="browser", data=_scheme("basic")),
    ],
    security=_scopes(Scope.ADMIN),
)


def route(scope: Scope, **parts: Any) -> Callable[[Any], Any]:
    """Declare a responder: the scope that its callers' keys need, and its part of the document.

    Parameters:
      parts: as of ``SpecTree.validate``.
    """

    def declare(responder: Any) -> Any:
        return needs(scope)(api.validate(security=_scopes(scope), **parts)(responder))

    return declare


def send(resp: falcon.Response, model: BaseModel) -> None:
    """Answer with a model as JSON."""
    resp.content_type = falcon.MEDIA_JSON
    resp.data = model.model_dump_json(by_alias=True).encode()


def document() -> dict[str, Any]:
    """SpecTree's document, with what it leaves out: the answers that every operation shares."""
    schemas_of = api.spec["components"]["schemas"]
    problem = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    api.spec["paths"][IMPORT]["post"]["requestBody"] = FILE
    for operations in api.spec["paths"].values():
        for operation in operations.values():
            _complete(operation, problem)
            _loosen(operation, schemas_of)
    return dict(api.spec)


def _loosen(operation: dict[str, Any], schemas_of: dict[str, Any]) -> None:
    """A body of which no field is required need not be there."""
    body = operation.get("requestBody")
    if body and falcon.MEDIA_JSON in body["content"]:
        reference = body["content"][falcon.MEDIA_JSON]["schema"]["$ref"]
        body["required"] = bool(schemas_of[reference.rpartition("/")[2]].get("required"))


def _complete(operation: dict[str, Any], problem: dict[str, Any]) -> None:
    # It gives the bounds of integers in paths as strings.
    for parameter in operation["parameters"]:
        schema = parameter["schema"]
        for bound in {"minimum", "maximum"} & schema.keys():
            schema |= {bound: int(schema[bound]), "format": "int64"}
    answers = operation["responses"]
    answers.setdefault("414", {"description": "URI Too Long"})  # by gunicorn, before all else
    everywhere = [] if operation.get("security") == [] else BEHIND_THE_KEY
    for status in (*everywhere, *(WITH_BODY if "requestBody" in operation else ())):
        title = falcon.code_to_http_status(status).partition(" ")[2]
        answers.setdefault(str(status), {"description": title, "content": problem})
    for answer in answers.values():
        if answer.get("content", {}).get(falcon.MEDIA_JSON) == problem[PROBLEM_JSON]:
            answer["content"] = problem


class OpenApiDocument:
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.media = document()


class DocsPage:
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = falcon.MEDIA_HTML
        resp.set_header("Content-Security-Policy", CONTENT_POLICY)
        resp.text = PAGE


class DocsStart:
    @needs(Scope.READ)
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
