"""Furniture and what else is in a room.

A thing's y axis points to its front. What stands or hangs at a wall has its origin on
it, and its y axis points into the room.
"""

import math

from experiments.data.scenes import Paint, Place, SceneBuilder

VIVID = ("red", "orange", "yellow", "green", "blue", "purple", "pink")


def mix_wood(builder: SceneBuilder) -> Paint:
    """Draws a paint with a grain, brown in most cases."""
    hues = ("brown", "brown", "brown", "orange", "white", "black", "grey")
    return builder.paint(*hues).patterned("grain", 0.5, 0.75)


def add_bed(builder: SceneBuilder, place: Place, wood: Paint) -> None:
    """Adds a bed, 1.7 by 2.1 metres, with its head at the wall."""
    bed, sheet = builder.thing("bed", place), builder.paint("white")
    bed.box((0, 0.04, 0.5), (0.83, 0.04, 0.5), wood)
    bed.box((0, 1.05, 0.17), (0.8, 1.0, 0.17), wood)
    bed.box((0, 1.05, 0.42), (0.78, 0.97, 0.09), sheet)
    cover = builder.paint(*VIVID, "grey")
    if builder.chance(0.5):
        pattern = builder.one_of("stripes", "checks", "mottle")
        cover = cover.patterned(pattern, 0.14, 0.7)
    bed.box((0, 1.35, 0.46), (0.815, 0.69, 0.085), cover)
    for x in (-0.38, 0.38):
        bed.ball((x, 0.32, 0.56), (0.3, 0.19, 0.09), sheet)


def add_sofa(builder: SceneBuilder, place: Place) -> None:
    """Adds a sofa, 2 by 0.95 metres, with its back at the wall."""
    sofa = builder.thing("sofa", place)
    cloth = builder.paint(*VIVID, "grey", "brown").patterned("mottle", 0.05, 0.85)
    sofa.box((0, 0.48, 0.2), (0.95, 0.42, 0.14), cloth)
    sofa.box((0, 0.18, 0.5), (0.95, 0.12, 0.34), cloth)
    for x in (-0.86, 0.86):
        sofa.box((x, 0.48, 0.34), (0.11, 0.42, 0.28), cloth)
        sofa.pole((x, 0.85, 0.34), 0.11, 0.28, cloth)
    for x in (-0.37, 0.37):
        sofa.box((x, 0.56, 0.4), (0.36, 0.34, 0.07), cloth)
        if builder.chance(0.6):
            pillow = builder.paint(*VIVID, "white")
            sofa.ball((x, 0.36, 0.62), (0.2, 0.1, 0.17), pillow)


def add_chair(builder: SceneBuilder, place: Place, wood: Paint) -> None:
    """Adds a chair, 0.44 metres wide, its origin under the seat."""
    chair = builder.thing("chair", place)
    seat = wood if builder.chance(0.5) else builder.paint(*VIVID, "black")
    chair.box((0, 0, 0.45), (0.22, 0.22, 0.03), seat)
    for x in (-0.19, 0.19):
        chair.box((x, 0.19, 0.22), (0.022, 0.022, 0.22), wood)
        chair.box((x, -0.19, 0.46), (0.022, 0.022, 0.46), wood)
    chair.box((0, -0.2, 0.8), (0.2, 0.02, 0.13), seat)


def add_table(builder: SceneBuilder, place: Place, wood: Paint) -> None:
    """Adds a table with chairs round it and things on it, within a radius of 1 m."""
    table = builder.thing("table", place)
    top = wood if builder.chance(0.6) else builder.paint(*VIVID, "white", "black")
    if builder.chance(0.4):
        x = y = 0.5
        table.pole((0, 0, 0.73), x, 0.02, top)
        table.pole((0, 0, 0.36), 0.05, 0.36, wood)
        table.pole((0, 0, 0.02), 0.3, 0.02, wood)
    else:
        x, y = builder.within(0.4, 0.65), 0.4
        table.box((0, 0, 0.73), (x, y, 0.02), top)
        for side in (x - 0.05, 0.05 - x):
            for end in (y - 0.05, 0.05 - y):
                table.box((side, end, 0.355), (0.03, 0.03, 0.355), wood)
    for quarter in builder.rng.permutation(4)[: builder.rng.integers(1, 4)]:
        turn = quarter * math.pi / 2
        reach = 0.2 + (x if quarter % 2 else y)
        seat = place.moved(reach * math.sin(turn), -reach * math.cos(turn), 0, turn)
        add_chair(builder, seat, wood)
    for side in builder.rng.permutation([-0.6, 0, 0.6])[: builder.rng.integers(1, 4)]:
        along, turn = builder.within(-0.2, 0.2), builder.within(0, math.pi)
        on_top = place.moved(side * x, along, 0.75, turn)
        if builder.chance(0.4):
            _add_pile(builder, on_top)
        else:
            add_object(builder, on_top, builder.within(0.5, 0.8))


