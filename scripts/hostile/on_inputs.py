"""Trials of what a run is made from: texts, prepared corpora, weights, names, variables."""

import shutil
import struct
from pathlib import Path
from typing import Any

from hostile import corpora, harm
from hostile.on_runs import HARMS, do_harm
from hostile.trial import STEPS, USES, Bad, Trial

TWO_STEPS = "--config.train.steps=2"


def text(t: Trial) -> None:
    """An odd text is trained on or prepared. If it is refused, a good one works there."""
    source, tokenizer = corpora.write(t.folder, t.dice), t.dice.choice(("char", "byte", "bpe"))
    if t.dice.random() < 0.4:
        words = ("--out=out", f"--tokenizer={tokenizer}")
        refused = t.run("prepare", f"--corpus={source}", *words).status
        if refused and t.run("prepare", f"--corpus={t.base.folder / 'corpus.txt'}", *words).status:
            raise Bad("a good text cannot be prepared in the folder of one that was refused")
        if t.run("prepare", "--check", "--out=out").status:
            raise Bad("what was prepared is refused by its own check")
        return
    run = t.folder / "run"
    words = (f"--config.data.corpus={source}", f"--config.data.tokenizer={tokenizer}")
    if t.train(run, *words, TWO_STEPS).status:
        t.new_run(run)
    elif t.run("sample", f"--workdir={run}", "--prompt=").status:
        raise Bad("a text is trained on, but the run cannot be sampled")


def prepared(t: Trial) -> None:
    """Harm to a prepared corpus, which is checked or trained on."""
    folder, untouched = t.copy("prepared"), t.base.folder / "prepared"
    names = do_harm(t, t.dice.choice([*HARMS]), folder)
    if t.dice.random() < 0.5:
        done = t.run("prepare", "--check", f"--out={folder}")
        ids, right = folder / "tokens.bin", (untouched / "tokens.bin").read_bytes()
        if not done.status and not (ids.is_file() and ids.read_bytes() == right):
            raise Bad("the check does not see that the ids changed")
        return
    words = (f"--config.data.corpus={folder}", TWO_STEPS)
    if t.train("run", *words).status:
        harm.undo(folder, untouched, names)
        if t.train("run", *words).status:
            raise Bad("the restored corpus is refused")


def weights(t: Trial) -> None:
    """Harm to a folder of GPT-2 weights that a run begins from."""
    folder, kind = t.copy("gpt2"), t.dice.choice([*HARMS, "head", "number"])
    if kind in HARMS:
        do_harm(t, kind, folder)
    else:
        change_tensors(t, folder / "model.safetensors", kind)
    words = [f"--config.data.corpus={t.base.folder / 'corpus.txt'}", "--config.mesh.cpu_devices=1"]
    words += [f"--config.train.steps={t.dice.choice((0, 2))}", "--config.train.batch_size=4"]
    words += ["--workdir=run", f"--init_from={folder}", "--config.sample.max_new_tokens=3"]
    done = t.run("train", *words)
    if not done.status and (" nan " in done.out or " inf " in done.out):
        raise Bad(f"a loss is not finite, and nothing says so: {done.out[-300:]}")


