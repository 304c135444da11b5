"""Vehicles, people and what else is in a street.

A thing's y axis points ahead, and its origin is on the ground below its middle.
"""

from experiments.data.scenes import Paint, Place, SceneBuilder, Thing

_CLOTHES = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")


def add_car(builder: SceneBuilder, place: Place) -> None:
    """Adds a car, 4.3 metres long."""
    car = builder.thing("car", place)
    paint, glass = builder.paint(), builder.paint("black")
    tall, long = builder.within(0.22, 0.36), builder.within(0.95, 1.4)
    car.box((0, 0, 0.58), (0.86, 2.1, 0.28), paint)
    car.box((0, 0, 0.42), (0.88, 2.15, 0.1), glass)
    car.box((0, -0.25, 0.86 + tall), (0.74, long, tall), glass)
    car.box((0, -0.25, 0.86 + 2 * tall), (0.72, long - 0.15, 0.04), paint)
    for x in (-0.72, 0.72):  # pillars
        car.box((x, -0.25 - long, 0.86 + tall), (0.04, 0.05, tall), paint)
        car.box((x, -0.25 + long, 0.86 + tall), (0.04, 0.05, tall), paint)
    car.box((0, -2.11, 0.5), (0.26, 0.02, 0.06), builder.paint("white"))
    _add_wheels(builder, car, 0.8, (-1.3, 1.3), 0.31)
    _add_lamps(builder, car, 0.65, 2.1, 0.66)
    _add_shade(builder, place, 1.0, 2.25)


def add_truck(builder: SceneBuilder, place: Place) -> None:
    """Adds a truck, 7 metres long."""
    truck, tall = builder.thing("truck", place), builder.within(1.1, 1.4)
    cab, glass = builder.paint(), builder.paint("black")
    cargo = builder.paint()
    if builder.chance(0.5):
        cargo = cargo.patterned("stripes", 0.5, 0.85)
    truck.box((0, 0, 0.6), (1.0, 3.4, 0.15), glass)
    truck.box((0, -0.8, 0.8 + tall), (1.15, 2.6, tall), cargo)
    truck.box((0, 2.7, 1.4), (1.05, 0.8, 0.85), cab)
    truck.box((0, 2.8, 1.8), (1.07, 0.73, 0.3), glass)
    _add_wheels(builder, truck, 1.0, (-2.4, -1.4, 2.6), 0.45)
    _add_lamps(builder, truck, 0.8, 3.5, 0.7)
    _add_shade(builder, place, 1.25, 3.6)


def add_bus(builder: SceneBuilder, place: Place) -> None:
    """Adds a bus, 10.8 metres long."""
    bus, glass = builder.thing("bus", place), builder.paint("black")
    paint = builder.paint("red", "yellow", "blue", "white")
    bus.box((0, 0, 1.6), (1.25, 5.4, 1.3), paint)
    bus.box((0, 0, 1.95), (1.27, 5.42, 0.5), glass)
    for i in range(7):  # between the windows
        bus.box((0, 1.5 * i - 4.5, 1.95), (1.28, 0.08, 0.5), paint)
    bus.box((0, 0, 2.7), (0.8, 5.43, 0.14), builder.paint("orange").glowing(0.5))
    _add_wheels(builder, bus, 1.17, (-3.2, 3.4), 0.48)
    _add_lamps(builder, bus, 1.0, 5.42, 0.75)
    _add_shade(builder, place, 1.35, 5.5)


def add_tram(builder: SceneBuilder, place: Place) -> None:
    """Adds a tram of two cars, 28 metres long."""
    tram, glass = builder.thing("train", place), builder.paint("black")
    paint, grey = builder.paint("yellow", "red", "green"), builder.paint("grey")
    for y in (-7.1, 7.1):
        tram.box((0, y, 1.8), (1.2, 6.9, 1.5), paint)
        tram.box((0, y, 2.2), (1.22, 6.92, 0.55), glass)
        for door in (-4, 0, 4):
            tram.box((0, y + door, 1.6), (1.23, 0.5, 1.2), grey)
        tram.box((0, y, 3.32), (1.15, 6.85, 0.04), builder.paint("white"))
    tram.box((0, 0, 0.25), (1.1, 13.5, 0.22), glass)
    _add_lamps(builder, tram, 0.8, 14.02, 0.8)
    _add_shade(builder, place, 1.3, 14.1)


