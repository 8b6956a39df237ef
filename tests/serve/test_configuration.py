"""Settings from flags, environment and TOML: who wins, and whose fault a wrong value is."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from cli.main import app
from kaem.errors import ConfigError
from serve.calls.tokens import read_tokens
from serve.configuration import load_settings
from serve.settings import ServeSettings

NAMES = {"port": "--port", "grace": "--grace"}


def load(flags=None, environ=None, **options):
    return load_settings(flags or {}, names=NAMES, environ=environ or {}, **options)


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "serve.toml"
        path.write_text(text)
        return path

    return write


def test_nothing_given_is_the_defaults():
    assert load() == ServeSettings()


def test_flags_win_over_the_environment_which_wins_over_the_file(toml):
    config = toml('port = 1\nname = "file"\nworkers = 1\ngrace = 1\n')
    environ = {"KAEM_SERVE_PORT": "2", "KAEM_SERVE_NAME": "environment"}
    settings = load({"port": 3, "name": None}, environ, config=config)
    assert (settings.port, settings.name, settings.workers, settings.grace) == (3, "environment", 1, 1.0)


def test_every_setting_can_come_from_each_source(toml):
    other = ServeSettings(
        **{
            "host": "127.0.0.2",
            "port": 5,
            "name": "n",
            "poll_models": 1.5,
            "admin": "unix:a",
            "provider": "cuda",
            "device": "cuda:1,cuda:2",
            "workers": 2,
            "max_batch": 8,
            "max_chunk_bytes": 4096,
            "interactive": 3,
            "max_queue": 7,
            "max_pending_calls": 11,
            "max_memory": 32,
            "queue_delay": 9,
            "keepalive": 1.5,
            "max_connection_age": 2.5,
            "max_connection_grace": 3.5,
            "grace": 0.5,
            "insecure": True,
            "certificate_file": "c",
            "key_file": "k",
            "client_ca_file": "a",
            "token_file": "t",
            "token_rate": 2.5,
            "token_concurrency": 4,
            "http_host": "::1",
            "http_port": 6,
            "http_samples": True,
            "log_format": "json",
            "log_calls": True,
            "traces": True,
        }
    )
    values = dataclasses.asdict(other)
    assert all(values[name] != default for name, default in dataclasses.asdict(ServeSettings()).items())
    assert load(environ={f"KAEM_SERVE_{name.upper()}": str(value) for name, value in values.items()}) == other
    lines = [
        f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for name, value in values.items()
    ]
    assert load(config=toml("\n".join(lines))) == other
    assert load(environ={"KAEM_SERVE_CONFIG": str(toml("\n".join(lines)))}) == other
    assert load(values) == other


def test_a_variable_can_switch_off_what_the_file_switches_on_and_an_empty_one_says_nothing(toml):
    config = toml("insecure = true\nport = 4\n")
    settings = load(environ={"KAEM_SERVE_INSECURE": "no", "KAEM_SERVE_PORT": ""}, config=config)
    assert (settings.insecure, settings.port) == (False, 4)


@pytest.mark.parametrize(
    ("flags", "environ", "text", "message"),
    [
        ({"port": 70000}, {}, "", r"port is 70000, outside 0 .. 65535 \(--port\)"),
        ({}, {"KAEM_SERVE_PORT": "70000"}, "", r"port is 70000.*\(KAEM_SERVE_PORT\)"),
        ({}, {}, "port = 70000", r"port is 70000.*serve.toml\)"),
        (
            {},
            {"KAEM_SERVE_PORT": "tcp://10.0.0.1:1"},
            "",
            r"number, got 'tcp://10.0.0.1:1' \(KAEM_SERVE_PORT\)",
        ),
        ({}, {"KAEM_SERVE_TOKEN_RATE": "x"}, "", r"token_rate must be a number, got 'x' \(KAEM_SERVE_TOKEN_RATE\)"),
        ({}, {"KAEM_SERVE_INSECURE": "maybe"}, "", r"true or false, got 'maybe' \(KAEM_SERVE_INSECURE\)"),
        ({}, {"KAEM_SERVE_TOKEN_FIEL": "x"}, "", r"unknown setting token_fiel \(KAEM_SERVE_TOKEN_FIEL\)"),
        ({}, {}, "prot = 5", r"unknown setting prot \(.*serve.toml\)"),
        ({}, {}, 'port = "5"', r"port must be a whole number, got '5' \(.*serve.toml\)"),
        ({}, {}, "port = true", r"port must be a whole number, got True \(.*serve.toml\)"),
        ({}, {}, "port = ", r"cannot read .*serve.toml as TOML"),
        ({"grace": -1.0}, {}, "port = 5", r"grace is -1.0; .*\(--grace\)"),
        ({}, {"KAEM_SERVE_KEY_FILE": "k"}, "", r"key_file is given without .*\(KAEM_SERVE_KEY_FILE\)"),
    ],
)
def test_a_wrong_value_is_blamed_on_where_it_came_from(toml, flags, environ, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(flags, environ, config=toml(text))
    assert "--port" not in caught.value.message or "port" in flags


def test_a_misspelt_setting_is_told_its_name(toml):
    with pytest.raises(ConfigError) as caught:
        load(environ={"KAEM_SERVE_TOKEN_FIEL": "x"})
    assert "token_file" in caught.value.hint


def test_a_config_that_is_absent_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no configuration file at .*absent\.toml"):
        load(environ={"KAEM_SERVE_CONFIG": str(tmp_path / "absent.toml")})


def test_the_command_has_an_option_of_the_same_name_for_every_setting():
    options = {option.name: option for option in get_command(app).commands["serve"].params}
    for setting in dataclasses.fields(ServeSettings):
        assert options[setting.name].opts == [f"--{setting.name.replace('_', '-')}"]
        assert options[setting.name].default is None  # so that the environment and the file have their say
        assert options[setting.name].help.startswith(setting.metadata["meaning"][:40])


def test_help_loads_nothing_that_is_slow_to_load():
    code = "import sys, cli.main; print(sorted({'numpy', 'grpc', 'google', 'asyncio', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("words", "variables", "text", "message"),
    [
        (["--token-rate", "0"], {}, "", "(--token-rate)"),
        (["--max-memory", "1"], {}, "", "(--max-memory)"),
        ([], {"KAEM_SERVE_LOG_FORMAT": "xml"}, "", "(KAEM_SERVE_LOG_FORMAT)"),
        (["--certificate-file", "no.crt", "--key-file", "no.key"], {}, "", "no.crt: No such file"),
        ([], {}, 'token_file = "no.tokens"', "no.tokens: No such file"),
        (["--host", "0.0.0.0", "--port", "0"], {}, "", "reachable by other machines"),
        (["--http-host", "0.0.0.0", "--http-port", "0", "--port", "0"], {}, "", "reachable by other machines"),
    ],
)
def test_the_command_refuses_a_wrong_setting_before_it_serves(
    artifact_path, toml, monkeypatch, words, variables, text, message
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = ["--config", str(toml(text))] if text else []
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        app(["serve", str(artifact_path), *words, *config], standalone_mode=False)
    assert caught.value.exit_code == 2


def test_the_guide_lists_every_setting_and_its_example_loads(toml):
    guide = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    for field in dataclasses.fields(ServeSettings):
        assert re.search(rf"^\|.*`{field.name}`.*\|", guide, flags=re.MULTILINE), field.name
    [example] = re.findall(r"```toml\n(.*?)```", guide, flags=re.DOTALL)
    assert load(config=toml(example)).http_port == 9090


def test_the_tokens_of_the_guide_are_understood(tmp_path):
    guide = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    [example] = re.findall(r"```text\n(.*?)```", guide, flags=re.DOTALL)
    (tmp_path / "tokens").write_text(example)
    assert [caller.name for caller in read_tokens(tmp_path / "tokens")] == ["alice", "batch", "guest"]
