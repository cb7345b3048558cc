"""Settings: where a value comes from, what is allowed, what is never shown."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxgate_mw.errors import ConfigurationError
from fluxgate_mw.settings import Settings, mask_url


def test_argument_beats_environment_beats_default():
    """The nearer source wins, and an empty variable is not set."""
    environ = {"FLUXGATE_SERVICE": "from-env", "FLUXGATE_ENVIRONMENT": " ", "FLUXGATE_STREAM_KEY": "k"}
    settings = Settings.load({"service": "argument"}, environ)
    assert (settings.service, settings.environment, settings.stream_key) == ("argument", None, "k")
    assert Settings.load({"service": None}, environ).service == "from-env"


@pytest.mark.parametrize("name", ["price_file", "redis_url", "durable", "queue_max_events", "flusher", "service"])
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_argument_is_not_set(name, empty):
    """As an empty variable is: the environment counts, else the default."""
    assert getattr(Settings.load({name: empty}, {}), name) == getattr(Settings.load({}, {}), name)
    assert Settings.load({"service": empty}, {"FLUXGATE_SERVICE": "from-env"}).service == "from-env"


def test_an_empty_argument_of_no_setting_is_an_error():
    """A typo fails, whatever its value."""
    with pytest.raises(ConfigurationError, match="redis_uri: no such setting"):
        Settings.load({"redis_uri": ""}, {})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("durable", "maybe", "expected one of 1, true, yes"),
        ("queue_max_events", "0", "expected a whole number from 1 to"),
        ("queue_max_events", "1.5", "expected a whole number"),
        ("emit_interval_s", "nan", "expected a number from 0.001 to 60"),
        ("shutdown_timeout_s", "-1", "expected a number from 0 to 3600"),
        ("redis_url", "http://cache", "starts with redis://, rediss://, unix://"),
        ("redis_url", "redis://cache:port", "with a port from 0 to 65535"),
        ("redis_url", "unix://", "expected unix:///path/of/the.sock"),
        ("redis_url", "unix:///", "expected unix:///path/of/the.sock"),
        ("redis_url", "unix://run/redis.sock", "with the whole path behind three slashes"),
        ("redis_url", "redis+cluster://", "the name of a host is missing"),
        (
            "redis_url",
            "rediss+cluster://node:7000,",
            "expected rediss+cluster://host:port, several separated by commas",
        ),
        ("redis_url", "redis+cluster://:7000", "the name of a host is missing"),
        ("redis_url", "redis+sentinel:///costs", "the name of a host is missing"),
        ("redis_url", "redis+sentinel://guard", "the service's name is missing"),
        ("redis_url", "redis+sentinel://guard/costs/one", "expected the number of a database"),
        ("redis_url", "redis+cluster://node:7000/3", "a cluster has no database but 0"),
        ("redis_url", "redis://a,b", "several are redis+sentinel://host,host/service or redis+cluster://"),
        ("redis_url", "redis://cache/costs", "expected the number of a database"),
        ("data_dir", "~nobody-of-that-name/x", "~nobody-of-that-name is nobody's home folder"),
        ("spool_max_bytes", "1GB", "expected a whole number from 65536 to 1125899906842624"),
        ("store_url", "mysql://x", "starts with sqlite://"),
        ("flusher", "foreground", "expected one of none, background"),
        ("log_level", "LOUD", "expected one of DEBUG, INFO, WARNING, ERROR"),
        ("provider_hosts", "127.0.0.1", "expected host[:port]=provider"),
        ("provider_hosts", "http://127.0.0.1:8000=openai", "expected host[:port]=provider"),
        ("provider_hosts", "llm.example/v1=openai", "expected host[:port]=provider"),
        ("provider_hosts", "llm.example:port=openai", "expected host[:port]=provider"),
        ("provider_hosts", "llm.example=", "expected host[:port]=provider"),
    ],
)
@pytest.mark.parametrize("source", ["argument", "environment"])
def test_a_bad_value_names_key_source_and_what_is_allowed(name, value, message, source):
    """One line that says what to do."""
    key = name if source == "argument" else f"FLUXGATE_{name.upper()}"
    arguments, environ = ({name: value}, {}) if source == "argument" else ({}, {key: value})
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(arguments, environ)
    assert str(caught.value).startswith(f"{key} (from the {source}): ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_argument_is_an_error_that_names_the_nearest():
    """A typo in code fails at once."""
    with pytest.raises(ConfigurationError, match=r"redis_uri: no such setting; did you mean redis_url\?"):
        Settings.load({"redis_uri": "redis://x"}, {})


def test_an_unknown_variable_is_a_log_line_that_names_the_nearest(caplog):
    """A typo in a deployment is said, and a test's own variables are not."""
    with caplog.at_level(logging.WARNING):
        Settings.load({}, {"FLUXGATE_REDIS_ULR": "redis://x", "FLUXGATE_TEST_REDIS_URL": "redis://y"})
    assert caplog.messages == ["FLUXGATE_REDIS_ULR is no setting of fluxgate-mw; did you mean FLUXGATE_REDIS_URL?"]


