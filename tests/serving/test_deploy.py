"""Dockerfile, compose.yaml and k8s/: valid, of one mind with the gateway's profile, and run as plain processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from llmops.engines.spec import EngineSpec
from llmops.engines.vllm import environment
from llmops.serving.engine_settings import HttpEngine
from llmops.serving.profile import ServeProfile, load_profile
from llmops.settings import find_workspace
from tests.command_line import parse
from tests.schemas import refusal
from tests.serving.conftest import make_stage
from tests.serving.gateway import GREEDY, serving, wait_for
from tests.storage.conftest import database, postgres_uri  # noqa: F401 - fixtures

ROOT = Path(__file__).parents[2]
SERVING = ROOT / "serving"
MANIFESTS = [
    (path.name, document)
    for path in sorted((SERVING / "k8s").glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]
COMPOSE = yaml.safe_load((SERVING / "compose.yaml").read_text())


def _named(kind: str, name: str) -> dict[str, Any]:
    (found,) = (m for _, m in MANIFESTS if (m["kind"], m["metadata"]["name"]) == (kind, name))
    return found


def _options(words: list[str]) -> dict[str, str]:
    return dict(word.removeprefix("--").partition("=")[::2] for word in words)  # type: ignore[misc]


def _container(kind: str, name: str) -> dict[str, Any]:
    (container,) = _named(kind, name)["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


@pytest.fixture
def in_cluster(tmp_path: Path) -> ServeProfile:
    """The profile that the gateway's pod gets."""
    path = tmp_path / "cluster.yaml"
    path.write_text(_named("ConfigMap", "gateway")["data"]["cluster.yaml"])
    return load_profile(path)


@pytest.mark.parametrize(
    "manifest", [m for _, m in MANIFESTS], ids=lambda m: f"{m['kind']}-{m['metadata']['name']}"
)
def test_manifest_is_what_kubernetes_takes(manifest: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    validate.validate(manifest, validate.latest_version(), strict=True)


def test_every_service_finds_its_pods_and_every_claim_exists() -> None:
    pods = [m["spec"]["template"] for _, m in MANIFESTS if m["kind"] in ("Deployment", "StatefulSet")]
    for _, manifest in MANIFESTS:
        if manifest["kind"] == "Service":
            selector = manifest["spec"]["selector"].items()
            (pod,) = (p for p in pods if selector <= p["metadata"]["labels"].items())
            ports = {port["containerPort"] for c in pod["spec"]["containers"] for port in c["ports"]}
            assert {port["port"] for port in manifest["spec"]["ports"]} <= ports
    claims = {m["metadata"]["name"] for _, m in MANIFESTS if m["kind"] == "PersistentVolumeClaim"}
    used = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in pods
        for volume in pod["spec"].get("volumes", ())
        if "persistentVolumeClaim" in volume
    }
    assert used == claims


def _check_engine(options: dict[str, str], environment_of: dict[str, str], profile: ServeProfile) -> None:
    """vLLM is started as the profile says, and as the gateway itself would start it."""
    engine = profile.engine
    assert isinstance(engine, HttpEngine)
    assert options["served-model-name"] == engine.served_as
    assert options["dtype"] == engine.dtype
    assert int(options["max-model-len"]) >= profile.max_model_tokens
    assert int(options["max-loras"]) >= profile.slots
    assert int(options["max-lora-rank"]) >= profile.max_lora_rank
    assert (options["generation-config"], options["enable-lora"]) == ("vllm", "")
    assert options["model"] == profile.base_model
    spec = EngineSpec("vllm", Path("base"), "base", "b" * 64, device="cuda")
    ours = environment(spec, {})
    shared = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_PLUGINS", "VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE"}
    assert {name: environment_of[name] for name in shared} == {name: ours[name] for name in shared}


