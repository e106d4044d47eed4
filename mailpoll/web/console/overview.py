"""``/``: what needs attention, and how it goes."""

from dataclasses import dataclass
from typing import Any

import falcon

from ...models import Scope
from ..auth import needs
from . import render
from .base import Page

#: Where to look into an alarm, by its name, and what the link says.
PLACES = {
    "auth_failed": ("/accounts?state=auth_failed", "Show"),
    "polls_late": ("/accounts?sort=next_poll", "Most overdue"),
    "messages_wait": ("/tasks", "Queues"),
    "dead_letters": ("/tasks#dead", "Reasons"),
    "fallback_used": ("/tasks", "Queues"),
    "storage_away": ("/settings", "Settings"),
    "scheduler_silent": ("/tasks", "Queues"),
    "fsck_differences": ("/accounts", "Accounts"),
    "redis": ("/tasks", "Queues"),
    "webhooks_fail": ("/webhooks", "Webhooks"),
    "blobs_damaged": ("/accounts", "Accounts"),
    "scrub_late": ("/tasks", "Queues"),
    "keys": ("/settings", "Settings"),
    "disk_full": ("/settings", "Settings"),
}
#: Of these, what only administrators may open.
ADMIN_PLACES = {"/settings"}


@dataclass(frozen=True, slots=True)
class Matter:
    """Something that needs attention: in words, with the place to do something about it."""

    grave: bool
    words: str
    advice: str
    link: str
    label: str
    since: str | None = None


class Overview(Page):
    @needs(Scope.READ)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        api = self.api(req, resp)
        stats = api.get("/admin/stats")
        alarms = [one for one in api.get("/admin/alarms")["items"] if one["holds"]]
        tasks = api.get("/admin/tasks")
        hooks = api.get("/admin/webhooks")["items"]
        render.page(
            req,
            resp,
            "overview.html",
            stats=stats,
            matters=_matters(stats, alarms, tasks, hooks),
            admin_places=ADMIN_PLACES,
            hours=api.get("/admin/stats/hours", hours=24)["items"],
            waiting=sum(queue["waiting"] for queue in tasks["queues"]),
            later=sum(queue["delayed"] for queue in tasks["queues"]),
            running=sum(queue["running"] for queue in tasks["queues"]),
        )


def _matters(
    stats: dict[str, Any],
    alarms: list[dict[str, Any]],
    tasks: dict[str, Any],
    hooks: list[dict[str, Any]],
) -> list[Matter]:
    """Alarms first; then what is wrong and no alarm, looked for once a minute, has told yet."""
    since = {alarm["name"]: alarm["since"] for alarm in alarms}
    found, said = [], set[str]()
    for alarm, amount, one, many, advice, place in _conditions(stats, tasks, hooks):
        if amount:
            words = one if amount == 1 else many.format(n=render.number(amount))
            found.append(Matter(alarm in since, words, advice, *place, since.get(alarm)))
            said.add(alarm)
    for told in alarms:
        if told["name"] not in said:
            words, advice = _sentence(told["words"]), _sentence(told["advice"])
            place = PLACES.get(told["name"], ("/tasks", "Look"))
            found.append(Matter(True, words, advice, *place, told["since"]))
    return sorted(found, key=lambda one: not one.grave)


def _conditions(
    stats: dict[str, Any], tasks: dict[str, Any], hooks: list[dict[str, Any]]
) -> list[tuple[str, int, str, str, str, tuple[str, str]]]:
    """The alarm that tells of it too, how many, words for one and for many, advice, and where."""
    return [
        (
            "auth_failed",
            stats["accounts"]["auth_failed"],
            "One account is not polled: its login is refused.",
            "{n} accounts are not polled: their logins are refused.",
            "Give its password again; then it is polled at once.",
            PLACES["auth_failed"],
        ),
        (
            "",
            stats["by_status"]["failed"],
            "One message could not be processed.",
            "{n} messages could not be processed.",
            "Each is stored whole, and can be tried again.",
            ("/failed", "Reasons"),
        ),
        (
            "dead_letters",
            sum(queue["dead"] for queue in tasks["queues"]),
            "One task has failed for good.",
            "{n} tasks have failed for good.",
            "See why, and let them run again.",
            PLACES["dead_letters"],
        ),
        (
            "polls_late",
            stats["late_accounts"],
            "One account is polled over a minute late.",
            "{n} accounts are polled over a minute late.",
            "Check that pollers run; add more, or more threads.",
            PLACES["polls_late"],
        ),
        (
            "storage_away",
            int(stats["storage_circuit_open"]),
            "The object store does not answer.",
            "",
            "Mail is kept in local files meanwhile. Check the store and its credentials.",
            PLACES["storage_away"],
        ),
        (
            "blobs_damaged",
            stats["scrub"]["damaged"],
            "One stored file is damaged.",
            "{n} stored files are damaged.",
            "Their accounts name them; mailpoll fsck --repair fetches them again.",
            PLACES["blobs_damaged"],
        ),
        (
            "webhooks_fail",
            sum(hook["state"] == "disabled" for hook in hooks),
            "One webhook is switched off: its receiver has failed for a day.",
            "{n} webhooks are switched off: their receivers have failed for a day.",
            "Mend the receiver, then switch the webhook on.",
            PLACES["webhooks_fail"],
        ),
    ]


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}" + ("" if words.endswith(".") else ".")
