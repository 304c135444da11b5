"""Streets in the 19 classes of Cityscapes, or their 7 groups."""

import math

import numpy as np

from experiments.data import traffic
from experiments.data.cameras import Camera, look_at
from experiments.data.cityscapes import CLASSES as STREET_CLASSES
from experiments.data.scenes import Paint, Place, Scene, SceneBuilder

SKY_DISTANCE = 300.0  # radius of the dome that stands for the sky, in metres

_END = 60.0  # how far along the street there is traffic, in metres
_KERB = 0.12
_FOCAL = (0.85, 1.05)  # focal length in widths of the image; Cityscapes has 1.1
_PARKED = {"car": 0.88, "truck": 0.12}
_DRIVING = {"car": 0.4, "truck": 0.14, "bus": 0.16, "motorcycle": 0.14, "bicycle": 0.16}
_LENGTHS = {"car": 4.4, "truck": 7.2, "bus": 11, "motorcycle": 2, "bicycle": 2}


def sample_street(rng: np.random.Generator) -> Scene:
    """Draws a street: its width, houses, trees, traffic, people and daylight.

    The sky is a dome `SKY_DISTANCE` away, so that every pixel has a depth. The sky has
    a class of its own, so that you can leave it out.
    """
    builder = SceneBuilder(STREET_CLASSES, rng)
    rails, cloudy = builder.chance(0.3), builder.chance(0.4)
    # Half the width of the road, and the width of a pavement.
    road, pavement = builder.within(4.2, 6.0) + 1.2 * rails, builder.within(2.2, 4.0)
    _add_ground(builder, road, pavement, rails)
    sky = builder.paint("grey" if cloudy else "blue")
    sky = sky._replace(colour=(0.75, 0.78, 0.82) if cloudy else (0.42, 0.62, 0.90))
    sky = sky.patterned("mottle", builder.within(40, 90), (0.93, 0.94, 0.96))
    builder.stuff("sky").ball((0, 0, 0), SKY_DISTANCE, sky.glowing())
    for side in (-1, 1):
        _add_houses(builder, side * (road + pavement + 0.1))
        _add_pavement(builder, side, road, pavement)
        if builder.chance(0.7):
            _add_lane(builder, side * (road - 1.1), 4.0, _PARKED, (0.5, 12.0))
        _add_lane(builder, side * (road - 3.1), 10.0, _DRIVING, (6.0, 25.0))
    if rails and builder.chance(0.85):
        x, y = 0.4 * builder.rng.choice([-1, 1]), builder.within(27, 50)
        traffic.add_tram(builder, Place((x, y, 0)))
    for _ in range(builder.rng.integers(3)):
        x, y = builder.within(-road, road), builder.within(10, 40)
        traffic.add_person(builder, Place((x, y, 0), builder.within(0, 6)))
    if builder.chance(0.5):
        walls = _windowed(builder, builder.paint("brown", "grey", "orange"))
        end = builder.stuff("building", Place((0, _END + 30, 0)))
        end.box((0, 0, 8), (40, 5, 8), walls)
    angle, own_lane = builder.within(0, 2 * math.pi), road - 3.1
    return builder.build(
        light=(1e3 * math.cos(angle), 1e3 * math.sin(angle), builder.within(500, 1500)),
        ambient=0.75 if cloudy else builder.within(0.45, 0.6),
        haze=builder.within(120, 600),
        space=((own_lane - 0.7, -3.0, 1.2), (own_lane + 0.7, 2.0, 1.9)),
    )


def sample_street_camera(scene: Scene, rng: np.random.Generator) -> Camera:
    """Draws a camera behind a windscreen that looks along a street."""
    position = rng.uniform(*scene.space.astype(float))
    yaw, pitch, roll = rng.normal(0, [0.08, 0.04, 0.012])
    ahead = [math.sin(yaw), math.cos(yaw), math.tan(pitch)]
    return look_at(position, position + ahead, roll=roll, focal=rng.uniform(*_FOCAL))


