"""The judge's words to a verdict. Whatever is wrong with them has a code and is never an exception of another kind."""

import json
import re
from typing import Any

from pydantic import ValidationError

from eval.judge.verdict import Verdict
from eval.metrics.base import Unscorable

__all__ = ["parse_verdict"]

FENCE = re.compile(r"\A```(?:json)?[ \t]*\n(.*?)\n?```\Z", re.DOTALL)
SPACE = " \t\r\n"  # JSON's, and no other


class _Refused(ValueError):
    """Raised from json's hooks, which see what the parsed value no longer shows."""

    def __init__(self, code: str, words: str) -> None:
        super().__init__(code, words)
        self.code, self.words = code, words


def parse_verdict(text: str | None, finish: str | None = "stop", refusal: str | None = None) -> Verdict:
    """Exactly one object that fits the schema; a code fence around it is taken off.

    Args:
        text: the message.
        finish: why it ended, as the server says.
        refusal: the server's field of that name.

    Raises:
        Unscorable: "refused", "cut_off" (the limit of tokens was met), "empty", "not_text" (half a surrogate pair),
            "not_json", "not_an_object", "several_objects", "duplicate_key", "not_finite" (NaN), "wrong_fields" (one too
            many or too few), "wrong_type" ("85/100", 7.0), "out_of_range" (101, -1).
    """
    if refusal:
        raise Unscorable("refused", _shown(refusal))
    if finish == "content_filter":
        raise Unscorable("refused", "the server's filter withheld the answer")
    if finish == "length":
        raise Unscorable("cut_off", f"the answer met the limit of tokens: {_shown(text or '')}")
    if text is None or not text.strip():
        raise Unscorable("empty", "the answer has no words")
    if finish not in ("stop", None):
        raise Unscorable("cut_off", f"the answer ended by {_shown(finish)}")
    values = _object(text)
    try:
        return Verdict.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = _shown(".".join(map(str, first["loc"])))
        kind = first["type"]
        if kind in ("missing", "extra_forbidden"):
            raise Unscorable("wrong_fields", f"{place}: {first['msg']}") from None
        if kind.startswith(("greater", "less", "string_too")):
            raise Unscorable("out_of_range", f"{place}: {first['msg']}") from None
        raise Unscorable("wrong_type", f"{place}: {first['msg']}") from None


def _object(text: str) -> dict[str, Any]:
    stripped = text.strip(SPACE)
    if found := FENCE.match(stripped):
        stripped = found[1].strip(SPACE)
    decoder = json.JSONDecoder(object_pairs_hook=_without_twins, parse_constant=_not_finite)
    try:
        value, end = decoder.raw_decode(stripped)
    except _Refused as error:
        raise Unscorable(error.code, error.words) from None
    except (ValueError, RecursionError):
        raise Unscorable("not_json", f"the answer is not JSON: {_shown(text)}") from None
    rest = stripped[end:].strip(SPACE + ",")
    if rest:
        code = "several_objects" if rest[0] in "{[" else "not_json"
        raise Unscorable(code, f"more follows the first object: {_shown(rest)}")
    if not isinstance(value, dict):
        raise Unscorable("not_an_object", f"the answer is JSON, but no object: {_shown(text)}")
    if any(0xD800 <= ord(letter) < 0xE000 for letter in json.dumps(value, ensure_ascii=False)):
        raise Unscorable("not_text", "the answer holds half a surrogate pair, which no text can")
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Refused("duplicate_key", f"{_shown(twice)} is given twice")
    return found


def _not_finite(word: str) -> Any:
    raise _Refused("not_finite", f"{word} is no number of points")


def _shown(text: str) -> str:
    """The beginning of someone else's words on one line, in ASCII."""
    return ascii(text)[1:-1][:120]
