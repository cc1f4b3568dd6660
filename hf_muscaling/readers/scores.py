"""Task scores of models, and the join with the runs that the models are; `score_files` reads them.

    scores = read_scores("results/", tasks=["arc_easy"])     # results_*.json of lm_eval --output_path results
    table = scores.join(read_runs("runs.csv"))               # one row a model: loss, score, items, chance
    DownstreamLaw().fit(table)

What a score means is not guessed: percentages, chance levels of unknown tasks and models without a run are asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigurationError, RecordError, UnknownQuantityError
from .table import RunTable

CHOICES: dict[str, int] = {
    "arc_easy": 4, "arc_challenge": 4, "hellaswag": 4, "openbookqa": 4, "sciq": 4, "mmlu": 4, "race": 4, "logiqa": 4,
    "commonsense_qa": 5, "social_iqa": 3, "piqa": 2, "winogrande": 2, "boolq": 2, "copa": 2, "wsc": 2, "rte": 2,
    "wic": 2, "storycloze": 2, "swag": 4, "anli_r1": 3, "anli_r2": 3, "anli_r3": 3, "cb": 3, "mnli": 3, "qnli": 2,
}  # fmt: skip
"""Answers to choose from in well-known tasks (a few of ARC's questions have three or five); guessing scores 1/that."""
OPEN = (
    "lambada",
    "gsm8k",
    "triviaqa",
    "nq_open",
    "squad",
    "drop",
    "humaneval",
    "mbpp",
    "webqs",
    "coqa",
    "minerva_math",
)
"""Tasks whose answer is written, not chosen: guessing scores 0."""
CHECKPOINT = re.compile(r"(?:checkpoint-|step[_-]?)(\d+)$")


@dataclass(frozen=True)
class Score:
    """One measured score: a share of 1, its standard error and number of questions where known (else nan)."""

    model: str
    task: str
    metric: str
    score: float
    error: float = math.nan
    items: float = math.nan
    chance: float = math.nan
    source: str = ""

    @property
    def questions(self) -> float:
        """How many independent questions the score is worth: score·(1 - score)/error², else those asked, else nan."""
        spread = self.score * (1 - self.score)
        return spread / self.error**2 if self.error > 0 and spread > 0 else self.items


class ScoreTable(list[Score]):
    """Scores of models in tasks; `notes` says what was assumed or left out, `join` brings their losses."""

    def __init__(self, scores: Iterable[Score], source: str = "", notes: Sequence[str] = ()):
        super().__init__(scores)
        self.source, self.notes = source, tuple(dict.fromkeys(notes))

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the order in which they were read."""
        return list(dict.fromkeys(score.task for score in self))

    def chance(self, task: str) -> float:
        """The score of guessing in a task. Raises UnknownQuantityError, which asks for it, where it is not known."""
        stated = {score.chance for score in self if score.task == task and not math.isnan(score.chance)}
        if len(stated) > 1:
            raise ConfigurationError(f"Task {task!r} has several chance levels: {sorted(stated)}.")
        if stated:
            return stated.pop()
        known = known_chance(task)
        if known is None:
            raise UnknownQuantityError(
                f"The score of guessing in {task!r} is not known: pass chance={{{task!r}: …}} (--chance {task}=…), 1 "
                "over the number of answers, 0 where answers are written."
            )
        return known

    def average(self, tasks: Sequence[str] | None = None) -> ScoreTable:
        """The mean score of every model that has all tasks, as a task of its own, with the mean chance."""
        tasks = list(tasks or self.tasks)
        chance = float(np.mean([self.chance(task) for task in tasks]))
        by_model: dict[str, dict[str, Score]] = {}
        for score in self:
            by_model.setdefault(score.model, {})[score.task] = score
        whole = {model: own for model, own in by_model.items() if set(tasks) <= set(own)}
        notes = [f"{len(by_model) - len(whole)} models lack a task and have no average"] * (len(whole) < len(by_model))
        if not whole:
            raise RecordError(f"No model has all of {', '.join(tasks)}: there is no average.")
        name, out = f"mean of {len(tasks)} tasks", []
        for model, own in whole.items():
            picked = [own[task] for task in tasks]
            mean = float(np.mean([s.score for s in picked]))
            variance = [s.score * (1 - s.score) / s.questions for s in picked]
            error = math.sqrt(sum(variance)) / len(tasks)  # nan where a task's is not known
            out.append(Score(model, name, "mean", mean, error, chance=chance, source=self.source))
        return ScoreTable(out, self.source, [*self.notes, *notes])

    def join(self, runs: RunTable, task: str | None = None, drop_bad: bool = False) -> RunTable:
        """The runs' table with a task's scores: one row a model, its columns and `score`, `chance`, `items`.

        A model belongs to the run whose `run_id` is its name, its path or a folder of its path; a checkpoint
        (`…/checkpoint-500`, `step500`) to the row of that step, else to the run's last row. Raises RecordError for a
        model without a run or with several, unless `drop_bad` leaves it out.
        """
        if "run_id" not in runs:
            raise UnknownQuantityError(
                f"{runs.source or 'The table of runs'} has no column run_id (or model, name): scores cannot find their "
                "runs."
            )
        task = task or self._only_task()
        chance = self.chance(task)
        names = [str(name) for name in runs["run_id"]]
        rows, kept, lost = [], [], []
        for score in (s for s in self if s.task == task):
            try:
                rows.append(_row(score.model, names, runs))
                kept.append(score)
            except RecordError:
                if not drop_bad:
                    raise
                lost.append(score.model)
        if not kept:
            raise RecordError(f"No model of {self.source} is a run of {runs.source}: {', '.join(lost[:4])}.")
        notes = [*runs.notes, *self.notes]
        notes += [f"{len(lost)} models have no run and were left out ({', '.join(lost[:3])})"] if lost else []
        metrics = ", ".join(dict.fromkeys(s.metric for s in kept))
        table = RunTable(runs.take(np.array(rows)), f"{self.source} and {runs.source}", [f"score is {metrics}", *notes])
        table |= {"task": np.array([task] * len(kept), object), "score": np.array([s.score for s in kept])}
        table["chance"] = np.full(len(kept), chance)
        items = np.array([s.questions for s in kept])
        if (items > 0).all():
            table["items"] = items
        return table

    def _only_task(self) -> str:
        if len(self.tasks) != 1:
            raise ConfigurationError(f"{self.source} holds the tasks {', '.join(self.tasks)}: name one.")
        return self.tasks[0]

    def __str__(self) -> str:
        models = len({score.model for score in self})
        shown = ", ".join(self.tasks[:6]) + ", …" * (len(self.tasks) > 6)
        return "\n".join([f"{len(self)} scores of {models} models in {shown} from {self.source}",
                          *(f"  note: {note}" for note in self.notes)])  # fmt: skip


def known_chance(task: str) -> float | None:
    """The score of guessing in a well-known task or a sub-task of it, None where it is not known.

    >>> known_chance("arc_easy"), known_chance("mmlu_anatomy"), known_chance("my_task")
    (0.25, 0.25, None)
    """
    for name, choices in CHOICES.items():
        if task == name or task.startswith(f"{name}_") and name in ("mmlu", "arc_easy", "arc_challenge", "hellaswag"):
            return 1 / choices
    return 0.0 if any(task == name or task.startswith(f"{name}_") for name in OPEN) else None


def _row(model: str, names: list[str], runs: RunTable) -> int:
    """The row of the runs' table that a model is: by name, path or a folder of its path, and by step."""
    parts = [part for part in re.split(r"[/\\]", model.replace("__", "/")) if part not in ("", ".", "..", "model")]
    known = set(names)
    hits = [model] if model in known else [part for part in dict.fromkeys(reversed(parts)) if part in known]
    if not hits:
        hits = [n for n in known if model.endswith(f"/{n}") or n.replace("/", "__") in (model, *parts)]
    if not hits:
        shown = ", ".join(list(dict.fromkeys(names))[:4])
        raise RecordError(
            f"The model {model[:120]!r} is no run of {runs.source or 'the table'} ({shown}, …): its name or a folder "
            "of its path must be the run_id. Rename it, or pass drop_bad (--drop_bad) to leave it out."
        )
    if len(hits) > 1:
        raise RecordError(f"The model {model[:120]!r} could be the run {' or '.join(map(repr, sorted(hits)[:4]))}.")
    rows = np.flatnonzero(np.array(names) == hits[0])
    clock = next((runs[name] for name in ("step", "S", "D") if name in runs), np.arange(len(names)))
    step = CHECKPOINT.search(parts[-1]) if parts else None
    if step and "step" in runs and parts[-1] != hits[0]:
        same = rows[runs["step"][rows] == float(step[1])]
        if not len(same):
            raise RecordError(
                f"The model {model[:120]!r} is step {step[1]} of the run {hits[0]!r}, whose rows end at other steps. "
                "Log its loss there, or pass drop_bad (--drop_bad)."
            )
        return int(same[-1])
    return int(rows[np.argmax(clock[rows])])
