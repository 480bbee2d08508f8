"""What changed between two texts, line by line and word by word.

Lines are matched by what they share, in four steps: equal ends are set aside; lines that occur once on each
side anchor the rest (patience); between the anchors Myers' O(ND) search finds the shortest edit; and lines
that were replaced are paired with those they resemble. All searching draws on a budget counted in steps, so
that no input is slow: once it is spent, the remaining lines are compared in their order.

Lines end with "\\n". Whether the last one does makes no difference.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

SEARCH_STEPS = 300_000
"""Budget for the lines of one comparison, about a quarter of a second."""
WORD_STEPS = 100_000
WORD_STEPS_PER_LINE = 4_000
LONGEST_LINE = 2_000
"""Characters; within a longer line no words are marked."""
SMALL = 64
"""Old times new items below which anchors would cost more than the search they spare."""
LARGEST_TABLE = 1_024
"""Old times new lines that are compared each with each to find which resemble each other."""
RESEMBLANCE = 0.35
"""The share of words in common from which on two lines count as one line that was changed."""
DELTA_BYTES = 16_384
DELTA_LINE = 500

_WORDS = re.compile(r"\w+")
_TOKENS = re.compile(r"\w+|\s+|[^\w\s]")


class Segment(NamedTuple):
    """A piece of a line; `marked` when it is what changed in the line."""

    text: str
    marked: bool


class Row(NamedTuple):
    """One row of a side-by-side view.

    `kind` is equal, changed, added, removed, or gap: `hidden` equal lines were left out, from these numbers on.
    Line numbers count from 1; a side that has no line has None and no segments.
    """

    kind: str
    old_line: int | None
    old: tuple[Segment, ...]
    new_line: int | None
    new: tuple[Segment, ...]
    hidden: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """How many lines were added, removed and changed, and how many each text has."""

    added: int
    removed: int
    changed: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Diff:
    """A comparison: the rows to show and what they add up to."""

    rows: list[Row]
    counts: Counts


def side_by_side(old: str, new: str, context: int | None = None) -> Diff:
    """Compare two texts. With `context`, only so many equal lines are kept around each change."""
    before, after = _lines(old), _lines(new)
    runs = _runs(before, after)
    words = _Budget(WORD_STEPS)
    rows: list[Row] = []
    for run in runs if context is None else _folded(runs, context):
        if run.kind == "gap":
            rows.append(Row("gap", run.old + 1, (), run.new + 1, (), run.size))
        else:
            rows.extend(_row(run, k, before, after, words) for k in range(run.size))
    return Diff(rows, _count(runs, before, after))


def summary(old: str, new: str) -> Counts:
    """Count what `side_by_side` would show."""
    before, after = _lines(old), _lines(new)
    return _count(_runs(before, after), before, after)


def line_delta(old: str, new: str) -> str:
    """Return the changed lines alone, in the form of a unified diff without context, to be stored.

    At most DELTA_BYTES long: past that a last line says how much was left out. For people to read, not to be
    applied: both texts are stored whole.
    """
    before, after = _lines(old), _lines(new)
    kept: list[str] = []
    left_out = 0
    # Room for the last line.
    room = DELTA_BYTES - 60
    for line in _delta_lines(_runs(before, after), before, after):
        room -= len(line.encode("utf-8", "replace")) + 1
        if room >= 0:
            kept.append(line)
        else:
            left_out += not line.startswith("@@")
    if left_out:
        kept.append(f"... {left_out:,} more changed lines left out")
    return "\n".join(kept)


# --- from runs of lines to what is shown


class _Run(NamedTuple):
    """`size` rows of one kind; `old` and `new` are where they begin in each text, by index."""

    kind: str
    old: int
    new: int
    size: int


def _lines(text: str) -> list[str]:
    # Not splitlines(): a form feed inside a line would shift every number after it.
    return text.removesuffix("\n").split("\n") if text else []


def _count(runs: list[_Run], before: list[str], after: list[str]) -> Counts:
    sizes = dict.fromkeys(("equal", "changed", "added", "removed"), 0)
    for run in runs:
        sizes[run.kind] += run.size
    return Counts(sizes["added"], sizes["removed"], sizes["changed"], len(before), len(after))


def _folded(runs: list[_Run], context: int) -> Iterator[_Run]:
    """Put a gap in the place of equal lines further than `context` from every change."""
    for index, run in enumerate(runs):
        head = context if index > 0 else 0
        tail = context if index < len(runs) - 1 else 0
        hidden = run.size - head - tail
        # A gap of one line would take as much room as the line.
        if run.kind != "equal" or hidden <= 1:
            yield run
            continue
        yield run._replace(size=head)
        yield _Run("gap", run.old + head, run.new + head, hidden)
        yield _Run("equal", run.old + head + hidden, run.new + head + hidden, tail)


def _row(run: _Run, k: int, before: list[str], after: list[str], words: _Budget) -> Row:
    i, j = run.old + k, run.new + k
    if run.kind == "added":
        return Row("added", None, (), j + 1, _plain(after[j]))
    if run.kind == "removed":
        return Row("removed", i + 1, _plain(before[i]), None, ())
    if run.kind == "equal":
        same = _plain(before[i])
        return Row("equal", i + 1, same, j + 1, same)
    old, new = _marked(before[i], after[j], words)
    return Row("changed", i + 1, old, j + 1, new)


def _delta_lines(runs: list[_Run], before: list[str], after: list[str]) -> Iterator[str]:
    i = j = 0
    # One hunk before each run of equal lines, and one at the end.
    for run in [*runs, _Run("equal", len(before), len(after), 0)]:
        if run.kind == "equal":
            if i < run.old or j < run.new:
                yield f"@@ -{_extent(i, run.old)} +{_extent(j, run.new)} @@"
                yield from (f"-{_shortened(line)}" for line in before[i : run.old])
                yield from (f"+{_shortened(line)}" for line in after[j : run.new])
            i, j = run.old + run.size, run.new + run.size


def _extent(start: int, end: int) -> str:
    """The way `diff -U0` writes it: an empty stretch is named by the line before it."""
    if end - start == 1:
        return str(end)
    return f"{start + 1 if start < end else start},{end - start}"


def _shortened(line: str) -> str:
    cut = len(line) - DELTA_LINE
    return line if cut <= 0 else f"{line[:DELTA_LINE]}... {cut:,} more characters"


# --- words within a changed line


def _plain(line: str) -> tuple[Segment, ...]:
    return (Segment(line, False),) if line else ()


def _marked(old: str, new: str, words: _Budget) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """Mark the words that differ, unless the lines have too little in common for that to help."""
    unmarked = _plain(old), _plain(new)
    if words.left <= 0 or max(len(old), len(new)) > LONGEST_LINE:
        return unmarked
    old_words, new_words = _TOKENS.findall(old), _TOKENS.findall(new)
    budget = _Budget(WORD_STEPS_PER_LINE)
    blocks = _blocks(old_words, new_words, budget)
    words.spend(len(old_words) + len(new_words) + WORD_STEPS_PER_LINE - budget.left)
    kept = "".join(word for i, _, size in blocks for word in old_words[i : i + size])
    if budget.left <= 0 or 2 * _ink(kept) < RESEMBLANCE * (_ink(old) + _ink(new)):
        return unmarked
    return (
        _segments(old_words, [(i, size) for i, _, size in blocks]),
        _segments(new_words, [(j, size) for _, j, size in blocks]),
    )


def _ink(text: str) -> int:
    """How many characters there are to see."""
    return len("".join(text.split()))


def _segments(words: list[str], kept: list[tuple[int, int]]) -> tuple[Segment, ...]:
    marked = [True] * len(words)
    for start, size in kept:
        marked[start : start + size] = [False] * size
    for index in range(1, len(words) - 1):
        # A blank between two marked words belongs to the mark: fewer and calmer pieces.
        if marked[index - 1] and marked[index + 1] and words[index].isspace():
            marked[index] = True
    segments: list[Segment] = []
    start = 0
    for mark, same in groupby(marked):
        end = start + len(list(same))
        segments.append(Segment("".join(words[start:end]), mark))
        start = end
    return tuple(segments)


# --- which line became which


class _Span(NamedTuple):
    """Lines i0 up to i1 on the left, j0 up to j1 on the right."""

    i0: int
    i1: int
    j0: int
    j1: int


_Block = tuple[int, int, int]
"""Where a run of equal items begins on the left, on the right, and how long it is."""


def _runs(before: list[str], after: list[str]) -> list[_Run]:
    """Compare two texts line by line: every line of both is in one run, in its order."""
    budget = _Budget(SEARCH_STEPS + 4 * (len(before) + len(after)))
    numbers: dict[str, int] = {}
    old = [numbers.setdefault(line, len(numbers)) for line in before]
    new = [numbers.setdefault(line, len(numbers)) for line in after]
    runs: list[_Run] = []
    for gap, (i, j, size) in _gaps(_blocks(old, new, budget), _Span(0, len(old), 0, len(new))):
        for stretch in _replaced(before, after, gap, budget):
            runs.extend(_paired(stretch, old, new))
        runs.append(_Run("equal", i, j, size))
    return _merged(runs)


def _paired(span: _Span, old: list[int], new: list[int]) -> Iterator[_Run]:
    """Put the lines of a stretch side by side, the first with the first; the longer side's rest stands alone."""
    i0, i1, j0, j1 = span
    both = min(i1 - i0, j1 - j0)
    for k in range(both):
        # Equal lines are found here only when the search was cut short.
        yield _Run("equal" if old[i0 + k] == new[j0 + k] else "changed", i0 + k, j0 + k, 1)
    yield _Run("removed", i0 + both, j0 + both, i1 - i0 - both)
    yield _Run("added", i1, j0 + both, j1 - j0 - both)


