"""Finding the tokens of a prompt that give an effect away without describing it.

LoRAs are often trained with a made-up trigger word ("sq41sh squish effect"). A hypernetwork that reads such a word can
look the effect up instead of understanding the description, and then knows nothing of an effect it has not seen.

The rules, on the words of each prompt in lower case:
  leet    letters with digits or signs set among them: "sq41sh", "c0wg1rl", "m@sk". Numbers with a unit or an ordinal
          ending ("3d", "480p", "2nd"), plain words with a number behind them ("mp4", "level2") are no such thing.
  name    the effect's own name as the manifest writes it: "dj_cat", "squish".
  coined  a word of one effect alone that does not look like English: without a vowel ("sks"), or with a pair of
          letters that English words do not have ("ohwx": wx). Abbreviations in common use are spared.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Trigger", "find_triggers"]

WORD = re.compile(r"[a-z0-9@$_]+(?:'[a-z]+)?")
UNIT = re.compile(
    r"\d+(?:st|nd|rd|th|s|x|d|k|p|i|m|g|kg|mm|cm|km|ft|in|px|mp|mb|gb|hz|khz|fps|bit|sec|min|am|pm|deg|mph|kmh|hd|f|c)?"
    r"|\d+(?:x\d+)+"
)
NUMBERED = re.compile(r"[a-z]+\d+")
FOREIGN_PAIR = re.compile(
    "bq|bx|c[jvx]|dx|f[qx]|g[qx]|hx|j[bcdfghjklmnpqrstvwxyz]|k[qx]|lx|mx|p[xz]|q[bcdfghjklmnopqrstvwxyz]|sx|"
    "v[bfhjmpqtwxz]|w[qvxz]|x[jkz]|z[jqx]"
)
ABBREVIATION = re.compile(
    "brr+|cctv|cgi|crt|dlp|dslr|dvd|fps|g?rrr?|gps|h2o|hdr|hmm|https?|jpe?g|kph|lcd|mmm|mph|mrs|mtv|nft|npc|nth|nyc|"
    "png|psst|pst|rgb|rpg|sfx|shh|tsk|tvs|vcr|vfx|vhs|y2k|zzz"
)


@dataclass(frozen=True, slots=True, order=True)
class Trigger:
    """A token that leaks the effect, and by which rule."""

    token: str
    kind: Literal["leet", "name", "coined"]


def find_triggers(prompts: Mapping[str, Sequence[str]]) -> dict[str, list[Trigger]]:
    """The suspicious tokens of each effect, sorted; effects without any are left out.

    Args:
        prompts: effect name -> its prompts.
    """
    users: dict[str, set[str]] = defaultdict(set)
    for effect, texts in prompts.items():
        for text in texts:
            for word in words(text):
                users[word].add(effect)
    found: dict[str, set[Trigger]] = defaultdict(set)
    for word, effects in users.items():
        kind = "leet" if is_leet(word) else "coined" if len(effects) == 1 and is_coined(word) else None
        if kind is not None:
            for effect in effects:
                found[effect].add(Trigger(word, kind))
    for effect, texts in prompts.items():
        name = effect.strip().lower()
        verbatim = re.compile(rf"(?<![a-z0-9_]){re.escape(name)}(?![a-z0-9_])")
        if any(verbatim.search(text.lower()) for text in texts):
            found[effect] = {t for t in found[effect] if t.token != name} | {Trigger(name, "name")}
    return {effect: sorted(triggers) for effect, triggers in found.items()}


def words(text: str) -> list[str]:
    """Words in lower case; hyphens, slashes and punctuation separate, an apostrophe's ending is dropped."""
    return [word.partition("'")[0].strip("_@$") for word in WORD.findall(text.lower())]


def is_leet(word: str) -> bool:
    return any(map(_mixes_signs, word.split("_")))


def _mixes_signs(part: str) -> bool:
    if part.isalpha() or not any(c.isalpha() for c in part) or ABBREVIATION.fullmatch(part):
        return False
    return not (UNIT.fullmatch(part) or NUMBERED.fullmatch(part))


def is_coined(word: str) -> bool:
    if len(word) < 3 or not word.isalpha() or ABBREVIATION.fullmatch(word):
        return False
    return not re.search("[aeiouy]", word) or bool(FOREIGN_PAIR.search(word))
