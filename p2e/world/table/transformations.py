"""Training effects in which the subject becomes something else."""

from p2e.world.table.spec import EffectSpec, colour, effect

__all__ = ["TRANSFORMATIONS"]

TRANSFORMATIONS: tuple[EffectSpec, ...] = (
    effect(
        "train", "skull_reveal", "transformation",
        swap=1.0, swap_sprite="skull", wipe=1.0,
    ),
    effect(
        "train", "robot_under_skin", "transformation",
        swap=1.0, swap_sprite="robot", wipe=-1.0,
    ),
    effect(
        "train", "babyface", "transformation",
        swap=1.0, swap_sprite="baby", grow=-0.15,
    ),
    effect(
        "train", "young_and_old", "transformation",
        swap=1.0, swap_sprite="old man", saturation=-0.4,
    ),
    effect(
        "train", "transformation", "transformation",
        swap=1.0, swap_sprite="dragon", turn=6.28, grow=0.25,
    ),
    effect(
        "train", "futuristic_car", "transformation",
        swap=1.0, swap_sprite="racing car", slide=2.6,
    ),
    effect(
        "train", "hw_clown_transform", "transformation",
        swap=1.0, swap_sprite="clown", particles=1.0, grain=0.07, drift_y=1.6, motley=1.0, **colour("grain", 1, 1, 1),
    ),
    effect(
        "train", "panda", "transformation",
        swap=1.0, swap_sprite="panda",
    ),
    effect(
        "train", "holiday_elf", "transformation",
        swap=1.0, swap_sprite="elf", bounce=0.3, rate=3.0,
    ),
    effect(
        "train", "holiday_cookie", "transformation",
        swap=1.0, swap_sprite="cookie", wobble=0.45, rate=2.0,
    ),
    effect(
        "train", "nature_inside", "transformation",
        swap=1.0, swap_sprite="tree", wipe=-1.0, backdrop=0.85, **colour("backdrop", 0.45, 0.75, 0.35),
    ),
    effect(
        "train", "cartoon_transform", "transformation",
        swap=1.0, swap_sprite="pumpkin", poster=1.0, ink=0.8,
    ),
    effect(
        "train", "blossom_burst", "transformation",
        swap=1.0, swap_sprite="blossom", flip=6.28,
    ),
    effect(
        "train", "ghost_fade", "transformation",
        vanish=1.0,
    ),
    effect(
        "train", "gold_statue", "transformation",
        paint=0.95, **colour("paint", 1.0, 0.78, 0.15),
    ),
    effect(
        "train", "night_stage", "transformation",
        backdrop=1.0, **colour("backdrop", 0.04, 0.06, 0.3),
    ),
)  # fmt: skip