def test_pods_are_of_one_mind_with_the_profile(in_cluster: ServeProfile) -> None:
    vllm, router = _container("StatefulSet", "engine"), _container("Deployment", "router")
    _check_engine(_options(vllm["args"]), {e["name"]: e["value"] for e in vllm["env"]}, in_cluster)
    engine = in_cluster.engine
    assert isinstance(engine, HttpEngine)
    n = _named("StatefulSet", "engine")["spec"]["replicas"]
    urls = [f"http://engine-{i}.engine:8000" for i in range(n)]
    assert list(engine.replicas) == urls
    words = router["command"]
    assert words[words.index("--worker-urls") + 1 :] == urls
    assert engine.url == "http://router:8000"
    gateway = _container("Deployment", "gateway")
    assert parse(gateway["args"])["profile"] == Path("/config/cluster.yaml")
    grace_s = _named("Deployment", "gateway")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    pause_s = int(gateway["lifecycle"]["preStop"]["exec"]["command"][1])
    assert grace_s >= in_cluster.timeouts.drain_s + pause_s + 5


def test_engine_and_gateway_see_the_store_under_one_path() -> None:
    seen = []
    for kind, name in (("StatefulSet", "engine"), ("Deployment", "gateway")):
        mounts = _container(kind, name)["volumeMounts"]
        assert {m["mountPath"] for m in mounts if m["name"] == "base"} == {"/models/base"}
        places = {m.get("subPath", ""): m["mountPath"] for m in mounts if m["name"] == "state"}
        seen.append(places.get("store") or f"{places['']}/store")
    assert seen == ["/workspace/.llmops/store"] * 2
    for name in ("engine", "gateway"):
        places = {
            v.rpartition(":")[0] if v.endswith(":ro") else v for v in COMPOSE["services"][name]["volumes"]
        }
        assert "state:/workspace/.llmops" in places
        assert any(place.endswith("}:/models/base") for place in places)


def test_gateways_of_a_cluster_share_a_store_and_no_workspace() -> None:
    """Two serves of one workspace would be refused: the folder of the lock is each pod's own."""
    deployment = _named("Deployment", "gateway")["spec"]
    assert deployment["replicas"] > 1
    mounts = {m["mountPath"]: m["name"] for m in _container("Deployment", "gateway")["volumeMounts"]}
    volumes = {v["name"]: v for v in deployment["template"]["spec"]["volumes"]}
    assert "emptyDir" in volumes[mounts["/workspace/.llmops"]]
    assert "persistentVolumeClaim" in volumes[mounts["/workspace/.llmops/store"]]


def test_compose_file_is_what_its_specification_takes(tmp_path: Path) -> None:
    assert refusal("compose-spec", SERVING / "compose.yaml") == ""
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((SERVING / "compose.yaml").read_text().replace("stop_grace_period", "stop_grace_time"))
    assert "stop_grace_time" in refusal("compose-spec", wrong)


def test_compose_is_of_one_mind_with_its_profile() -> None:
    services = COMPOSE["services"]
    profile = load_profile(SERVING / "cluster.yaml")
    _check_engine(_options(services["engine"]["command"]), services["engine"]["environment"], profile)
    assert parse(services["gateway"]["command"])["profile"] == Path("serving/cluster.yaml")
    assert services["engine"]["networks"] == ["inside"]
    assert COMPOSE["networks"]["inside"]["internal"] is True
    assert "ports" not in services["engine"]
    assert "ports" not in services["postgres"]
    for service in services.values():
        assert set(service["networks"]) <= COMPOSE["networks"].keys()
        named = {v.partition(":")[0] for v in service["volumes"] if not v.startswith("$")}
        assert named <= COMPOSE["volumes"].keys()
        assert service.get("depends_on", {}).keys() <= services.keys()
        for other in service.get("depends_on", ()):
            assert "healthcheck" in services[other]


def test_image_installs_what_exists_and_runs_a_command_that_exists() -> None:
    text = (SERVING / "Dockerfile").read_text()
    extras = re.search(r"^ARG EXTRAS=(\S+)$", text, re.MULTILINE)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras is not None
    for asked in (extras[1], COMPOSE["services"]["gateway"]["build"]["args"]["EXTRAS"]):
        assert set(asked.split(",")) <= known.keys()
    command = json.loads(re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)[-1])
    assert (ROOT / parse(command)["profile"]).is_file()
    build = COMPOSE["services"]["gateway"]["build"]
    assert (SERVING / build["context"] / build["dockerfile"]).resolve() == SERVING / "Dockerfile"


