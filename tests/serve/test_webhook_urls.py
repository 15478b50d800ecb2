"""Where events may go: one reading of every URL, allowed hosts and ports alone, addresses that are for everybody."""

import re
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2e.errors import ConfigError
from serve.webhook_urls import Forbidden, Target, WebhookSettings, checked_addresses, checked_target, lookup

HOST = "hooks.example.com"
SETTINGS = WebhookSettings(hosts=(HOST, "*.partner.org", "192.0.2.7", "[2001:db8::7]"), ports=(443, 8443))


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://hooks.example.com", Target("https", HOST, 443, "/")),
        ("HTTPS://Hooks.Example.COM:8443/a/b?c=d%20e&f=/?", Target("https", HOST, 8443, "/a/b?c=d%20e&f=/?")),
        ("https://hooks.example.com?x", Target("https", HOST, 443, "/?x")),
        ("https://hooks.example.com/@evil.com", Target("https", HOST, 443, "/@evil.com")),
        ("https://a.partner.org/", Target("https", "a.partner.org", 443, "/")),
        ("https://a.b.partner.org/", Target("https", "a.b.partner.org", 443, "/")),
        ("https://192.0.2.7/", Target("https", "192.0.2.7", 443, "/")),
        ("https://[2001:db8::7]:8443/", Target("https", "2001:db8::7", 8443, "/")),
    ],
)
def test_what_is_allowed(url: str, target: Target) -> None:
    assert checked_target(url, SETTINGS) == target


@pytest.mark.parametrize(
    ("url", "message"),
    [
        *((url, "not a plain URL") for url in (
            "", " ", "hooks.example.com", "//hooks.example.com/", "ftp://hooks.example.com/", "file:///etc/passwd",
            "gopher://hooks.example.com/", "javascript:alert(1)", "data:text/plain,x", "https:hooks.example.com",
            "https:/hooks.example.com/", "https:///hooks.example.com/", "https://", "https:///", "https://?x",
            "https://user@hooks.example.com/", "https://user:pass@hooks.example.com/", "https://@hooks.example.com/",
            "https://hooks.example.com@evil.com/", "https://hooks.example.com:443@evil.com/",
            "https://evil.com\\@hooks.example.com/", "https://hooks.example.com\\@evil.com/",
            "https://hooks.example.com\\.evil.com/", "https:\\\\hooks.example.com\\", "https://hooks.example.com/\\x",
            "https://hooks.example.com/#", "https://hooks.example.com#@evil.com/", "https://hooks.example.com/a#b",
            " https://hooks.example.com/", "https://hooks.example.com/ ", "https://hooks.example.com/a b",
            "https://hooks.example.com/\n", "https://hooks.example.com\n", "https://hooks.example.com/\r\nx: y",
            "https://hooks.example.com/\t", "https://hooks.example.com/\0", "https://hooks\t.example.com/",
            "https://hooks.example.com./", "https://hooks..example.com/", "https://.hooks.example.com/",
            "https://-hooks.example.com/", "https://hooks_.example.com/", "https://%68ooks.example.com/",
            "https://hooks.example.com%2eevil.com/", "https://hooks.example.com%00/", "https://hooks\u3002example.com/",
            "https://hooks\u200b.example.com/", "https://ho\u212ar.com/", "https://\u24d7ooks.example.com/",
            "https://hooks.example.com/\u00e9", "https://hooks.example.com/%", "https://hooks.example.com/%2",
            "https://hooks.example.com/%zz", "https://hooks.example.com/<x>", 'https://hooks.example.com/"',
            "https://hooks.example.com/{x}", "https://hooks.example.com/^", "https://hooks.example.com/|",
            "https://hooks.example.com:/", "https://hooks.example.com:0/", "https://hooks.example.com:0443/",
            "https://hooks.example.com:443x/", "https://hooks.example.com:-1/", "https://hooks.example.com:1e3/",
            "https://hooks.example.com:4430000/", "https://hooks.example.com:443:443/", "https://*.partner.org/",
            "https://0x7f.1/", "https://0x7f000001/", "https://127.1/", "https://127.0.1/", "https://2130706433/",
            "https://017700000001/", "https://0177.0.0.1/", "https://127.0.0.1./", "https://127.0.0.01/",
            "https://192.0.2.07/", "https://192.0.2.0x7/", "https://3221225991/", "https://192.0.519/",
            "https://a.127/", "https://a.0x7f/", "https://256.1.1.1/", "https://1.2.3.4.5/", "https://[::1/",
            "https://::1/", "https://[::1%25lo]/", "https://[fe80::1%eth0]/", "https://[0:0:0:0:0:0:0:1]/",
            "https://[2001:DB8:0::7]/", "https://[2001:db8:0::7]/", "https://[192.0.2.7]/", "https://[v1.x]/",
            "https://[::ffff:192.0.2.7]/", "https://[hooks.example.com]/",
            f"https://{'a' * 64}.partner.org/", f"https://{'a.' * 130}partner.org/",
            f"https://hooks.example.com/{'a' * 2048}",
        )),
        ("http://hooks.example.com/", "give an https URL"),
        *((url, "not on the list of allowed hosts") for url in (
            "https://example.com/", "https://evil.com/", "https://xhooks.example.com/", "https://a.hooks.example.com/",
            "https://hooks.example.com.evil.com/", "https://partner.org/", "https://xpartner.org/",
            "https://partner.org.evil.com/", "https://127.0.0.1/", "https://localhost/", "https://169.254.169.254/",
            "https://0.0.0.0/", "https://[::1]/", "https://[::]/", "https://10.0.0.1/", "https://192.0.2.8/",
            "https://metadata.google.internal/", "https://[2001:db8::8]/",
        )),
        *((url, "this port is not allowed; use one of 443, 8443") for url in (
            "https://hooks.example.com:80/", "https://hooks.example.com:22/", "https://hooks.example.com:65536/",
        )),
    ],
)  # fmt: skip
def test_what_is_not_allowed(url: str, message: str) -> None:
    with pytest.raises(Forbidden, match=re.escape(message)) as error:
        checked_target(url, SETTINGS)
    assert "\n" not in str(error.value) and "evil" not in str(error.value)


