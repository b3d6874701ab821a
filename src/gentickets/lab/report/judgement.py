"""The verdict on scores of one's own, and its page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from markupsafe import escape

from gentickets.errors import GenticketsError
from gentickets.files import replace_file
from gentickets.lab.report.figures import draw
from gentickets.lab.report.rendering import environment, inlined
from gentickets.lab.results import verdict_words
from gentickets.lab.results.estimation import Answer
from gentickets.lab.results.reading import ARMS, Run
from gentickets.lab.results.scores import Scores, run_of
from gentickets.lab.results.verdict import ARM_NAMES, DENSE, MARGIN, Verdict
from gentickets.lab.results.verdict import judge as judge_run

_SAID: dict[Answer | None, str] = {"shown": "yes", "refuted": "no", "undecided": "undecided", None: "–"}
_COLOURS: dict[Answer | None, str] = {"shown": "yes", "refuted": "no"}


@dataclass(frozen=True, repr=False)
class Judgement(Verdict):
    """The verdict on scores of one's own: all that a run's verdict has, in words, and as a page.

    `run`: the scores, as the results of a run without a folder.
    """

    run: Run

    @property
    def headline(self) -> str:
        """One sentence: whether there is a winning ticket, at which sparsity, over how many seeds."""
        return verdict_words.headline(self)

    @property
    def sentences(self) -> list[str]:
        """What was found level by level, and all that has to be known to read it right."""
        return verdict_words.sentences(self, self.run)

    def __repr__(self) -> str:
        return f"Judgement({self.headline})"

    def __str__(self) -> str:
        return "\n".join([self.headline, *self.sentences])

    def _repr_html_(self) -> str:
        table = environment().get_template("judgement_table.html").render(self._said())
        return f"<p><strong>{escape(self.headline)}</strong></p>\n{table}"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the page: the verdict in words, the curve with its spread, and all numbers. One file, which needs
        nothing beside it. Raises `GenticketsError` where it cannot be written."""
        path = Path(path)
        if path.suffix.lower() not in (".html", ".htm"):
            raise GenticketsError(f"save({str(path)!r}): a page is a file whose name ends in .html")
        metrics = [drawing for drawing in draw(self.run) if drawing.name.startswith("metric-")]
        figures = [inlined(drawing, f"f{place}") for place, drawing in enumerate(metrics)]
        page = environment().get_template("judgement.html").render(**self._said(), figures=figures)
        try:
            replace_file(path, page.encode())
        except OSError as error:
            raise GenticketsError(f"cannot write {path}: {error.strerror}") from None
        return path

    def _said(self) -> dict[str, Any]:
        """Everything that the templates say."""
        pill = _COLOURS.get(self.answer, ""), verdict_words.PILLS[self.answer]
        return {"verdict": self, "run": self.run, "pill": pill, "rows": [self._row(*place) for place in self._places()]}

    def _places(self) -> list[tuple[Any, int]]:
        return sorted(self.summary, key=lambda place: (place[1], ARMS.index(place[0])))

    def _row(self, arm: Any, level: int) -> dict[str, Any]:
        return {
            "arm": ARM_NAMES[arm] if level else "dense model",
            "point": self.summary[arm, level],
            "ratio": verdict_words.ratio(self.cells.compare((arm, level), DENSE)) if level else "–",
            "not_worse": _SAID[self.not_worse.get((arm, level))],
        }


def judge(
    scores: Scores,
    *,
    margin: float = MARGIN,
    lower_is_better: bool = True,
    metric: str = "score",
    title: str = "",
    sparsities: Mapping[int, float] | None = None,
) -> Judgement:
    """The verdict on scores by arm, level and seed, as runs get it: is there a winning ticket, and is it the ticket?

    `scores`, one number for each seed, as nested dicts:

        {"dense":           {0: 4.77, 1: 4.69},
         "ticket":          {0.59: {0: 4.30, 1: 4.41}, 0.83: {0: 9.2, 1: 8.8}},
         "random_mask":     {0.59: {0: 6.93, 1: 7.10}},
         "redrawn_weights": {0.59: {0: 7.23, 1: 7.02}}}

    or as rows, which a loop can append: `("ticket", level.masks.sparsity, seed, value)`, or dicts with the keys `arm`,
    `seed`, `value`, and `level` or `sparsity` or both. `"ticket"` at level 0 is the dense model. A level is its
    sparsity, a share above 0 and below 1, or its number, 1 or more; where nothing else tells the sparsity of a number,
    `sparsities` does (number → sparsity). Numbers may be text, as the keys of JSON are. In the place of `{seed: value}`
    may stand a list, of seeds 0, 1, …

    Seeds are compared one by one: a seed's dense model, ticket and controls are to share its draw and its batches. A
    value that is not finite is a training that diverged; one that is None or not there is still to come, and leaves its
    level open. `metric` names the number, in the words and on the page; `margin` is the share of the dense model's
    value by which a ticket may be worse. One seed decides nothing, and without controls nothing says that it is the
    ticket that does it.

    Raises `ScoreError` for scores that have another form: an unknown arm, a level that is neither a number nor a
    sparsity, two values for one seed, none at all.
    """
    run = run_of(
        scores, margin=margin, lower_is_better=lower_is_better, metric=metric, title=title, sparsities=sparsities
    )
    verdict = judge_run(run)
    return Judgement(**{field.name: getattr(verdict, field.name) for field in fields(verdict)}, run=run)
