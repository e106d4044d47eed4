"""Every page of the console in Chromium: sound, light, and usable by everybody, also on a phone."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import falcon.inspect
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Response

from mailpoll.web.console import render
from mailpoll.web.sessions import RETURNS
from tests.integration.conftest import SETS, run_system
from tests.integration.console_sample import Sample, everything
from tests.integration.system import PASSWORD, TOKEN, System
from tests.integration.test_console_browser import SIZES, chromium, environment, watched
from tests.screenshots.__main__ import logged_in
from tests.security.test_api_keys import web_process
from tests.servers.dns_server import DnsServer
from tests.servers.dovecot import Dovecot

__all__ = ["chromium"]

NOWHERE = "00000000-0000-4000-8000-000000000000"
#: Bytes that a page may weigh, with style, script and icon.
HEAVIEST = 100_000
#: What is no page but the bytes of something stored.
DOWNLOADS = {
    "/messages/{message_id}/raw",
    "/messages/{message_id}/attachments/{n}",
    "/exports/{export_id}/download",
}
#: What axe looks at: darkness changes nothing but colours.
RULES: dict[str, dict[str, Any]] = {
    "light": {"resultTypes": ["violations"]},
    "dark": {"resultTypes": ["violations"], "runOnly": ["color-contrast"]},
}
#: What the console has to say of what sticks out of a page, or out of a list of it.
WIDE = """() => ["html", ".table"].flatMap((one) => [...document.querySelectorAll(one)])
    .filter((one) => one.scrollWidth > one.clientWidth)
    .map((one) => `${one.className || one.tagName}: ${one.scrollWidth} in ${one.clientWidth}`)"""


def pages(sample: Sample) -> dict[str, list[str]]:
    """Each address of the console that answers to GET, by its route: at least one for each."""
    account, message = f"/accounts/{sample.account}", f"/messages/{sample.message}"
    plain, hook = f"/messages/{sample.plain}", f"/webhooks/{sample.hook}"
    return {
        "/": ["/", "/?done=polled&n=2"],
        "/login": ["/login"],
        "/accounts": ["/accounts", "/accounts?state=auth_failed", "/accounts?address=nobody"],
        "/accounts/new": ["/accounts/new"],
        "/accounts/import": ["/accounts/import"],
        "/accounts/{account_id}": [
            *(account, f"/accounts/{sample.importing}", f"/accounts/{sample.refused}")
        ],
        "/accounts/{account_id}/do/{verb}": [f"{account}/do/test"],
        "/accounts/{account_id}/edit": [f"{account}/edit"],
        "/accounts/{account_id}/delete": [f"{account}/delete"],
        "/accounts/{account_id}/attachments": [
            *(f"{account}/attachments", f"{account}/attachments?name=nothing")
        ],
        "/accounts/{account_id}/export": [f"{account}/export", f"{account}/export?q=figures"],
        **{route: [f"{route}?code=x&state=y"] for route in RETURNS},
        "/messages": [
            "/messages",
            "/messages?status=failed",
            f"/messages?account={sample.account}",
            f"/messages?account={sample.account}&mark=flagged",
        ],
        "/messages/{message_id}": [
            *(f"{message}?view={view}" for view in ("html", "text", "headers", "source")),
            f"{message}?view=html&remote=no",
            *(f"{plain}?view={view}" for view in ("text", "headers", "source")),
        ],
        "/messages/{message_id}/html": [f"{message}/html"],
        "/messages/{message_id}/raw": [f"{message}/raw"],
        "/messages/{message_id}/attachments/{n}": [f"{message}/attachments/0"],
        "/threads/{thread_id}": [f"/threads/{sample.thread}"],
        "/search": [
            *("/search", "/search?q=figures", "/search?q=nowhere", "/search?q=%22open"),
            f"/search?q=figures&account={sample.account}",
        ],
        "/failed": ["/failed"],
        "/holds": ["/holds"],
        "/exports": ["/exports"],
        "/exports/{export_id}": [f"/exports/{one}" for one in sample.exports],
        "/exports/{export_id}/download": [f"/exports/{sample.exports[0]}/download"],
        "/deletions": ["/deletions", "/deletions?done=spared&n=0"],
        "/deletions/{job_id}": [f"/deletions/{one}" for one in sample.deletions],
        "/tasks": ["/tasks"],
        "/webhooks": ["/webhooks"],
        "/webhooks/new": ["/webhooks/new"],
        "/webhooks/{hook_id}": [hook, f"{hook}?outcome=refused"],
        "/webhooks/{hook_id}/do/{verb}": [f"{hook}/do/test"],
        "/keys": ["/keys"],
        "/audit": ["/audit", "/audit?who=nobody"],
        "/settings": ["/settings"],
    }


def routes(app: Any) -> set[str]:
    """What of the console answers to GET, as its route table has it."""
    return {
        re.sub(r"\{(\w+)[^}]*\}", r"{\1}", route.path)
        for route in falcon.inspect.inspect_routes(app)
        if "mailpoll/web/console/" in route.source_info
        and any(one.method == "GET" and not one.internal for one in route.methods)
    }


def test_no_page_is_left_out(embedded: System) -> None:
    nothing = Sample("", "", "", 0, 0, 0, "", ("", ""), ("", ""), "")
    assert pages(nothing).keys() == routes(embedded.api.app)
    assert pages(nothing).keys() >= DOWNLOADS


# --- the walk


@dataclass
class Place:
    """A web process in front of a mailpoll in which everything has happened once."""

    url: str
    sample: Sample
    dovecot: Dovecot
    address: str


@pytest.fixture
def place(
    request: pytest.FixtureRequest, tmp_path: Path, dovecot: Dovecot, address: str
) -> Iterator[Place]:
    with DnsServer({("localhost.", "A"): ["127.0.0.1"]}) as dns:
        more = {
            "MAILPOLL_DNS_SERVER": f"127.0.0.1:{dns.port}",
            "MAILPOLL_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        }
        variables = SETS["embedded"](request, tmp_path)
        for system in run_system(variables, tmp_path, dovecot, **more):
            with (
                everything(system, address) as sample,
                web_process(environment(), tmp_path) as url,
            ):
                yield Place(url, sample, dovecot, address)


class Visit:
    """Somebody who is logged in and looks at one page after the other.

    Parameters:
      token: what they have logged in with.
    """

    def __init__(self, chromium: Browser, url: str, size: tuple[int, int], token: str) -> None:
        self.url, self.width = url, size[0]
        self.page: Page = logged_in(chromium, url, token, *size)
        self.wrong = watched(self.page, url)
        self._answers: list[Response] = []
        self.page.on("response", self._note)

    def _note(self, answer: Response) -> None:
        asked = answer.request
        if asked.resource_type == "document" and asked.frame == self.page.main_frame:
            self._answers.append(answer)

    @property
    def answer(self) -> Response:
        """Of the page that is open: what answers nothing leaves the one before."""
        return next(one for one in reversed(self._answers) if one.status != 204)

    def go(self, path: str) -> None:
        self.page.goto(self.url + path)

    def press(self, button: str) -> None:
        """Send a form, and wait for the page that answers."""
        with self.page.expect_navigation():
            self.page.get_by_role("button", name=button, exact=True).click()

    def look(self, where: str, status: int = 200, *, sent: bool = False) -> None:
        """Look at the page that is open, in light and in darkness.

        Parameters:
          sent: its content is the sender's, who answers for its form.
        """
        page, answer = self.page, self.answer
        found = [] if answer.status == status else [f"answers {answer.status}"]
        shared = sum(len(one.data) for one in render.assets().values())
        if (weight := len(answer.body()) + shared) > HEAVIEST:
            found.append(f"weighs {weight} bytes")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            found += page.evaluate(WIDE)
            found += [] if sent else [f"{scheme}: {one}" for one in grave(page, RULES[scheme])]
        self.wrong += [f"{where}: {one}" for one in found]


def grave(page: Page, rules: dict[str, Any]) -> list[str]:
    """What keeps somebody from using a page, and where."""
    return [
        f"{one['id']} {[node['html'][:200] for node in one['nodes']][:3]}"
        for one in Axe().run(page, options=rules).response["violations"]
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("size", SIZES, ids=["wide", "phone"])
def test_every_page_is_sound_light_and_usable(
    place: Place, chromium: Browser, size: tuple[int, int]
) -> None:
    visit = Visit(chromium, place.url, size, TOKEN)
    for route, paths in pages(place.sample).items():
        for path in paths:
            open_page(visit, route, path)
    # What others have made answers for its form itself
    for path in ("/docs", "/dashboard", "/dashboard/queues/maintenance"):
        visit.go(path)
        visit.page.wait_for_load_state("networkidle")
        assert visit.answer.status == 200, path
    assert not visit.wrong, "\n".join(visit.wrong)
    visit.page.context.close()


@pytest.mark.parametrize("size", SIZES, ids=["wide", "phone"])
def test_every_answer_to_a_form_is_sound_light_and_usable(
    place: Place, chromium: Browser, size: tuple[int, int]
) -> None:
    visit = Visit(chromium, place.url, size, TOKEN)
    for fill, status in FORMS.items():
        fill(visit, place)
        visit.look(fill.__name__, status)
    assert not visit.wrong, "\n".join(visit.wrong)
    visit.page.context.close()


@pytest.mark.parametrize("size", SIZES, ids=["wide", "phone"])
def test_every_refusal_is_sound_light_and_usable(
    place: Place, chromium: Browser, size: tuple[int, int]
) -> None:
    reader = Visit(chromium, place.url, size, place.sample.read_key)
    for path, status in FOR_READERS.items():
        reader.go(path)
        reader.look(path, status)
    visit_of_a_stranger(reader)
    assert not reader.wrong, "\n".join(reader.wrong)
    reader.page.context.close()


def open_page(visit: Visit, route: str, path: str) -> None:
    page = visit.page
    if route in DOWNLOADS:
        answer = page.request.get(visit.url + path)
        assert answer.status == 200, path
        assert answer.headers["content-disposition"].startswith("attachment"), path
    elif route in RETURNS:  # which goes on by itself
        page.route("**/finish", lambda route: route.fulfill(status=204))
        page.goto(visit.url + path, wait_until="commit")
        page.wait_for_url(visit.url + route, wait_until="commit")
        page.wait_for_selector("text=Almost done")
        visit.look(path)
        page.unroute("**/finish")
    else:
        visit.go(path)
        visit.look(path, sent=route.endswith("/html"))


#: Pages as a key sees them that may only read, and what goes wrong on the way to some.
FOR_READERS = {
    "/": 200,
    "/accounts": 200,
    "/settings": 403,
    "/accounts/new": 403,
    "/accounts/bulk": 405,
    "/accounts/nowhere": 404,
    f"/accounts/{NOWHERE}": 404,
    "/messages/0": 404,
    "/accounts?state=lost": 422,
    "/messages?cursor=x": 422,
}


def visit_of_a_stranger(visit: Visit) -> None:
    """Log out, and see what is there for those who are."""
    visit.press("Log out")
    visit.look("logged out")
    visit.go("/accounts?state=paused")
    visit.look("sent to the login")
    statuses = []
    while 429 not in statuses:  # each web process counts for itself
        assert len(statuses) < 100
        visit.page.fill("#token", "wrong")
        visit.press("Log in")
        statuses.append(visit.answer.status)
        if len(statuses) == 1:
            visit.look("a wrong token", 401)
    visit.look("too many wrong tokens", 429)


# --- pages that answer a form


def accounts_of_a_filter(visit: Visit, place: Place) -> None:
    visit.go("/accounts")
    visit.page.get_by_label("on every page").check()
    visit.press("Pause")


def accounts_that_are_ticked(visit: Visit, place: Place) -> None:
    visit.go("/accounts")
    visit.page.get_by_label("All", exact=True).check()
    visit.press("Delete…")


def a_server_that_is_not_found(visit: Visit, place: Place) -> None:
    visit.go("/accounts/new")
    visit.page.fill("#address", "me@nowhere.invalid")
    visit.press("Find server")


def new_account(visit: Visit, place: Place, password: str) -> None:
    visit.go("/accounts/new")
    visit.page.fill("#address", f"new{place.address}")
    visit.page.fill("#host", "localhost")
    visit.page.fill("#port", str(place.dovecot.imaps_port))
    visit.page.fill("#password", password)
    visit.press("Test login")


def a_login_that_is_refused(visit: Visit, place: Place) -> None:
    new_account(visit, place, "wrong")


def a_login_that_works(visit: Visit, place: Place) -> None:
    new_account(visit, place, PASSWORD)


def a_file_that_is_none(visit: Visit, place: Place) -> None:
    visit.go("/accounts/import")
    visit.page.fill("#text", "nothing")
    visit.press("Check the file")


def a_file_with_lines_that_are_wrong(visit: Visit, place: Place) -> None:
    visit.go("/accounts/import")
    lines = "\n".join(f"{n}{place.address},secret,localhost,{n}" for n in (1, 2, 993))
    port = place.dovecot.imaps_port
    text = f"address,password,host,port\n{lines}\nfine{place.address},secret,localhost,{port}"
    visit.page.fill("#text", text)
    visit.press("Check the file")


def an_account_that_is_changed_wrongly(visit: Visit, place: Place) -> None:
    visit.go(f"/accounts/{place.sample.account}/edit")
    visit.page.fill("#poll_interval", "soon")
    visit.press("Save")


def a_login_that_is_tested(visit: Visit, place: Place) -> None:
    visit.go(f"/accounts/{place.sample.account}")
    visit.press("Test login")


def a_hold_that_is_written(visit: Visit, place: Place) -> None:
    visit.go(f"/accounts/{place.sample.importing}")
    visit.page.click("text=Hold…")
    visit.page.wait_for_selector("#reason")


def an_export_of_nonsense(visit: Visit, place: Place) -> None:
    visit.go(f"/accounts/{place.sample.account}/export")
    visit.page.fill("#q", "is:nonsense")
    visit.press("Begin export")


def a_webhook_that_is_no_web_address(visit: Visit, place: Place) -> None:
    visit.go("/webhooks/new")
    visit.page.fill("#url", "ftp://192.0.2.1/hook")
    visit.press("Add webhook")


def a_webhook_that_is_new(visit: Visit, place: Place) -> None:
    visit.go("/webhooks/new")
    visit.page.fill("#url", "https://192.0.2.1/hook")
    visit.press("Add webhook")


def a_webhook_whose_receiver_is_away(visit: Visit, place: Place) -> None:
    visit.go(f"/webhooks/{place.sample.hook}")
    visit.press("Send a test")


def a_webhook_before_it_is_removed(visit: Visit, place: Place) -> None:
    visit.go(f"/webhooks/{place.sample.hook}")
    visit.page.click("text=Remove…")


def a_sign_in_that_nobody_began(visit: Visit, place: Place) -> None:
    visit.page.goto(f"{visit.url}{RETURNS[0]}?code=x&state=y", wait_until="commit")
    visit.page.wait_for_selector("text=Not connected")


def a_key_that_is_new(visit: Visit, place: Place) -> None:
    visit.go("/keys")
    visit.page.fill("#name", "the same")
    visit.press("Make key")


def a_key_that_is_there_already(visit: Visit, place: Place) -> None:
    visit.go("/keys")
    visit.page.fill("#name", "the same")
    visit.press("Make key")


#: In their order, with the status of the page.
FORMS: dict[Callable[[Visit, Place], None], int] = {
    accounts_of_a_filter: 200,
    accounts_that_are_ticked: 200,
    a_server_that_is_not_found: 422,
    a_login_that_is_refused: 422,
    a_login_that_works: 200,
    a_file_that_is_none: 422,
    a_file_with_lines_that_are_wrong: 200,
    an_account_that_is_changed_wrongly: 422,
    a_login_that_is_tested: 200,
    a_hold_that_is_written: 200,
    an_export_of_nonsense: 422,
    a_webhook_that_is_no_web_address: 422,
    a_webhook_that_is_new: 200,
    a_webhook_whose_receiver_is_away: 200,
    a_webhook_before_it_is_removed: 200,
    a_sign_in_that_nobody_began: 422,
    a_key_that_is_new: 200,
    a_key_that_is_there_already: 422,
}
