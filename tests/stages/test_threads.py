"""A session in more than one thread or process, and stages that run in several threads at once."""

import copy
import logging
import os
import pickle
import shutil
import sys
import threading
import warnings
from contextlib import contextmanager, nullcontext

import pytest
from pipelines import TINY_PIPELINE, settings_of
from threads import another_thread_in
from videos import make_video

import cogedit
from cogedit.errors import CogeditError, ModelError, UsageError
from cogedit.models.checkpoint import find_checkpoint, looked_up_once

PROMPT = "a blue cat"


@pytest.fixture
def video(tmp_path):
    return make_video(tmp_path / "clip.mp4", width=96, height=64, num_frames=9)


def raised_in_a_thread(call):
    """What a call raises in a thread of its own; None where it ends."""
    raised = []

    def attempt():
        try:
            call()
        except CogeditError as error:
            raised.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def test_a_session_that_another_thread_is_using_is_refused(video):
    settings, raised = settings_of(video), []

    with cogedit.Session() as session:

        def from_another_thread():
            for call in (
                lambda: cogedit.invert(video, settings, session=session),
                session.close,
            ):
                raised.append(raised_in_a_thread(call))

        @contextmanager
        def progress(doing, total):
            if doing == "inverting":
                from_another_thread()
            yield lambda step: None

        cogedit.invert(video, settings, run=cogedit.Run(progress=progress), session=session)
        assert [type(error) for error in raised] == [UsageError, UsageError]
        assert all("another thread is using this session" in str(error) for error in raised)
        # One after the other they may.
        later = lambda: cogedit.reconstruct(video, PROMPT, settings, session=session)  # noqa: E731
        assert raised_in_a_thread(later) is None


@pytest.mark.parametrize("send", [pickle.dumps, copy.deepcopy])
def test_a_session_is_not_pickled_or_copied(send):
    with pytest.raises(TypeError, match="make one in each process"):
        send(cogedit.Session())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_session_is_not_for_a_process_that_was_forked(video):
    settings = settings_of(video)
    reading, writing = os.pipe()
    with cogedit.Session() as session:
        latents = cogedit.encode(video, settings, session=session).path
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other threads may run
            child = os.fork()
        if child == 0:
            found = "nothing"
            try:
                with session:
                    cogedit.invert(latents, settings, session=session)
            except UsageError as error:
                found = str(error)
            finally:
                os.write(writing, found.encode())
                os._exit(0)
        os.close(writing)
        os.waitpid(child, 0)
        with os.fdopen(reading) as said:
            assert "make a Session in each process" in said.read()
        cogedit.invert(latents, settings, session=session)  # it is still this one's


def test_the_outermost_body_of_a_session_frees_it(video):
    settings, loaded = settings_of(video), []

    def wait(doing, /, *, is_said=False):
        loaded.extend([doing] if doing.startswith("loading the transformer") else [])
        return nullcontext()

    run, session = cogedit.Run(wait=wait), cogedit.Session()
    with session:
        with session:
            cogedit.invert(video, settings, run=run, session=session)
        cogedit.reconstruct(video, PROMPT, settings, run=run, session=session)
    assert len(loaded) == 1
    with session:
        cogedit.reconstruct(video, "a red fox", settings, run=run, session=session)
    assert len(loaded) == 2


@pytest.mark.parametrize("session", ["shapes", cogedit.Session])
def test_what_is_no_session_is_refused(video, session):
    with pytest.raises(UsageError, match=r"session is .*, expected a cogedit\.Session"):
        cogedit.encode(video, settings_of(video), session=session)


def test_threads_with_sessions_of_their_own_run_at_once(tmp_path):
    """Of each other they wait for what they share: the prompts' embeddings, and one inversion."""
    names = ("one", "two", "two")
    videos = {name: make_video(tmp_path / f"{name}.mp4", num_frames=9) for name in {*names}}
    settings = {
        name: settings_of(path, workspace=tmp_path / f"{name}.cogedit", cache=tmp_path / "cache")
        for name, path in videos.items()
    }
    verbosity, made = logging.root.manager.disable, {}

    def edit(number):
        name = names[number]
        with cogedit.Session() as session:
            prompts = [PROMPT, f"a red fox {number}"]
            made[number] = cogedit.reconstruct(
                videos[name], prompts, settings[name], session=session
            )

    threads = [threading.Thread(target=edit, args=(number,)) for number in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(made[number]) for number in range(len(names))] == [2, 2, 2]
    assert made[1][0].path == made[2][0].path
    assert logging.root.manager.disable == verbosity


def test_what_one_thread_looks_up_once_another_looks_up_itself(tmp_path):
    folder = tmp_path / "model"
    with another_thread_in(looked_up_once):
        with pytest.raises(ModelError):
            find_checkpoint(str(folder))
        shutil.copytree(TINY_PIPELINE, folder)
        found = find_checkpoint(str(folder))
    assert found.digest == find_checkpoint(str(TINY_PIPELINE)).digest
