"""``mailpoll accounts import``: many mailboxes from a CSV file."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mailpoll.cli import cli
from tests.integration.system import PASSWORD, System


@pytest.fixture
def file(system: System, address: str, tmp_path: Path) -> Path:
    """A file with two mailboxes that work, one that is there, and one with a wrong port."""
    system.add_account(address)
    port = system.dovecot.imaps_port
    path = tmp_path / "mailboxes.csv"
    path.write_text(
        "address,password,host,port,folders,test\n"
        f"a{address},{PASSWORD},localhost,{port},INBOX,yes\n"
        f"{address},{PASSWORD},localhost,{port},,\n"
        f"b{address},{PASSWORD},localhost,many,,\n"
        f"c{address},{PASSWORD},localhost,{port},,\n"
    )
    return path


def run(*arguments: str, code: int, given: bytes | None = None) -> Any:
    command = ["accounts", "import", *arguments]
    result = CliRunner().invoke(cli, command, input=given, env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result


def addresses(system: System) -> list[str]:
    return [one["address"] for one in system.get("/admin/email-accounts")["items"]]


def test_a_dry_run_says_what_would_become_of_each_line(
    system: System, address: str, file: Path
) -> None:
    result = run(str(file), "--dry-run", code=1)
    lines = {line.split("│")[1].strip(): line for line in result.stdout.splitlines() if "│" in line}
    assert "fine" in lines["2"]
    assert "address: there is an account with this address" in lines["3"]
    assert "port: " in lines["4"]
    assert "fine" in lines["5"]
    assert "2 would be added, 2 refused; nothing is added yet" in result.stdout
    assert PASSWORD not in result.output
    assert addresses(system) == [address]


def test_lines_that_are_fine_are_added_and_polled(system: System, address: str, file: Path) -> None:
    assert "2 added, 2 refused" in run(str(file), code=1).stdout
    assert sorted(addresses(system)) == sorted([address, f"a{address}", f"c{address}"])
    system.work_until(
        lambda: all(one["last_success_at"] for one in system.get("/admin/email-accounts")["items"])
    )


def test_programs_get_the_report_of_the_api(system: System, address: str, file: Path) -> None:
    report = json.loads(run(str(file), "--dry-run", "--json", code=1).stdout)
    assert (report["dry_run"], report["added"], report["refused"]) == (True, 0, 2)
    assert [row["outcome"] for row in report["items"]] == ["fine", "refused", "refused", "fine"]


def test_a_file_that_is_run_again_adds_only_what_is_new(
    system: System, address: str, tmp_path: Path
) -> None:
    line = f"{address};{PASSWORD};localhost;{system.dovecot.imaps_port}\n"
    text = "\ufeffAddress;Password;Host;Port\r\n" + line
    run("-", code=0, given=text.encode())
    report = json.loads(run("-", "--json", code=1, given=(text + "x" + line).encode()).stdout)
    assert (report["added"], report["refused"]) == (1, 1)
    assert addresses(system) == [address, f"x{address}"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "The file is empty."),
        (b"\xff\xfe", "should be UTF-8"),
        (b"mail,password\nme@example.org,x\n", "one of them address"),
        (b"address,colour\nme@example.org,x\n", "names that mean nothing here"),
        (b"address,password\n", "no account below"),
    ],
)
def test_what_is_no_file_of_accounts_ends_with_2(
    embedded: System, content: bytes, words: str
) -> None:
    assert words in run("-", code=2, given=content).output


def test_a_file_that_is_not_there_ends_with_2(embedded: System) -> None:
    assert "does not exist" in run("/nowhere.csv", code=2).output
