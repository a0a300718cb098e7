"""Nightlabel for a team: what deploy/compose.yaml says, and all that it would start as real processes here."""

import asyncio
import datetime
import json
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pyarrow.parquet as pq
import pytest
import redis
from compose import RefusedError, Stack, load, missing, running
from conftest import weather_rows
from prefect.settings import Settings
from prefect.settings.legacy import _get_valid_setting_names
from prefect_redis.cleanup_queue import RedisWorkerCleanupQueueSettings
from prefect_redis.client import RedisMessagingSettings
from prefect_redis.messaging import RedisMessagingPublisherSettings
from server import ENDED, SECONDS, Office, client, hold_at, let_go_at, until
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from flows.server.automations import BATCH, BATCH_READY

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
SECRETS = {"NIGHTLABEL_PASSWORD": "abc123", "POSTGRES_PASSWORD": "def456", "REDIS_PASSWORD": "789abc"}
CPU = {**SECRETS, "NIGHTLABEL_INCOMING": "/srv/incoming", "COMPOSE_PROFILES": "cpu"}
NAME, WRONG = "nightlabel", "nightlabel:wrong"
TINY = ["training.epochs=1", "model.hidden_size=8", "model.embedding_size=8", "tokenizer.min_count=1"]
DAY = "2026-11-20"
INSTALL = "apt-get install postgresql redis-server haproxy wget"


# What the files say.


@pytest.mark.parametrize("name", CPU)
@pytest.mark.parametrize("value", [None, ""])
def test_without_a_password_or_a_folder_nothing_starts(name: str, value: str | None) -> None:
    given = {key: kept for key, kept in CPU.items() if key != name} | ({} if value is None else {name: value})
    with pytest.raises(RefusedError, match=rf"{name}: .*TEAM\.md"):
        load(COMPOSE, given)


def test_each_service_has_a_health_check_or_is_waited_for_until_it_is_done() -> None:
    for name, service in load(COMPOSE, {**CPU, "COMPOSE_PROFILES": "cpu,gpu"}).items():
        assert service["restart"] == ("no" if name in ("migrate", "setup") else "unless-stopped")
        check = service["healthcheck"]
        assert check == {"disable": True} if service["restart"] == "no" else check["test"][0] == "CMD", name


def test_every_image_is_pinned_to_a_version() -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    images = {service["image"] for service in load(COMPOSE, CPU).values()}
    (base,) = re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"nightlabel:{version}" in images
    assert all(re.search(r":\d+\.\d+", image) for image in {*images, base})


def test_only_the_proxy_is_published_and_only_to_this_machine() -> None:
    ports = {name: service["ports"] for name, service in load(COMPOSE, CPU).items() if "ports" in service}
    assert ports == {"proxy": ["127.0.0.1:4200:4200"]}


def test_a_worker_cannot_reach_the_database() -> None:
    services = load(COMPOSE, {**CPU, "COMPOSE_PROFILES": "cpu,gpu"})
    behind = {name for name, service in services.items() if service["networks"] == ["data"]}
    assert {"postgres", "redis"} <= behind
    for name in ("worker", "worker-cpu", "proxy", "setup"):
        assert services[name]["networks"] == ["front"]
        assert not re.search("|".join(list(SECRETS.values())[1:]), str(services[name]))