def add_two_wheeler(
    builder: SceneBuilder, place: Place, name: str, *, ridden: bool
) -> None:
    """Adds a "bicycle" or a "motorcycle"; its rider is an instance of its own."""
    bike, heavy = builder.thing(name, place), name == "motorcycle"
    paint, black = builder.paint(*_CLOTHES), builder.paint("black")
    radius, thick = (0.31, 0.08) if heavy else (0.34, 0.03)
    for y in (-0.58, 0.58):
        bike.pole((0, y, radius), radius, thick, black, "x")
        hub = radius * (0.5 if heavy else 0.85)
        bike.pole((0, y, radius), hub, thick + 0.005, builder.paint("grey"), "x")
    if heavy:
        bike.box((0, 0.05, 0.52), (0.14, 0.5, 0.2), paint)
        bike.ball((0, 0.2, 0.78), (0.17, 0.3, 0.13), paint)
        bike.box((0, -0.4, 0.78), (0.13, 0.3, 0.05), black)
        bike.ball((0, 0.68, 0.85), 0.11, builder.paint("white"))
        bike.box((0, -0.75, 0.72), (0.1, 0.03, 0.05), builder.paint("red"))
    else:
        bike.box((0, 0, 0.62), (0.025, 0.5, 0.035), paint)
        bike.box((0, 0, 0.38), (0.025, 0.35, 0.03), paint)
        bike.box((0, -0.22, 0.65), (0.025, 0.03, 0.28), paint)
        bike.box((0, -0.22, 0.93), (0.08, 0.13, 0.03), black)
    bike.pole((0, 0.5, 0.72), 0.025, 0.3, paint)
    bike.pole((0, 0.48, 1.02), 0.025, 0.32, black, "x")
    if ridden:
        rider = builder.thing("rider", place.moved(0, 0, 0.12))
        coat, trousers = builder.paint(*_CLOTHES), builder.paint("blue", "black")
        for x in (-0.17, 0.17):
            rider.pole((x, 0.1, 0.5), 0.08, 0.32, trousers)
            rider.pole((x, -0.05, 0.8), 0.09, 0.22, trousers, "y")
            rider.pole((1.4 * x, 0.25, 1.1), 0.05, 0.28, coat, "y")
        _add_bust(builder, rider, 1.0, coat)
        _add_shade(builder, place, 0.2, 0.9)


def add_person(builder: SceneBuilder, place: Place) -> None:
    """Adds a person on foot."""
    person, size = builder.thing("person", place), builder.within(0.88, 1.08)
    coat = builder.paint(*_CLOTHES)
    trousers = builder.paint("blue", "black", "brown")
    step = builder.within(0, 0.16)
    for side in (-size, size):
        leg = (0.1 * side, step * side, 0.42 * size)
        person.pole(leg, 0.085 * size, 0.42 * size, trousers)
        arm = (0.26 * side, -step * side, 1.12 * size)
        person.pole(arm, 0.055 * size, 0.3 * size, coat)
    _add_bust(builder, person, size, coat)


def add_tree(builder: SceneBuilder, place: Place) -> None:
    """Adds a tree of 4 to 7 metres."""
    tree, size = builder.stuff("vegetation", place), builder.within(0.7, 1.3)
    bark = builder.paint("brown").patterned("grain", 0.3, 0.6)
    leaves = builder.paint("green", "green", "green", "green", "yellow", "orange")
    leaves = leaves.patterned("mottle", 0.35, 0.4)
    tree.pole((0, 0, 1.3 * size), 0.16 * size, 1.3 * size, bark)
    for _ in range(builder.rng.integers(3, 6)):
        centre = builder.rng.uniform([-0.8, -0.8, 2.8], [0.8, 0.8, 4.4])
        x, y, z = (size * centre).tolist()
        r = builder.within(0.8, 1.4) * size
        tree.ball((x, y, z), (r, r, 0.85 * r), leaves)


def add_hedge(builder: SceneBuilder, place: Place, half: float) -> None:
    """Adds a hedge of half a length."""
    leaves = builder.paint("green").patterned("mottle", 0.3, 0.45)
    tall = builder.within(0.5, 1.2)
    hedge = builder.stuff("vegetation", place)
    hedge.box((0, 0, tall), (0.4, half, tall), leaves)


def add_wall(builder: SceneBuilder, place: Place, half: float) -> None:
    """Adds a brick wall of half a length."""
    bricks = builder.paint("red", "brown", "grey")
    bricks = bricks.patterned("bricks", 0.25, (0.75, 0.72, 0.68))
    tall = builder.within(0.6, 1.2)
    builder.stuff("wall", place).box((0, 0, tall), (0.15, half, tall), bricks)


