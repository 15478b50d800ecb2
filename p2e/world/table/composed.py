"""Out-of-distribution effects that do two training effects at once."""

from p2e.world.table.spec import EffectSpec, colour, effect

__all__ = ["COMPOSED", "PARTS"]

COMPOSED: tuple[EffectSpec, ...] = (
    effect(
        "ood", "red_levitation", "composed",
        dy=-0.75, tint=0.75, **colour("tint", 1.0, 0.12, 0.1),
    ),
    effect(
        "ood", "purple_zoom_in", "composed",
        zoom=0.7, tint=0.75, **colour("tint", 0.6, 0.15, 0.95),
    ),
    effect(
        "ood", "sketch_spin", "composed",
        turn=6.28, sketch=1.0, **colour("paper", 0.97, 0.97, 0.95), **colour("line", 0.08, 0.08, 0.1),
    ),
    effect(
        "ood", "fisheye_retro", "composed",
        fisheye=1.05, vignette=0.35, pixels=1.0, poster=1.0, saturation=0.3,
    ),
    effect(
        "ood", "dark_twist", "composed",
        swirl=3.6, brightness=-0.65,
    ),
    effect(
        "ood", "snow_zoom_out", "composed",
        zoom=-0.75, particles=1.0, grain=0.085, drift_y=1.8, drift_x=0.3, **colour("grain", 1.0, 1.0, 1.0),
    ),
    effect(
        "ood", "confetti_dance", "composed",
        sway=0.22, bounce=0.28, wobble=0.35, rate=2.0, particles=1.0, grain=0.09, drift_y=2.0, motley=1.0,
        **colour("grain", 1.0, 1.0, 1.0),
    ),
    effect(
        "ood", "clay_balloon", "composed",
        clay=1.0, grow=0.75,
    ),
    effect(
        "ood", "chalk_melt", "composed",
        drip=0.9, sketch=1.0, **colour("paper", 0.07, 0.24, 0.17), **colour("line", 0.97, 0.98, 0.93),
    ),
    effect(
        "ood", "comic_quake", "composed",
        quake=0.16, poster=1.0, ink=0.9,
    ),
    effect(
        "ood", "ripple_gold", "composed",
        ripple=0.11, paint=0.95, **colour("paint", 1.0, 0.78, 0.15),
    ),
    effect(
        "ood", "ghost_siblings", "composed",
        vanish=1.0, first_twin=1.0, first_from_x=-1.0, first_x=-0.62, first_y=0.1, first_size=0.36,
        second_twin=1.0, second_from_x=1.0, second_x=0.62, second_y=0.1, second_size=0.36,
    ),
    effect(
        "ood", "rolling_timelapse", "composed",
        roll=1.3, daynight=0.95, rate=3.0,
    ),
    effect(
        "ood", "skull_embers", "composed",
        swap=1.0, swap_sprite="skull", wipe=1.0, particles=1.0, grain=0.065, drift_y=-1.7, vignette=0.6,
        saturation=0.3, **colour("grain", 1.0, 0.5, 0.05),
    ),
    effect(
        "ood", "robot_shrink", "composed",
        swap=1.0, swap_sprite="robot", wipe=-1.0, grow=-1.1,
    ),
    effect(
        "ood", "pink_cowride", "composed",
        first_sprite="cow", first_from_x=-1.0, first_y=0.48, first_size=0.46, first_bob=0.12, dy=-0.22, bounce=0.14,
        rate=3.0, slide=2.2, tint=0.75, **colour("tint", 1.0, 0.45, 0.75),
    ),
)  # fmt: skip

# The two training effects that each does at once, or comes nearest to.
PARTS: dict[str, tuple[str, str]] = {
    "red_levitation": ("red_mood", "levitation"),
    "purple_zoom_in": ("purple_mood", "zoom_in"),
    "sketch_spin": ("dream_cute_sketch_v1", "head_spin"),
    "fisheye_retro": ("fisheye_animation", "retro_game_animation"),
    "dark_twist": ("dark_mood", "twist"),
    "snow_zoom_out": ("snowfall", "zoom_out"),
    "confetti_dance": ("body_dance", "confetti_party"),
    "clay_balloon": ("clay_animation", "balloon"),
    "chalk_melt": ("dream_cute_sketch_v3", "melting"),
    "comic_quake": ("cartoon_style_1", "earthquake"),
    "ripple_gold": ("underwater", "gold_statue"),
    "ghost_siblings": ("ghost_fade", "siblings"),
    "rolling_timelapse": ("camera_roll", "timelapse"),
    "skull_embers": ("skull_reveal", "rising_embers"),
    "robot_shrink": ("robot_under_skin", "shrink_away"),
    "pink_cowride": ("pink_mood", "cowride"),
}
