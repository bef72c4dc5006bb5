"""Training: the optimizer, the step, the loop around it, evaluation and the plan.

Owns what happens in a run and in which order, its log and its pictures. Nothing below it knows of
it. Read state.py and step.py first (the mathematics), then loop.py (the order of events). Import
its modules by name: some of them (log, pictures, stopping) work without JAX.
"""

__all__ = [
    "beginning",
    "benchmark",
    "evaluation",
    "log",
    "loop",
    "meeting",
    "optimizer",
    "pictures",
    "plan",
    "run",
    "state",
    "step",
    "stopping",
]
