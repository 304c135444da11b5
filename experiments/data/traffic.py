"""Vehicles, people and other things in a street.

The y axis of a thing points ahead, and its origin is on the ground below its middle.
"""

from experiments.data.scenes import Paint, Place, SceneBuilder, Thing

_CLOTHES = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")


def add_car(builder: SceneBuilder, place: Place) -> None:
    """Adds a car, 4.3 metres long."""
    car, paint = builder.thing("car", place), builder.paint()
    tall, long = builder.within(0.22, 0.36), builder.within(0.95, 1.4)
    car.box((0, 0, 0.55), (0.88, 2.15, 0.3), paint)
    car.box((0, -0.25, 0.86 + tall), (0.74, long, tall), builder.paint("black"))
    car.box((0, -0.25, 0.86 + 2 * tall), (0.72, long - 0.15, 0.04), paint)
    _finish(builder, car, (0.9, 2.15), (-1.3, 1.3), 0.31)


def add_truck(builder: SceneBuilder, place: Place) -> None:
    """Adds a truck, 7 metres long."""
    truck, tall = builder.thing("truck", place), builder.within(1.1, 1.4)
    cargo = builder.paint().patterned("stripes", 0.5, 0.85)
    truck.box((0, 0, 0.6), (1.0, 3.4, 0.15), builder.paint("black"))
    truck.box((0, -0.8, 0.8 + tall), (1.15, 2.6, tall), cargo)
    truck.box((0, 2.7, 1.4), (1.05, 0.8, 0.85), builder.paint())
    truck.box((0, 2.8, 1.8), (1.07, 0.73, 0.3), builder.paint("black"))
    _finish(builder, truck, (1.1, 3.5), (-2.4, 2.6), 0.45)


def add_bus(builder: SceneBuilder, place: Place) -> None:
    """Adds a bus, 10.8 metres long."""
    bus = builder.thing("bus", place)
    paint = builder.paint("red", "yellow", "blue", "white")
    panes = builder.paint("black").patterned("stripes", 1.0, paint.colour)
    bus.box((0, 0, 1.6), (1.25, 5.4, 1.3), paint)
    bus.box((0, 0, 1.95), (1.27, 5.42, 0.5), panes)
    _finish(builder, bus, (1.25, 5.42), (-3.2, 3.4), 0.48)


def add_tram(builder: SceneBuilder, place: Place) -> None:
    """Adds a tram of two cars, 28 metres long."""
    tram, paint = builder.thing("train", place), builder.paint("yellow", "red", "green")
    for y in (-7.1, 7.1):
        tram.box((0, y, 1.8), (1.2, 6.9, 1.5), paint)
        tram.box((0, y, 2.2), (1.22, 6.92, 0.55), builder.paint("black"))
    _finish(builder, tram, (1.2, 14.02), (-10, -4, 4, 10), 0.4)


VEHICLES = {"car": add_car, "truck": add_truck, "bus": add_bus}


def add_two_wheeler(
    builder: SceneBuilder, place: Place, name: str, *, ridden: bool
) -> None:
    """Adds a "bicycle" or a "motorcycle"; its rider is an instance of its own."""
    bike, heavy = builder.thing(name, place), name == "motorcycle"
    paint, black = builder.paint(*_CLOTHES), builder.paint("black")
    for y in (-0.58, 0.58):
        bike.ball((0, y, 0.33), (0.09 if heavy else 0.04, 0.33, 0.33), black)
    if heavy:
        bike.box((0, 0.05, 0.52), (0.14, 0.5, 0.2), paint)
        bike.ball((0, 0.2, 0.78), (0.17, 0.3, 0.13), paint)
    else:
        bike.box((0, 0, 0.62), (0.025, 0.5, 0.035), paint)
        bike.box((0, -0.22, 0.65), (0.025, 0.03, 0.28), paint)
    bike.box((0, 0.5, 0.72), (0.025, 0.025, 0.3), paint)
    bike.box((0, 0.48, 1.02), (0.32, 0.025, 0.025), black)
    if ridden:
        rider = builder.thing("rider", place.moved(0, 0, 0.12))
        coat = builder.paint(*_CLOTHES)
        for x in (-0.17, 0.17):
            rider.box((x, 0.1, 0.5), (0.08, 0.08, 0.32), builder.paint("blue", "black"))
            rider.box((1.4 * x, 0.25, 1.1), (0.05, 0.28, 0.05), coat)
        _add_bust(builder, rider, 1.0, coat)


def add_person(builder: SceneBuilder, place: Place) -> None:
    """Adds a person on foot."""
    person, size = builder.thing("person", place), builder.within(0.88, 1.08)
    coat, trousers = builder.paint(*_CLOTHES), builder.paint("blue", "black", "brown")
    step = builder.within(0, 0.16)
    for side in (-size, size):
        leg = (0.1 * side, step * side, 0.42 * size)
        person.box(leg, (0.08 * size, 0.08 * size, 0.42 * size), trousers)
        arm = (0.26 * side, -step * side, 1.12 * size)
        person.box(arm, (0.05 * size, 0.05 * size, 0.3 * size), coat)
    _add_bust(builder, person, size, coat)