def test_the_two_workers_differ_in_the_gpu_only() -> None:
    services = load(COMPOSE, {**CPU, "COMPOSE_PROFILES": "cpu,gpu"})
    gpu, cpu = services["worker"], services["worker-cpu"]
    assert gpu.pop("deploy")["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert (gpu.pop("profiles"), cpu.pop("profiles")) == (["gpu"], ["cpu"])
    assert [word.replace("gpu", "cpu") for word in gpu.pop("command")] == cpu.pop("command")
    assert gpu == cpu


def test_the_proxy_knows_each_replica() -> None:
    replicas = re.findall(r"^ +server (\S+) (\S+):4200$", (DEPLOY / "haproxy.cfg").read_text("utf-8"), re.MULTILINE)
    assert replicas == [(name, name) for name in load(COMPOSE, CPU) if name.startswith("api-")]


def test_every_variable_of_prefect_is_a_setting_that_the_installed_prefect_knows() -> None:
    models = (Settings, RedisMessagingSettings, RedisMessagingPublisherSettings, RedisWorkerCleanupQueueSettings)
    known = {name for model in models for name in _get_valid_setting_names(model)}
    used = {key for service in load(COMPOSE, CPU).values() for key in service.get("environment", {})}
    names = {name for name in used if name.startswith("PREFECT_")}
    assert len(names) > 15
    assert not names - known


def test_what_is_asked_for_stands_in_the_example_and_in_the_guide() -> None:
    asked = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text("utf-8"))) | {"COMPOSE_PROFILES"}
    example = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", (DEPLOY / ".env.example").read_text("utf-8"), re.MULTILINE))
    assert example.keys() == asked
    assert not any(example[name] for name in SECRETS)
    guide = (DEPLOY / "TEAM.md").read_text("utf-8")
    assert not [name for name in asked if name not in guide]
    services = load(COMPOSE, {**CPU, "COMPOSE_PROFILES": "cpu,gpu"})
    assert not [name for name in services if f"`{name}`" not in guide]
    assert set(re.findall(r"docker compose (?:exec(?: -T)?|run --rm|logs|cp) ([a-z-]+)", guide)) <= services.keys()


