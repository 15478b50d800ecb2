"""Training effects in which the subject, the camera or the air moves."""

from p2e.world.table.spec import EffectSpec, colour, effect

__all__ = ["MOTIONS"]

MOTIONS: tuple[EffectSpec, ...] = (
    effect(
        "train", "body_dance", "motion",
        sway=0.22, bounce=0.28, wobble=0.35, rate=2.0,
    ),
    effect(
        "train", "head_spin", "motion",
        turn=6.28,
    ),
    effect(
        "train", "balloon", "motion",
        grow=0.75,
    ),
    effect(
        "train", "levitation", "motion",
        dy=-0.75,
    ),
    effect(
        "train", "trap", "motion",
        dy=1.75,
    ),
    effect(
        "train", "rope_walk", "motion",
        wobble=0.6, sway=0.14, rate=1.5,
    ),
    effect(
        "train", "holiday_skating", "motion",
        sway=0.5, wobble=0.2, rate=1.0, particles=1.0, grain=0.06, drift_y=1.5, **colour("grain", 1.0, 1.0, 1.0),
    ),
    effect(
        "train", "coin_flip", "motion",
        flip=6.28,
    ),
    effect(
        "train", "shrink_away", "motion",
        grow=-1.3,
    ),
    effect(
        "train", "sneak_off", "motion",
        dx=1.7, bounce=0.3, rate=3.0,
    ),
    effect(
        "train", "zoom_in", "camera",
        zoom=0.7,
    ),
    effect(
        "train", "zoom_out", "camera",
        zoom=-0.75,
    ),
    effect(
        "train", "pan_left", "camera",
        pan_x=-0.75,
    ),
    effect(
        "train", "camera_roll", "camera",
        roll=1.3,
    ),
    effect(
        "train", "earthquake", "camera",
        quake=0.16,
    ),
    effect(
        "train", "fisheye_animation", "warp",
        fisheye=1.05, vignette=0.35,
    ),
    effect(
        "train", "twist", "warp",
        swirl=3.6,
    ),
    effect(
        "train", "utility_wind", "warp",
        wind=1.0,
    ),
    effect(
        "train", "melting", "warp",
        drip=0.9,
    ),
    effect(
        "train", "underwater", "warp",
        ripple=0.11, tint=0.5, **colour("tint", 0.15, 0.75, 0.8),
    ),
    effect(
        "train", "clay_transformation", "warp",
        clay=0.8, squash=0.95,
    ),
    effect(
        "train", "hair_growth", "warp",
        squash=-0.75,
    ),
)  # fmt: skip
