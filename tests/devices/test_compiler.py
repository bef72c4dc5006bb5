"""JAX keeps what it compiled in the user's own folder, and nowhere else."""

import types

import jax
import pytest

from gpt_jax.devices import compiler
from gpt_jax.files import cache_folder


@pytest.fixture
def settings(monkeypatch):
    """What is set, beginning with no cache, as in a process of its own."""
    found = {}
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", None)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    return found


def test_everything_that_is_compiled_is_kept_in_the_users_folder(settings):
    compiler.use_compilation_cache()
    folder = cache_folder() / "compiled"
    assert settings == {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_write_is_not_used(settings):
    folder = cache_folder() / "compiled"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    compiler.use_compilation_cache()
    assert settings == {}


def test_what_the_user_has_set_wins(settings, monkeypatch):
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


def test_where_no_folder_can_be_made_there_is_no_cache(settings):
    cache_folder().write_text("a file")
    compiler.use_compilation_cache()
    assert settings == {}


def test_memory_is_given_back_after_a_long_compilation_and_at_no_other_time(monkeypatch):
    given_back, listeners = [], []
    monkeypatch.setattr(compiler.sys, "platform", "linux")
    libc = types.SimpleNamespace(malloc_trim=given_back.append)
    monkeypatch.setattr(compiler.ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(jax.monitoring, "register_event_duration_secs_listener", listeners.append)
    compiler.give_memory_back()
    [listener] = listeners
    listener(compiler.COMPILED, 0.1)
    listener("/jax/core/compile/jaxpr_trace_duration", 3.0)
    assert given_back == []
    listener(compiler.COMPILED, 3.0, fun_name="train_step")
    assert given_back == [0]


def test_the_end_of_a_compilation_is_still_told_under_the_name_we_listen_for():
    events = []

    def listener(event, duration_secs, **_):
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    jax.jit(lambda x: x + 1)(1)
    jax.monitoring.unregister_event_duration_listener(listener)
    assert compiler.COMPILED in events
