"""Okapi BM25 over a list of texts, in plain Python. No Serve here: the same object ranks inside a
replica and in the demo's check of the answers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

WORD = re.compile(r"[a-z0-9_]+")
K1, B = 1.2, 0.75  # the usual saturation and length weights


def tokenise(text: str) -> list[str]:
    """Return the lower-case words of `text`, in order."""
    return WORD.findall(text.lower())


class Bm25:
    """An inverted index; immutable once made."""

    def __init__(self, texts: Iterable[str]) -> None:
        counts = [Counter(tokenise(text)) for text in texts]
        lengths = [sum(count.values()) for count in counts]
        mean_length = sum(lengths) / max(1, len(lengths))
        self._damping = [K1 * (1 - B + B * length / mean_length) for length in lengths]
        self._postings: dict[str, list[tuple[int, int]]] = {}
        for number, count in enumerate(counts):
            for word, times in count.items():
                self._postings.setdefault(word, []).append((number, times))

    def rank(self, tokens: Sequence[str], k: int) -> list[tuple[int, float]]:
        """Return up to `k` pairs (text number, score), best first; ties in order of the texts."""
        scores: dict[int, float] = {}
        for word in dict.fromkeys(tokens):
            postings = self._postings.get(word, [])
            rarity = math.log(
                1 + (len(self._damping) - len(postings) + 0.5) / (len(postings) + 0.5)
            )
            for number, times in postings:
                gain = rarity * times * (K1 + 1) / (times + self._damping[number])
                scores[number] = scores.get(number, 0.0) + gain
        ranked = sorted(scores.items(), key=lambda hit: (-hit[1], hit[0]))
        return [(number, round(score, 3)) for number, score in ranked[:k]]