def _merged(runs: list[_Run]) -> list[_Run]:
    merged: list[_Run] = []
    for run in runs:
        if merged and run.kind == merged[-1].kind and run.size:
            merged[-1] = merged[-1]._replace(size=merged[-1].size + run.size)
        elif run.size:
            merged.append(run)
    return merged


def _gaps(blocks: list[_Block], span: _Span) -> Iterator[tuple[_Span, _Block]]:
    """Yield each block with what lies before it; at the end, what lies behind the last with an empty block."""
    i0, _, j0, _ = span
    for i, j, size in [*blocks, (span.i1, span.j1, 0)]:
        yield _Span(i0, i, j0, j), (i, j, size)
        i0, j0 = i + size, j + size


def _replaced(before: list[str], after: list[str], span: _Span, budget: _Budget) -> Iterator[_Span]:
    """Split a stretch that was replaced into smaller ones, so that lines meet what they became.

    First those that differ in blanks alone: a block that was wrapped in `if` or `try` has every line changed
    and moved by one. Then by resemblance.
    """
    i0, i1, j0, j1 = span
    if not _choice(span):
        yield span
        return
    old = [line.strip() for line in before[i0:i1]]
    new = [line.strip() for line in after[j0:j1]]
    blocks = [(i0 + i, j0 + j, size) for i, j, size in _blocks(old, new, budget)]
    for gap, (i, j, size) in _gaps(blocks, span):
        alike = _resembling(before, after, gap, budget) if _choice(gap) else []
        for rest, (other_i, other_j, one) in _gaps(alike, gap):
            yield rest
            yield _Span(other_i, other_i + one, other_j, other_j + one)
        yield _Span(i, i + size, j, j + size)


