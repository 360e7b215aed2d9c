"""Segments: neighbouring paragraphs of a document joined up to about so many words, as the paper's Table 1 has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Span = tuple[int, int]


def segments(text: str, paragraphs: Iterable[Span], words: int) -> Iterator[Span]:
    """Where the segments of a document begin and end: whole paragraphs, as many as come nearest to `words`.

    A paragraph is never cut, so that no sentence is. The next one is joined as long as that brings the segment nearer
    to `words`; the last one of a document is what is left. Words are what stands between white space.

    >>> text = "one two\\n\\nthree four\\n\\nfive six seven"
    >>> [text[start:end] for start, end in segments(text, [(0, 7), (9, 19), (21, 35)], words=4)]
    ['one two\\n\\nthree four', 'five six seven']
    """
    begin, last, size = None, 0, 0
    for start, end in paragraphs:
        n = n_words(text[start:end])
        if begin is not None and abs(size + n - words) > abs(size - words):
            yield begin, last
            begin, size = None, 0
        begin, last, size = start if begin is None else begin, end, size + n
    if begin is not None:
        yield begin, last


def n_words(text: str) -> int:
    """How many words a text has.

    >>> n_words("Harry Potter's  owl,\\n\\nHedwig")
    4
    """
    return len(text.split())
