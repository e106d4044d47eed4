"""``/admin/email-accounts``: mailboxes, their polling, their figures, their end."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any
from uuid import UUID

import falcon
from peewee import SQL, Tuple
from pydantic import ValidationError
from spectree import Response

from .. import accounts, budgets, database, holds, logins, policy, queues, receipts, stats
from ..actors import delete_account, poll_account
from ..models import AccountState, EmailAccount, EmailHold, EmailJob, JobState, Scope
from . import paging, problems, schemas
from .documents import ACCOUNTS, field_errors, route, send

#: Fields of an account that can be taken back.
NULLABLE = ("folders", "poll_interval_max", "retention_days", "retention_expunged_days")


def account_or_404(uuid: UUID) -> EmailAccount:
    """The account with this public id.

    Raises:
      falcon.HTTPNotFound: there is none, or it is being deleted.
    """
    account = accounts.find(str(uuid))
    if account is None:
        raise problems.not_found("account")
    return account


def show(account: EmailAccount, held: Mapping[int, EmailHold] | None = None) -> schemas.Account:
    """An account with its hold, which is one of ``held`` if that is given."""
    made = ("id", "hold", "kept")
    fields = {n: getattr(account, n) for n in schemas.Account.model_fields if n not in made}
    if account.state != AccountState.ACTIVE:
        fields["next_poll_at"] = None
    hold = (holds.of_accounts([account.id]) if held is None else held).get(account.id)
    shown = hold and show_hold(hold, account.uuid)
    kept = schemas.Kept(**asdict(policy.of(account)))
    return schemas.Account(id=account.uuid, hold=shown, kept=kept, **fields)


def show_hold(hold: EmailHold, account_uuid: str) -> schemas.Hold:
    names = ("message_id", "reason", "held_by", "held_at")
    return schemas.Hold(account_id=account_uuid, **{name: getattr(hold, name) for name in names})


def show_job(job: EmailJob) -> schemas.Job:
    fields = {name: getattr(job, name) for name in schemas.Job.model_fields}
    return schemas.Job(**fields | {"id": job.uuid, "account_id": job.account_uuid})


def _active_or_409(uuid: UUID) -> EmailAccount:
    account = account_or_404(uuid)
    if account.state != AccountState.ACTIVE:
        raise falcon.HTTPConflict(description=f"the account is {account.state}: resume it first")
    return account


def _enqueue_poll(account: EmailAccount) -> None:
    if not queues.offer(poll_account, account.id):
        EmailAccount.mark_unqueued([account.id])


#: What lists are sorted by, and by the id where that is the same.
SORTS: dict[str, Any] = {
    "added": EmailAccount.id,
    "address": EmailAccount.address,
    "next_poll": EmailAccount.next_poll_at,
    "failures": EmailAccount.failures,
}


def _rows(query: schemas.AccountQuery) -> Any:
    """The accounts that a list is asked for, behind its cursor, in its order."""
    table, column = EmailAccount, SORTS[query.sort]
    rows = table.visible()
    if query.sort != "added":
        # PostgreSQL knows the order of letters of many languages; here they are bytes everywhere.
        if query.sort == "address" and not database.is_sqlite():
            column = SQL('t1.address COLLATE "C"')
        rows = rows.order_by(
            *((column.desc(), table.id.desc()) if query.descending else (column.asc(), table.id))
        )
    else:
        rows = rows.order_by(table.id.desc() if query.descending else table.id)
    if query.cursor:
        rows = rows.where(_behind(query, column))
    if query.state:
        rows = rows.where(table.state == query.state)
    if query.address:
        rows = rows.where(table.address.contains(query.address))
    return rows


def _behind(query: schemas.AccountQuery, column: Any) -> Any:
    """The condition of rows that stand behind the cursor."""
    assert query.cursor is not None
    table = EmailAccount
    if query.sort == "added":
        last = paging.decode_id(query.cursor)
        return table.id < last if query.descending else table.id > last
    value, last = paging.decode_value(query.cursor, SORT_TYPES[query.sort])
    if isinstance(value, datetime):
        value = database.timestamp(value)
    place, end = Tuple(column, table.id), (value, last)
    return place < end if query.descending else place > end


#: What a cursor of each sort holds beside the id.
SORT_TYPES: dict[str, type] = {"address": str, "next_poll": datetime, "failures": int}


def _after(query: schemas.AccountQuery, last: EmailAccount) -> str:
    """The cursor behind the last account of a page."""
    if query.sort == "added":
        return paging.encode(last.id)
    return paging.encode(getattr(last, SORTS[query.sort].name), last.id)


class AccountList:
    @route(
        Scope.READ,
        query=schemas.AccountQuery,
        resp=Response(HTTP_200=schemas.AccountPage),
        tags=[ACCOUNTS],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List mailboxes"""
        query: schemas.AccountQuery = req.context.query
        with database.connected():
            found = list(_rows(query).limit(query.limit + 1))
        items = found[: query.limit]
        held = holds.of_accounts([row.id for row in items])
        figures = stats.figures(items) if query.figures else {}
        listed = [
            schemas.ListedAccount(**show(row, held).model_dump() | {"figures": figures.get(row.id)})
            for row in items
        ]
        following = _after(query, items[-1]) if len(found) > query.limit else None
        send(resp, schemas.AccountPage(items=listed, next=following))

    @route(
        Scope.ADMIN,
        json=schemas.NewAccount,
        resp=Response(HTTP_201=schemas.Account, HTTP_409=schemas.Problem, HTTP_422=schemas.Problem),
        tags=[ACCOUNTS],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Add a mailbox and poll it at once

        Logs in first, and saves nothing if that fails.
        """
        new: schemas.NewAccount = req.context.json
        account = _added(new)
        resp.status = falcon.HTTP_201
        resp.location = f"/admin/email-accounts/{account.uuid}"
        send(resp, show(account))


def _added(new: schemas.NewAccount) -> EmailAccount:
    if new.archive:
        return accounts.create_archive(new.address)
    account = accounts.create(**new.model_dump(exclude={"archive"}))
    _enqueue_poll(account)
    return account


class AccountImport:
    @route(
        Scope.ADMIN,
        json=schemas.AccountImport,
        resp=Response(HTTP_200=schemas.ImportReport, HTTP_422=schemas.Problem),
        tags=[ACCOUNTS],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Add many mailboxes, or only check them

        Each is an account as ``POST /admin/email-accounts`` takes it. Logins are not tried unless a
        row says ``"test": true``: the first poll finds a wrong one.
        """
        asked: schemas.AccountImport = req.context.json
        rows = list(import_rows(asked.accounts, dry_run=asked.dry_run))
        send(resp, import_report(rows, dry_run=asked.dry_run))


def import_rows(given: Sequence[dict[str, Any]], *, dry_run: bool) -> Iterator[schemas.ImportRow]:
    """Add, or check, the rows of an import one after the other, and tell of each."""
    seen = set[str]()
    for number, fields in enumerate(given, 1):
        yield _imported(number, fields, seen, dry_run=dry_run)


def import_report(rows: list[schemas.ImportRow], *, dry_run: bool) -> schemas.ImportReport:
    """What became of an import's rows, counted."""
    added = sum(row.outcome == "added" for row in rows)
    refused = sum(row.outcome == "refused" for row in rows)
    return schemas.ImportReport(dry_run=dry_run, added=added, refused=refused, items=rows)


def _imported(
    number: int, fields: dict[str, Any], seen: set[str], *, dry_run: bool
) -> schemas.ImportRow:
    """Add, or check, one row of an import.

    Parameters:
      seen: addresses of the rows before.
    """
    given = fields.get("address")
    row = schemas.ImportRow(
        row=number,
        address=given if isinstance(given, str) else None,
        outcome="refused",
        account_id=None,
        errors=[],
    )
    try:
        new = schemas.NewAccount.model_validate({"test": False, **fields})
    except ValidationError as error:
        row.errors = field_errors(error)
        return row
    try:
        if new.address in seen:
            raise logins.AccountError("address", "stands in a row before this one too")
        seen.add(new.address)
        if dry_run:
            accounts.check_new(**new.model_dump())
            row.outcome = "fine"
            return row
        account = _added(new)
    except logins.AccountError as error:
        row.errors = [{"field": error.field, "reason": error.reason}]
        return row
    row.outcome, row.account_id = "added", account.uuid
    return row


class NewAccountTest:
    @route(
        Scope.ADMIN,
        json=schemas.NewAccount,
        resp=Response(HTTP_200=schemas.LoginTest, HTTP_422=schemas.Problem),
        tags=[ACCOUNTS],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Log in to a mailbox that is not there yet, and list its folders; nothing is saved"""
        new: schemas.NewAccount = req.context.json
        host, found = accounts.try_out(**new.model_dump())
        send(resp, _login_test(host, found))


def _login_test(host: str, found: logins.Mailbox) -> schemas.LoginTest:
    size = None
    if found.estimate:
        days = budgets.import_days(host, found.estimate.bytes)
        size = schemas.Estimate(**asdict(found.estimate), days=days)
    return schemas.LoginTest(ok=True, folders=found.folders, estimate=size)


class Discover:
    @route(
        Scope.ADMIN,
        json=schemas.Discovery,
        resp=Response(HTTP_200=schemas.Place, HTTP_422=schemas.Problem),
        tags=[ACCOUNTS],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Find the IMAP server of an address

        By known providers, DNS, the domain's autoconfig file and usual names; nothing is saved.
        """
        request: schemas.Discovery = req.context.json
        place = logins.discover(request.address)
        preset = place.preset
        found = schemas.Place(
            host=place.host,
            port=place.port,
            security=place.security,
            username=place.username,
            source=place.source,
            provider=preset.title if preset else None,
            auth=list(preset.auth) if preset else [],
            help=preset.advice if preset else None,
        )
        send(resp, found)


class AccountItem:
    @route(
        Scope.READ,
        resp=Response(HTTP_200=schemas.Account, HTTP_404=schemas.Problem),
        tags=[ACCOUNTS],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Show a mailbox"""
        send(resp, show(account_or_404(account_id)))

    @route(
        Scope.ADMIN,
        json=schemas.AccountChange,
        resp=Response(HTTP_200=schemas.Account, HTTP_404=schemas.Problem, HTTP_422=schemas.Problem),
        tags=[ACCOUNTS],
    )
    def on_patch(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Change a mailbox

        A changed login is tried before it is saved. ``folders: null`` polls all folders again,
        ``retention_days: null`` keeps mail as configured.
        """
        account = account_or_404(account_id)
        change: schemas.AccountChange = req.context.json
        fields = change.model_dump(exclude_unset=True, exclude={"test"})
        for name, value in fields.items():
            if value is None and name not in NULLABLE:
                raise problems.field_problem(name, "cannot be null")
        account = accounts.change(account, fields, test=change.test)
        if account.state == AccountState.ACTIVE:
            _enqueue_poll(account)
        send(resp, show(account))

    @route(
        Scope.ADMIN,
        resp=Response(
            HTTP_202=schemas.Job,
            HTTP_200=schemas.Job,
            HTTP_404=schemas.Problem,
            HTTP_409=schemas.Problem,
        ),
        tags=[ACCOUNTS],
    )
    def on_delete(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Delete a mailbox with all its mail

        Answers with the job that does it; asking again answers with the same job. Refused while
        a legal hold is on the mailbox or on a message of it.
        """
        job = accounts.delete(str(account_id))
        if job is None:
            raise problems.not_found("account")
        if job.state == JobState.RUNNING:
            resp.status = falcon.HTTP_202
            queues.offer(delete_account, job.id)
        resp.location = f"/admin/delete-jobs/{job.uuid}"
        send(resp, show_job(job))


class JobItem:
    @route(
        Scope.READ, resp=Response(HTTP_200=schemas.Job, HTTP_404=schemas.Problem), tags=[ACCOUNTS]
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response, job_id: UUID) -> None:
        """Follow a job"""
        with database.connected():
            job = EmailJob.get_or_none(EmailJob.uuid == str(job_id))
        if job is None:
            raise problems.not_found("job")
        send(resp, show_job(job))


class DeleteJobList:
    @route(
        Scope.READ,
        query=schemas.DeleteJobQuery,
        resp=Response(HTTP_200=schemas.DeleteJobPage),
        tags=[ACCOUNTS],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List deletions, newest first"""
        query: schemas.DeleteJobQuery = req.context.query
        before = paging.decode_id(query.cursor) if query.cursor else None
        found = receipts.latest(query.limit + 1, before)
        jobs = found[: query.limit]
        following = paging.encode(jobs[-1].id) if len(found) > query.limit else None
        items = [schemas.DeleteJob(**receipts.of(job)) for job in jobs]
        send(resp, schemas.DeleteJobPage(items=items, next=following))


class DeleteJobItem:
    @route(
        Scope.READ,
        resp=Response(HTTP_200=schemas.DeleteJob, HTTP_404=schemas.Problem),
        tags=[ACCOUNTS],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response, job_id: UUID) -> None:
        """Show a deletion, and its receipt when it is done

        Takes the id of the deletion, or that of the account.
        """
        job = receipts.find(str(job_id))
        if job is None:
            raise problems.not_found("deletion")
        send(resp, schemas.DeleteJob(**receipts.of(job)))


class AccountStatistics:
    @route(
        Scope.READ,
        resp=Response(HTTP_200=schemas.AccountStats, HTTP_404=schemas.Problem),
        tags=[ACCOUNTS],
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Figures of a mailbox"""
        account = account_or_404(account_id)
        budget = schemas.Budget(**asdict(budgets.of(account)))
        send(resp, schemas.AccountStats(**stats.account_stats(account), budget=budget))


class AccountTest:
    @route(
        Scope.OPERATE,
        resp=Response(
            HTTP_200=schemas.LoginTest, HTTP_404=schemas.Problem, HTTP_422=schemas.Problem
        ),
        tags=[ACCOUNTS],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Log in with the stored credential and list the folders"""
        account = account_or_404(account_id)
        send(resp, _login_test(account.host, logins.test_login(account)))


class AccountPoll:
    @route(
        Scope.OPERATE,
        resp=Response(HTTP_202=schemas.Account, HTTP_404=schemas.Problem, HTTP_409=schemas.Problem),
        tags=[ACCOUNTS],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Poll a mailbox now"""
        account = accounts.expect_poll(_active_or_409(account_id))
        _enqueue_poll(account)
        resp.status = falcon.HTTP_202
        send(resp, show(account))


class AccountReconcile:
    @route(
        Scope.OPERATE,
        resp=Response(HTTP_202=schemas.Account, HTTP_404=schemas.Problem, HTTP_409=schemas.Problem),
        tags=[ACCOUNTS],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Compare the server's whole lists with what is stored, now

        Fetches what is missing. The proof of each folder stands in the figures of the mailbox.
        """
        account = _active_or_409(account_id)
        accounts.expect_reconcile(account)
        _enqueue_poll(account)
        resp.status = falcon.HTTP_202
        send(resp, show(account_or_404(account_id)))


class AccountPause:
    @route(
        Scope.OPERATE,
        resp=Response(HTTP_200=schemas.Account, HTTP_404=schemas.Problem),
        tags=[ACCOUNTS],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Stop polling a mailbox"""
        send(resp, show(accounts.pause(account_or_404(account_id))))


class AccountResume:
    @route(
        Scope.OPERATE,
        resp=Response(HTTP_200=schemas.Account, HTTP_404=schemas.Problem),
        tags=[ACCOUNTS],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Poll a mailbox again, also after refused logins"""
        account = accounts.resume(account_or_404(account_id))
        _enqueue_poll(account)
        send(resp, show(account))


def install(app: "falcon.App[Any, Any]") -> None:
    base = "/admin/email-accounts"
    app.add_route("/admin/discover", Discover())
    app.add_route(base, AccountList())
    app.add_route(f"{base}/import", AccountImport())
    app.add_route(f"{base}/test", NewAccountTest())
    app.add_route(f"{base}/{{account_id:uuid}}", AccountItem())
    app.add_route(f"{base}/{{account_id:uuid}}/stats", AccountStatistics())
    app.add_route(f"{base}/{{account_id:uuid}}/test", AccountTest())
    app.add_route(f"{base}/{{account_id:uuid}}/poll", AccountPoll())
    app.add_route(f"{base}/{{account_id:uuid}}/reconcile", AccountReconcile())
    app.add_route(f"{base}/{{account_id:uuid}}/pause", AccountPause())
    app.add_route(f"{base}/{{account_id:uuid}}/resume", AccountResume())
    app.add_route("/admin/jobs/{job_id:uuid}", JobItem())
    app.add_route("/admin/delete-jobs", DeleteJobList())
    app.add_route("/admin/delete-jobs/{job_id:uuid}", DeleteJobItem())
