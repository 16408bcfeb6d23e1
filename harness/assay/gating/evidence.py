"""What a gate looks at: the steps that it asks for and the facts that it reads, which go on its record."""

from __future__ import annotations

from typing import Any

from assay.facts import Facts
from assay.steps.runner import Runner
from assay.steps.step import F, Stage, Step, StepUse
from assay.steps.store import Artifact


class Evidence:
    """One gate's. A gate asks here for steps and facts, so that its record names what it judged."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.uses: dict[str, StepUse] = {}
        """Steps looked at, by digest."""
        self.seen: dict[str, Facts] = {}
        """Facts looked at, by stage id."""

    def apart(self) -> Evidence:
        """Evidence of another gate in the same run."""
        return Evidence(self.runner)

    def make(self, step: Step, until: Stage[Any] | None = None) -> Artifact:
        """The step's artifact, made now if nobody has. See `Runner.make`, which also says what is raised.

        The facts of `until` are noted; without it, those of every stage. Of a step that fails, the facts of every stage
        that it reached are: they tell how far it got.
        """
        attempt = self.runner.attempt(step, until)
        self.uses[attempt.use.digest] = attempt.use
        stages = step.stages if until is None or attempt.problem is not None else (until,)
        for stage in stages:
            if stage.name in attempt.artifact.stages:
                self.facts(attempt.artifact, stage)
        if attempt.problem is not None:
            raise attempt.problem
        return attempt.artifact

    def facts(self, artifact: Artifact, stage: Stage[F]) -> F:
        """What a stage measured; it goes on the record."""
        return self.note(stage.id, artifact.facts(stage))

    def note(self, id: str, facts: F) -> F:
        """Put facts on the record that no step measured."""
        self.seen[id] = facts
        return facts

    def to_json(self) -> dict[str, dict[str, Any]]:
        """The facts looked at, as a record has them: stage id to facts."""
        return {id: facts.model_dump(mode="json") for id, facts in self.seen.items()}
