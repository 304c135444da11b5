"""Furniture and other things in a room.

The y axis of a thing points to its front. A thing at a wall has its origin on the wall.
"""

import math

from experiments.data.scenes import Paint, Place, SceneBuilder

VIVID = ("red", "orange", "yellow", "green", "blue", "purple", "pink")


def mix_wood(builder: SceneBuilder) -> Paint:
    """Draws a paint with wood grain, most often brown."""
    hues = ("brown", "brown", "brown", "orange", "white", "black", "grey")
    return builder.paint(*hues).patterned("mottle", 0.15, 0.75)


def add_bed(builder: SceneBuilder, place: Place, wood: Paint) -> None:
    """Adds a bed, 1.7 by 2.1 metres, with its head at the wall."""
    bed, sheet = builder.thing("bed", place), builder.paint("white")
    cover = builder.paint(*VIVID, "grey")
    pattern = builder.one_of("stripes", "checks", "mottle")
    bed.box((0, 0.04, 0.5), (0.83, 0.04, 0.5), wood)
    bed.box((0, 1.05, 0.17), (0.8, 1.0, 0.17), wood)
    bed.box((0, 1.05, 0.42), (0.78, 0.97, 0.09), sheet)
    bed.box((0, 1.35, 0.46), (0.81, 0.69, 0.08), cover.patterned(pattern, 0.14, 0.7))
    for x in (-0.38, 0.38):
        bed.ball((x, 0.32, 0.56), (0.3, 0.19, 0.09), sheet)


def add_sofa(builder: SceneBuilder, place: Place) -> None:
    """Adds a sofa, 2 by 0.95 metres, with its back at the wall."""
    sofa = builder.thing("sofa", place)
    cloth = builder.paint(*VIVID, "grey", "brown").patterned("mottle", 0.05, 0.85)
    sofa.box((0, 0.48, 0.22), (0.95, 0.42, 0.2), cloth)
    sofa.box((0, 0.18, 0.5), (0.95, 0.12, 0.34), cloth)
    for x in (-0.86, 0.86):
        sofa.box((x, 0.48, 0.34), (0.11, 0.42, 0.28), cloth)
        if builder.chance(0.6):
            pillow = builder.paint(*VIVID, "white")
            sofa.ball((0.4 * x, 0.36, 0.58), (0.2, 0.1, 0.17), pillow)


def add_chair(builder: SceneBuilder, place: Place, wood: Paint) -> None:
    """Adds a chair, 0.44 metres wide, with its origin under the seat."""
    chair = builder.thing("chair", place)
    seat = builder.paint(*VIVID, "brown", "black")
    chair.box((0, 0, 0.45), (0.22, 0.22, 0.03), seat)
    chair.box((0, -0.2, 0.7), (0.2, 0.02, 0.23), seat)
    for x in (-0.19, 0.19):
        for y in (-0.19, 0.19):
            chair.box((x, y, 0.22), (0.022, 0.022, 0.22), wood)


def add_table(builder: SceneBuilder, place: Place, wood: Paint) -> None:
    """Adds a table with chairs around it and things on it, within a radius of 1 m."""
    table, x, y = builder.thing("table", place), builder.within(0.4, 0.65), 0.4
    table.box((0, 0, 0.73), (x, y, 0.02), builder.paint("brown", "white", *VIVID))
    for side in (x - 0.05, 0.05 - x):
        for end in (y - 0.05, 0.05 - y):
            table.box((side, end, 0.355), (0.03, 0.03, 0.355), wood)
    for quarter in builder.rng.permutation(4)[: builder.rng.integers(1, 4)]:
        turn = quarter * math.pi / 2
        reach = 0.2 + (x if quarter % 2 else y)
        seat = place.moved(reach * math.sin(turn), -reach * math.cos(turn), 0, turn)
        add_chair(builder, seat, wood)
    for side in builder.rng.permutation([-0.6, 0, 0.6])[: builder.rng.integers(1, 4)]:
        on_top = place.moved(side * x, builder.within(-0.2, 0.2), 0.75)
        if builder.chance(0.4):
            _add_books(builder, on_top, 3)
        else:
            add_object(builder, on_top, builder.within(0.5, 0.8))


def add_screen(builder: SceneBuilder, place: Place, wood: Paint) -> None:
    """Adds a low cabinet, 1.5 by 0.5 metres, with a screen on it."""
    builder.thing("furniture", place).box((0, 0.25, 0.25), (0.75, 0.22, 0.25), wood)
    tv, half = builder.thing("tv", place.moved(0, 0.22, 0.5)), builder.within(0.4, 0.6)
    tv.box((0, 0, 0.03 + 0.6 * half), (half, 0.03, 0.6 * half), builder.paint("black"))
    if builder.chance(0.5):
        film = builder.paint("blue", "green", "purple").patterned("mottle", 0.2, 2)
        sizes = (half - 0.04, 0.005, 0.6 * half - 0.04)
        tv.box((0, 0.03, 0.03 + 0.6 * half), sizes, film.glowing(0.8))


