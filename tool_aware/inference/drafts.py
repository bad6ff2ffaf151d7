"""Guesses of an answer's next tokens, for a model to check several in one pass.

Answers repeat what is there already: search texts and reasoning lines quote the query, and all answers share their
frame and many of their phrases. So what followed the last few tokens when these occurred before, in the prompt, in this
answer or in others, is a good guess of what follows now. A wrong guess costs time and changes no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

LONGEST_CONTEXT = 4  # tokens; longer ones guess no better
MOST_CONTEXTS = 50_000  # of other answers: some 300 of them, 10 MiB
# How often a guess is right, by the length of its context less one: 300 answers of SmolLM2-135M after the real demo.
_RIGHT_IN_OWN = (0.55, 0.7, 0.76, 0.82)
# Out of other answers, also by how often in a row the same token had come before: 0, 1, 2, 3 times or more.
_RIGHT_IN_OTHERS = (
    (0.14, 0.31, 0.57, 0.85),
    (0.33, 0.59, 0.68, 0.93),
    (0.4, 0.65, 0.79, 0.98),
    (0.48, 0.74, 0.85, 0.98),
)


class _Seen(NamedTuple):
    """The token that came last behind a context, and how often in a row it had come before."""

    token: int
    repeats: int


class Phrases:
    """The tokens that followed each run of up to LONGEST_CONTEXT tokens in some texts; of many texts, the last ones."""

    def __init__(self) -> None:
        self._recent: dict[tuple[int, ...], _Seen] = {}
        self._older: dict[tuple[int, ...], _Seen] = {}

    def learn(self, ids: Sequence[int], begin: int = 1) -> None:
        """Learn the tokens of a text from its place `begin` on; those before are known already."""
        for place in range(max(begin, 1), len(ids)):
            for length in range(1, min(LONGEST_CONTEXT, place) + 1):
                context = tuple(ids[place - length : place])
                seen = self.behind(context)
                repeats = seen.repeats + 1 if seen and seen.token == ids[place] else 0
                self._recent[context] = _Seen(ids[place], repeats)
        if len(self._recent) > MOST_CONTEXTS:
            self._recent, self._older = {}, self._recent

    def behind(self, context: tuple[int, ...]) -> _Seen | None:
        """Return what followed these tokens last; None if they did not occur."""
        return self._recent.get(context) or self._older.get(context)


class Drafter:
    """The guesses for one answer: out of its prompt, itself, and the phrases of other answers."""

    def __init__(self, prompt: Sequence[int], others: Phrases) -> None:
        self._ids, self._own, self._others = list(prompt), Phrases(), others
        self._own.learn(self._ids)

    def add(self, token: int) -> None:
        """Take note of the answer's next token."""
        self._ids.append(token)
        self._own.learn(self._ids, len(self._ids) - 1)

    def draft(self, begun: Sequence[int], most: int, least: float) -> list[int]:
        """Guess what follows: `begun`, then up to `most` tokens in all, as long as all are right with odds of `least`.

        `least` is a probability.
        """
        guesses = list(begun[:most])
        tail = [*self._ids[-LONGEST_CONTEXT:], *guesses]
        odds = 1.0
        while len(guesses) < most:
            token, share = self._next(tail)
            odds *= share
            if odds < least:
                break
            guesses.append(token)
            tail.append(token)
        return guesses

    def _next(self, tail: Sequence[int]) -> tuple[int, float]:
        """Return the likeliest next token and its probability, which is 0 if nothing is known."""
        for length in range(min(LONGEST_CONTEXT, len(tail)), 0, -1):
            context = tuple(tail[-length:])
            guesses = []
            if seen := self._own.behind(context):
                guesses.append((_RIGHT_IN_OWN[length - 1], seen.token))
            if seen := self._others.behind(context):
                guesses.append((_RIGHT_IN_OTHERS[length - 1][min(seen.repeats, 3)], seen.token))
            if guesses:
                share, token = max(guesses)
                return token, share
        return 0, 0.0
