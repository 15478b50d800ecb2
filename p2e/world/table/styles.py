"""Training effects that turn the picture into another kind of picture."""

from p2e.world.table.spec import EffectSpec, colour, effect

__all__ = ["STYLES"]

STYLES: tuple[EffectSpec, ...] = (
    effect(
        "train", "dream_cute_sketch_v1", "style",
        sketch=1.0, **colour("paper", 0.97, 0.97, 0.95), **colour("line", 0.08, 0.08, 0.1),
    ),
    effect(
        "train", "dream_cute_sketch_v2", "style",
        sketch=1.0, keep=1.0, **colour("paper", 1.0, 0.97, 0.88), **colour("line", 0.2, 0.12, 0.1),
    ),
    effect(
        "train", "dream_cute_sketch_v3", "style",
        sketch=1.0, **colour("paper", 0.07, 0.24, 0.17), **colour("line", 0.97, 0.98, 0.93),
    ),
    effect(
        "train", "cartoon_style_1", "style",
        poster=1.0, ink=0.9,
    ),
    effect(
        "train", "cartoon_style_2", "style",
        poster=1.0, saturation=0.9,
    ),
    effect(
        "train", "cartoon_style_3", "style",
        poster=0.8, ink=1.0, saturation=-1.3,
    ),
    effect(
        "train", "cartoon_style_4", "style",
        ink=0.6, brightness=0.45, saturation=-0.25, blur=0.35,
    ),
    effect(
        "train", "cartoon_style_5", "style",
        ink=0.9, tint=0.8, vignette=0.6, poster=0.5, **colour("tint", 0.95, 0.76, 0.5),
    ),
    effect(
        "train", "soft_cartoon", "style",
        blur=0.95, glow=0.7, saturation=0.4,
    ),
    effect(
        "train", "3d_tween_dream", "style",
        glow=0.9, blur=0.5, tint=0.35, zoom=0.4, **colour("tint", 1.0, 0.6, 0.85),
    ),
    effect(
        "train", "retro_game_animation", "style",
        pixels=1.0, poster=1.0, saturation=0.3,
    ),
    effect(
        "train", "retr_gam", "style",
        mosaic=1.0, tint=0.9, **colour("tint", 0.68, 0.82, 0.2),
    ),
    effect(
        "train", "clay_animation", "style",
        clay=1.0, jelly=0.3, rate=2.0,
    ),
)  # fmt: skip