def add_screen(builder: SceneBuilder, place: Place, wood: Paint) -> None:
    """Adds a low cabinet, 1.5 by 0.5 metres, with a screen on it."""
    cabinet = builder.thing("furniture", place)
    cabinet.box((0, 0.25, 0.25), (0.75, 0.22, 0.25), wood)
    for x in (-0.37, 0.37):
        door = wood.patterned("plain", 1, 1)
        cabinet.box((x, 0.475, 0.25), (0.35, 0.01, 0.2), door)
    tv = builder.thing("tv", place.moved(0, 0.22, 0.5))
    black, half = builder.paint("black"), builder.within(0.4, 0.6)
    tall = 0.6 * half
    tv.box((0, 0, 0.02), (0.2, 0.1, 0.02), black)
    tv.box((0, 0, 0.08 + tall), (half, 0.03, tall), black)
    if builder.chance(0.5):
        film = builder.paint("blue", "green", "purple").patterned("mottle", 0.2, 2)
        sizes = (half - 0.04, 0.005, tall - 0.04)
        tv.box((0, 0.03, 0.08 + tall), sizes, film.glowing(0.8))


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
        on_board = place.moved(0, 0.17, board + 0.02)
        if i + 1 == num_boards:
            continue
        if builder.chance(0.65):
            _add_row(builder, on_board)
        elif builder.chance(0.6):
            add_object(builder, on_board, 0.6)


def add_cabinet(builder: SceneBuilder, place: Place) -> None:
    """Adds a wardrobe or a chest of drawers, 0.9 by 0.55 metres."""
    cabinet, wood = builder.thing("furniture", place), mix_wood(builder)
    front, knob = wood.patterned("plain", 1, 1), builder.paint("black", "yellow")
    if builder.chance(0.35):
        z = builder.within(0.85, 1.05)
        cabinet.box((0, 0.25, z), (0.45, 0.24, z), wood)
        for x in (-0.225, 0.225):
            cabinet.box((x, 0.495, z), (0.213, 0.01, z - 0.05), front)
            cabinet.ball((0.2 * x, 0.52, z), 0.025, knob)
        return
    z = builder.within(0.3, 0.5)
    cabinet.box((0, 0.25, z), (0.4, 0.24, z), wood)
    for up in (0.35, 1, 1.65):
        cabinet.box((0, 0.495, up * z), (0.37, 0.01, 0.3 * z), front)
        cabinet.ball((0, 0.52, up * z), 0.022, knob)
    if builder.chance(0.6):
        side, turn = builder.within(-0.2, 0.2), builder.within(0, 1)
        add_object(builder, place.moved(side, 0.25, 2 * z, turn), 0.7)


