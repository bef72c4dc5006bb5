"""Training: the optimizer, the step, the loop around it, evaluation and the plan.

Owns what happens in a run and in which order, its log and its pictures. No earlier package
imports it, and it knows no command line. Read state.py and step.py first (the mathematics), then
loop.py (the order of events). Import its modules by name: log, patience, clock, display, curves,
pictures, stopping and tensorboard work without JAX.
"""

__all__ = [
    "beginning",
    "benchmark",
    "clock",
    "curves",
    "display",
    "distillation",
    "evaluation",
    "log",
    "loop",
    "meeting",
    "memory",
    "objective",
    "optimizer",
    "pictures",
    "plan",
    "run",
    "state",
    "step",
    "stopping",
]