def _choice(span: _Span) -> bool:
    """Whether there is more than one way to pair these lines."""
    return (span.i1 - span.i0) * (span.j1 - span.j0) > 1


def _resembling(before: list[str], after: list[str], span: _Span, budget: _Budget) -> list[_Block]:
    """Pair, in their order, the lines that together have most words in common."""
    size = (span.i1 - span.i0) * (span.j1 - span.j0)
    if size > LARGEST_TABLE or not budget.spend(3 * size):
        return []
    old = [_vocabulary(line) for line in before[span.i0 : span.i1]]
    new = [_vocabulary(line) for line in after[span.j0 : span.j1]]
    likeness = [[_likeness(words, others) for others in new] for words in old]
    best = [[0.0] * (len(new) + 1) for _ in range(len(old) + 1)]
    for i in reversed(range(len(old))):
        for j in reversed(range(len(new))):
            together = likeness[i][j] and likeness[i][j] + best[i + 1][j + 1]
            best[i][j] = max(together, best[i + 1][j], best[i][j + 1])
    blocks: list[_Block] = []
    i = j = 0
    while i < len(old) and j < len(new):
        if likeness[i][j] and best[i][j] == likeness[i][j] + best[i + 1][j + 1]:
            blocks.append((span.i0 + i, span.j0 + j, 1))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return blocks


