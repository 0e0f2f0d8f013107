"""Where the boxes of a network's picture stand: by depth to the right, by resolution downwards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ldm.plots.structure import ATTENDING, INPUT, Block, Structure

# Lengths are in points (1/72 inch), x to the right and y downwards
WIDTH, LEFT, RIGHT, TOP = 670, 50, 52, 14
THIN, STEP, CROSSING = 1.5, 15, 44  # gaps: within a level, to the next one, where streams meet
BRACKET = 4.0  # between the lines of nested skips
FLAT, LINE = 10.0, 9.0  # height of a box without positions, of a line
SLIM, WIDE = 14.0, 60.0  # width of one of many boxes, of one of few
RUN = 5  # so many equal blocks in a row become one box


@dataclass(eq=False)
class Box:
    """A block of the picture, or a run of equal ones, and its place."""

    block: Block
    places: list[int]
    sources: list[Box] = field(default_factory=list)
    column: int = 0
    lane: int = 0
    row: int = 0
    x: float = 0.0  # left
    y: float = 0.0  # centre
    width: float = 0.0
    height: float = 0.0

    @property
    def is_vector(self) -> bool:
        """Whether it has no positions, as an embedding."""
        return not self.block.size

    @property
    def right(self) -> float:
        """Its right edge."""
        return self.x + self.width

    @property
    def middle(self) -> float:
        """Its middle from left to right."""
        return self.x + self.width / 2

    @property
    def top(self) -> float:
        """Its upper edge."""
        return self.y - self.height / 2

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return self.y + self.height / 2


@dataclass
class Arrangement:
    """The boxes of a picture in their places."""

    boxes: list[Box]
    announced: dict[Box, list[Box]]  # embeddings and contexts, and the boxes that read them
    stages: list[list[Box]]  # boxes side by side: one lane, one row
    skips: dict[tuple[Box, Box], int]  # along a row, and their rank among nested ones

    def height_of_skip(self, source: Box, box: Box) -> float:
        """Return the height at which a skip connection passes over other boxes."""
        return min(source.top, box.top) - BRACKET * (self.skips[source, box] + 1)


def _collapse(structure: Structure) -> list[Box]:
    """Return the boxes: runs of equal blocks, of which each reads only the one before, as one."""
    blocks = structure.blocks
    vectors = {place for place, block in enumerate(blocks) if not block.size}
    readers = [[i for i, b in enumerate(blocks) if p in b.sources] for p in range(len(blocks))]

    def continues(place: int) -> bool:
        before, block = blocks[place - 1], blocks[place]
        same, other = (replace(b, path="", sources=(), reads=()) for b in (before, block))
        alone = set(block.sources) - vectors == {place - 1} and readers[place - 1] == [place]
        return same == other and alone

    runs: list[list[int]] = [[0]]
    for place in range(1, len(blocks)):
        if place not in vectors and continues(place):
            runs[-1].append(place)
        else:
            runs.append([place])
    groups = [g for run in runs for g in ([run] if len(run) >= RUN else [[p] for p in run])]
    boxes = [Box(blocks[group[0]], group) for group in groups]
    owner = {place: box for box in boxes for place in box.places}
    for box in boxes:
        read = {owner[s] for place in box.places for s in blocks[place].sources if s != INPUT}
        box.sources = sorted(read - {box}, key=boxes.index)
    return boxes


def _arrange(boxes: list[Box]) -> dict[Box, list[Box]]:
    """Give every box column, lane and row; return embeddings and contexts that many boxes read.

    Columns are depths. A box that reads the input opens a lane, a box that joins lanes takes the
    first of them; where two boxes fall on one spot the later goes to the next lane.
    """
    readers = {box: [other for other in boxes if box in other.sources] for box in boxes}
    announced = {box: readers[box] for box in boxes if _is_announced(box, readers[box])}
    announced = dict(sorted(announced.items(), key=lambda item: not item[0].is_vector))
    for box in announced:
        for reader in readers[box]:
            reader.sources.remove(box)
        boxes.remove(box)
    for box in boxes:
        box.column = 1 + max((source.column for source in box.sources), default=-1)
    for box in boxes:
        if not box.sources:  # as late as its readers allow
            box.column = min((r.column for r in readers[box]), default=1) - 1
    streams = [box for box in boxes if all(source.is_vector for source in box.sources)]
    streams.sort(key=lambda box: box.is_vector)
    for lane, box in enumerate(streams):
        box.lane = lane
    taken = {(box.column, box.lane) for box in streams}
    for box in (b for b in boxes if b not in streams):
        box.lane = min(source.lane for source in box.sources)
        while (box.column, box.lane) in taken:
            box.lane += 1
        taken.add((box.column, box.lane))
    _assign_rows(boxes, readers)
    return announced


def _is_announced(box: Box, readers: Sequence[Box]) -> bool:
    """Whether many boxes read an embedding, or the tokens of a context beside their own input."""
    attending = all(
        reader.block.kind == ATTENDING and set(reader.sources) - {box} for reader in readers
    )
    return len(readers) > 1 and (box.is_vector or attending and not box.sources)


def _assign_rows(boxes: list[Box], readers: Mapping[Box, list[Box]]) -> None:
    """Rows are levels of resolution, of which only those that occur count."""
    finest = max(box.block.side for box in boxes)

    def level(box: Box) -> int:
        if box.is_vector:
            return level(readers[box][0])
        halvings = math.log2(finest / box.block.side)
        # a sequence of tokens may hold several images and a token more
        return math.ceil(halvings - 0.1) if len(box.block.size) == 1 else round(halvings)

    levels = {box: level(box) for box in boxes}
    rows = sorted(set(levels.values()))
    for box in boxes:
        box.row = rows.index(levels[box])


def _stages(boxes: Sequence[Box]) -> list[list[Box]]:
    """Return the boxes that stand side by side: one lane, row and size, each fed by the last."""
    stages: list[list[Box]] = []
    for box in sorted(boxes, key=lambda b: (b.lane, b.column)):
        flow = [source for source in box.sources if source.column == box.column - 1]
        last = flow[0] if len(flow) == 1 else box
        alike = (last.lane, last.row, last.block.size) == (box.lane, box.row, box.block.size)
        if last is not box and alike:
            stages[-1].append(box)
        else:
            stages.append([box])
    return stages


def _skips(boxes: Sequence[Box], stages: Sequence[list[Box]]) -> dict[tuple[Box, Box], int]:
    """Return the connections along a row that pass over other boxes, ranked from inside out."""
    firsts, lasts = [s[0] for s in stages], [s[-1] for s in stages]
    spans = []
    for box in boxes:
        row = [b for b in boxes if (b.lane, b.row) == (box.lane, box.row)]
        for source in (s for s in box.sources if s in row and box.column - s.column > 1):
            passes = any(source.column < b.column < box.column for b in row)
            if passes or source not in lasts or box not in firsts:
                spans.append((source, box))
    ranks: dict[tuple[Box, Box], int] = {}
    for source, box in sorted(spans, key=lambda span: span[1].column - span[0].column):
        inner = [
            rank
            for (a, b), rank in ranks.items()
            if (a.lane, a.row) == (box.lane, box.row) and b.column >= source.column
            if a.column <= box.column
        ]
        ranks[source, box] = 1 + max(inner, default=-1)
    return ranks


def _place_columns(layout: Arrangement) -> None:
    """Give every box its width, by channels, and its x; gaps take what the boxes leave."""
    boxes = layout.boxes
    columns = [[b for b in boxes if b.column == c] for c in range(max(b.column for b in boxes) + 1)]
    widest = max(box.block.channels for box in boxes)
    for box in boxes:
        share = 0.5 + 0.5 * math.sqrt(box.block.channels / widest)
        box.width = share * (2.2 if len(box.places) > 1 else 1)
    relative = [max(box.width for box in column) for column in columns]
    follows = {box for stage in layout.stages for box in stage[1:]}
    gaps = []
    for column, after in zip(columns, columns[1:], strict=False):
        meeting = any(s.lane != b.lane for b in after for s in b.sources if s in column)
        gaps.append(CROSSING if meeting else THIN if follows.issuperset(after) else STEP)
    space = WIDTH - LEFT - RIGHT
    unit = (space - sum(gaps)) / sum(relative)
    if unit > SLIM:  # few boxes: they need not fill the page
        unit = min(WIDE, max(SLIM, 0.6 * space / sum(relative)))
    stretch = (space - sum(gaps) - unit * sum(relative)) / max(1, len(gaps))
    x = float(LEFT)
    for column, width, gap in zip(columns, relative, [*gaps, 0], strict=True):
        for box in column:
            box.width *= unit
            box.x = x + (width * unit - box.width) / 2
        x += width * unit + gap + stretch


def _place_rows(layout: Arrangement) -> None:
    """Give every box its height, by resolution, and its y: rows below each other, then lanes."""
    boxes = layout.boxes
    finest, lanes = max(box.block.side for box in boxes), {box.lane for box in boxes}
    full = 40 if len(lanes) > 3 else 52
    for box in boxes:
        box.height = FLAT if box.is_vector else max(8.0, full * (box.block.side / finest) ** 0.5)
    shared = {box.row for box in boxes if box.lane}
    lane_height = LINE + 5 + max((box.height for box in boxes if box.row in shared), default=0)
    y = TOP + (22 if layout.announced else 0)
    for row in range(max(box.row for box in boxes) + 1):
        members = [box for box in boxes if box.row == row]
        ranks = [rank for (_, box), rank in layout.skips.items() if box.row == row]
        y += BRACKET * (max(ranks) + 2) if ranks else 0
        tallest = max(box.height for box in members)
        for box in members:
            box.y = y + tallest / 2 + box.lane * lane_height
        y += tallest + 2 * LINE


def arrange(structure: Structure) -> Arrangement:
    """Return the boxes of ``structure`` in their places."""
    boxes = _collapse(structure)
    announced = _arrange(boxes)
    stages = _stages(boxes)
    layout = Arrangement(boxes, announced, stages, _skips(boxes, stages))
    _place_columns(layout)
    _place_rows(layout)
    return layout