def add_shelf(builder: SceneBuilder, place: Place, wood: Paint, height: float) -> None:
    """Adds open shelves, 1 by 0.35 metres, with books and other things in them."""
    shelf, z = builder.thing("furniture", place), height / 2
    shelf.box((0, 0.02, z), (0.5, 0.01, z), wood)
    for x in (-0.48, 0.48):
        shelf.box((x, 0.17, z), (0.02, 0.16, z), wood)
    num_boards = max(3, round(height / 0.38))
    for i in range(num_boards):
        board = 0.06 + i * (height - 0.08) / (num_boards - 1)
        shelf.box((0, 0.17, board), (0.48, 0.16, 0.018), wood)
        if i + 1 < num_boards and builder.chance(0.65):
            num = int(builder.rng.integers(6, 14))
            _add_books(builder, place.moved(-0.4, 0.17, board + 0.02), num)


def add_cabinet(builder: SceneBuilder, place: Place) -> None:
    """Adds a wardrobe or a chest with something on it, 0.9 by 0.55 metres."""
    cabinet, wood = builder.thing("furniture", place), mix_wood(builder)
    z = builder.within(0.85, 1.05) if builder.chance(0.35) else builder.within(0.3, 0.5)
    cabinet.box((0, 0.25, z), (0.45, 0.24, z), wood)
    for x in (-0.225, 0.225):
        cabinet.box((x, 0.495, z), (0.21, 0.01, z - 0.05), wood.toned(0.8, 0.1))
        cabinet.ball((0.2 * x, 0.52, z), 0.025, builder.paint("black", "yellow"))
    if z < 0.5:
        add_object(builder, place.moved(0, 0.25, 2 * z), 0.7)


def add_object(builder: SceneBuilder, place: Place, size: float) -> None:
    """Adds a ball, a carton, a lamp or a plant, of at most 0.5 `size` metres."""
    thing, paint, r = builder.thing("objects", place), builder.paint(), 0.15 * size
    match builder.rng.integers(4):
        case 0:
            thing.ball((0, 0, r), r, paint)
        case 1:
            x, y, z = (size * builder.rng.uniform(0.08, 0.2, 3)).tolist()
            thing.box((0, 0, z), (x, y, z), paint)
        case 2:
            thing.box((0, 0, r), (0.015, 0.015, r), paint)
            shade = builder.paint("white", "yellow", "orange").glowing(0.6)
            thing.ball((0, 0, 2.6 * r), 0.8 * r, shade)
        case _:
            thing.box((0, 0, 0.7 * r), (0.7 * r, 0.7 * r, 0.7 * r), paint)
            leaves = builder.paint("green").patterned("mottle", 0.04, 0.4)
            thing.ball((0, 0, 2.2 * r), (r, r, 1.3 * r), leaves)


def add_window(builder: SceneBuilder, place: Place, half: float, height: float) -> None:
    """Adds a window to a wall, given half the window's width and the wall's height."""
    window, tall = builder.thing("window", place), 0.24 * height
    sky = builder.paint("blue").patterned("mottle", 0.5, (0.97, 0.97, 0.97))
    frame = builder.paint("white", "brown", *VIVID)
    window.box((0, 0, 0.55 * height), (half + 0.06, 0.02, tall + 0.06), frame)
    for x in (-half / 2, half / 2):
        sizes = (half / 2 - 0.02, 0.03, tall)
        window.box((x, 0, 0.55 * height), sizes, sky.toned(0.5, 0.5).glowing(0.9))


def add_picture(builder: SceneBuilder, place: Place, half: float) -> None:
    """Adds a framed picture, given half its width."""
    picture, tall = builder.thing("picture", place), half * builder.within(0.7, 1.3)
    z, frame = builder.within(1.4, 1.7), builder.paint("black", "brown", "yellow")
    pattern = builder.one_of("mottle", "checks", "stripes")
    canvas = builder.paint().patterned(pattern, 0.14, builder.paint().colour)
    picture.box((0, 0.01, z), (half, 0.02, tall), frame)
    picture.box((0, 0.03, z), (half - 0.04, 0.005, tall - 0.04), canvas)


def _add_books(builder: SceneBuilder, place: Place, num: int) -> None:
    """Adds books side by side."""
    books, x = builder.thing("books", place), 0.0
    for _ in range(num):
        half, tall = builder.within(0.015, 0.04), builder.within(0.09, 0.14)
        books.box((x + half, 0.02, tall), (half, 0.1, tall), builder.paint())
        x += 2 * half + 0.003