def change_tensors(t: Trial, path: Path, kind: str) -> None:
    """Changes the JSON at the head of a safetensors file, or puts a NaN or infinity into it."""
    content = path.read_bytes()
    size = int(struct.unpack("<Q", content[:8])[0])
    head, tensors = content[8 : 8 + size], bytearray(content[8 + size :])
    if kind == "number":
        place = 4 * t.dice.randrange(len(tensors) // 4)
        tensors[place : place + 4] = struct.pack("<f", t.dice.choice((float("nan"), float("inf"))))
        t.told.append(f"not finite at byte {place}")
    else:
        (t.folder / "head.json").write_bytes(head)
        t.told.append(f"head: {harm.change_json(t.folder / 'head.json', t.dice)}")
        head = (t.folder / "head.json").read_bytes()
    path.write_bytes(struct.pack("<Q", len(head)) + head + tensors)


def names(t: Trial) -> None:
    """A folder with an odd name: a run is copied there and read, or begins there."""
    odd = t.dice.choice((*harm.ODD_NAMES, *harm.ODD_TEXTS, "a[0]b", "a\\b", "?", "$(x)", "a'b\""))
    if odd in ("", "..", "../../x", "\0", "\ud800") or len(odd) > 255:
        odd = "a [b]\\*?"
    (t.folder / "names").mkdir()
    run, use = t.folder / "names" / odd, t.dice.choice([*USES])
    if t.dice.random() < 0.5:
        shutil.copytree(t.base.folder / "finished", run)
        right, answer = t.base.answer(use, "best"), t.use(run, use, "best")
        if answer and answer != right:
            raise Bad(f"another answer: {answer[-300:]!r}, not {right[-300:]!r}")
    elif t.train(run, TWO_STEPS).status:
        if left := [*run.parent.iterdir()]:
            raise Bad(f"the name is refused, but something is left: {left}")
    else:
        t.same_end(run, "new", 2)
        if not t.use(run, use, "best"):
            raise Bad(f"the name is good for training, but not for {use}")


VARIABLES: dict[str, tuple[str | None, ...]] = {
    **dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), (None, "", "nowhere", "/dev/null")),
    **dict.fromkeys(("GPT_JAX_CACHE", "MPLCONFIGDIR"), ("", "nowhere/x", "/dev/null", "~nobody/x")),
    **dict.fromkeys(("COLUMNS", "LINES"), ("0", "1", "-5", "x", "100000")),
    **dict.fromkeys(("FORCE_COLOR", "NO_COLOR", "PYTHONUTF8", "PYTHONDEVMODE"), ("1",)),
    "MPLBACKEND": ("nonsense", "TkAgg", ""),
    "TERM": ("dumb", "", "nonsense"),
    "LC_ALL": ("C", "POSIX", "nonsense", "tr_TR.UTF-8"),
    "PYTHONIOENCODING": ("ascii", "utf-16", "latin-1:strict"),
    "OMP_NUM_THREADS": ("0", "x", "1000"),
    "JAX_PLATFORMS": ("cuda", "nonsense", "tpu,cpu", "CPU", ""),
    "JAX_DEFAULT_PRNG_IMPL": ("rbg", "unsafe_rbg"),
    "JAX_DEFAULT_MATMUL_PRECISION": ("bfloat16", "highest"),
    "JAX_NUMPY_DTYPE_PROMOTION": ("strict",),
    "JAX_NUMPY_RANK_PROMOTION": ("raise",),
    "JAX_NUM_CPU_DEVICES": ("2", "3"),
    "JAX_RANDOM_SEED_OFFSET": ("7",),
    **dict.fromkeys(("JAX_ENABLE_X64", "JAX_DEBUG_NANS", "JAX_DISABLE_JIT"), ("1",)),
    **dict.fromkeys(("JAX_THREEFRY_PARTITIONABLE", "JAX_ENABLE_COMPILATION_CACHE"), ("0", "1")),
    "JAX_COMPILATION_CACHE_DIR": ("nowhere", "/dev/null", ""),
}


def variables(t: Trial) -> None:
    """Odd variables of the environment: the same answer and the same bits, or a refusal."""
    chosen = t.dice.sample([*VARIABLES], t.dice.choice((1, 1, 2)))
    odd = {name: t.dice.choice(VARIABLES[name]) for name in chosen}
    how: dict[str, Any] = {"fresh": True, "environment": odd}
    if t.dice.random() < 0.4:
        run = t.copy("stopped")
        if t.train(run, **how).status:
            t.finish(run)
        else:
            t.same_end(run, "finished", STEPS["latest"])
        return
    use, step = t.dice.choice([*USES]), t.dice.choice([*STEPS])
    answer, right = t.use(t.copy("finished"), use, step, **how), t.base.answer(use, step)
    if answer and answer != right:
        raise Bad(f"another answer: {answer[-300:]!r}, not {right[-300:]!r}")
