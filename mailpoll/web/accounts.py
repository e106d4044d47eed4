"""``/admin/email-accounts``: mailboxes, their polling, their figures, their end."""

from dataclasses import asdict
from typing import Any
from uuid import UUID

import falcon
from spectree import Response

from .. import accounts, budgets, database, queues, stats
from ..actors import delete_account, poll_account
from ..models import AccountState, EmailAccount, EmailJob, JobState
from . import paging, problems, schemas
from .documents import ACCOUNTS, api, send


def account_or_404(uuid: UUID) -> EmailAccount:
    """The account with this public id.

    Raises:
      falcon.HTTPNotFound: there is none, or it is being deleted.
    """
    account = accounts.find(str(uuid))
    if account is None:
        raise problems.not_found("account")
    return account


def show(account: EmailAccount) -> schemas.Account:
    fields = {name: getattr(account, name) for name in schemas.Account.model_fields if name != "id"}
    if account.state != AccountState.ACTIVE:
        fields["next_poll_at"] = None
    return schemas.Account(id=account.uuid, **fields)


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
        EmailAccount.mark_unqueued(account.id)


class AccountList:
    @api.validate(
        query=schemas.AccountQuery, resp=Response(HTTP_200=schemas.AccountPage), tags=[ACCOUNTS]
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """List mailboxes"""
        query: schemas.AccountQuery = req.context.query
        table = EmailAccount
        rows = table.visible().order_by(table.id)
        if query.cursor:
            rows = rows.where(table.id > paging.decode_id(query.cursor))
        if query.state:
            rows = rows.where(table.state == query.state)
        if query.address:
            rows = rows.where(table.address.contains(query.address))
        with database.connected():
            found = list(rows.limit(query.limit + 1))
        items = found[: query.limit]
        following = paging.encode(items[-1].id) if len(found) > query.limit else None
        send(resp, schemas.AccountPage(items=[show(row) for row in items], next=following))

    @api.validate(
        json=schemas.NewAccount,
        resp=Response(HTTP_201=schemas.Account, HTTP_409=schemas.Problem, HTTP_422=schemas.Problem),
        tags=[ACCOUNTS],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Add a mailbox and poll it at once

        Logs in first, and saves nothing if that fails.
        """
        new: schemas.NewAccount = req.context.json
        account = accounts.create(**new.model_dump())
        _enqueue_poll(account)
        resp.status = falcon.HTTP_201
        resp.location = f"/admin/email-accounts/{account.uuid}"
        send(resp, show(account))


class Discover:
    @api.validate(
        json=schemas.Discovery,
        resp=Response(HTTP_200=schemas.Place, HTTP_422=schemas.Problem),
        tags=[ACCOUNTS],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Find the IMAP server of an address

        By known providers, DNS, the domain's autoconfig file and usual names; nothing is saved.
        """
        request: schemas.Discovery = req.context.json
        place = accounts.discover(request.address)
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
    @api.validate(
        resp=Response(HTTP_200=schemas.Account, HTTP_404=schemas.Problem), tags=[ACCOUNTS]
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Show a mailbox"""
        send(resp, show(account_or_404(account_id)))

    @api.validate(
        json=schemas.AccountChange,
        resp=Response(HTTP_200=schemas.Account, HTTP_404=schemas.Problem, HTTP_422=schemas.Problem),
        tags=[ACCOUNTS],
    )
    def on_patch(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Change a mailbox

        A changed login is tried before it is saved. ``folders: null`` polls all folders again.
        """
        account = account_or_404(account_id)
        change: schemas.AccountChange = req.context.json
        fields = change.model_dump(exclude_unset=True, exclude={"test"})
        for name, value in fields.items():
            if value is None and name != "folders":
                raise problems.field_problem(name, "cannot be null")
        account = accounts.change(account, fields, test=change.test)
        if account.state == AccountState.ACTIVE:
            _enqueue_poll(account)
        send(resp, show(account))

    @api.validate(
        resp=Response(HTTP_202=schemas.Job, HTTP_200=schemas.Job, HTTP_404=schemas.Problem),
        tags=[ACCOUNTS],
    )
    def on_delete(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Delete a mailbox with all its mail

        Answers with the job that does it; asking again answers with the same job.
        """
        job = accounts.delete(str(account_id))
        if job is None:
            raise problems.not_found("account")
        if job.state == JobState.RUNNING:
            resp.status = falcon.HTTP_202
            queues.offer(delete_account, job.id)
        resp.location = f"/admin/jobs/{job.uuid}"
        send(resp, show_job(job))


class JobItem:
    @api.validate(resp=Response(HTTP_200=schemas.Job, HTTP_404=schemas.Problem), tags=[ACCOUNTS])
    def on_get(self, req: falcon.Request, resp: falcon.Response, job_id: UUID) -> None:
        """Follow a job"""
        with database.connected():
            job = EmailJob.get_or_none(EmailJob.uuid == str(job_id))
        if job is None:
            raise problems.not_found("job")
        send(resp, show_job(job))


class AccountStatistics:
    @api.validate(
        resp=Response(HTTP_200=schemas.AccountStats, HTTP_404=schemas.Problem), tags=[ACCOUNTS]
    )
    def on_get(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Figures of a mailbox"""
        account = account_or_404(account_id)
        budget = schemas.Budget(**asdict(budgets.of(account)))
        send(resp, schemas.AccountStats(**stats.account_stats(account), budget=budget))


class AccountTest:
    @api.validate(
        resp=Response(
            HTTP_200=schemas.LoginTest, HTTP_404=schemas.Problem, HTTP_422=schemas.Problem
        ),
        tags=[ACCOUNTS],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Log in with the stored credential and list the folders"""
        account = account_or_404(account_id)
        found = accounts.test_login(account)
        size = None
        if found.estimate:
            days = budgets.import_days(account.host, found.estimate.bytes)
            size = schemas.Estimate(**asdict(found.estimate), days=days)
        send(resp, schemas.LoginTest(ok=True, folders=found.folders, estimate=size))


class AccountPoll:
    @api.validate(
        resp=Response(HTTP_202=schemas.Account, HTTP_404=schemas.Problem, HTTP_409=schemas.Problem),
        tags=[ACCOUNTS],
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Poll a mailbox now"""
        account = _active_or_409(account_id)
        accounts.expect_poll(account)
        _enqueue_poll(account)
        resp.status = falcon.HTTP_202
        send(resp, show(account_or_404(account_id)))


class AccountReconcile:
    @api.validate(
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
    @api.validate(
        resp=Response(HTTP_200=schemas.Account, HTTP_404=schemas.Problem), tags=[ACCOUNTS]
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Stop polling a mailbox"""
        send(resp, show(accounts.pause(account_or_404(account_id))))


class AccountResume:
    @api.validate(
        resp=Response(HTTP_200=schemas.Account, HTTP_404=schemas.Problem), tags=[ACCOUNTS]
    )
    def on_post(self, req: falcon.Request, resp: falcon.Response, account_id: UUID) -> None:
        """Poll a mailbox again, also after refused logins"""
        account = accounts.resume(account_or_404(account_id))
        accounts.expect_poll(account)
        _enqueue_poll(account)
        send(resp, show(account))


def install(app: "falcon.App[Any, Any]") -> None:
    base = "/admin/email-accounts"
    app.add_route("/admin/discover", Discover())
    app.add_route(base, AccountList())
    app.add_route(f"{base}/{{account_id:uuid}}", AccountItem())
    app.add_route(f"{base}/{{account_id:uuid}}/stats", AccountStatistics())
    app.add_route(f"{base}/{{account_id:uuid}}/test", AccountTest())
    app.add_route(f"{base}/{{account_id:uuid}}/poll", AccountPoll())
    app.add_route(f"{base}/{{account_id:uuid}}/reconcile", AccountReconcile())
    app.add_route(f"{base}/{{account_id:uuid}}/pause", AccountPause())
    app.add_route(f"{base}/{{account_id:uuid}}/resume", AccountResume())
    app.add_route("/admin/jobs/{job_id:uuid}", JobItem())
