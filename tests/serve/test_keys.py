"""API keys: only hashes are kept, only whole keys are known."""

from pathlib import Path

import pytest
import yaml

from p2e.errors import ConfigError
from serve.keys import Keys, Unauthorised, main, new_key, secret_bytes


@pytest.fixture(scope="module")
def two() -> tuple[Keys, list[str]]:
    made = [new_key(name) for name in ("alice", "bob")]
    return Keys([entry for _, entry in made]), [token for token, _ in made]


def test_a_key_names_its_owner(two: tuple[Keys, list[str]]) -> None:
    keys, (alice, bob) = two
    assert keys.owner(f"Bearer {alice}").name == "alice" and keys.owner(f"bearer  {bob}").name == "bob"


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Basic {}", "{}", "Bearer {}x", "Bearer {} {}", "Bearer \u212a{}", "Bearer {}\n"],
)
def test_anything_else_is_refused(two: tuple[Keys, list[str]], header: str | None) -> None:
    keys, (alice, _) = two
    with pytest.raises(Unauthorised) as error:
        keys.owner(None if header is None else header.replace("{}", alice))
    assert error.value.status == 401 and alice not in error.value.message


def test_a_hash_is_no_key(two: tuple[Keys, list[str]]) -> None:
    keys, _ = two
    with pytest.raises(Unauthorised, match="not known"):
        keys.owner(f"Bearer {keys._keys[0].sha256}")


def test_without_keys_everybody_is_let_in() -> None:
    assert Keys().owner(None).name == "local"


def test_a_new_key_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["carol"]) == 0
    printed = capsys.readouterr().out
    token = printed.split("key (shown once): ")[1].split("\n")[0]
    (tmp_path / "keys.yaml").write_text(printed[printed.index("keys:") :])
    assert Keys.load(tmp_path / "keys.yaml").owner(f"Bearer {token}").name == "carol"
    assert token not in (tmp_path / "keys.yaml").read_text()
    secret = printed.split("secret of its webhooks: ")[1].split("\n")[0]
    assert Keys.load(tmp_path / "keys.yaml").webhook_secret("carol") == secret and len(secret_bytes(secret)) == 32


@pytest.mark.parametrize("given", [[], ["--help"], ["a", "b"], ["Not A Name"], ["local"]])
def test_a_wrong_name_is_one_line(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_that_would_let_everybody_in_is_refused(tmp_path: Path) -> None:
    entry = new_key("a")[1].model_dump()
    other = new_key("b")[1].model_dump()
    for content, message in (
        ({"keys": []}, "keys: List should have at least 1 item"),
        ({}, "keys: Field required"),
        ({"keys": [entry, entry]}, "name a is there twice"),
        ({"keys": [entry, other | {"sha256": entry["sha256"]}]}, "is there twice"),
        ({"keys": [entry | {"sha256": "plain"}]}, "sha256"),
        ({"keys": [entry | {"name": "local"}]}, "choose another name"),
        ({"keys": [entry | {"quota": 3}]}, "quota"),
    ):
        (tmp_path / "keys.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(ConfigError, match=message):
            Keys.load(tmp_path / "keys.yaml")
    with pytest.raises(ConfigError):
        Keys.load(tmp_path / "missing.yaml")
