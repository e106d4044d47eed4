"""What is shipped: a wheel, a Procfile, an image and a compose file."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
import venv
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis
import yaml

from mailpoll import __version__
from mailpoll.middleware import task_stats
from mailpoll.settings import Settings, from_environment, new_key, new_token
from tests.integration.system import TOKEN, wait_until
from tests.integration.test_cli import COMMANDS, clean
from tests.servers.process import free_ports
from tests.servers.valkey import Valkey

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
KNOWN = {str(field.alias) for field in Settings.model_fields.values()}
#: Something to do for a poller and a worker.
WORK = """
from mailpoll.actors import poll_account, process_message
poll_account.send(1)
process_message.send(1)
"""
#: Seconds that a platform gives processes to end.
GRACE = 30


def copied() -> list[tuple[list[str], str]]:
    """(sources, target) of every file that the image takes from the checkout."""
    found = []
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        *sources, target = shlex.split(line)
        found.append((sources, target))
    return found


# --- the wheel


def build_wheel(directory: Path) -> Path:
    """Build it as the image does: from the files that the image copies, and no others."""
    source = directory / "source"
    for sources, target in copied():
        for name in sources:
            place = source / target if target.startswith(".") else source
            place.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, source / target, ignore=ignored)
            else:
                shutil.copy(ROOT / name, place)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", str(directory), str(source)], check=True)
    (wheel,) = directory.glob("*.whl")
    return wheel


def install(wheel: Path, directory: Path) -> Path:
    """A fresh environment with this wheel, beside the packages of ours; its programs."""
    venv.create(directory, with_pip=False)
    python = directory / "bin" / "python"
    show = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", show], capture_output=True, check=True, text=True)
    # A directory that a .pth file names is searched, but its own .pth files are not read: so the
    # checkout, which our environment has in one, is out of reach.
    theirs = Path(packages.stdout.strip()) / "packages-of-the-test.pth"
    theirs.write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, "-m", "pip", "--quiet", f"--python={python}", "install"]
    options = ["--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    subprocess.run([*command, *options], check=True, cwd=directory)
    return directory / "bin"


def test_the_wheel_runs_outside_the_checkout(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    # It has every module and every migration
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "mailpoll").rglob("*.py")}
    migrations = {f"mailpoll/migrations/{path.name}" for path in ROOT.glob("migrations/*.py")}
    assert shipped == modules | migrations

    programs = install(wheel, tmp_path / "fresh")
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=empty, env=clean({}), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    place = run(str(programs / "python"), "-c", "import mailpoll; print(mailpoll.__file__)")
    assert Path(place.strip()).is_relative_to(tmp_path)
    program = str(programs / "mailpoll")
    assert run(program, "--version").strip() == f"mailpoll, version {__version__}"
    assert "001_initial" in run(program, "migrate")
    assert run(program, "migrate").strip() == "nothing to do"
    assert "</html>" in run(program, "report", "--html")  # whose template is in the wheel


@pytest.mark.queue
def test_the_installed_packages_agree_with_each_other() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


# --- the Procfile


def procfile() -> dict[str, list[str]]:
    lines = (ROOT / "Procfile").read_text().splitlines()
    return {name: shlex.split(command) for name, _, command in (ln.partition(":") for ln in lines)}


def test_every_process_of_the_procfile_is_a_command() -> None:
    assert set(procfile()) == {
        "release",
        "web",
        "scheduler",
        "poller",
        "worker",
        "notifier",
        "watcher",
    }
    for program, command in procfile().values():
        assert program == "mailpoll"
        assert command in COMMANDS


@pytest.mark.queue
def test_the_procfile_runs_and_ends(tmp_path: Path) -> None:
    # Given a Redis, a migrated database, and nothing else
    (port,) = free_ports(1)
    with Valkey(tmp_path / "valkey") as valkey:
        variables = clean(
            {
                "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
                "REDIS_URL": valkey.url,
                "MAILPOLL_DATA_DIR": str(tmp_path / "data"),
                "MAILPOLL_SECRET_KEY": new_key(),
                "MAILPOLL_API_TOKEN": TOKEN,
                "MAILPOLL_WORKER_PROCESSES": "1",
            }
        )
        release = procfile()["release"]
        subprocess.run(release, env=variables, cwd=tmp_path, check=True, capture_output=True)
        # When all its processes are started
        names = [name for name in procfile() if name != "release"]
        command = [str(PROGRAMS / "honcho"), "start", "--app-root", str(ROOT), "--no-colour"]
        log = tmp_path / "honcho.log"
        with log.open("wb") as output:
            honcho = subprocess.Popen(
                [*command, "--procfile", str(ROOT / "Procfile"), "--port", str(port), *names],
                env=variables,
                cwd=tmp_path,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            # Then they come up: the web process says so, and the others do the work they are given
            wait_until(lambda: ready(port, honcho, log))
            subprocess.run([sys.executable, "-c", WORK], env=variables, cwd=tmp_path, check=True)
            client = redis.Redis.from_url(valkey.url)
            wait_until(lambda: {"poll_account", "process_message"} <= set(task_stats.read(client)))
            assert "stopped" not in log.read_text()
            # And when told to, all end by themselves
            honcho.terminate()
            honcho.wait(GRACE)
        finally:
            # It ends its processes, which have groups of their own; killed, it would leave them
            honcho.terminate()
            honcho.wait(GRACE)
        ended = log.read_text()
    for name in names:
        assert f"{name}.1 stopped (rc=" in ended
        assert f"{name}.1 stopped (rc=-9)" not in ended
    assert "Traceback" not in ended
    # And the workers were not cut off by the second signal, which is Dramatiq's own
    assert "Killing" not in ended


def ready(port: int, honcho: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert honcho.poll() is None, log.read_text()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/readyz", headers=headers)
    with suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
        return bool(orjson.loads(answer.read())["ready"])
    return False


# --- the image and the compose file


def test_the_image_copies_only_what_is_there() -> None:
    assert copied()
    for sources, _ in copied():
        for name in sources:
            assert (ROOT / name).exists(), name
    # And the build is sent all of it
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    for sources, _ in copied():
        for name in sources:
            assert f"!{name.removesuffix('/')}" in sent


def test_the_image_sets_only_variables_that_exist() -> None:
    block = re.search(r"^ENV ((?:.+\\\n)*.+)", DOCKERFILE, re.MULTILINE)
    assert block
    names = set(re.findall(r"(\w+)=", block[1]))
    assert names - KNOWN == {"PATH", "PYTHONUNBUFFERED"}


def ours() -> dict[str, dict[str, Any]]:
    services = COMPOSE["services"]
    return {n: s for n, s in services.items() if s["image"] == COMPOSE["x-mailpoll"]["image"]}


def test_the_compose_file_runs_every_process_of_the_procfile() -> None:
    assert {name: service["command"] for name, service in ours().items()} == procfile()


def test_the_compose_file_sets_variables_that_mailpoll_accepts() -> None:
    given = {
        "MAILPOLL_SECRET_KEY": new_key(),
        "MAILPOLL_API_TOKEN": new_token(),
        "MAILPOLL_NOTIFY_URLS": "",
    }
    for service in ours().values():
        assert set(service["environment"]) <= KNOWN
        filled = {
            name: re.sub(r"\$\{(\w+)[^}]*\}", lambda m: given.get(m[1], "plain"), value)
            for name, value in service["environment"].items()
        }
        settings = from_environment(filled)
        assert settings.require_keys()
        assert settings.require_tokens()
        # Every server that a URL names is a service of the file
        for url in (settings.database, settings.redis, settings.storage):
            assert re.search(r"@(\w+):\d+", url)[1] in COMPOSE["services"]  # type: ignore[index]


def test_the_compose_file_refers_only_to_what_it_declares() -> None:
    services = COMPOSE["services"]
    for service in services.values():
        for name, how in service.get("depends_on", {}).items():
            assert name in services
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[name]
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in COMPOSE["volumes"]
    build = COMPOSE["x-mailpoll"]["build"]
    context = (ROOT / "docker" / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).is_file()


def test_what_the_compose_file_asks_for_stands_in_its_example() -> None:
    asked = set(re.findall(r"\$\{(\w+):\?", (ROOT / "docker" / "compose.yaml").read_text()))
    example = (ROOT / "docker" / ".env.example").read_text()
    assert asked == set(re.findall(r"^(\w+)=", example, re.MULTILINE))