def test_nothing_is_allowed_by_default_and_http_where_it_is() -> None:
    with pytest.raises(Forbidden, match="allowed hosts"):
        checked_target(f"https://{HOST}/", WebhookSettings())
    plain = WebhookSettings(hosts=(HOST,), ports=(80,), allow_http=True)
    assert checked_target(f"http://{HOST}/x", plain) == Target("http", HOST, 80, "/x")
    with pytest.raises(Forbidden, match="port"):
        checked_target(f"https://{HOST}/x", plain)


PIECES = st.lists(
    st.sampled_from([
        "https://", "http://", HOST, "evil.com", "a.partner.org", "@", ":", "\\", "/", "//", "?", "#", ".", "443",
        "%2f", "%", "\t", "\n", " ", "[", "]", "::1", "127.0.0.1", "0x7f", ";", "&", "\u3002", "\uff0f", "a", "..",
    ]),
    max_size=8,
).map("".join)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(rest=PIECES)
@example(rest=".evil.com")
@example(rest="/..//evil.com")
def test_what_is_allowed_is_read_alike_by_others(rest: str) -> None:
    url = f"https://{HOST}{rest}"
    try:
        target = checked_target(url, SETTINGS)
    except Forbidden:
        return
    for host, port in ((urlsplit(url).hostname, urlsplit(url).port), (httpx.URL(url).host, httpx.URL(url).port)):
        assert host == target.host and (port or 443) == target.port
    assert httpx.URL(f"https://127.0.0.1{target.path}").host == "127.0.0.1"


GOOD = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8", "2002:808:808::1"]
NOWHERE = ["169.254.169.254", "169.254.0.1", "0.0.0.0", "::", "224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1",
           "fe80::1", "fe80::1%1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "x"]  # fmt: skip
PRIVATE = [
    "127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1",
    "100.127.255.255", "198.18.0.1", "192.0.2.1", "203.0.113.1", "240.0.0.1", "255.255.255.255", "::1", "fc00::1",
    "fd00:ec2::254", "fec0::1", "2001:db8::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "::ffff:100.64.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1",
]  # fmt: skip


@pytest.mark.parametrize("address", GOOD)
def test_addresses_that_are_reached_from_everywhere(address: str) -> None:
    assert [str(found) for found in checked_addresses([address, "8.8.4.4"])][1] == "8.8.4.4"


@pytest.mark.parametrize("address", PRIVATE + NOWHERE)
def test_one_other_address_is_one_too_many(address: str) -> None:
    for found in ([address], ["8.8.8.8", address], [address, "8.8.8.8"]):
        with pytest.raises(Forbidden, match="not reached from everywhere"):
            checked_addresses(found)


def test_private_networks_where_they_are_allowed() -> None:
    assert len(checked_addresses(PRIVATE, allow_private=True)) == len(PRIVATE)
    for address in NOWHERE:
        with pytest.raises(Forbidden):
            checked_addresses(["10.0.0.1", address], allow_private=True)
    with pytest.raises(Forbidden):
        checked_addresses([])


def test_every_address_of_a_host_is_looked_up() -> None:
    assert set(lookup("localhost", 443)) <= {"127.0.0.1", "::1"} and lookup("127.0.0.1", 1) == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hosts": ["https://x.com"]}, "is no host"), ({"hosts": ["*"]}, "is no host"), ({"hosts": ["*."]}, "is no"),
        ({"hosts": ["a.*.com"]}, "is no host"), ({"hosts": ["*.127.0.0.1"]}, "is no host"), ({"hosts": [""]}, "is no"),
        ({"hosts": ["0x7f.1"]}, "is no host"), ({"hosts": ["x.com:443"]}, "is no host"), ({"host": ["x"]}, "host"),
        ({"lease_s": 10, "timeout_s": 10}, "lease_s must be more"), ({"secret": "hunter2"}, "not a webhook secret"),
        ({"ports": [0]}, "ports"),
        ({"secret": "whsec_c2hvcnQ="}, "24 to 64 bytes"), ({"secret": "whsec_\u00e9"}, "not a webhook secret"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        WebhookSettings.parse(values)
    assert "hunter" not in str(error.value) and "\n" not in str(error.value)


def test_a_secret_is_not_shown() -> None:
    secret = "whsec_" + "QUJD" * 10
    assert secret not in repr(WebhookSettings(secret=secret)) and WebhookSettings(secret=secret).secret == secret
