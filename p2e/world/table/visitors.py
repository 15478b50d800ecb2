"""Training effects in which someone or something comes in."""

from p2e.world.table.spec import EffectSpec, colour, effect

__all__ = ["VISITORS"]

VISITORS: tuple[EffectSpec, ...] = (
    effect(
        "train", "cat_spa", "visitor",
        first_sprite="cat", first_from_x=1.0, first_x=0.58, first_y=-0.1, first_size=0.34,
        second_sprite="bathtub", second_from_y=1.0, second_y=0.32, second_size=0.5,
    ),
    effect(
        "train", "headphones_on", "visitor",
        first_sprite="headphones", first_from_y=-1.0, first_y=-0.16, first_size=0.5, wobble=0.2, rate=2.0,
    ),
    effect(
        "train", "morning_coffee", "visitor",
        first_sprite="coffee cup", first_from_y=1.0, first_x=-0.56, first_y=0.25, first_size=0.34,
        tint=0.35, brightness=0.15, **colour("tint", 1.0, 0.8, 0.45),
    ),
    effect(
        "train", "siblings", "visitor",
        first_twin=1.0, first_from_x=-1.0, first_x=-0.62, first_y=0.1, first_size=0.36,
        second_twin=1.0, second_from_x=1.0, second_x=0.62, second_y=0.1, second_size=0.36,
    ),
    effect(
        "train", "hit", "visitor",
        first_sprite="boxing glove", first_from_x=-1.0, first_x=-0.34, first_size=0.36, late=0.4, dx=1.5, dy=-0.5,
        turn=4.0,
    ),
    effect(
        "train", "bug_eat", "visitor",
        first_sprite="spider", first_from_y=-1.0, first_size=0.52, late=0.5, grow=-1.2, vanish=1.0,
    ),
    effect(
        "train", "halloween_creatures", "visitor",
        first_sprite="ghost", first_from_x=-1.0, first_x=-0.6, first_y=0.0, first_size=0.36, first_bob=0.15,
        second_sprite="bat", second_from_x=1.0, second_x=0.55, second_y=-0.5, second_size=0.36, second_bob=0.15,
    ),
    effect(
        "train", "magic_train", "visitor",
        first_sprite="train", first_from_x=1.0, first_here=1.0, first_x=-1.4, first_y=0.1, first_size=0.85,
        first_behind=1.0,
    ),
    effect(
        "train", "thanksgiving_chef", "visitor",
        first_sprite="turkey", first_from_y=1.0, first_y=0.4, first_size=0.42, tint=0.45,
        **colour("tint", 0.85, 0.5, 0.2),
    ),
    effect(
        "train", "santa_helper", "visitor",
        first_sprite="santa", first_from_x=-1.0, first_x=-0.6, first_size=0.38,
        second_sprite="gift", second_from_y=-1.0, second_x=0.58, second_y=0.2, second_size=0.3,
    ),
    effect(
        "train", "santa_invasion", "visitor",
        first_sprite="santa", first_from_x=-1.0, first_x=-0.62, first_size=0.38, first_bob=0.12,
        second_sprite="santa", second_from_x=1.0, second_x=0.62, second_size=0.38, second_bob=0.12,
        tint=0.45, **colour("tint", 1.0, 0.15, 0.15),
    ),
    effect(
        "train", "stolen_by_santa", "visitor",
        first_sprite="santa", first_from_x=-1.0, first_x=-0.36, first_size=0.4, first_carry=1.0, late=0.45, dx=2.0,
    ),
    effect(
        "train", "santa_crime", "visitor",
        first_sprite="santa", first_from_y=1.0, first_x=0.2, first_y=0.3, first_size=0.45, vignette=0.9,
        brightness=-0.35,
    ),
    effect(
        "train", "shoppingmadness", "visitor",
        first_sprite="shopping bags", first_from_x=-1.0, first_x=-0.6, first_y=0.2, first_size=0.32, first_bob=0.2,
        second_sprite="shopping bags", second_from_x=1.0, second_x=0.6, second_y=0.2, second_size=0.32, second_bob=0.2,
        bounce=0.3, rate=3.0,
    ),
    effect(
        "train", "shaving", "visitor",
        first_sprite="razor", first_from_x=1.0, first_here=1.0, first_x=-0.5, first_y=0.0, first_size=0.8,
        first_bob=0.15,
    ),
    effect(
        "train", "make_up", "visitor",
        first_sprite="lipstick", first_from_x=1.0, first_x=0.55, first_size=0.36, paint=0.75,
        **colour("paint", 1.0, 0.3, 0.6),
    ),
    effect(
        "train", "fov_change_seagull", "visitor",
        first_sprite="dove", first_from_x=-1.0, first_here=1.0, first_x=1.9, first_y=-0.5, first_size=0.42, zoom=-0.5,
    ),
    effect(
        "train", "yeti", "visitor",
        first_sprite="gorilla", first_from_y=1.0, first_y=-0.32, first_size=0.78, first_behind=1.0, particles=1.0,
        grain=0.065, drift_y=1.6, drift_x=0.6, **colour("grain", 1.0, 1.0, 1.0),
    ),
    effect(
        "train", "halloween_brain_eat", "visitor",
        first_sprite="zombie", first_from_x=-1.0, first_x=-0.6, first_size=0.4, first_bob=0.08,
        second_sprite="brain", second_from_y=-1.0, second_y=-0.45, second_size=0.28,
    ),
    effect(
        "train", "cowride", "visitor",
        first_sprite="cow", first_from_x=-1.0, first_y=0.48, first_size=0.46, first_bob=0.12, dy=-0.22, bounce=0.14,
        rate=3.0, slide=2.2,
    ),
    effect(
        "train", "chickenride", "visitor",
        first_sprite="chicken", first_from_x=1.0, first_y=0.48, first_size=0.44, first_bob=0.26, dy=-0.25, bounce=0.3,
        rate=3.0, slide=-1.6,
    ),
    effect(
        "train", "polarbear_ride", "visitor",
        first_sprite="polar bear", first_from_y=1.0, first_y=0.46, first_size=0.48, first_bob=0.1, dy=-0.22,
        bounce=0.12, rate=2.0, slide=1.4, particles=1.0, grain=0.06, drift_y=1.4, **colour("grain", 1.0, 1.0, 1.0),
    ),
    effect(
        "train", "magic_ride", "visitor",
        first_sprite="unicorn", first_from_x=-1.0, first_y=0.42, first_size=0.44, first_carry=1.0, late=0.35, dy=-0.75,
        particles=0.9, grain=0.05, drift_y=-0.8, motley=1.0, **colour("grain", 1.0, 1.0, 1.0),
    ),
    effect(
        "train", "broomv3", "visitor",
        first_sprite="broom", first_from_x=-1.0, first_y=0.3, first_size=0.48, first_carry=1.0, late=0.4, dx=1.3,
        dy=-1.3,
    ),
    effect(
        "train", "sled_ride", "visitor",
        first_sprite="sled", first_from_x=-1.0, first_y=0.38, first_size=0.44, first_carry=1.0, late=0.4, dx=1.5,
        dy=0.7,
    ),
)  # fmt: skip
