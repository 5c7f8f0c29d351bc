"""The files for many GPUs and many machines: template unit, compose, Kubernetes; read as their programs read them."""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from moshi_server.cli.configs import shipped
from moshi_server.config import Config, load_config

from ..cli.test_commands import ROOT

OPS = ROOT / "ops"
COMPOSE, KUBERNETES = OPS / "compose", OPS / "kubernetes"
TEMPLATE = OPS / "moshi-server@.service"
GRACE = Config.model_fields["shutdown_grace_seconds"].default


def tool(name: str) -> str:
    """A program that is here, beside this Python or on the path; else the test is skipped."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def documents(*files: Path) -> dict[str, dict[str, Any]]:
    """Each YAML document by its kind."""
    read = [one for file in files for one in yaml.safe_load_all(file.read_text()) if one]
    return {one["kind"]: one for one in read if "kind" in one}


def service_of(file: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(file)
    return parser["Service"]


# The template unit.


def test_systemd_finds_nothing_wrong_with_the_template(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    instance = tmp_path / "moshi-server@3.service"
    text = TEMPLATE.read_text().replace("/opt/moshi-server/bin/moshi-server", "/bin/true")
    instance.write_text(text.replace("/usr/bin/curl", "/bin/true"))
    done = subprocess.run(
        [analyze, "verify", "--man=no", instance], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if "moshi-server" in line]) == (0, [])


def test_each_instance_has_a_gpu_a_port_and_a_log_of_its_own(tmp_path: Path) -> None:
    text = TEMPLATE.read_text()
    variables = dict(
        pair.split("=", 1) for line in re.findall(r"^Environment=(.*)$", text, re.MULTILINE) for pair in line.split()
    )
    assert variables["CUDA_VISIBLE_DEVICES"] == "%i"
    service = service_of(TEMPLATE)
    assert "--port 808%i" in service["ExecStart"]
    assert "127.0.0.1:808%i/" in service["ExecStartPost"]
    assert int(service["TimeoutStopSec"]) > GRACE
    # What the page tells to write into the one configuration that all share.
    (wanted,) = re.findall(r'instance_name = "([^"]*\$MOSHI_INSTANCE)"', (ROOT / "docs" / "scaling.md").read_text())
    file = tmp_path / "config.toml"
    file.write_text(
        re.sub(r"^instance_name = .*$", f'instance_name = "{wanted}"', shipped()["demo"].read_text(), flags=re.M)
    )
    names = {load_config(file, {"MOSHI_INSTANCE": instance}).instance_name for instance in "0123"}
    assert len(names) == 4


def test_the_template_is_the_unit_but_for_what_an_instance_changes() -> None:
    def settings(file: Path) -> set[str]:
        lines = file.read_text().replace("808%i", "8080").splitlines()
        return {line for line in lines if line and not line.startswith("#")}

    more = settings(TEMPLATE) - settings(OPS / "moshi-server.service")
    assert {line.split("=")[1].split("%")[0] if line.startswith("Env") else line.split("=")[0] for line in more} == {
        "Description", "CUDA_VISIBLE_DEVICES", "MOSHI_INSTANCE",
    }  # fmt: skip
    assert len(settings(OPS / "moshi-server.service") - settings(TEMPLATE)) == 1  # the description


# Compose.


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((COMPOSE / "compose.yaml").read_text()))


def gpu_of(service: dict[str, Any]) -> list[str]:
    return [one for it in service["deploy"]["resources"]["reservations"]["devices"] for one in it["device_ids"]]


def test_each_worker_of_compose_has_a_gpu_of_its_own_and_traefik_knows_it() -> None:
    services = compose()["services"]
    workers = {name: service for name, service in services.items() if name != "traefik"}
    gpus = [gpu for service in workers.values() for gpu in gpu_of(service)]
    assert len(workers) >= 2
    assert sorted(gpus) == sorted(set(gpus))
    assert len(gpus) == len(workers)
    for service in workers.values():
        assert int(service["stop_grace_period"].removesuffix("s")) > GRACE
    known = yaml.safe_load((COMPOSE / "workers.yml").read_text())["http"]["services"]["workers"]["loadBalancer"]
    assert {one["url"] for one in known["servers"]} == {f"http://{name}:8080" for name in workers}


def test_docker_reads_the_compose_file(tmp_path: Path) -> None:
    command = [tool("docker-compose")]
    folder = tmp_path / "ops" / "compose"
    shutil.copytree(COMPOSE, folder)
    for made_by_the_operator in ("env", "config.toml"):
        (folder / made_by_the_operator).touch()
    done = subprocess.run(
        [*command, "-f", folder / "compose.yaml", "config", "--format", "json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)["services"]
    assert [gpu_of(read[name]) for name in ("gpu0", "gpu1")] == [["0"], ["1"]]
    assert read["gpu0"]["stop_grace_period"] == "45s"


# Kubernetes.


@pytest.fixture
def manifests() -> dict[str, dict[str, Any]]:
    return documents(*(file for file in KUBERNETES.glob("*.yaml") if file.name != "kustomization.yaml"))


def pod_of(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return dict(manifests["Deployment"]["spec"]["template"]["spec"])


def test_a_pod_has_time_to_drain_and_a_gpu(manifests: dict[str, dict[str, Any]]) -> None:
    pod = pod_of(manifests)
    (worker,) = pod["containers"]
    before = worker["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > before + GRACE
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_names_and_labels_agree(manifests: dict[str, dict[str, Any]]) -> None:
    deployment = manifests["Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        manifests["Service"]["spec"]["selector"],
        manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    name = deployment["metadata"]["name"]
    assert manifests["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == name
    route = manifests["HTTPRoute"]
    assert manifests["Service"]["metadata"]["name"] in {
        ref["name"] for rule in route["spec"]["rules"] for ref in rule.get("backendRefs", [])
    }
    assert manifests["BackendTrafficPolicy"]["spec"]["targetRefs"][0]["name"] == route["metadata"]["name"]
    listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    others = {"kustomization.yaml", "prometheus-adapter.yaml"}
    assert set(listed) == {file.name for file in KUBERNETES.glob("*.yaml")} - others


def rule() -> dict[str, Any]:
    (made,) = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    return dict(made)


def test_the_autoscaler_asks_for_the_metric_that_the_adapter_makes(manifests: dict[str, dict[str, Any]]) -> None:
    (metric,) = manifests["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule()["name"]["as"]


def test_prometheus_makes_a_share_of_the_slots_for_each_pod(tmp_path: Path) -> None:
    """The adapter's query, filled in as the adapter does, over two pods of two modules each."""
    matchers = 'namespace="speech",pod=~"a|b"'
    query = rule()["metricsQuery"].replace("<<.LabelMatchers>>", matchers).replace("<<.GroupBy>>", "pod")
    series = [
        {"series": f'module_slots{used}{{namespace="speech",pod="{pod}",module="{module}"}}', "values": str(value)}
        for pod, module, used, value in (
            ("a", "asr", "", 16), ("a", "asr", "_used", 12), ("a", "tts", "", 4), ("a", "tts", "_used", 3),
            ("b", "asr", "", 16), ("b", "asr", "_used", 0), ("b", "tts", "", 4), ("b", "tts", "_used", 1),
        )
    ]  # fmt: skip
    expected = [{"labels": '{pod="a"}', "value": 0.75}, {"labels": '{pod="b"}', "value": 0.05}]
    asked = {"expr": query, "eval_time": "0m", "exp_samples": expected}
    tests = {"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": [asked]}]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        [tool("promtool"), "test", "rules", tmp_path / "test.yml"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_manifests_are_valid(tmp_path: Path) -> None:
    """Against Kubernetes' own schemas, after kustomize where that is here."""
    if importlib.util.find_spec("kubernetes_validate") is None:
        pytest.skip("kubernetes-validate is not installed")
    import kubernetes_validate  # type: ignore[import-not-found, unused-ignore]

    folder = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, folder)
    shutil.copy(shipped()["demo"], folder / "config.toml")
    built = subprocess.run(
        [tool("kubectl"), "kustomize", folder], capture_output=True, text=True, timeout=60, check=False
    )
    assert built.returncode == 0, built.stderr
    own = [one for one in yaml.safe_load_all(built.stdout) if "gateway" not in one["apiVersion"]]
    assert {one["kind"] for one in own} == {
        "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "Service",
    }  # fmt: skip
    for one in own:
        kubernetes_validate.validate(one, "1.37", strict=True)
        assert one["metadata"]["namespace"] == "speech"