def add_fence(builder: SceneBuilder, place: Place, half: float) -> None:
    """Adds a fence of half a length, through which one sees."""
    fence, paint = builder.stuff("fence", place), builder.paint()
    for z in (0.35, 1.05):
        fence.box((0, 0, z), (0.03, half, 0.05), paint)
    num_posts = round(3 * half)
    for i in range(num_posts):
        y = ((i + 0.5) / num_posts - 0.5) * 2 * half
        fence.box((0, y, 0.65), (0.04, 0.13, 0.65), paint)


def add_sign(builder: SceneBuilder, place: Place) -> None:
    """Adds a traffic sign on a pole, seen from behind its y axis."""
    _add_mast(builder, place, 1.3)
    sign, white = builder.stuff("traffic sign", place), builder.paint("white")
    paint = builder.paint("red", "blue", "yellow")
    if builder.chance(0.5):
        sign.pole((0, -0.08, 2.4), 0.36, 0.02, paint, "y")
        sign.pole((0, -0.1, 2.4), 0.25, 0.02, white, "y")
    else:
        sign.box((0, -0.08, 2.4), (0.33, 0.02, 0.33), paint)
        sign.box((0, -0.1, 2.4), (0.2, 0.02, 0.2), white)


def add_lights(builder: SceneBuilder, place: Place, reach: float) -> None:
    """Adds traffic lights on a pole; at times on an arm that reaches along x."""
    mast, x, z = _add_mast(builder, place, 1.65), 0.0, 2.9
    if builder.chance(0.4):
        x, z, steel = reach, 4.6, builder.paint("grey")
        mast.pole((0, 0, 4.2), 0.06, 1.0, steel)
        mast.pole((x / 2, 0, 5.1), 0.06, abs(x) / 2, steel, "x")
    lights = builder.stuff("traffic light", place)
    lights.box((x, -0.12, z), (0.2, 0.12, 0.5), builder.paint("black"))
    shining = builder.one_of("red", "yellow", "green")
    for hue, up in (("red", 0.31), ("yellow", 0), ("green", -0.31)):
        lamp = builder.paint("black")
        if hue == shining:
            lamp = builder.paint(hue).glowing()
        lights.ball((x, -0.23, z + up), 0.12, lamp)


def add_lantern(builder: SceneBuilder, place: Place, reach: float) -> None:
    """Adds a street lantern whose arm reaches along x."""
    mast, steel = _add_mast(builder, place, 3.0), builder.paint("grey")
    mast.pole((reach / 2, 0, 6.0), 0.05, abs(reach) / 2, steel, "x")
    mast.box((reach, 0, 5.95), (0.3, 0.12, 0.07), steel)


def _add_mast(builder: SceneBuilder, place: Place, half: float) -> Thing:
    mast = builder.stuff("pole", place)
    mast.pole((0, 0, half), 0.06, half, builder.paint("grey"))
    return mast


def _add_wheels(
    builder: SceneBuilder, thing: Thing, x: float, axles: tuple, radius: float
) -> None:
    tyre, hub = builder.paint("black"), builder.paint("grey")
    for y in axles:
        for side in (-x, x):
            thing.pole((side, y, radius), radius, 0.1, tyre, "x")
            thing.pole((side, y, radius), 0.55 * radius, 0.11, hub, "x")


def _add_lamps(
    builder: SceneBuilder, thing: Thing, x: float, y: float, z: float
) -> None:
    """Adds white lamps ahead and red ones behind."""
    for hue, end in (("white", y), ("red", -y)):
        lamp = builder.paint(hue).glowing(0.5)
        for side in (-x, x):
            thing.box((side, end, z), (0.15, 0.03, 0.08), lamp)


def _add_shade(builder: SceneBuilder, place: Place, x: float, y: float) -> None:
    """Darkens the road below a vehicle."""
    asphalt = builder.paint("black").toned(0.6, 0.0)
    builder.stuff("road", place).plane((0, 0, 0.02), (x, y, 0), asphalt, "z")


def _add_bust(builder: SceneBuilder, thing: Thing, size: float, coat: Paint) -> None:
    """Adds the body and the head of a person."""
    body = (0.23 * size, 0.15 * size, 0.36 * size)
    thing.ball((0, 0, 1.13 * size), body, coat)
    skin = builder.paint("brown", "orange", "pink").toned(0.5, 0.3)
    thing.ball((0, 0, 1.6 * size), 0.125 * size, skin)
    hair = builder.paint("black", "brown", "yellow")
    thing.ball((0, -0.02, 1.64 * size), 0.125 * size, hair)