def test_secrets_are_masked():
    """Neither password nor key nor token is in the repr, and nothing else is hidden."""
    secrets = {
        "redis_url": "redis://:pw-1@cache:6379/0",
        "store_url": "postgresql://ann:pw-2@db/x?password=pw-3",
        "api_key": "pw-4",
        "dashboard_token": "pw-5",
    }
    shown = repr(Settings.load({**secrets, "service": "shop"}, {}))
    assert "pw-" not in shown
    assert "service='shop'" in shown
    assert "cache:6379" in shown


@pytest.mark.parametrize("password", ["hunter/2", "12/hunter", "12#hunter", "12?hunter", "1@2/hunter", "℀hunter"])
@pytest.mark.parametrize("user", ["", "ann"])
def test_a_password_that_breaks_its_address_is_not_shown(user, password):
    """A character that ends the host of an address is to be written in its code, and the error repeats nothing."""
    url = f"redis://{user}:{password}@cache:6379/0"
    with pytest.raises(ConfigurationError, match="in a password, write / as %2F") as caught:
        Settings.load({}, {"FLUXGATE_REDIS_URL": url})
    assert "hunter" not in str(caught.value)


def test_an_error_of_the_store_names_no_store_that_this_version_refuses():
    """Who mends the address takes the next one from the message."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.load({"store_url": "mysql://x"}, {})
    assert "postgresql" not in str(caught.value)
    assert "clickhouse" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://:6379",
        "redis:///1",
        "redis://cache:6379/0/",
        "rediss://[::1]:6380/2",
        "unix://ann:pw@/run/redis.sock?db=1",
        "redis+sentinel://ann:pw@Guard-1:26379,[::1]:26379/costs/3?sentinel_password=p",
        "redis+cluster://ann:pw@node_1:7000,10.0.0.7:7001",
        "rediss+cluster://node/0",
    ],
)
def test_an_address_that_can_be_reached_is_taken(url):
    """No host at all is this machine, as redis-py has it; a cluster has database 0."""
    assert Settings.load({"redis_url": url}, {}).redis_url == url


def test_a_user_without_a_home_is_told_to_name_a_folder(monkeypatch):
    """A container may run as a user that nobody knows, and then only a folder that is named can be one."""

    def nobodys() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobodys)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    with pytest.raises(ConfigurationError, match="data_dir: this user has no home folder; set FLUXGATE_DATA_DIR"):
        Settings.load({}, {})
    assert Settings.load({"data_dir": "/srv/costs"}, {}).data_dir == Path("/srv/costs")


@pytest.mark.parametrize("url", ["redis://cache?password=a@b=c", "unix:///run/a@b.sock", "redis://:a@b@cache/0"])
def test_an_at_sign_elsewhere_is_taken(url):
    """What redis-py reads as it was meant is left alone."""
    assert Settings.load({"redis_url": url}, {}).redis_url == url


def test_settings_are_frozen():
    """Nobody changes them under a running delivery."""
    with pytest.raises(AttributeError):
        Settings.load({}, {}).service = "x"


def test_places_follow_the_data_folder(tmp_path):
    """One folder holds everything unless told otherwise."""
    settings = Settings.load({"data_dir": tmp_path}, {})
    assert settings.spool_path == tmp_path / "spool"
    assert settings.effective_store_url == f"sqlite:///{tmp_path}/fluxgate.sqlite3"
    assert Settings.load({"data_dir": "~/x"}, {}).data_dir == Path.home() / "x"


@pytest.mark.parametrize(
    "value", ["127.0.0.1:80=openai, LLM.example=groq", {"127.0.0.1:80": "openai", "llm.example": "groq"}]
)
def test_provider_hosts(value):
    """Hosts are read without regard to case, from text or a mapping."""
    hosts = Settings.load({"provider_hosts": value}, {}).provider_hosts
    assert dict(hosts) == {"127.0.0.1:80": "openai", "llm.example": "groq"}


@pytest.mark.parametrize("host", ["http://llm.example", "llm.example/v1", "", "::1]:80"])
def test_hosts_of_a_mapping_are_checked_too(host):
    """An address matches no host, and would leave its calls without a price."""
    with pytest.raises(ConfigurationError, match="expected host"):
        Settings.load({"provider_hosts": {host: "openai"}}, {})


@given(st.text(max_size=60))
def test_masking_never_raises_on_urls_that_settings_accept(text):
    """Whatever passes as an address can be shown."""
    try:
        settings = Settings.load({"redis_url": f"redis://{text}"}, {})
    except ConfigurationError:
        return
    assert "redis" in mask_url(settings.redis_url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://cache/0", "redis://cache/0"),
        ("redis://:pw@cache/0", "redis://:***@cache/0"),
        ("unix:///run/redis.sock?password=pw", "unix:///run/redis.sock?***"),
        ("sqlite:////var/x.sqlite3", "sqlite:////var/x.sqlite3"),
        ("postgresql://ann:12/pw@db/x", "postgresql://***"),
        ("postgresql://ann:12#pw@db/x", "postgresql://***"),
    ],
)
def test_masked_urls(url, shown):
    """Host and path stay readable."""
    assert mask_url(url) == shown