def _vocabulary(line: str) -> frozenset[str]:
    return frozenset(_WORDS.findall(line[:LONGEST_LINE]))


def _likeness(words: frozenset[str], others: frozenset[str]) -> float:
    """The share of words in common, or 0 when it is too small to mean anything."""
    common = 2 * len(words & others)
    total = len(words) + len(others)
    return common / total if common and common >= RESEMBLANCE * total else 0.0


# --- what two sequences have in common


class _Budget:
    """Steps that may still be spent on searching."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def spend(self, steps: int) -> bool:
        self.left -= steps
        return self.left > 0


def _blocks(old: Sequence[Hashable], new: Sequence[Hashable], budget: _Budget) -> list[_Block]:
    """Return the runs that two sequences have in common, in their order."""
    blocks: list[_Block] = []
    todo = [_Span(0, len(old), 0, len(new))]
    while todo:
        i0, i1, j0, j1 = todo.pop()
        start, end = i0, i1
        while i0 < i1 and j0 < j1 and old[i0] == new[j0]:
            i0, j0 = i0 + 1, j0 + 1
        while i0 < i1 and j0 < j1 and old[i1 - 1] == new[j1 - 1]:
            i1, j1 = i1 - 1, j1 - 1
        blocks.append((start, j0 - (i0 - start), i0 - start))
        blocks.append((i1, j1, end - i1))
        if i0 == i1 or j0 == j1:
            continue
        inner = _Span(i0, i1, j0, j1)
        if not budget.spend(i1 - i0 + j1 - j0):
            blocks.extend(_in_order(old, new, inner))
        elif (i1 - i0) * (j1 - j0) > SMALL and (anchors := _anchors(old, new, inner)):
            # Each part begins with its anchor, so that equal lines around it are set aside first.
            for i, j in reversed(anchors):
                todo.append(_Span(i, i1, j, j1))
                i1, j1 = i, j
            todo.append(_Span(i0, i1, j0, j1))
        else:
            blocks.extend(_shortest_edit(old, new, inner, budget))
    return _joined(blocks)


def _joined(blocks: list[_Block]) -> list[_Block]:
    """Sort the runs, drop the empty ones and make one of those that touch."""
    joined: list[_Block] = []
    for i, j, size in sorted(blocks):
        if joined and size and (i, j) == (joined[-1][0] + joined[-1][2], joined[-1][1] + joined[-1][2]):
            joined[-1] = (joined[-1][0], joined[-1][1], joined[-1][2] + size)
        elif size:
            joined.append((i, j, size))
    return joined


def _anchors(old: Sequence[Hashable], new: Sequence[Hashable], span: _Span) -> list[tuple[int, int]]:
    """Match the items that occur once on each side, as many as stand in the same order on both.

    Of neighbours that match, only the first is returned.
    """
    places = _once(old, span.i0, span.i1)
    candidates = [(places[item], j) for item, j in _once(new, span.j0, span.j1).items() if item in places]
    # The longest increasing subsequence: which candidate ends the best chain of each length, and whom it follows.
    lowest: list[int] = []
    last: list[int] = []
    follows: list[int] = []
    for index, (i, _) in enumerate(candidates):
        length = bisect_left(lowest, i)
        lowest[length : length + 1] = [i]
        last[length : length + 1] = [index]
        follows.append(last[length - 1] if length else -1)
    chain: list[tuple[int, int]] = []
    index = last[-1] if last else -1
    while index >= 0:
        chain.append(candidates[index])
        index = follows[index]
    chain.reverse()
    return [here for before, here in zip([None, *chain], chain, strict=False) if not _touch(before, here)]


def _once(items: Sequence[Hashable], start: int, end: int) -> dict[Hashable, int]:
    """Map each item that occurs exactly once between `start` and `end` to its place."""
    places: dict[Hashable, int] = {}
    for index in range(start, end):
        places[items[index]] = -1 if items[index] in places else index
    return {item: index for item, index in places.items() if index >= 0}


def _touch(before: tuple[int, int] | None, here: tuple[int, int]) -> bool:
    return before is not None and here == (before[0] + 1, before[1] + 1)


def _shortest_edit(
    old: Sequence[Hashable], new: Sequence[Hashable], span: _Span, budget: _Budget
) -> list[_Block]:
    """Match as many items as possible between two stretches."""
    # What the other side has not at all cannot match: most of what changed never enters the search.
    shared = set(old[span.i0 : span.i1]).intersection(new[span.j0 : span.j1])
    left = [i for i in range(span.i0, span.i1) if old[i] in shared]
    right = [j for j in range(span.j0, span.j1) if new[j] in shared]
    found = _search([old[i] for i in left], [new[j] for j in right], budget)
    if found is None:
        return _in_order(old, new, span)
    return [(left[x + k], right[y + k], 1) for x, y, size in found for k in range(size)]


def _search(left: list[Hashable], right: list[Hashable], budget: _Budget) -> list[_Block] | None:
    """Return the runs in common that leave the fewest items over, or None when that is too dear to find.

    The greedy search of Myers (1986): reach[middle + k] is how far into `left` so many edits lead along the
    diagonal k, where x - y = k.
    """
    width, height = len(left), len(right)
    reach = [-1] * (width + height + 3)
    middle = height + 1
    reach[middle + 1] = 0
    history: list[tuple[int, list[int]]] = []
    for edits in range(width + height + 1):
        low = -edits + 2 * max(0, edits - height)
        high = edits - 2 * max(0, edits - width)
        history.append((low - 1, reach[middle + low - 1 : middle + high + 2]))
        steps = high - low + 1
        for k in range(low, high + 1, 2):
            # From the diagonal above by an insertion, or from the one below by a deletion.
            below, above = reach[middle + k - 1], reach[middle + k + 1]
            inserted = k == -edits or (k != edits and below < above)
            start = x = above if inserted else below + 1
            y = x - k
            while x < width and y < height and left[x] == right[y]:
                x, y = x + 1, y + 1
            reach[middle + k] = x
            steps += x - start
            if x >= width and y >= height:
                return _traced(history, width, height)
        if not budget.spend(steps):
            break
    return None


def _traced(history: list[tuple[int, list[int]]], x: int, y: int) -> list[_Block]:
    """Walk back from (x, y) the way that the search came and collect the runs."""
    blocks: list[_Block] = []
    for edits in reversed(range(len(history))):
        first, reach = history[edits]
        k = x - y
        below, above = reach[k - 1 - first], reach[k + 1 - first]
        inserted = k == -edits or (k != edits and below < above)
        start = above if inserted else below + 1
        blocks.append((start, start - k, x - start))
        x, y = (start, start - k - 1) if inserted else (start - 1, start - k)
    return blocks


def _in_order(old: Sequence[Hashable], new: Sequence[Hashable], span: _Span) -> list[_Block]:
    """The answer when searching has become too dear: the first with the first, the second with the second."""
    places = zip(range(span.i0, span.i1), range(span.j0, span.j1), strict=False)
    return [(i, j, 1) for i, j in places if old[i] == new[j]]
