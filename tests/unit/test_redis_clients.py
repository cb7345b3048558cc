"""Where a stream is: the forms of addresses, and what Sentinels and clusters reply."""

from __future__ import annotations

import pytest
from redis import exceptions
from redis.exceptions import ClusterDownError, MovedError, ReadOnlyError, ResponseError

from fluxgate_mw.buffer.redis_clients import RedisClients, _address, _owner, check_options
from fluxgate_mw.errors import ConfigurationError

SENTINEL = "rediss+sentinel://ann:pw@s1:26379,s2:26380/costs/3?ssl_ca_certs=/ca.pem"
LOGIN = "redis+sentinel://ann:pw@s1:26379/costs?sentinel_username=guard&sentinel_password=p%40%2F&socket_keepalive=yes"
CLUSTER = "redis+cluster://ann:pw@n1:7000,n2:7001"


@pytest.mark.parametrize(
    ("url", "address", "data", "expected"),
    [
        (SENTINEL, "db:6379", True, "rediss://ann:pw@db:6379/3?ssl_ca_certs=/ca.pem"),
        (SENTINEL, "s1:26379", False, "rediss://s1:26379?ssl_ca_certs=/ca.pem"),
        (LOGIN, "db:6379", True, "redis://ann:pw@db:6379/?socket_keepalive=yes"),
        (LOGIN, "s1:26379", False, "redis://guard:p%40%2F@s1:26379?socket_keepalive=yes"),
        (f"{SENTINEL}&sentinel_password=x", "s1:2", False, "rediss://:x@s1:2?ssl_ca_certs=/ca.pem"),
        (CLUSTER, "n2:7001", True, "redis://ann:pw@n2:7001/"),
        ("redis+sentinel://s1:26379/costs", "[::1]:6379", True, "redis://[::1]:6379/"),
    ],
)
def test_credentials_and_options_go_to_the_servers_that_hold_data(url, address, data, expected):
    """A Sentinel is given its own login or none, and no database; TLS and other options are for all."""
    assert RedisClients(url, "k", 0.5)._url_of(address, data=data) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (b"10.0.0.7", "10.0.0.7:7000"),
        (b"node.internal", "node.internal:7000"),
        (b"fd00::7", "[fd00::7]:7000"),
        (b"", "seed:7000"),
        (None, "seed:7000"),
        (b"?", "seed:7000"),
    ],
)
def test_a_node_without_a_name_is_the_one_that_replied(host, expected):
    """A cluster may name its nodes by address, by name, or not at all."""
    assert _address(host, 7000, "seed:6379") == expected


def test_the_owner_of_a_slot_is_found_or_the_cluster_is_down():
    """Ranges are inclusive; replicas and metadata after the owner are left alone."""
    slots = [[0, 99, [b"a", 1, b"id", []], [b"replica", 9, b"id", []]], [100, 16383, [b"b", 2, b"id"]]]
    assert [_owner(slots, slot, "s:1") for slot in (0, 99, 100, 16383)] == ["a:1", "a:1", "b:2", "b:2"]
    with pytest.raises(ClusterDownError):
        _owner(slots[:1], 100, "s:1")


@pytest.mark.parametrize(
    ("error", "asked_again"),
    [
        (exceptions.TimeoutError(), True),
        (ConnectionResetError(), True),
        (MovedError("3999 127.0.0.1:6381"), True),
        (ReadOnlyError(), True),
        (ClusterDownError("CLUSTERDOWN"), True),
        (ResponseError("WRONGTYPE"), False),
    ],
)
def test_the_server_is_located_again_where_the_error_may_mean_that_it_moved(error, asked_again):
    """An error of the data does not send us away; with one fixed address there is nobody to ask."""
    moving, fixed = RedisClients(CLUSTER, "k", 0.5), RedisClients("redis://a:1", "k", 0.5)
    moving._is_located = True
    moving.doubt(error)
    fixed.doubt(error)
    assert (moving._is_located, fixed._is_located) == (not asked_again, True)


@pytest.mark.parametrize(
    ("url", "option"),
    [
        ("redis://cache?db=hunter2", "db"),
        ("redis://cache?colour=hunter2", "colour"),
        ("redis://cache?health_check_interval=5&socket_timeout=hunter2", "socket_timeout"),
        ("redis://cache?ssl_ca_certs=hunter2", "ssl_ca_certs"),
        ("rediss://cache?ssl_cert_reqs=hunter2", "ssl_cert_reqs"),
        ("redis://cache?sentinel_password=hunter2", "sentinel_password"),
        ("redis+cluster://node?port=hunter2", "port"),
        ("unix:///run/redis.sock?host=hunter2", "host"),
    ],
)
def test_an_option_that_the_driver_cannot_use_is_named(url, option):
    """At the start, and not as a fault of every delivery; what was given for it may be a secret."""
    with pytest.raises(ConfigurationError, match=f"redis_url: redis-py knows no option '{option}'") as caught:
        check_options(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url", [SENTINEL, LOGIN, CLUSTER, "redis://cache", "redis://cache?decode_responses=True&client_name=shop&db=3"]
)
def test_options_that_the_driver_knows_are_taken(url):
    """Nothing is connected: none of these servers is there."""
    check_options(url)