def test_the_image_has_what_the_services_import_and_its_user_is_not_root() -> None:
    pins = (DEPLOY / "requirements.txt").read_text("utf-8")
    assert all(re.search(rf"^{package}==", pins, re.MULTILINE) for package in ("prefect", "prefect-redis", "asyncpg"))
    lines = (DEPLOY / "Dockerfile").read_text("utf-8").splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER nightlabel"]
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    let_in = re.findall(r"^!(\S+)", (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8"), re.MULTILINE)
    assert sorted(copied) == sorted(let_in)
    assert all((PROJECT / name).exists() for name in copied)


# What they start.


@dataclass(frozen=True)
class Team:
    """Everything that compose.yaml starts, and how to talk to it: by the proxy, and to each replica."""

    stack: Stack
    proxy: Office
    one: Office
    other: Office


@dataclass(frozen=True)
class Night:
    """A night in whose middle one replica was killed."""

    run: dict[str, Any]
    killed: datetime.datetime
    task_runs: list[dict[str, Any]]
    renewed: httpx.Response


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    if lacking := missing():
        say = pytest.fail if os.environ.get("NIGHTLABEL_ALL_TESTS") == "1" else pytest.skip
        say(f"{', '.join(lacking)} not installed: {INSTALL}")
    incoming = tmp_path_factory.mktemp("incoming")
    _write(incoming / "labelled.jsonl", weather_rows())
    for name in ("morning", "evening"):
        rows = [{"id": f"{name}{row['id']}", "text": f"{row['text']} in the {name}"} for row in weather_rows(20)]
        _write(incoming / DAY / f"{name}.jsonl", rows)
    login = (NAME, SECRETS["NIGHTLABEL_PASSWORD"])
    with running(COMPOSE, {**CPU, "NIGHTLABEL_INCOMING": str(incoming)}) as stack:
        folder = stack.path("/nightlabel")
        addresses = [stack.address(name, "4200") for name in ("proxy", "api-1", "api-2")]
        apis = [client(f"http://{address}/api", auth=login) for address in addresses]
        yield Team(stack, *(Office(folder, api, {}) for api in apis))
        for api in apis:
            api.close()


@pytest.fixture(scope="module")
def night(team: Team) -> Night:
    team.proxy.run("ingest", sources=["incoming/labelled.jsonl"], batch="labelled")
    team.proxy.run("train", model="weather", settings=TINY)
    names = [limit["name"] for limit in team.one.find("v2/concurrency_limits") if limit["name"].startswith(NAME)]
    taken = {"slots": 1, "names": names, "lease_duration": 60}
    lease = team.one.ask("POST", "/v2/concurrency_limits/increment-with-lease", taken).json()["lease_id"]
    renewed = team.other.ask("POST", f"/v2/concurrency_limits/leases/{lease}/renew", {"lease_duration": 60})
    team.other.ask("POST", "/v2/concurrency_limits/decrement-with-lease", {"lease_id": lease}).raise_for_status()

    labels = labels_in(team)
    labels.mkdir(parents=True)
    hold_at(labels / "part-00000.parquet")
    run_id = team.one.start("nightly", sources=["incoming/{date}/*.jsonl"], date=DAY)
    until(lambda: team.other.get(f"/flow_runs/{run_id}")["state_type"] == "RUNNING", "the night did not begin")
    team.stack.kill("api-1")
    killed = datetime.datetime.now(datetime.UTC)
    let_go_at(labels / "part-00000.parquet")
    run = team.other.ended(run_id)
    return Night(run, killed, until(lambda: _task_runs(team.other, run_id), "some task runs stayed open"), renewed)


def labels_in(team: Team) -> Path:
    """Return where the labels of the night are in the volume of the worker."""
    return team.stack.path("/nightlabel/workspace") / "labels" / "weather" / f"batch={DAY}"


def _task_runs(office: Office, run_id: str) -> list[dict[str, Any]] | None:
    """Return the task runs of a run and of those inside of it, once each of them has some and all have ended."""
    inner = office.find("flow_runs", flow_runs={"parent_flow_run_id": {"any_": [run_id]}})
    runs = {run_id, *(run["id"] for run in inner)}
    found = office.find("task_runs", flow_runs={"id": {"any_": sorted(runs)}})
    all_there = {task["flow_run_id"] for task in found} == runs
    return found if all_there and all(task["state_type"] in ENDED for task in found) else None


def test_a_night_goes_on_when_a_replica_is_killed_in_its_middle(night: Night) -> None:
    assert night.run["state_type"] == "COMPLETED", night.run["state"]["message"]
    assert night.run["name"] == f"nightly {DAY}: *.jsonl"
    assert {task["state_type"] for task in night.task_runs} == {"COMPLETED"}
    assert any(datetime.datetime.fromisoformat(task["end_time"]) > night.killed for task in night.task_runs)


def test_its_rows_add_up_in_the_volume_of_the_worker(team: Team, night: Night) -> None:
    assert night.run["state_type"] == "COMPLETED"
    labels = labels_in(team)
    manifest = json.loads((labels / "manifest.json").read_text(encoding="utf-8"))
    rows = sum(pq.read_metadata(labels / part["file"]).num_rows for part in manifest["parts"])
    counts = manifest["counts"]
    assert rows == 40 == counts["documents"] == counts["scored"] + counts["review"] + counts["empty"]


def test_a_slot_that_was_taken_at_one_replica_is_renewed_at_the_other(night: Night) -> None:
    assert night.renewed.status_code == httpx.codes.NO_CONTENT


@pytest.mark.usefixtures("night")
def test_the_address_answers_while_a_replica_is_gone(team: Team) -> None:
    answers = [team.proxy.api.get("/admin/version") for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 6
    assert not team.stack.healthy("api-1")
    assert team.stack.healthy("proxy")


def test_the_services_schedule_the_next_nights(team: Team) -> None:
    nightly = team.other.deployment("nightly")["id"]
    scheduled = {"flow_runs": {"deployment_id": {"any_": [nightly]}, "state": {"type": {"any_": ["SCHEDULED"]}}}}
    assert until(lambda: team.other.find("flow_runs", **scheduled), "the next nights were not scheduled")


@pytest.mark.usefixtures("night")
def test_an_automation_runs_a_deployment_behind_the_password(team: Team) -> None:
    resource = {"prefect.resource.id": f"{BATCH}.labelled", "prefect.resource.name": "labelled"}
    now = datetime.datetime.now(datetime.UTC).isoformat()
    event = {"id": str(uuid4()), "occurred": now, "event": BATCH_READY, "resource": resource, "payload": {}}
    team.proxy.ask("POST", "/events", [event]).raise_for_status()
    score = {"flow_runs": {"deployment_id": {"any_": [team.other.deployment("score")["id"]]}}}

    def started() -> list[dict[str, Any]]:
        return [run for run in team.other.find("flow_runs", **score) if run["parameters"]["batches"] == ["labelled"]]

    assert until(started, "the announced batch was not scored")


@pytest.mark.parametrize("login", [None, ("nightlabel", "wrong"), ("nightlabel", "")])
@pytest.mark.parametrize("path", ["/admin/settings", "/flow_runs/filter", "/deployments/filter", "/events"])
def test_the_api_refuses_a_wrong_password_and_none(team: Team, login: tuple[str, str] | None, path: str) -> None:
    method = "GET" if path.startswith("/admin") else "POST"
    url = f"http://{team.stack.address('proxy', '4200')}/api{path}"
    answer = httpx.request(method, url, auth=login, json={}, timeout=SECONDS)
    assert answer.status_code == httpx.codes.UNAUTHORIZED
    assert answer.json() == {"exception_message": "Unauthorized"}


def test_a_web_socket_goes_through_the_proxy_and_is_refused_without_the_password(team: Team) -> None:
    def log_in(secret: str) -> Any:
        url = f"ws://{team.stack.address('proxy', '4200')}/api/events/in"
        with connect(url, subprotocols=[Subprotocol("prefect")], proxy=None) as socket:
            socket.send(json.dumps({"type": "auth", "token": secret}))
            return json.loads(socket.recv(timeout=SECONDS))

    assert log_in(f"{NAME}:{SECRETS['NIGHTLABEL_PASSWORD']}") == {"type": "auth_success"}
    with pytest.raises(ConnectionClosedError, match="Invalid token"):
        log_in(WRONG)


@pytest.mark.parametrize(
    "words",
    [
        ["prefect", "deployment", "ls"],
        ["nightlabel", "setup"],
        ["prefect", "worker", "start", "--pool", "nightlabel", "--type", "process", "--run-once"],
    ],
    ids=["prefect", "setup", "worker"],
)
def test_clients_are_refused_with_a_wrong_password(team: Team, words: list[str]) -> None:
    ended = team.stack.run("setup", *words, PREFECT_API_AUTH_STRING=WRONG)
    assert ended.returncode
    assert re.search("401|refuses the password", ended.stdout + ended.stderr)


def test_database_and_redis_refuse_a_wrong_password_too(team: Team) -> None:
    host, port = team.stack.address("postgres", "5432").split(":")
    for secret, refused in ((SECRETS["POSTGRES_PASSWORD"], False), ("wrong", True)):
        login = {"user": "prefect", "password": secret, "database": "prefect"}
        assert asyncio.run(_postgres_refuses(host, int(port), login)) == refused
    url = "redis://{}" + team.stack.address("redis", "6379")
    with redis.Redis.from_url(url.format(f":{SECRETS['REDIS_PASSWORD']}@")) as let_in:
        assert let_in.ping()
    for secret in ("", ":wrong@"):
        with redis.Redis.from_url(url.format(secret)) as kept_out, pytest.raises(redis.AuthenticationError):
            kept_out.ping()


async def _postgres_refuses(host: str, port: int, login: dict[str, str]) -> bool:
    try:
        connection = await asyncpg.connect(host=host, port=port, timeout=SECONDS, **login)
    except asyncpg.InvalidPasswordError:
        return True
    await connection.close()
    return False
