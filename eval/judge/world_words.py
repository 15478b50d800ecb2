"""What an effect of the world looks like, in a few words: how the tiny judge says what it sees and what was asked."""

from collections.abc import Mapping

__all__ = ["WORDS", "elements", "phrase"]

# By parameter: where it is positive, and where it is negative.
SIGNED = {
    "dx": ("moves right", "moves left"), "dy": ("sinks", "rises"), "grow": ("grows", "shrinks"),
    "turn": ("spins", "spins back"), "squash": ("flattens", "stretches"), "flip": ("flips", "flips"),
    "lean": ("leans", "leans"), "sway": ("sways", "sways"), "bounce": ("bounces", "bounces"),
    "wobble": ("wobbles", "wobbles"), "jelly": ("jiggles", "jiggles"), "vanish": ("vanishes", "vanishes"),
    "zoom": ("zoom in", "zoom out"), "roll": ("camera rolls", "camera rolls back"),
    "pan_x": ("pan right", "pan left"), "pan_y": ("pan down", "pan up"), "quake": ("quake", "quake"),
    "fisheye": ("fisheye", "fisheye"), "swirl": ("swirl", "swirl back"), "ripple": ("ripples", "ripples"),
    "drip": ("drips", "drips"), "wind": ("wind", "wind"), "slide": ("background slides", "background slides back"),
    "saturation": ("vivid", "pale"), "brightness": ("bright", "dark"), "contrast": ("contrast", "flat"),
    "hue": ("hues turn", "hues turn"), "invert": ("negative", "negative"), "vignette": ("vignette", "vignette"),
    "daynight": ("day and night", "day and night"), "poster": ("flat colours", "flat colours"),
    "mosaic": ("mosaic", "mosaic"), "pixels": ("pixels", "pixels"), "ink": ("ink lines", "ink lines"),
    "clay": ("clay", "clay"), "blur": ("blur", "blur"), "glow": ("glow", "glow"),
    "keep": ("colours kept", "colours kept"), "motley": ("motley", "motley"),
}  # fmt: skip
# By parameter: the colour that belongs to it, and the words around it.
COLOURED = {
    "tint": ("tint", "{} light"), "paint": ("paint", "painted {}"), "backdrop": ("backdrop", "{} background"),
    "sketch": ("paper", "drawn on {}"), "particles": ("grain", "{} particles"),
}  # fmt: skip
COLOURS = {
    "black": (0.05, 0.05, 0.05), "grey": (0.5, 0.5, 0.5), "white": (1, 1, 1), "red": (1, 0.1, 0.1),
    "orange": (1, 0.55, 0.1), "yellow": (1, 0.9, 0.15), "green": (0.2, 0.8, 0.25), "cyan": (0.2, 0.8, 0.85),
    "blue": (0.15, 0.3, 0.95), "purple": (0.6, 0.2, 0.85), "pink": (1, 0.5, 0.75), "brown": (0.5, 0.3, 0.15),
}  # fmt: skip
# How a clip departs from what it would show.
WORDS = {"still": "nothing", "noise": "noise", "noisy": "grainy", "faint": "faint"}


def elements(parameters: Mapping[str, float | str]) -> tuple[str, ...]:
    """The things that happen, the subject's first, in the table's order of names."""
    found = []
    if parameters.get("swap"):
        found.append(f"becomes {parameters['swap_sprite']}")
    for slot in ("first", "second"):
        if parameters.get(f"{slot}_visitor"):
            found.append("a twin" if parameters.get(f"{slot}_twin") else str(parameters[f"{slot}_sprite"]))
    found = list(dict.fromkeys(found))  # two of a kind are named once
    for name, (positive, negative) in SIGNED.items():
        value = parameters.get(name, 0)
        if isinstance(value, str) or not value:
            continue
        found.append(positive if value > 0 else negative)
    for name, (prefix, words) in COLOURED.items():
        if parameters.get(name):
            found.append(words.format(_nearest(parameters, prefix)))
    return tuple(found)


def phrase(parameters: Mapping[str, float | str]) -> str:
    return ", ".join(elements(parameters)) or WORDS["still"]


def _nearest(parameters: Mapping[str, float | str], prefix: str) -> str:
    """The name of the colour that lies nearest."""
    value = [float(parameters.get(f"{prefix}_{channel}", 0)) for channel in "rgb"]
    return min(COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(value, COLOURS[name], strict=True)))
