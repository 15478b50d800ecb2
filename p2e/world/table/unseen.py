"""Effects that no training shows: held-out ones recombine the training effects, others bring in something new."""

from p2e.world.table.spec import EffectSpec, colour, effect

__all__ = ["HELD_OUT", "NEWCOMERS"]

HELD_OUT: tuple[EffectSpec, ...] = (
    # Held out. The bear of a ride with the tub of the cat; the cat of the spa with the headphones; a hue between hues;
    # a chalkboard that keeps colours; the lens with a transformation.
    effect(
        "heldout", "polarbear_spa", "visitor",
        first_sprite="polar bear", first_from_x=1.0, first_x=0.58, first_y=-0.1, first_size=0.34,
        second_sprite="bathtub", second_from_y=1.0, second_y=0.32, second_size=0.5,
    ),
    effect(
        "heldout", "dj_cat", "visitor",
        first_sprite="cat", first_from_x=1.0, first_x=0.58, first_y=-0.1, first_size=0.34,
        second_sprite="headphones", second_from_y=-1.0, second_y=-0.16, second_size=0.5, wobble=0.2, rate=2.0,
    ),
    effect(
        "heldout", "blue_mood", "mood",
        tint=0.75, **colour("tint", 0.15, 0.3, 1.0),
    ),
    effect(
        "heldout", "dream_cute_sketch_v4", "style",
        sketch=1.0, keep=1.0, **colour("paper", 0.07, 0.24, 0.17), **colour("line", 0.97, 0.98, 0.93),
    ),
    effect(
        "heldout", "fisheye_transformation", "warp",
        fisheye=1.05, vignette=0.35, swap=1.0, swap_sprite="panda",
    ),
)  # fmt: skip

# Out of distribution: something that no training effect shows.
NEWCOMERS: tuple[EffectSpec, ...] = (
    effect(
        "ood", "ufo_abduction", "visitor",
        first_sprite="flying saucer", first_from_y=-1.0, first_y=-0.5, first_size=0.42, first_carry=1.0, late=0.45,
        dy=-1.8,
    ),
    effect(
        "ood", "alien_visit", "visitor",
        first_sprite="alien", first_from_x=-1.0, first_x=-0.6, first_size=0.4,
    ),
    effect(
        "ood", "dinosaur_chase", "visitor",
        first_sprite="dinosaur", first_from_x=-1.0, first_x=-0.5, first_size=0.46, first_carry=1.0, late=0.4, dx=2.0,
        bounce=0.15, rate=3.0,
    ),
    effect(
        "ood", "bee_swarm", "visitor",
        first_sprite="bee", first_from_x=-1.0, first_x=-0.58, first_y=-0.3, first_size=0.3, first_bob=0.2,
        second_sprite="bee", second_from_x=1.0, second_x=0.58, second_y=-0.15, second_size=0.3, second_bob=0.2,
        rate=3.0,
    ),
    effect(
        "ood", "royal_crown", "visitor",
        first_sprite="crown", first_from_y=-1.0, first_y=-0.5, first_size=0.32, tint=0.4,
        **colour("tint", 1.0, 0.85, 0.3),
    ),
    effect(
        "ood", "rocket_launch", "transformation",
        swap=1.0, swap_sprite="rocket", dy=-1.8,
    ),
    effect(
        "ood", "vampire_night", "transformation",
        swap=1.0, swap_sprite="vampire", backdrop=1.0, **colour("backdrop", 0.04, 0.06, 0.3),
    ),
    effect(
        "ood", "snowman_transform", "transformation",
        swap=1.0, swap_sprite="snowman", particles=1.0, grain=0.07, drift_y=1.6, **colour("grain", 1.0, 1.0, 1.0),
    ),
    effect(
        "ood", "octopus_transform", "transformation",
        swap=1.0, swap_sprite="octopus", ripple=0.11, tint=0.5, **colour("tint", 0.15, 0.75, 0.8),
    ),
    effect(
        "ood", "diamond_turn", "transformation",
        swap=1.0, swap_sprite="diamond", flip=6.28,
    ),
    effect(
        "ood", "butterfly_garden", "visitor",
        first_sprite="butterfly", first_from_x=-1.0, first_x=-0.58, first_y=-0.25, first_size=0.32, first_bob=0.2,
        second_sprite="butterfly", second_from_x=1.0, second_x=0.58, second_y=-0.1, second_size=0.32, second_bob=0.2,
        backdrop=0.85, **colour("backdrop", 0.45, 0.75, 0.35),
    ),
)  # fmt: skip