# ---------------------------------------------------------------- the same as plain processes


@contextmanager
def _process(command: list[str], log: Path, **kwargs: Any) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, **kwargs)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def _engine(base: Path, port: int, log: Path) -> Any:
    """The embedded engine in vLLM's place, named as the profile names it."""
    line = [
        sys.executable,
        "-m",
        "llmops.engines.embedded",
        "--model",
        str(base),
        "--served-model-name",
        "base",
    ]
    line += ["--port", str(port), "--dtype", "float32", "--max-model-len", "512", "--threads", "1"]
    return _process(line, log, env={**os.environ, "PYTHONPATH": str(ROOT)})


def _free_ports(n: int) -> list[int]:
    import socket

    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.mark.walk
def test_topology_serves_through_a_router_and_mends_a_replica_that_restarts(
    tmp_path: Path,
    long_model: Path,
    peft_folders: tuple[Path, ...],
    in_cluster: ServeProfile,
    database: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the cluster's profile says, with addresses of this machine and the embedded engine in vLLM's place."""
    router = shutil.which("vllm-router", path=str(Path(sys.executable).parent))
    if router is None:
        pytest.skip("needs vllm-router")
    monkeypatch.setenv("LLMOPS_DATABASE_URL", database)
    stage = make_stage(tmp_path, long_model, peft_folders[:1])
    one, two, front, metrics = _free_ports(4)
    urls = [f"http://127.0.0.1:{port}" for port in (one, two)]
    engine = in_cluster.engine.model_dump(mode="json", exclude_none=True)
    engine |= {"url": f"http://127.0.0.1:{front}", "replicas": urls, "engine": "transformers"}
    engine |= {"dtype": "float32", "device": "cpu"}
    settings = in_cluster.model_dump(mode="json", exclude_unset=True)
    settings |= {"base_model": str(stage.base.path), "engine": engine, "host": "127.0.0.1", "port": 0}
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump({**settings, "max_model_tokens": 512}))
    words = _container("Deployment", "router")["command"]
    line = [router, "--host=127.0.0.1", f"--port={front}", *[w for w in words if w.startswith("--policy")]]
    with ExitStack() as stack:
        stack.enter_context(_engine(stage.base.path, one, tmp_path / "one.log"))
        first_two = stack.enter_context(ExitStack())
        first_two.enter_context(_engine(stage.base.path, two, tmp_path / "two.log"))
        wait_for(lambda: all(_ready(url) for url in urls), within_s=120)
        line += ["--prometheus-port", str(metrics), "--worker-urls", *urls]
        stack.enter_context(_process(line, tmp_path / "router.log"))
        endpoint = stack.enter_context(serving(path, find_workspace(tmp_path)))
        adapter = stage.adapters[0]
        assert endpoint.add(adapter).status_code == 200
        for url in urls:
            assert adapter.model_name in _models(url)
        answers = {
            endpoint.chat(adapter.model_name).json()["choices"][0]["message"]["content"] for _ in range(4)
        }
        assert len(answers) == 1
        assert endpoint.chat(stage.base.model_name).status_code == 200
        first_two.close()
        stack.enter_context(_engine(stage.base.path, two, tmp_path / "two.log"))
        wait_for(lambda: _ready(urls[1]) and adapter.model_name in _models(urls[1]), within_s=120)
        body = {
            "model": adapter.model_name,
            "messages": [{"role": "user", "content": "Say something."}],
            **GREEDY,
        }
        again = httpx.post(f"{urls[1]}/v1/chat/completions", json=body, timeout=60).json()
        assert {again["choices"][0]["message"]["content"]} == answers


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _models(url: str) -> set[str]:
    return {card["id"] for card in httpx.get(f"{url}/v1/models", timeout=5).json()["data"]}
