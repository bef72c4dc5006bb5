"""The compilation cache is in the user's own folder; memory is returned after compiling."""

import os
import types

import jax
import pytest

from gpt_jax.devices import compiler
from gpt_jax.files import cache_folder


@pytest.fixture
def settings(monkeypatch):
    """The settings that are made, starting without a cache, as in a new process."""
    found = {}
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", None)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    return found


def test_every_compiled_program_is_cached_in_the_users_folder(settings):
    compiler.use_compilation_cache()
    folder = cache_folder() / "compiled"
    assert settings == {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_cache_folder_that_others_can_write_is_not_used(settings, mode):
    folder = cache_folder() / "compiled"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    compiler.use_compilation_cache()
    assert settings == {}


def test_the_users_cache_settings_win(settings, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "3")
    compiler.use_compilation_cache()
    assert list(settings) == ["jax_compilation_cache_dir"]
    settings.clear()
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    compiler.use_compilation_cache()
    assert settings == {}
    monkeypatch.delenv("JAX_ENABLE_COMPILATION_CACHE")
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", "/elsewhere")
    compiler.use_compilation_cache()
    assert settings == {}


def test_there_is_no_cache_if_its_folder_cannot_be_made(settings):
    cache_folder().write_text("a file")
    compiler.use_compilation_cache()
    assert settings == {}


def test_there_is_no_cache_without_a_home_folder(settings, monkeypatch):
    monkeypatch.delenv("GPT_JAX_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    compiler.use_compilation_cache()
    assert settings == {}


def test_memory_is_returned_only_after_a_long_compilation(monkeypatch):
    trimmed, listeners = [], []
    monkeypatch.setattr(compiler.sys, "platform", "linux")
    libc = types.SimpleNamespace(malloc_trim=trimmed.append)
    monkeypatch.setattr(compiler.ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(jax.monitoring, "register_event_duration_secs_listener", listeners.append)
    compiler.give_memory_back()
    [listener] = listeners
    listener(compiler.COMPILED, 0.1)
    listener("/jax/core/compile/jaxpr_trace_duration", 3.0)
    assert trimmed == []
    listener(compiler.COMPILED, 3.0, fun_name="train_step")
    assert trimmed == [0]


def test_jax_still_reports_compilations_under_the_name_we_use():
    events = []

    def listener(event, duration_secs, **_):
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    jax.jit(lambda x: x + 1)(1)
    jax.monitoring.unregister_event_duration_listener(listener)
    assert compiler.COMPILED in events
