"""Layered drawings of directed acyclic graphs (after Sugiyama, Tagawa & Toda 1981): boxes in, places out.

Boxes stand in ranks by the longest path from above. An edge that skips ranks passes through invisible
bends. Boxes and bends are ordered within their ranks to reduce crossings (barycentres) and then moved
sideways to straighten edges (least squares that keep the order, by pooling adjacent violators).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

Key = Hashable
Edge = tuple[Key, int, Key]  # source, the number of its port, target

SPACE, MARGIN = 26, 24  # px: between neighbours in a rank; around the drawing
SWEEPS = 24  # to order the ranks
STRAIGHTENINGS = 400


@dataclass
class Box:
    """A node: its size, the places its edges leave from (from its middle), and where the layout put it."""

    key: Key
    width: float = 2.0
    height: float = 0.0  # 0: the bend of an edge
    ports: list[float] = field(default_factory=lambda: [0.0])
    rank: int = 0
    x: float = 0.0  # the middle
    y: float = 0.0  # the upper edge

    @property
    def left(self) -> float:
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        return self.x + self.width / 2


@dataclass(frozen=True)
class Hop:
    """A piece of an edge: from a port of `source` to `target` in the next rank."""

    source: Box
    port: int
    target: Box

    @property
    def key(self) -> tuple[Key, int, Key]:
        return self.source.key, self.port, self.target.key

    @property
    def start(self) -> float:
        """x of the port."""
        return self.source.x + self.source.ports[self.port]

    @property
    def fraction(self) -> float:
        """The port's place among its box's, between 0 and 1."""
        return (self.port + 0.5) / len(self.source.ports)


class Layout:
    """Boxes in their places, and the way every edge takes through them.

    `boxes` come in an order in which edges point forwards. Afterwards they have rank, x and y; `routes` are
    the edges as lists of boxes and bends, `hops` the pieces between adjacent ranks, each once.

    >>> boxes = [Box("a", 80, 30), Box("b", 80, 30), Box("c", 80, 30)]
    >>> layout = Layout(boxes, [("a", 0, "b"), ("b", 0, "c"), ("a", 0, "c")])
    >>> [box.rank for box in boxes], [len(route) for route in layout.routes]
    ([0, 1, 2], [2, 2, 3])
    """

    def __init__(self, boxes: Sequence[Box], edges: Sequence[Edge]) -> None:
        self.boxes = {box.key: box for box in boxes}
        self._rank(edges)
        self.routes = [self._route(edge) for edge in edges]
        hops = [
            Hop(a, port if a is route[0] else 0, b)
            for (_, port, _), route in zip(edges, self.routes, strict=True)
            for a, b in pairwise(route)
        ]
        self.hops = {hop.key: hop for hop in hops}
        self._above: dict[Key, list[Hop]] = defaultdict(list)
        self._below: dict[Key, list[Hop]] = defaultdict(list)
        for hop in self.hops.values():
            self._above[hop.target.key].append(hop)
            self._below[hop.source.key].append(hop)
        self.ranks: list[list[Box]] = [[] for _ in range(1 + max((b.rank for b in boxes), default=0))]
        for box in self.boxes.values():
            self.ranks[box.rank].append(box)
        self._order()
        self._move_sideways()
        self._stack()

    def _rank(self, edges: Sequence[Edge]) -> None:
        """Ranks by the longest path from above; what has more readers than inputs moves down to them."""
        above, below = defaultdict(list), defaultdict(list)
        for source, _, target in edges:
            above[target].append(self.boxes[source])
            below[source].append(self.boxes[target])
        for key, box in self.boxes.items():
            box.rank = 1 + max((other.rank for other in above[key]), default=-1)
        for key, box in reversed(self.boxes.items()):
            if len(below[key]) > len(above[key]):
                box.rank = min(other.rank for other in below[key]) - 1

    def _route(self, edge: Edge) -> list[Box]:
        """The boxes an edge passes; edges from one port share their bends."""
        source, port, target = edge
        start, end = self.boxes[source], self.boxes[target]
        bends = [
            self.boxes.setdefault(key, Box(key, rank=rank))
            for rank in range(start.rank + 1, end.rank)
            for key in [(source, port, rank)]
        ]
        return [start, *bends, end]

    # ---- order within ranks

    def _order(self) -> None:
        """Order the ranks by where the neighbours are, sweeping down and up; keep what crosses least."""
        best, fewest = [list(rank) for rank in self.ranks], self.crossings()
        for sweep in range(SWEEPS):
            self._sweep(downwards=sweep % 2 == 0)
            self._swap()
            crossings = self.crossings()
            if crossings < fewest:
                best, fewest = [list(rank) for rank in self.ranks], crossings
            if not fewest:
                break
        self.ranks = best

    def _sweep(self, downwards: bool) -> None:
        """Sort every rank by the mean place of what its boxes are connected to in the rank before."""
        place = self._places()
        for rank in self.ranks if downwards else reversed(self.ranks):
            middles = {}
            for box in rank:
                if downwards:
                    near = [place[hop.source.key] + hop.fraction for hop in self._above[box.key]]
                else:
                    near = [place[hop.target.key] + 0.5 - hop.fraction / 4 for hop in self._below[box.key]]
                middles[box.key] = sum(near) / len(near) if near else place[box.key] + 0.5
            rank.sort(key=lambda box: middles[box.key])
            place.update((box.key, i) for i, box in enumerate(rank))

    def _swap(self) -> None:
        """Exchange neighbours within a rank as long as that undoes crossings."""
        place = self._places()
        for rank in self.ranks:
            improved = True
            while improved:
                improved = False
                for i in range(len(rank) - 1):
                    left, right = rank[i], rank[i + 1]
                    if self._tangle(left, right, place) > self._tangle(right, left, place):
                        rank[i], rank[i + 1] = right, left
                        place[left.key], place[right.key] = i + 1, i
                        improved = True

    def _tangle(self, left: Box, right: Box, place: dict[Key, int]) -> int:
        """Crossings among the edges of two neighbours standing in this order."""
        total = 0
        for side, end in ((self._above, "source"), (self._below, "target")):
            ends = [[(place[getattr(h, end).key], h.port) for h in side[box.key]] for box in (left, right)]
            total += sum(a > b for a in ends[0] for b in ends[1])
        return total

    def _places(self) -> dict[Key, int]:
        return {box.key: i for rank in self.ranks for i, box in enumerate(rank)}

    def crossings(self) -> int:
        """How many pairs of edges cross."""
        place = self._places()
        by_rank = defaultdict(list)
        for hop in self.hops.values():
            ends = (place[hop.source.key], hop.port), place[hop.target.key]
            by_rank[hop.source.rank].append(ends)
        return sum(
            start0 < start1 and end0 > end1
            for ends in by_rank.values()
            for (start0, end0), (start1, end1) in combinations(sorted(ends), 2)
        )

    # ---- places

    def _move_sideways(self) -> None:
        """x of every box: near its neighbours, bends as straight as can be, in order and apart."""
        firmness = {key: self._firmness(hop) for key, hop in self.hops.items()}
        for rank in self.ranks:
            self._spread(rank, [0.0] * len(rank), [1.0] * len(rank))
        for sweep in range(STRAIGHTENINGS):
            downwards, both = sweep % 2 == 0, sweep >= SWEEPS
            for rank in self.ranks if downwards else reversed(self.ranks):
                wishes, weights = [], []
                for box in rank:
                    above, below = self._above[box.key], self._below[box.key]
                    pulls = []
                    if both or downwards or not below:
                        pulls += [(hop.start, firmness[hop.key]) for hop in above]
                    if both or not downwards or not above:
                        pulls += [(hop.target.x - box.ports[hop.port], firmness[hop.key]) for hop in below]
                    # Near ones pull harder: a few edges give way, the others come out straight.
                    shares = [pull / (1 + abs(x - box.x)) for x, pull in pulls] or [0.1]
                    ends = [x for x, _ in pulls] or [box.x]
                    weights.append(sum(shares))
                    wishes.append(sum(x * share for x, share in zip(ends, shares, strict=True)) / weights[-1])
                self._spread(rank, wishes, weights)
        left = min((box.left for box in self.boxes.values()), default=0.0)
        for box in self.boxes.values():
            box.x += MARGIN - left
        self.width = max((box.right for box in self.boxes.values()), default=0.0) + MARGIN

    def _firmness(self, hop: Hop) -> float:
        """How much a hop wants to be vertical: most between bends, then along a chain."""
        if not hop.source.height and not hop.target.height:
            return 16.0
        alone = len(self._below[hop.source.key]) == 1 and len(self._above[hop.target.key]) == 1
        return 8.0 if alone else 1.0

    def _spread(self, rank: Sequence[Box], wishes: Sequence[float], weights: Sequence[float]) -> None:
        """The x nearest to `wishes` (weighted least squares) that keep order and distance."""
        starts = [0.0]
        for a, b in pairwise(rank):
            starts.append(starts[-1] + (a.width + b.width) / 2 + SPACE)
        shifts = isotonic([wish - start for wish, start in zip(wishes, starts, strict=False)], weights)
        for box, start, shift in zip(rank, starts, shifts, strict=False):
            box.x = start + shift

    def _stack(self) -> None:
        """y of every rank; the gap above it grows with how far sideways its edges go."""
        reach: dict[int, float] = defaultdict(float)
        for hop in self.hops.values():
            reach[hop.target.rank] = max(reach[hop.target.rank], abs(hop.target.x - hop.start))
        y = 0.0
        self.bottoms = []
        for number, rank in enumerate(self.ranks):
            if number:
                y += min(26 + 0.15 * reach[number], 80)
            for box in rank:
                box.y = y
            y += max((box.height for box in rank), default=0.0)
            self.bottoms.append(y)
        self.height = y


def isotonic(wishes: Iterable[float], weights: Iterable[float]) -> list[float]:
    """The non-decreasing numbers nearest to `wishes` in weighted least squares (pool adjacent violators).

    >>> isotonic([1, 3, 2, 4], [1, 1, 1, 1])
    [1.0, 2.5, 2.5, 4.0]
    """
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for wish, weight in zip(wishes, weights, strict=True):
        mean, many = float(wish), 1
        while pools and pools[-1][0] > mean:
            mean0, weight0, many0 = pools.pop()
            mean = (mean0 * weight0 + mean * weight) / (weight0 + weight)
            weight, many = weight0 + weight, many0 + many
        pools.append((mean, weight, many))
    return [mean for mean, _, many in pools for _ in range(many)]
