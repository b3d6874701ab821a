"""What the criteria before training cost, in training steps."""

from __future__ import annotations

import gentickets as gt
from benchmarks.contest import Contender, Contest, benchmark
from benchmarks.steps import Step, build


@benchmark({"net": ("vae", "dcgan")}, {"net": ("tiny-ae",)})
def scoring(net: str) -> Contest:
    """One batch for SNIP and GraSP, one of the (by default 100) iterations of SynFlow."""
    scored = build(net)
    model, objective, batch = scored.model, scored.objective, scored.batch
    inputs = objective.example_inputs(model, batch[:2])
    return Contest(
        "training step",
        {
            "training step": Contender(Step(build(net))),
            "SNIP": Contender(lambda: gt.snip(model, objective, [batch]), at_most={"ratio": 1.2}),
            "GraSP": Contender(lambda: gt.grasp(model, objective, [batch]), at_most={"ratio": 3.5}),
            "SynFlow, one iteration": Contender(lambda: gt.synflow(model, inputs), at_most={"ratio": 0.2}),
        },
    )
