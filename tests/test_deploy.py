"""The files of `deploy/` say what the command and the server really have."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretune.cli.app import defined
from pretune.serving import health, kserve_api
from pretune.serving.middleware import OPEN_PATHS
from pretune.serving.options import ServeOptions

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in DEPLOY.iterdir()}
#: What trains on several machines; all else serves.
SLURM, JOB = "slurm.sbatch", "training-job.yaml"
DEFAULTS = ServeOptions((("m", "m"),))
#: The options of `pretune serve`, each with whether a value follows.
OPTIONS = {
    name: not parameter.is_flag
    for parameter in defined("serve").params
    for name in parameter.opts
    if name.startswith("--")
}


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all(TEXTS[name]))


def container(document: Any) -> Any:
    (only,) = document["containers"]
    return only


KUBERNETES, SERVICE = documents("kubernetes.yaml")
RUNTIME, MODEL = documents("kserve.yaml")
CONTAINERS = {
    "kubernetes": container(KUBERNETES["spec"]["template"]["spec"]),
    "kserve": container(RUNTIME["spec"]),
}
DOCKER = dict(re.findall(r"^(ENTRYPOINT|CMD) (\[.*\])$", TEXTS["Dockerfile"], re.M))
ENTRYPOINT, COMMAND = yaml.safe_load(DOCKER["ENTRYPOINT"]), yaml.safe_load(DOCKER["CMD"])
UNIT = re.search(r"^ExecStart=(.*)$", TEXTS["pretune.service"], re.M)
assert UNIT is not None
LINES = {
    "docker": [*ENTRYPOINT, *COMMAND],
    "systemd": UNIT[1].split(),
    **{name: [*ENTRYPOINT, *own["args"]] for name, own in CONTAINERS.items()},
}


def values(line: list[str]) -> dict[str, str]:
    """The options of a command line with their values; what is no option fails."""
    rest, given = line[2:], {}
    while rest:
        name = rest.pop(0)
        assert name in OPTIONS, name
        given[name] = rest.pop(0) if OPTIONS[name] else ""
    return given


@pytest.mark.parametrize("name", LINES)
def test_commands_have_options_that_exist(name: str) -> None:
    line = LINES[name]
    assert [Path(line[0]).name, line[1]] == ["pretune", "serve"]
    given = values(line)
    assert given["--name"].partition("=")[1:] != ("=", "")
    # What listens on all addresses has keys.
    assert "--host" not in given or "--api-key-file" in given


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_is_asked_where_it_answers(name: str) -> None:
    own = CONTAINERS[name]
    port = int(values(LINES[name]).get("--port", DEFAULTS.port))
    (told,) = own["ports"]
    assert told["containerPort"] == port
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = own[probe]["httpGet"]
        assert asked["port"] in (port, told.get("name"))
        # Without a key, and at a path that there is.
        assert asked["path"] in OPEN_PATHS
    ready, alive = own["readinessProbe"]["httpGet"]["path"], own["livenessProbe"]["httpGet"]["path"]
    assert (ready, alive) in (("/readyz", "/healthz"), ("/v2/health/ready", "/v2/health/live"))
    # The keys lie where the command looks for them, and nothing has to be written but /tmp.
    mounts = {mount["mountPath"]: mount.get("readOnly") for mount in own["volumeMounts"]}
    keys = Path(values(LINES[name])["--api-key-file"])
    assert mounts[str(keys.parent)] is True
    assert all(read_only for place, read_only in mounts.items() if place != "/tmp")  # noqa: S108
    assert own["securityContext"]["readOnlyRootFilesystem"] is True


def test_paths_of_probes_are_paths_of_the_server() -> None:
    options: Any = DEFAULTS
    routes = [*health.routes(options, options), *kserve_api.routes(options, options)]
    paths = {route.path for route in routes}
    assert {"/readyz", "/healthz", "/v2/health/ready", "/v2/health/live"} <= paths


def test_parts_of_kubernetes_find_each_other() -> None:
    pod, (port,) = KUBERNETES["spec"]["template"], SERVICE["spec"]["ports"]
    assert SERVICE["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert KUBERNETES["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    assert port["targetPort"] == CONTAINERS["kubernetes"]["ports"][0]["name"]
    for spec in (pod["spec"], RUNTIME["spec"]):
        there = {volume["name"] for volume in spec["volumes"]}
        assert {mount["name"] for mount in container(spec)["volumeMounts"]} == there
    # The volume of models is where the model is looked for.
    source = values(LINES["kubernetes"])["--name"].partition("=")[2]
    assert source.startswith("/models/")
    drain = float(values(LINES["kubernetes"])["--drain"])
    assert pod["spec"]["terminationGracePeriodSeconds"] > drain + 5


def test_kserve_knows_the_protocol_and_the_model() -> None:
    model = MODEL["spec"]["predictor"]["model"]
    assert model["runtime"] == RUNTIME["metadata"]["name"]
    formats = [known["name"] for known in RUNTIME["spec"]["supportedModelFormats"]]
    assert model["modelFormat"]["name"] in formats
    assert model["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]
    assert values(LINES["kserve"])["--name"] == "{{.Name}}=/mnt/models"
    assert MODEL["spec"]["predictor"]["terminationGracePeriodSeconds"] > DEFAULTS.drain


def test_the_image_is_asked_where_it_answers() -> None:
    text = TEXTS["Dockerfile"]
    assert f"EXPOSE {DEFAULTS.port}\n" in text
    assert f"http://127.0.0.1:{DEFAULTS.port}/readyz" in text
    assert re.search(r"^USER \d+:\d+$", text, re.M)
    stop = re.search(r"--stop-timeout (\d+)", text)
    assert stop is not None
    assert float(stop[1]) > DEFAULTS.drain
    # All that is copied is there, and in the context.
    known = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (?!--)(.*)$", text, re.M):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists()
            assert f"!{name}\n" in known


def test_the_unit_waits_for_what_is_running() -> None:
    text = TEXTS["pretune.service"]
    stop = re.search(r"^TimeoutStopSec=(\d+)$", text, re.M)
    assert stop is not None
    assert float(stop[1]) > float(values(LINES["systemd"])["--drain"])
    # A folder of keys that systemd makes.
    assert "LoadCredential=keys:" in text
    assert values(LINES["systemd"])["--api-key-file"] == "%d/keys"


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    # The command has to be there.
    unit = TEXTS["pretune.service"].replace("/opt/pretune/bin/pretune", "/bin/true")
    (tmp_path / "pretune.service").write_text(unit, encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", tmp_path / "pretune.service"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert [line for line in done.stderr.splitlines() if "pretune.service" in line] == []


def test_proxies_have_the_limits_of_the_server() -> None:
    nginx, caddy = TEXTS["nginx.conf"], TEXTS["Caddyfile"]
    address = f"127.0.0.1:{DEFAULTS.port}"
    assert f"proxy_pass http://{address};" in nginx
    assert f"reverse_proxy {address} " in caddy
    assert f"client_max_body_size  {DEFAULTS.max_body >> 20}m;" in nginx
    assert f"max_size {DEFAULTS.max_body >> 20}MiB" in caddy
    assert f"client_body_timeout   {DEFAULTS.body_seconds:.0f}s;" in nginx
    assert f"client_header_timeout {DEFAULTS.header_seconds:.0f}s;" in nginx
    for pattern, text in (
        (r"proxy_read_timeout (\d+)s;", nginx),
        (r"response_header_timeout (\d+)s", caddy),
    ):
        waits = re.search(pattern, text)
        assert waits is not None
        assert float(waits[1]) > DEFAULTS.timeout


def test_comments_name_options_that_exist() -> None:
    for name, text in TEXTS.items():
        if name not in ("Dockerfile", SLURM, JOB):
            named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
            others = {"--from-file"}
            assert named - others <= {*OPTIONS}, name


def torchrun_of(name: str) -> list[str]:
    """The arguments of torchrun, with what Slurm would put in."""
    if name == JOB:
        _, job = documents(JOB)
        own = container(job["spec"]["template"]["spec"])
        assert own["command"] == ["torchrun"]
        return [str(word) for word in own["args"]]
    text = TEXTS[SLURM].replace("\\\n", " ")
    (line,) = re.findall(r"^srun .*? torchrun (.*) &$", text, re.M)
    for variable, value in (
        ('"$SLURM_NNODES"', "2"),
        ('"${SLURM_GPUS_ON_NODE:-gpu}"', "8"),
        ('"$SLURM_JOB_ID"', "17"),
        ("$first", "node-0"),
        ('"$@"', "recipe.yaml output=/shared/run"),
    ):
        assert variable in line
        line = line.replace(variable, value)
    assert "$" not in line
    return shlex.split(line)


@pytest.mark.parametrize("name", [SLURM, JOB])
def test_trainings_have_options_that_exist(name: str) -> None:
    from torch.distributed.run import get_args_parser

    torchrun = get_args_parser().parse_args(torchrun_of(name))
    assert (torchrun.module, torchrun.training_script) == (True, "pretune")
    command, *arguments = torchrun.training_script_args
    assert command == "train"
    given = defined("train").make_context("train", list(arguments)).params
    assert given["resume"] == "auto"
    assert given["recipe"].endswith(".yaml")
    assert any(word.startswith("output=/shared/") for word in given["overrides"])


def test_the_batch_script_can_be_read() -> None:
    done = subprocess.run(["bash", "-n"], input=TEXTS[SLURM], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_pods_of_a_training_find_each_other() -> None:
    service, job = documents(JOB)
    name, spec = job["metadata"]["name"], job["spec"]
    given = dict(itertools.pairwise(torchrun_of(JOB)))
    pod, (port,) = spec["template"]["spec"], service["spec"]["ports"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert given["--rdzv-endpoint"] == f"{name}-0.{pod['subdomain']}:{port['port']}"
    assert int(given["--nnodes"]) == spec["completions"] == spec["parallelism"]
    there = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container(pod)["volumeMounts"]} == there
    assert pod["terminationGracePeriodSeconds"] > 30  # what torchrun gives its processes