def add_object(builder: SceneBuilder, place: Place, size: float) -> None:
    """Adds a ball, a vase, a carton, a lamp, a bin or a plant, 0.5 `size` m at most."""
    thing, paint = builder.thing("objects", place), builder.paint()
    match builder.rng.integers(6):
        case 0:
            if builder.chance(0.5):
                paint = paint.patterned("stripes", 0.08, (0.9, 0.9, 0.88))
            thing.ball((0, 0, 0.16 * size), 0.16 * size, paint)
        case 1:
            belly = (0.11 * size, 0.11 * size, 0.13 * size)
            thing.ball((0, 0, 0.13 * size), belly, paint)
            thing.pole((0, 0, 0.28 * size), 0.04 * size, 0.08 * size, paint)
        case 2:
            x, y, z = (size * builder.rng.uniform(0.08, 0.2, 3)).tolist()
            thing.box((0, 0, z), (x, y, z), paint)
        case 3:
            thing.pole((0, 0, 0.01), 0.09 * size, 0.01, builder.paint("black"))
            thing.pole((0, 0, 0.17 * size), 0.015, 0.17 * size, paint)
            shade = builder.paint("white", "yellow", "orange").glowing(0.6)
            thing.pole((0, 0, 0.4 * size), 0.13 * size, 0.09 * size, shade)
        case 4:
            thing.pole((0, 0, 0.15 * size), 0.12 * size, 0.15 * size, paint)
        case _:
            thing.pole((0, 0, 0.1 * size), 0.1 * size, 0.1 * size, paint)
            leaves = builder.paint("green").patterned("mottle", 0.04, 0.4)
            bushes = builder.rng.uniform([-0.1, -0.1, 0.3], [0.1, 0.1, 0.45], [4, 3])
            for x, y, z in (size * bushes).tolist():
                thing.ball((x, y, z), 0.12 * size, leaves)


def add_door(builder: SceneBuilder, place: Place) -> None:
    """Adds a door, 1 metre wide, of class wall as in NYUv2."""
    door = builder.stuff("wall", place)
    door.box((0, 0, 1.03), (0.5, 0.03, 1.03), builder.paint("white"))
    leaf = builder.paint("brown", "white", "grey")
    door.box((0, 0.02, 1.0), (0.43, 0.03, 1.0), leaf)
    door.ball((0.36, 0.07, 1.0), 0.03, builder.paint("yellow", "black"))


def add_window(builder: SceneBuilder, place: Place, half: float, height: float) -> None:
    """Adds a window of half a width in a wall of a height, at times with curtains."""
    window, frame = builder.thing("window", place), builder.paint("white", "brown")
    z, tall = 0.55 * height, 0.24 * height
    sky = builder.paint("blue")._replace(colour=(0.62, 0.78, 0.95))
    sky = sky.patterned("mottle", 0.5, (0.97, 0.97, 0.97)).glowing(0.9)
    window.box((0, 0, z), (half, 0.02, tall), sky)
    for x in (-half, 0, half):
        window.box((x, 0.02, z), (0.03, 0.03, tall + 0.03), frame)
    for up in (-tall, 0.3 * tall, tall):
        window.box((0, 0.02, z + up), (half, 0.03, 0.03), frame)
    if builder.chance(0.6):
        cloth = builder.paint(*VIVID, "white", "grey").patterned("stripes", 0.05, 0.8)
        for x in (-half - 0.08, half + 0.08):
            window.box((x, 0.06, z), (0.15, 0.02, tall + 0.2), cloth)


def add_picture(builder: SceneBuilder, place: Place, half: float) -> None:
    """Adds a framed picture of half a width."""
    picture, tall = builder.thing("picture", place), half * builder.within(0.7, 1.3)
    z, frame = builder.within(1.4, 1.7), builder.paint("black", "brown", "yellow")
    pattern = builder.one_of("mottle", "checks", "stripes", "grain")
    canvas = builder.paint()
    accent = builder.paint().colour
    canvas = canvas.patterned(pattern, builder.within(0.08, 0.2), accent)
    picture.box((0, 0.01, z), (half, 0.02, tall), frame)
    picture.box((0, 0.03, z), (half - 0.04, 0.005, tall - 0.04), canvas)


def _add_row(builder: SceneBuilder, place: Place) -> None:
    """Adds books side by side."""
    books, x, end = builder.thing("books", place), -0.44, builder.within(-0.1, 0.44)
    while x < end:
        half, tall = builder.within(0.015, 0.04), builder.within(0.09, 0.14)
        books.box((x + half, 0.02, tall), (half, 0.1, tall), builder.paint())
        x += 2 * half + 0.003


def _add_pile(builder: SceneBuilder, place: Place) -> None:
    """Adds books on top of each other."""
    books, z = builder.thing("books", place), 0.0
    for _ in range(builder.rng.integers(2, 6)):
        half, shift = builder.within(0.012, 0.03), builder.within(-0.02, 0.02)
        sizes = (builder.within(0.1, 0.15), builder.within(0.08, 0.11), half)
        books.box((shift, 0, z + half), sizes, builder.paint())
        z += 2 * half
