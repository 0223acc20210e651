"""int8d.toml: the smallest file, the defaults, and the mistakes that would only show later."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import load
from agent.errors import ConfigError
from agent.mqtt.routes import Filter, meet, published
from tests.agent_process import ROOT

SMALLEST = """
device = "box1"
[broker]
host = "127.0.0.1"
port = 1883
[[model]]
name = "digits"
path = "models/zoo/digits.int8.safetensors"
[[route]]
subscribe = "cameras/+/frame"
model = "digits"
publish = "predictions/{1}"
"""


def _load(folder: Path, text: str):
    path = folder / "int8d.toml"
    path.write_text(text)
    return load(path)


def _route(subscribe: str, publish: str) -> str:
    return f'[[route]]\nsubscribe = "{subscribe}"\nmodel = "digits"\npublish = "{publish}"\n'


def test_the_smallest_config_works_and_the_rest_has_defaults(tmp_path: Path) -> None:
    config = _load(tmp_path, SMALLEST)
    assert config.base == "int8d/box1"
    assert (config.broker.protocol, config.broker.receive_maximum, config.broker.tls) == ("auto", 32, None)
    assert (config.route[0].qos, config.route[0].overload, config.route[0].deadline_ms) == (1, "reject", None)
    assert (config.model[0].threads, config.model[0].backend) == (1, "auto")


WITHOUT_DEFAULT = {"broker.username", "broker.password_file", "encryption.key", "route.deadline_ms", "route.share",
                   "route.content_type", "updates.ca", "updates.cert", "updates.cert_key", "updates.key"}  # fmt: skip


def test_the_sample_names_every_setting_with_its_default(tmp_path: Path) -> None:
    sample = (ROOT / "systemd" / "int8d.toml").read_text()
    shown = _load(tmp_path, sample)
    lines, left, table = [], set(), ""
    for line in sample.splitlines():
        if line.lstrip("#").startswith("["):
            table = line.lstrip("#").split("]")[0].strip("[")
        name = f"{table}.{line[1:].split(' ')[0]}"
        if line.startswith("# ") or table == "broker.tls" or name in WITHOUT_DEFAULT:
            left.add(name)
            lines.append(line)
        else:
            lines.append(line.removeprefix("#"))
    assert left >= WITHOUT_DEFAULT
    assert _load(tmp_path, "\n".join(lines)) == shown


TLS = '[broker.tls]\ncert = "{file}"\n'
UPDATES = '[updates]\nrepository = "{}"\nroot = "{{file}}"\n'
MISTAKES = {
    "an infinite interval": ("stats_interval_s = inf\n" + SMALLEST, "stats_interval_s"),
    "no host": (SMALLEST.replace("127.0.0.1", ""), "host"),
    "a password without a user": (SMALLEST.replace("[broker]", '[broker]\npassword = "x"'), "username"),
    "a certificate without a key": (SMALLEST + TLS, "cert and key"),
    "a $share of one's own": (SMALLEST + _route("$share/g/a", "x"), 'share = "group"'),
    "the same filter twice": (SMALLEST + _route("cameras/+/frame", "x"), "same filter"),
    "filters that share topics": (SMALLEST + _route("cameras/7/#", "x"), "share topics"),
    "a filter over the device's own inputs": (SMALLEST + _route("int8d/#", "x"), "share topics"),
    "a route that feeds itself": (SMALLEST + _route("a/#", "a/out"), "for ever"),
    "a route that may feed itself": (SMALLEST + _route("a/+/b", "a/x{1}/b"), "for ever"),
    "routes that feed each other": (SMALLEST + _route("a", "b") + _route("b", "a"), "for ever"),
    "a route that feeds the device": (SMALLEST + _route("a", "int8d/box1/v2/models/digits/infer"), "for ever"),
    "HTTP that no health check gets through": (SMALLEST + "[http]\nmax_queue = 16\n", "max_queue"),
    "HTTP without a header": (SMALLEST + "[http]\nmax_header_bytes = 0\n", "max_header_bytes"),
    "HTTP that waits for ever": (SMALLEST + "[http]\ntimeout_s = inf\n", "timeout_s"),
    "HTTP on no port": (SMALLEST + "[http]\nport = 65536\n", "port"),
    "updates without a root": (SMALLEST + '[updates]\nrepository = "https://a/b"\n', "root"),
    "updates from a topic over HTTPS": (SMALLEST + UPDATES.format("int8d/repository"), 'transport = "mqtt"'),
    "updates from a URL over MQTT": (SMALLEST + UPDATES.format("https://a") + 'transport = "mqtt"\n', "not a topic"),
    "updates in the clear": (SMALLEST + UPDATES.format("http://a.example/b"), "https://"),
    "a root that is not there": (SMALLEST + UPDATES.format("https://a").replace("{file}", "nowhere"), "updates.root"),
    "a web certificate without a key": (SMALLEST + '[updates]\ncert = "x"\n', "cert_key"),
    "a limit below the least": (SMALLEST + "[updates]\nmax_bytes_per_s = 100\n", "max_bytes_per_s"),
    "a negative interval": (SMALLEST + "[updates]\ninterval = -1\n", "interval"),
    "an endless probation": (SMALLEST + "[updates]\nprobation_s = inf\n", "probation_s"),
    "no wish about updates": (SMALLEST + "[updates]\nmax_wishes = 0\n", "max_wishes"),
    "no start of a release": (SMALLEST + "[updates]\nmax_starts = 0\n", "max_starts"),
    "more agreement than all": (SMALLEST + "[updates]\nmin_agreement = 1.1\n", "min_agreement"),
    "a model named as a folder of updates": (
        SMALLEST.replace('digits"\n', 'tuf"\n') + UPDATES.format("https://a"),
        "model 'tuf'",
    ),
    "a route that takes the repository's pieces": (
        SMALLEST + _route("r/#", "x") + UPDATES.format("r") + 'transport = "mqtt"\n',
        "repository's 'r/get/box1'",
    ),
    "a filter over the device's statistics": (SMALLEST + _route("int8d/+/stats", "x"), "for ever"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named(tmp_path: Path, case: str) -> None:
    text, expected = MISTAKES[case]
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=expected.replace("$", r"\$")):
        _load(tmp_path, text.replace("{file}", str(tmp_path / "file")))


def test_routes_that_only_look_alike_are_taken(tmp_path: Path) -> None:
    routes = _route("a/+", "a/{1}/out") + _route("a/+/in", "b/{1}") + _route("c/#", "d/{1}")
    assert len(_load(tmp_path, SMALLEST + routes).route) == 4


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/c", False),
        ("a/+", "+/b", True),
        ("a/+", "a/b/c", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "b/#", False),
        ("#", "x/y", True),
        ("a/#/z", "a/b/c/z", True),
        ("a/#/z", "a/b/c/y", False),
        ("+/#", "#/z", True),
    ],
)
def test_filters_meet_where_a_topic_matches_both(a: str, b: str, expected: bool) -> None:
    assert meet(a.split("/"), b.split("/")) is expected
    assert meet(b.split("/"), a.split("/")) is expected


def test_what_a_template_can_make() -> None:
    assert published("p/{1}/x{2}", Filter("+/a/#")) == ["p", "+", "+", "#"]


def test_a_model_may_be_bounded(tmp_path: Path) -> None:
    text = SMALLEST + "[model_limits]\nweights = 1000\n"
    assert _load(tmp_path, text).model_limits.weights == 1000
    for bad in ("rank = 9", "nodes = 0", "activations = 2147483648", "bytes = 1"):
        with pytest.raises(ConfigError, match=bad.split()[0]):
            _load(tmp_path, SMALLEST + f"[model_limits]\n{bad}\n")
