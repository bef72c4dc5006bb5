"""Three-digit addition, written backwards: the smallest complete task.

    123+456=   ->   975

The digits of the sum come in the order in which a pupil finds them, units first, because each then
depends only on what is already written (Lee et al., 2023, "Teaching arithmetic to small
transformers"). Its vocabulary is its own: Tiny Shakespeare has one digit, no "+" and no "=".
"""

from random import Random

from gpt_jax.tuning.tasks.task import Prompt, Verdict, is_held_out

ALPHABET = "\n+0123456789="


class Sums:
    """The task. A hundredth of the million sums, picked by a hash, is held out."""

    template, alphabet = "line", ALPHABET

    def prompt(self, seed: int, index: int, held_out: bool) -> Prompt:
        """Sum number `index` of a seed, of the training sums or of the held-out ones."""
        draw = Random(f"sums {seed} {index} {held_out}").random
        while True:
            a, b = int(draw() * 1000), int(draw() * 1000)
            text = f"{a:03}+{b:03}="
            if is_held_out(text, 100) == held_out:
                return Prompt(text, f"{a + b}"[::-1])

    def judge(self, prompt: Prompt, answer: str) -> Verdict:
        """1 for the right sum, else 0."""
        return Verdict({"sum": answer == prompt.answer})
