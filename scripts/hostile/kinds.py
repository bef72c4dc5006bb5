"""What is tried: for each kind how often, and the function that tries it once."""

import functools
from collections.abc import Callable

from hostile import on_inputs, on_runs, settings
from hostile.trial import Trial

KINDS: dict[str, tuple[int, Callable[[Trial], None]]] = {
    "signals at random moments of a run that trains": (3, on_runs.signals),
    "a flipped bit or byte in a run": (4, functools.partial(on_runs.harmed, "flip")),
    "a part of a run cut off, emptied, zeroed, lengthened, deleted, doubled, moved": (
        *(4, functools.partial(on_runs.harmed, "damage")),
    ),
    "a pipe, device, socket, link or folder in place of a part of a run": (
        *(4, functools.partial(on_runs.harmed, "replace")),
    ),
    "odd files and folders added to a run": (2, functools.partial(on_runs.harmed, "add")),
    "one place changed in JSON of a run": (4, functools.partial(on_runs.harmed, "json")),
    "a harmed cache of compiled programs": (1, on_runs.cached),
    "readers and second starts while a run trains": (1, on_runs.together),
    "no room for files, open files or output": (1, on_runs.full),
    "odd texts": (3, on_inputs.text),
    "a harmed prepared corpus": (2, on_inputs.prepared),
    "harmed GPT-2 weights": (3, on_inputs.weights),
    "odd names of folders": (1, on_inputs.names),
    "odd variables of the environment": (1, on_inputs.variables),
    "odd or extreme settings and flags": (8, settings.flags),
    "ten odd calls from Python": (2, settings.calls),
}
