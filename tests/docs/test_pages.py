"""What pages repeat of the code is what the code says, and pages lead where they say."""

import json
import re
from pathlib import Path

import pytest
import yaml

from mailpoll import __version__
from mailpoll.settings import Settings, from_environment, new_key, new_token
from tests.docs import pages
from tests.docs.blocks import ROOT
from tests.docs.blocks import pages as every_page
from tests.docs.test_snippets import check_unit, validated
from tests.integration.test_packaging import procfile
from tests.screenshots.__main__ import PICTURES

SYSTEMD = ROOT / "docker" / "systemd"
MANIFEST = ROOT / "docker" / "kubernetes" / "mailpoll.yaml"
KNOWN = {str(field.alias) for field in Settings.model_fields.values()}


def test_the_table_of_providers_is_made_from_the_presets() -> None:
    page = pages.PROVIDERS.read_text()
    assert page == pages.with_presets(page), "run `make pages`"


def test_the_reference_is_made_from_the_document() -> None:
    assert pages.REFERENCE.read_text() == pages.reference(), "run `make pages`"


def test_measured_figures_are_those_that_were_measured() -> None:
    """Of the table in capacity.md: rounded, from growth.json, the largest size."""
    measured = json.loads((ROOT / "docs" / "performance" / "growth.json").read_text())
    embedded, production, rates = (
        {row[0]: row for row in table["rows"]} for table in measured["tables"]
    )
    text = (ROOT / "docs" / "capacity.md").read_text()
    rows = {
        name.strip(): (float(left), float(right))
        for name, left, right in re.findall(
            r"^\| ([^|]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE
        )
    }
    assert rows.pop("messages a second, one worker process") == (
        rates["embedded"][1],
        rates["production"][1],
    )
    assert rows.pop("messages a second, two on two cores") == (
        rates["embedded"][2],
        rates["production"][2],
    )
    steps = {
        "claim a due account": ("claim a due account",),
        "lease and release a poll, and its folders' rows": (
            "lease and release a poll",
            "rows of a poll's folders",
        ),
        "commit a message, in batches of 100": ("commit a message, in batches of 100",),
        "process a message": ("process a message",),
        "list messages, newest": ("GET messages, newest",),
    }
    assert rows.keys() == steps.keys()
    for name, parts in steps.items():
        for said, table in zip(rows[name], (embedded, production), strict=True):
            exact = sum(table[part][3] for part in parts)
            assert abs(said - exact) <= max(0.06 * exact, 0.006), name


@pytest.mark.parametrize("page", every_page(), ids=lambda page: str(page.name))
def test_a_pages_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not re.match(r"https?:|mailto:", target):
            assert (page.parent / target).exists(), target


def test_every_picture_of_the_console_is_taken_by_the_command_and_shown() -> None:
    taken = {f"console-{one.name}.png" for one in PICTURES}
    there = {path.name for path in (ROOT / "docs" / "images").glob("console-*")}
    assert there == taken, "run `make screenshots`"
    shown = "".join(page.read_text() for page in every_page())
    assert {name for name in taken if f"images/{name})" not in shown} == set()


def test_every_variable_of_a_page_is_one() -> None:
    names = {
        (page.name, name)
        for page in every_page()
        for name in re.findall(r"\b(MAILPOLL_[A-Z0-9_]+)\b", page.read_text())
    }
    ours = {"MAILPOLL_OAUTH_", "MAILPOLL_ADDRESS"}  # the beginning of several; a program's own
    tests = {"MAILPOLL_TEST", "MAILPOLL_FAULT", "MAILPOLL_FAULT_DIR", "MAILPOLL_TEST_SEEDS"}
    assert {(page, name) for page, name in names if name not in KNOWN | ours | tests} == set()


def test_the_navigation_has_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in text, page.name


def test_the_version_stands_in_one_place() -> None:
    assert "version = attr: mailpoll.__version__" in (ROOT / "setup.cfg").read_text()
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    for page in (MANIFEST, ROOT / "docs" / "deployment.md"):
        assert set(re.findall(r"mailpoll:(\d[\d.]*\d)", page.read_text())) == {__version__}


# --- how it is deployed


@pytest.mark.parametrize("unit", sorted(SYSTEMD.iterdir()), ids=lambda unit: str(unit.name))
def test_systemd_reads_the_unit(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text())
    check_unit(copy)


def test_the_target_starts_every_process() -> None:
    started = re.findall(r"mailpoll@(\w+)\.service", (SYSTEMD / "mailpoll.target").read_text())
    assert set(started) == procfile().keys() - {"release"}


def test_kubernetes_takes_the_manifest() -> None:
    found = list(yaml.safe_load_all(MANIFEST.read_text()))
    assert all(map(validated, found))
    deployments = [one for one in found if one["kind"] == "Deployment"]
    commands = []
    for one in deployments:
        pod = one["spec"]["template"]["spec"]
        (container,), (migrates,) = pod["containers"], pod["initContainers"]
        commands.append(container["command"])
        assert migrates["command"] == procfile()["release"]
        assert (
            one["spec"]["selector"]["matchLabels"] == one["spec"]["template"]["metadata"]["labels"]
        )
    assert sorted(commands) == sorted(c for n, c in procfile().items() if n != "release")


def test_the_manifest_sets_variables_that_mailpoll_accepts() -> None:
    (settings,) = (
        one["data"]
        for one in yaml.safe_load_all(MANIFEST.read_text())
        if one["kind"] == "ConfigMap"
    )
    page = (ROOT / "docs" / "deployment.md").read_text()
    secret = set(re.findall(r"--from-literal='?(\w+)=", page))
    assert settings.keys() | secret <= KNOWN
    found = from_environment(
        {**settings, "MAILPOLL_SECRET_KEY": new_key(), "MAILPOLL_API_TOKEN": new_token()}
    )
    assert not found.storage_fallback


def test_compose_takes_its_file() -> None:
    assert validated(yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text()))
