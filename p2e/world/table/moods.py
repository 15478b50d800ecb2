"""Training effects that change light and colour, or fill the air."""

from p2e.world.table.spec import EffectSpec, colour, effect

__all__ = ["MOODS"]

MOODS: tuple[EffectSpec, ...] = (
    effect(
        "train", "yellow_mood", "mood",
        tint=0.75, **colour("tint", 1.0, 0.88, 0.1),
    ),
    effect(
        "train", "red_mood", "mood",
        tint=0.75, **colour("tint", 1.0, 0.12, 0.1),
    ),
    effect(
        "train", "pink_mood", "mood",
        tint=0.75, **colour("tint", 1.0, 0.45, 0.75),
    ),
    effect(
        "train", "purple_mood", "mood",
        tint=0.75, **colour("tint", 0.6, 0.15, 0.95),
    ),
    effect(
        "train", "dark_mood", "mood",
        brightness=-0.8,
    ),
    effect(
        "train", "halloween_green", "mood",
        tint=0.75, vignette=0.8, **colour("tint", 0.2, 0.95, 0.25),
    ),
    effect(
        "train", "christmas_cozy", "mood",
        tint=0.6, particles=1.0, grain=0.1, drift_y=1.2,
        **colour("tint", 1.0, 0.6, 0.2), **colour("grain", 1.0, 1.0, 1.0),
    ),
    effect(
        "train", "timelapse", "mood",
        daynight=0.95, rate=3.0,
    ),
    effect(
        "train", "elegant_timelapse", "mood",
        daynight=0.9, rate=1.0, slide=1.2,
    ),
    effect(
        "train", "black_and_white", "mood",
        saturation=-1.3, contrast=0.3,
    ),
    effect(
        "train", "rainbow_shift", "mood",
        hue=3.3, saturation=0.6,
    ),
    effect(
        "train", "white_out", "mood",
        brightness=0.85,
    ),
    effect(
        "train", "photo_negative", "mood",
        invert=1.0, sweep=1.0,
    ),
    effect(
        "train", "snowfall", "particles",
        particles=1.0, grain=0.12, drift_y=1.2, drift_x=0.2, **colour("grain", 1.0, 1.0, 1.0),
    ),
    effect(
        "train", "confetti_party", "particles",
        particles=1.0, grain=0.12, drift_y=1.2, motley=1.0, **colour("grain", 1.0, 1.0, 1.0),
    ),
    effect(
        "train", "rising_embers", "particles",
        particles=1.0, grain=0.065, drift_y=-1.7, vignette=0.6, saturation=0.3, **colour("grain", 1.0, 0.5, 0.05),
    ),
)  # fmt: skip
