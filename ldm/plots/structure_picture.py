"""Picture of a network's structure: from left to right by depth, downwards by resolution.

A U-Net has the shape of a U; parallel streams stand below each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ldm.plots.axes import INK
from ldm.plots.figures import Picture, figure_bytes
from ldm.plots.structure import ATTENDING, INPUT, Structure
from ldm.plots.structure_layout import FLAT, LEFT, LINE, TOP, WIDTH, Arrangement, Box, arrange

ORANGE = "#E69F00"
# Okabe & Ito (2008), told apart with every common colour blindness
COLOURS = {
    "convolution or linear": "#56B4E9",
    "residual block": "#0072B2",
    ATTENDING: "#D55E00",
    "down- or upsampling": "#A6A6A6",
    "feature head": "#009E73",
    "gate or fusion": "#CC79A7",
    "embedding": ORANGE,
}

FONT, ROOM = 7.2, 100.0  # height of letters, width for a name, in points
PALE = "#6b7280"
SHADOWS = (4, 2)  # of a box that stands for several


def draw(structure: Structure, inputs: Sequence[str] = ()) -> Picture:
    """Return an SVG of ``structure``: depth to the right, resolution downwards, as in a U.

    The width of a box hints at channels, its height at resolution; parallel streams stand below
    each other. The same structure gives the same bytes.

    Args:
        inputs: names of the channels of the input, such as ``("noisy", "T1")``.
    """
    from matplotlib.figure import Figure

    layout = arrange(structure)
    canvas = Figure(facecolor="white")
    axes = canvas.add_axes((0, 0, 1, 1), xlim=(0, WIDTH))
    axes.axis("off")
    pen = _Pen(axes)
    _draw_flow(pen, layout)
    for box in layout.boxes:
        _draw_box(pen, box, box.is_vector)
    _draw_announced(pen, layout, inputs)
    _draw_ends(pen, layout, structure, inputs)
    _draw_labels(pen, layout)
    axes.set_ylim(_draw_legend(pen, layout), 0)
    canvas.set_size_inches(WIDTH / 72, axes.get_ylim()[0] / 72)
    return figure_bytes(canvas, "svg", {"svg.fonttype": "none"})


class _Pen:
    """The few shapes that the picture is made of, and the rectangles that text must not cover."""

    def __init__(self, axes: Any) -> None:
        self.axes = axes
        self.covered: list[tuple[tuple[float, float, float, float], float]] = []
        self.notes: dict[str, str] = {}  # dots that the legend explains, and their colours

    def cover(self, x0: float, y0: float, x1: float, y1: float, weight: float) -> None:
        self.covered.append(((x0, y0, x1, y1), weight))

    def crowding(self, place: tuple[float, float, float, float]) -> float:
        """Area of a rectangle that other things cover, by their weight."""
        left, top, right, bottom = place
        total = 0.0
        for (x0, y0, x1, y1), weight in self.covered:
            wide, high = min(x1, right) - max(x0, left), min(y1, bottom) - max(y0, top)
            total += weight * max(0.0, wide) * max(0.0, high)
        return total

    def line(self, points: Sequence[tuple[float, float]], arrow: bool = True, **look: Any) -> None:
        style = {"color": PALE, "linewidth": 0.8, "solid_joinstyle": "round", "zorder": 1} | look
        self.axes.plot(*zip(*points, strict=True), **style)
        for (x0, y0), (x, y) in zip(points, points[1:], strict=False):
            self.cover(min(x0, x) - 1, min(y0, y) - 1, max(x0, x) + 1, max(y0, y) + 1, weight=1)
        if arrow:
            (x0, y0), (x, y) = points[-2:]
            length = math.hypot(x - x0, y - y0) or 1.0
            u, v = (x - x0) / length, (y - y0) / length
            head = [(x, y), (x - 4 * u - 1.6 * v, y - 4 * v + 1.6 * u)]
            head.append((x - 4 * u + 1.6 * v, y - 4 * v - 1.6 * u))
            self.axes.fill(*zip(*head, strict=True), color=style["color"], linewidth=0, zorder=3)

    def curve(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """An S from left to right, straight at its end."""
        (x0, y0), (x1, y1) = start, end
        wide, high = x1 - 5 - x0, y1 - y0
        steps = (step / 16 for step in range(17))
        self.line([*((x0 + t * wide, y0 + (3 - 2 * t) * t * t * high) for t in steps), end])

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        corners = [x, x + width, x + width, x], [y, y, y + height, y + height]
        self.axes.fill(*corners, facecolor=colour, edgecolor="white", linewidth=0.5, zorder=2)

    def dot(self, x: float, y: float, colour: str) -> None:
        style = {"markersize": 3.6, "markeredgecolor": "white", "markeredgewidth": 0.5}
        self.axes.plot([x], [y], "o", color=colour, zorder=4, **style)

    def text(self, x: float, y: float, text: str, **look: Any) -> None:
        style = {"fontsize": FONT, "color": INK, "ha": "center", "va": "center", "zorder": 5}
        self.axes.text(x, y, text, parse_math=False, **(style | look))


def _text_width(text: str) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(family="DejaVu Sans")  # comes with matplotlib, and is a wide one
    return max(TextPath((0, 0), t, FONT, prop=font).get_extents().width for t in text.split("\n"))


def _draw_flow(pen: _Pen, layout: Arrangement) -> None:
    for box in layout.boxes:
        for source in box.sources:
            start, end = (source.right, source.y), (box.x, box.y)
            if (source, box) in layout.skips:
                y = layout.height_of_skip(source, box)
                corners = [(source.middle, y), (box.middle, y)]
                pen.line([(source.middle, source.top), *corners, (box.middle, box.top)])
            elif source.is_vector:
                x = box.x + 3
                pen.line([start, (x, source.y), (x, box.bottom)], color=ORANGE)
            elif any(s.column == source.column and (s, box) in layout.skips for s in box.sources):
                continue  # joins the skip of another lane
            elif source.lane != box.lane:
                pen.curve(start, end)
            elif source.row != box.row:
                pen.line([start, (box.x - 6, source.y), (box.x - 6, box.y), end])
            elif box.x - source.right > 4:
                pen.line([start, end])
    _draw_joins(pen, layout)


def _draw_joins(pen: _Pen, layout: Arrangement) -> None:
    """Where a skip comes from several lanes at once: a line along the lanes, one for each stage."""
    stage_of = {box: number for number, stage in enumerate(layout.stages) for box in stage}
    joined: dict[int, list[tuple[Box, float]]] = {}
    for first, box in layout.skips:
        for source in box.sources:
            if source.lane != first.lane and source.column == first.column:
                entry = (source, layout.height_of_skip(first, box))
                joined.setdefault(stage_of[first], []).append(entry)
    for sources in joined.values():
        x = max(source.right for source, _ in sources) + 4
        bottom = max(source.y for source, _ in sources)
        heights = sorted({y for _, y in sources})
        pen.line([(x, bottom), (x, heights[0])], arrow=False, color=INK)
        last = max(source.column for source, _ in sources)
        for source in dict.fromkeys(source for source, _ in sources if source.column == last):
            pen.line([(source.right, source.y), (x, source.y)], arrow=False, color=INK)
            pen.dot(x, source.y, INK)
        for y in heights:
            pen.dot(x, y, INK)
        pen.notes["streams joined"] = INK


def _draw_box(pen: _Pen, box: Box, with_channels: bool) -> None:
    colour = COLOURS[box.block.kind]
    for shift in SHADOWS if len(box.places) > 1 else ():
        pen.box(box.x + shift, box.top - shift, box.width, box.height, colour)
    pen.box(box.x, box.top, box.width, box.height, colour)
    pen.cover(box.x, box.top, box.right, box.bottom, weight=100)
    if len(box.places) > 1:
        pen.text(box.middle, box.y, f"× {len(box.places)}", color="white", fontsize=FONT + 1)
    elif with_channels:
        pen.text(box.middle, box.y, f"{box.block.channels}", fontsize=FONT - 1)


def _draw_announced(pen: _Pen, layout: Arrangement, inputs: Sequence[str]) -> None:
    """What several boxes read: lines to a few, a dot on each of many."""
    for number, (origin, readers) in enumerate(layout.announced.items()):
        origin.x, origin.y, origin.width, origin.height = LEFT + 105 * number, TOP, 26, FLAT
        _draw_box(pen, origin, True)
        _draw_input(pen, origin, inputs, ", ")
        word, colour = ("embedding", ORANGE) if origin.is_vector else ("context", INK)
        few = len(readers) <= 4 and not layout.skips
        for box in readers:
            if few:
                top = box.top - (SHADOWS[0] if len(box.places) > 1 else 0)
                points = [(origin.right, TOP), (box.middle, TOP), (box.middle, top)]
                pen.line(points, color=colour, linewidth=1.1, zorder=3)
            else:
                y = box.bottom - 2.2 if origin.is_vector else box.top + 2.2
                pen.dot(box.middle, y, colour)
                pen.notes[f"receives the {word}"] = colour


def _draw_input(pen: _Pen, box: Box, inputs: Sequence[str], joint: str = "\n") -> None:
    names = [inputs[c] for c in box.block.reads if c < len(inputs)] or ["input"]
    text = "t" if box.is_vector else joint.join(dict.fromkeys(names))
    pen.line([(box.x - 14, box.y), (box.x, box.y)])
    pen.text(box.x - 17, box.y, text, ha="right", linespacing=1.25)


def _draw_ends(pen: _Pen, layout: Arrangement, structure: Structure, inputs: Sequence[str]) -> None:
    for box in layout.boxes:
        if INPUT in box.block.sources or (box.is_vector and not box.block.sources):
            _draw_input(pen, box, inputs)
        if set(structure.outputs) & set(box.places):
            pen.line([(box.right, box.y), (box.right + 14, box.y)])
            pen.text(box.right + 16, box.y, "output", ha="left")


def _draw_labels(pen: _Pen, layout: Arrangement) -> None:
    """Channels and size below every stage, but once where parallel stages are alike."""
    roomy = WIDTH / (1 + max(box.column for box in layout.boxes)) > ROOM
    stages = [[box] for stage in layout.stages for box in stage] if roomy else layout.stages
    seen = set()
    for stage in sorted(stages, key=lambda stage: -stage[0].lane):  # the lowest keeps its label
        entry = (stage[0].column, stage[-1].column, _label(stage, roomy))
        if entry not in seen and not stage[0].is_vector:
            _place_label(pen, stage, entry[2])
        seen.add(entry)


def _label(stage: Sequence[Box], with_name: bool) -> str:
    """``64 → 96 @ 48×48``, and the name of a run of blocks or of a feature head."""
    channels = [box.block.channels for box in stage]
    changes = [c for i, c in enumerate(channels) if i == 0 or c != channels[i - 1]]
    size = stage[0].block.size
    sides = f"{size[0]} tokens" if len(size) == 1 else "×".join(map(str, size))
    text = f"{' → '.join(map(str, changes))} @ {sides}"
    for box in stage:
        if box.block.kind == "feature head":
            return f"{box.block.path.rpartition('.')[2]}\n{text}"
        if len(box.places) > 1 or with_name:
            return f"{box.block.name}\n{text}"
    return text


def _place_label(pen: _Pen, stage: Sequence[Box], text: str) -> None:
    """Write below a stage, in the middle or to a side, where the least is in the way."""
    left, right = stage[0].x, stage[-1].right
    width, height = _text_width(text) + 2, LINE * len(text.split("\n"))
    bottom = max(box.bottom for box in stage) + 1.5
    outside = (right - width, left + 5)  # of a U: left of the encoder, right of the decoder
    starts = ((left + right - width) / 2, *outside[:: 1 if left + right < WIDTH else -1])
    places = [
        (x, bottom + down, x + width, bottom + down + height)
        for down in (0, LINE, 2 * LINE)
        for x in (min(start, WIDTH - 4 - width) for start in starts)
    ]
    place = min(places, key=lambda place: pen.crowding(place) + 8 * (place[1] - bottom))
    pen.cover(*place, weight=100)
    look = {"linespacing": 1.2, "bbox": {"facecolor": "white", "pad": 0, "linewidth": 0}}
    pen.text(place[0] + width / 2, place[1] + height / 2, text, **look)


def _draw_legend(pen: _Pen, layout: Arrangement) -> float:
    """Explain colours and dots; return the height of the picture."""
    used = {box.block.kind for box in [*layout.boxes, *layout.announced]}
    entries = [(kind, colour, True) for kind, colour in COLOURS.items() if kind in used]
    entries += [(note, colour, False) for note, colour in pen.notes.items()]
    x, y = 8.0, max(covered[3] for covered, _ in pen.covered) + 2 * LINE
    for name, colour, is_box in entries:
        width = 12 + _text_width(name) + 12
        if x + width > WIDTH:
            x, y = 8.0, y + 1.5 * LINE
        if is_box:
            pen.box(x, y - 4, 9, 8, colour)
        else:
            pen.dot(x + 5, y, colour)
        pen.text(x + 12, y, name, ha="left", color=PALE)
        x += width
    return y + LINE
