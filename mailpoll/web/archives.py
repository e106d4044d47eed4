"""Exports, at once or by a job, and imports of what is uploaded."""

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import UUID

import falcon
from spectree import Response

from .. import audit, database, queues, spool
from ..actors import make_export
from ..archives import FORMATS, Selection, intake, jobs, selection, writing
from ..models import EmailExport, ExportState, Scope
from . import paging, problems, schemas
from .accounts import account_or_404
from .documents import ARCHIVES, route, send
from .search import parsed
from .threads import PATIENCE, Punctual

#: Bytes of an upload that must come within ``PATIENCE``.
CHUNK = 1 << 18
IMPORT = re.compile(r"/admin/email-accounts/[0-9a-fA-F-]{36}/import")


def is_import(path: str) -> bool:
    """Whether requests to it have large bodies."""
    return IMPORT.fullmatch(path) is not None


def _show(export: EmailExport) -> schemas.Export:
    fields = {name: getattr(export, name) for name in schemas.Export.model_fields}
    return schemas.Export(**fields | {"id": export.uuid, "account_id": export.account.uuid})


def _export_or_404(uuid: UUID) -> EmailExport:
    export = jobs.find(str(uuid))
    if export is None:
        raise problems.not_found("export")
    return export


def _chosen(query: schemas.ExportQuery) -> Selection:
    if query.q is not None:
        parsed(query.q)
    return Selection(query.folder, query.since, query.until, query=query.q)


def _download(resp: falcon.Response, kind: str, name: str) -> None:
    resp.content_type = FORMATS[kind].media_type
    resp.downloadable_as = f"{name}{FORMATS[kind].suffix}"
    resp.set_header("Content-Security-Policy", "sandbox; default-src 'none'")


def _begun(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same pieces; what fails before the first of them is an answer with words still."""
    return chain([next(pieces, b"")], pieces)


class AccountExport:
    @route(
        Scope.READ,
        query=schemas.ExportQuery,
        resp=Response("HTTP_200", HTTP_404=schemas.Problem),
        tags=[ARCHIVES],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Download a mailbox's messages as one archive

        A download that breaks off is not whole: for large mailboxes make an export.
        """
        account = account_or_404(account_id)
        query: schemas.ExportQuery = req.context.query
        chosen = replace(_chosen(query), last_id=selection.newest_id(account))
        audit.record("account.export", "account", account.uuid)
        _download(resp, query.format, account.uuid)
        entries = selection.entries(account, chosen)
        resp.stream = _begun(writing.stream(query.format, account.uuid, entries))


class ExportList:
    @route(
        Scope.READ,
        query=schemas.ExportListQuery,
        resp=Response(HTTP_200=schemas.ExportPage),
        tags=[ARCHIVES],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List exports, newest first"""
        query: schemas.ExportListQuery = req.context.query
        before = paging.decode_id(query.cursor) if query.cursor else None
        found = jobs.latest(query.limit + 1, before)
        items = found[: query.limit]
        following = paging.encode(items[-1].id) if len(found) > query.limit else None
        send(resp, schemas.ExportPage(items=[_show(one) for one in items], next=following))

    @route(
        Scope.OPERATE,
        json=schemas.NewExport,
        resp=Response(
            HTTP_202=schemas.Export,
            HTTP_404=schemas.Problem,
            HTTP_409=schemas.Problem,
            HTTP_422=schemas.Problem,
        ),
        tags=[ARCHIVES],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Make an archive in the background, to be downloaded when it is done"""
        new: schemas.NewExport = req.context.json
        account = account_or_404(new.account_id)
        ids = None if new.message_ids is None else tuple(new.message_ids)
        export = jobs.create(account, new.format, replace(_chosen(new), ids=ids))
        queues.offer(make_export, export.id)
        resp.status = falcon.HTTP_202
        resp.location = f"/admin/exports/{export.uuid}"
        send(resp, _show(export))


class ExportItem:
    @route(
        Scope.READ,
        resp=Response(HTTP_200=schemas.Export, HTTP_404=schemas.Problem),
        tags=[ARCHIVES],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response, export_id: UUID) -> None:
        """Follow an export"""
        send(resp, _show(_export_or_404(export_id)))

    @route(
        Scope.OPERATE,
        resp=Response("HTTP_204", HTTP_404=schemas.Problem),
        tags=[ARCHIVES],
    )
    def on_delete(self, req: falcon.Request, resp: falcon.Response, export_id: UUID) -> None:
        """Remove an export, or end it"""
        export = _export_or_404(export_id)
        audit.record("export.delete", "export", export.uuid)
        jobs.remove(export)
        resp.status = falcon.HTTP_204


class ExportDownload:
    @route(
        Scope.READ,
        resp=Response("HTTP_200", HTTP_404=schemas.Problem, HTTP_409=schemas.Problem),
        tags=[ARCHIVES],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response, export_id: UUID) -> None:
        """Download an export that is done"""
        export = _export_or_404(export_id)
        over = export.expires_at is not None and export.expires_at <= database.now()
        if export.state != ExportState.DONE or over:
            state = ExportState.EXPIRED if over else export.state
            raise falcon.HTTPConflict(description=f"the export is {state}, not done")
        audit.record("export.download", "export", export.uuid)
        _download(resp, export.format, export.uuid)
        resp.content_length = export.bytes
        resp.stream = _begun(jobs.content(jobs.parts(export)))


class AccountImport:
    @route(
        Scope.ADMIN,
        query=schemas.ImportQuery,
        resp=Response(
            HTTP_200=schemas.Imported,
            HTTP_404=schemas.Problem,
            HTTP_409=schemas.Problem,
            HTTP_411=schemas.Problem,
            HTTP_413=schemas.Problem,
            HTTP_422=schemas.Problem,
        ),
        tags=[ARCHIVES],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Import a file: mbox, zip, tar of a Maildir, or one message

        The file is the body of the request. Repeating it changes nothing.
        """
        account = account_or_404(account_id)
        query: schemas.ImportQuery = req.context.query
        if not req.content_length:
            raise problems.field_problem("body", "should be a file")
        with spool.new_directory(account.uuid) as directory:
            path = Path(directory) / "upload"
            _receive(req, path)
            tally = intake.run(
                account,
                [path],
                folder=query.folder,
                quoted_once=query.mboxo,
                dry_run=query.dry_run,
                name=query.name or "upload",
            )
        send(resp, schemas.Imported(**tally.as_dict()))


def _receive(req: falcon.Request, path: Path) -> None:
    """The body into a file; a client may take its time as long as it goes on sending."""
    connection = req.env.get("gunicorn.socket")
    left = req.content_length or 0
    with path.open("wb") as file:
        while left:
            if isinstance(connection, Punctual):
                connection.deadline = time.monotonic() + PATIENCE
            piece = req.bounded_stream.read(min(CHUNK, left))
            if not piece:
                raise falcon.HTTPBadRequest(description="the body ended before its Content-Length")
            left -= len(piece)
            file.write(piece)


def install(app: "falcon.App[Any, Any]") -> None:
    account = "/admin/email-accounts/{account_id:uuid}"
    app.add_route(f"{account}/export", AccountExport())
    app.add_route(f"{account}/import", AccountImport())
    app.add_route("/admin/exports", ExportList())
    app.add_route("/admin/exports/{export_id:uuid}", ExportItem())
    app.add_route("/admin/exports/{export_id:uuid}/download", ExportDownload())