def add_tree(builder: SceneBuilder, place: Place) -> None:
    """Adds a tree of 4 to 7 metres."""
    tree, size = builder.stuff("vegetation", place), builder.within(0.7, 1.3)
    leaves = builder.paint("green", "green", "green", "green", "yellow", "orange")
    leaves = leaves.patterned("mottle", 0.35, 0.4)
    tree.box((0, 0, 1.3 * size), (0.14, 0.14, 1.3 * size), builder.paint("brown"))
    for _ in range(builder.rng.integers(3, 6)):
        centre = builder.rng.uniform([-0.8, -0.8, 2.8], [0.8, 0.8, 4.4])
        x, y, z = (size * centre).tolist()
        tree.ball((x, y, z), builder.within(0.8, 1.4) * size, leaves)


def add_barrier(builder: SceneBuilder, place: Place, name: str, half: float) -> None:
    """Adds a hedge ("vegetation"), a "wall" or a "fence", given half its length."""
    barrier, tall = builder.stuff(name, place), builder.within(0.6, 1.2)
    if name == "fence":  # one can see through it
        paint = builder.paint()
        for y in range(round(3 * half)):
            barrier.box((0, 0.67 * y - half, 0.65), (0.04, 0.2, 0.65), paint)
        return
    hues = ("green",) if name == "vegetation" else ("red", "brown", "grey")
    pattern = "mottle" if name == "vegetation" else "checks"
    paint = builder.paint(*hues).patterned(pattern, 0.3, 0.5)
    barrier.box((0, 0, tall), (0.3, half, tall), paint)


def add_sign(builder: SceneBuilder, place: Place) -> None:
    """Adds a traffic sign on a pole; its front faces against the y axis."""
    _add_mast(builder, place, 1.3)
    sign = builder.stuff("traffic sign", place)
    paint = builder.paint("red", "blue", "yellow")
    add = sign.ball if builder.chance(0.5) else sign.box
    add((0, -0.08, 2.4), (0.34, 0.02, 0.34), paint)
    add((0, -0.1, 2.4), (0.22, 0.02, 0.22), builder.paint("white"))


def add_lights(builder: SceneBuilder, place: Place) -> None:
    """Adds traffic lights on a pole."""
    _add_mast(builder, place, 1.65)
    lights = builder.stuff("traffic light", place)
    lights.box((0, -0.12, 2.9), (0.2, 0.12, 0.5), builder.paint("black"))
    shining = builder.one_of("red", "yellow", "green")
    for hue, z in (("red", 3.21), ("yellow", 2.9), ("green", 2.59)):
        lamp = builder.paint(hue if hue == shining else "black")
        lights.ball((0, -0.23, z), 0.12, lamp.glowing(float(hue == shining)))


def add_lantern(builder: SceneBuilder, place: Place, reach: float) -> None:
    """Adds a street lantern whose arm reaches along x."""
    _add_mast(builder, place, 3.0).box(
        (reach / 2, 0, 6.0), (abs(reach) / 2 + 0.3, 0.06, 0.06), builder.paint("grey")
    )


def _add_mast(builder: SceneBuilder, place: Place, half: float) -> Thing:
    mast = builder.stuff("pole", place)
    mast.box((0, 0, half), (0.06, 0.06, half), builder.paint("grey"))
    return mast


def _finish(
    builder: SceneBuilder, thing: Thing, half: tuple, axles: tuple, radius: float
) -> None:
    """Adds wheels, lamps and a shade to a vehicle; gets half its width and length."""
    (x, y), tyre = half, builder.paint("black")
    for side in (-x, x):
        for axle in axles:
            thing.ball((side, axle, radius), (0.12, radius, radius), tyre)
        for hue, end in (("white", y), ("red", -y)):
            lamp = builder.paint(hue).glowing(0.5)
            thing.box((0.75 * side, end, 0.7), (0.15, 0.03, 0.08), lamp)
    asphalt = builder.paint("black").toned(0.6, 0.0)
    builder.stuff("road", thing.place).box((0, 0, 0), (x + 0.1, y + 0.1, 0.02), asphalt)


def _add_bust(builder: SceneBuilder, thing: Thing, size: float, coat: Paint) -> None:
    """Adds the body and the head of a person."""
    body = (0.23 * size, 0.15 * size, 0.36 * size)
    thing.ball((0, 0, 1.13 * size), body, coat)
    skin = builder.paint("brown", "orange", "pink").toned(0.5, 0.3)
    thing.ball((0, 0, 1.6 * size), 0.125 * size, skin)
