"""Does hostile things to small runs at random, and counts how it ends.

    python scripts/campaign.py --trials=300 --seed=1
    python scripts/campaign.py --trials=100000 --minutes=60 --workers=2
    python scripts/campaign.py --trials=1 --seed=1 --first=1234

A trial takes a fresh copy of a run, a text or weights, does something hostile,
runs a command and judges it. It ends badly if there is a traceback, a hang, an
exit status other than 0, 2 or the signal's, or many lines around the sentence;
if the exit status is 0 and an answer or a run differs from the untouched one;
or if a checkpoint is lost or a corrected command fails. For Linux.
"""

import collections
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import command_line
from absl import flags
from hostile import base
from hostile.kinds import KINDS
from hostile.trial import Bad, Trial

from gpt_jax.config import INT32, NOT_NEGATIVE, POSITIVE, checked
from gpt_jax.errors import UserError

FLAGS: Sequence[command_line.Flag] = (
    ("trials", int, 300, "Maximum number of trials."),
    ("minutes", float, 600.0, "No trial begins later than this."),
    ("seed", int, 0, "Seed of the trials."),
    ("first", int, 0, "Number of the first. A trial is a function of the seed and its number."),
    ("workers", int, 1, "Trials at a time."),
    ("kind", str, "", "Only the kinds of trials whose names contain this."),
)
COLUMNS = ("tried", "status 0", "status 2", "signal", "stopped", "ended badly")
Result = tuple[str, str, str]  # The kind of a trial, its column, and what went badly.


def main(argv: Sequence[str]) -> int:
    """Runs the script with a command line, the script's name first. Returns the exit status."""
    return command_line.run(campaign, FLAGS, argv, __doc__ or "")


def campaign(values: flags.FlagValues, words: list[str]) -> int:
    """Makes the trials, and prints those that end badly and a table. Returns 1 if there are any."""
    for name, rule in (("trials", POSITIVE), ("seed", INT32), ("first", NOT_NEGATIVE)):
        checked(name, values[name].value, int, rule)
    checked("workers", values.workers, int, POSITIVE)
    checked("minutes", values.minutes, float, POSITIVE)
    if not any(values.kind in kind for kind in KINDS):
        raise UserError(f"--kind={values.kind} is in none of these names: {'; '.join(KINDS)}")
    if sys.platform != "linux":
        raise UserError("the campaign reads /proc and mounts disks: run it on Linux")
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    with tempfile.TemporaryDirectory() as folder:
        try:
            for kind, column, told in results(base.make(Path(folder)), values):
                counts[kind].update(["tried", column])
                if told:
                    print(told, flush=True)
        finally:  # After Ctrl-C, too.
            print(table(counts))
    return int(any(count["ended badly"] for count in counts.values()))


def results(made: base.Base, values: flags.FlagValues) -> Iterator[Result]:
    """Makes the trials, several at a time."""
    end = time.monotonic() + 60 * values.minutes
    weights = {kind: weight for kind, (weight, _) in KINDS.items() if values.kind in kind}

    def result(number: int) -> Result | None:
        dice = random.Random(f"{values.seed}/{number}")
        [kind] = dice.choices([*weights], [*weights.values()])
        return one(made, kind, number, dice) if time.monotonic() < end else None

    with ThreadPoolExecutor(values.workers) as pool:
        numbers = range(values.first, values.first + values.trials)
        yield from filter(None, pool.map(result, numbers))


def one(made: base.Base, kind: str, number: int, dice: random.Random) -> Result:
    """Makes one trial, in a folder of its own."""
    trial = Trial(made, made.folder / f"trial-{number}", dice)
    trial.folder.mkdir()
    try:
        KINDS[kind][1](trial)
    except Exception as error:  # Mostly Bad. An error of the campaign itself counts, too.
        told = str(error) if isinstance(error, Bad) else f"the campaign fails: {error!r}"
        return kind, "ended badly", f"--first={number}, {kind}: {told}\n  {'; '.join(trial.told)}"
    finally:
        shutil.rmtree(trial.folder, ignore_errors=True)
    return kind, column(trial), ""


def column(trial: Trial) -> str:
    """The column of a trial that ended well: how its first command ended."""
    if trial.first is None or trial.first.stopped:
        return "stopped"
    return f"status {trial.first.status}" if trial.first.status in (0, 2) else "signal"


def table(counts: dict[str, collections.Counter[str]]) -> str:
    """The counts in Markdown, a row for each kind and one for all."""
    everything: collections.Counter[str] = sum(counts.values(), collections.Counter())
    rows = [*((kind, counts[kind]) for kind in KINDS if kind in counts), ("all", everything)]
    lines = [("what is tried", *COLUMNS), ("---",) * (len(COLUMNS) + 1)]
    lines += [(kind, *(f"{count[name]:,}" for name in COLUMNS)) for kind, count in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