def _add_ground(
    builder: SceneBuilder, road: float, pavement: float, rails: bool
) -> None:
    """Adds flat things: grass, the road with its markings, rails and pavements."""
    grass = builder.paint("green").patterned("mottle", 0.6, 0.65)
    builder.stuff("terrain").box((0, 0, -0.52), (300, 300, 0.5), grass)
    asphalt = builder.paint("grey").toned(0.3, builder.within(0.1, 0.25))
    asphalt = asphalt.patterned("mottle", 0.7, 0.85)
    street, white = builder.stuff("road"), builder.paint("white")
    street.box((0, 100, -0.01), (road, 150, 0.01), asphalt)
    if rails:
        for x in (-1.15, -0.35, 0.35, 1.15):
            street.box((x, 100, 0), (0.05, 150, 0.01), builder.paint("black"))
    else:
        for y in range(-3, 93, 6):
            street.box((0, y, 0), (0.07, 1.5, 0.01), white)
    for x in (2.1 - road, road - 2.1):
        street.box((x, 100, 0), (0.05, 150, 0.01), white)
    slabs = builder.paint("grey", "brown", "white").toned(0.5, 0.28)
    slabs = slabs.patterned("checks", builder.within(0.3, 0.6), 0.8)
    half = pavement / 2
    for x in (-road - half, road + half):
        sizes = (half, 150.0, _KERB / 2)
        builder.stuff("sidewalk").box((x, 100, _KERB / 2), sizes, slabs)


def _add_houses(builder: SceneBuilder, edge: float) -> None:
    """Adds houses beyond an edge, with greenery, walls or fences between them."""
    y, green, side = -12.0, builder.within(0.1, 0.6), math.copysign(1, edge)
    while y < _END + 30:
        half = builder.within(3, 8)
        place = Place((edge, y + half, 0))
        if builder.chance(green):
            _add_gap(builder, place, side, half)
        else:
            _add_house(builder, place, side, half)
        y += 2 * half


def _add_house(builder: SceneBuilder, place: Place, side: float, half: float) -> None:
    house, tall = builder.stuff("building", place), builder.within(2.5, 9)
    paint = builder.paint("red", "orange", "yellow", "brown", "white", "grey")
    walls = _windowed(builder, paint.toned(0.6, 0.25))
    middle = side * (builder.within(0.1, 1.5) + 5.0)
    house.box((middle, 0, tall), (5.0, half - 0.05, tall), walls)
    roof = builder.paint("red", "brown", "black")
    house.box((middle, 0, 2 * tall), (5.25, half + 0.1, 0.2), roof)


def _windowed(builder: SceneBuilder, paint: Paint) -> Paint:
    return paint.patterned("checks", builder.within(1.0, 1.6), (0.20, 0.26, 0.34))


def _add_gap(builder: SceneBuilder, place: Place, side: float, half: float) -> None:
    name = builder.one_of("wall", "fence", "vegetation", "")
    if name:
        traffic.add_barrier(builder, place.moved(0.4 * side, 0, 0), name, half)
    for _ in range(builder.rng.integers(1, 4)):
        x, y = side * builder.within(2, 8), builder.within(-half, half)
        traffic.add_tree(builder, place.moved(x, y, 0))


def _add_pavement(
    builder: SceneBuilder, side: int, road: float, pavement: float
) -> None:
    """Adds the things and people on a pavement, one after the other."""
    y, trees = builder.within(4, 8), builder.within(0.0, 0.3)
    while y < _END:
        kerb = Place((side * (road + 0.4), y, _KERB))
        draw = builder.within(0, 1)
        if draw < trees:
            traffic.add_tree(builder, kerb)
        elif draw < 0.38:
            traffic.add_sign(builder, kerb)
        elif draw < 0.5:
            traffic.add_lights(builder, kerb)
        elif draw < 0.62:
            traffic.add_lantern(builder, kerb, -1.6 * side)
        elif draw < 0.72:
            name = builder.one_of("bicycle", "motorcycle")
            parked = kerb.moved(0.3 * side, 0, 0)
            traffic.add_two_wheeler(builder, parked, name, ridden=False)
        else:
            away = side * builder.within(0.6, pavement - 0.8)
            for _ in range(builder.rng.integers(1, 4)):
                x, ahead = builder.rng.uniform([-0.5, -1], [0.5, 1]).tolist()
                walker = kerb.moved(away + x, ahead, 0, builder.within(0, 6))
                traffic.add_person(builder, walker)
        y += builder.within(2, 8)


def _add_lane(
    builder: SceneBuilder,
    x: float,
    start: float,
    shares: dict[str, float],
    gaps: tuple[float, float],
) -> None:
    """Adds vehicles along a lane at x. They drive on the right."""
    y = start + builder.within(*gaps)
    while y < _END:
        name = str(builder.rng.choice(list(shares), p=list(shares.values())))
        middle = y + _LENGTHS[name] / 2
        at = (x + builder.within(-0.2, 0.2), middle, 0.0)
        place = Place(at, 0.0 if x > 0 else math.pi)
        if name in traffic.VEHICLES:
            traffic.VEHICLES[name](builder, place)
        else:
            traffic.add_two_wheeler(builder, place, name, ridden=True)
        y += _LENGTHS[name] + builder.within(*gaps)
