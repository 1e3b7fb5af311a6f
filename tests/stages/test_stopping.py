"""A stop that was requested is heard by every long loop, and before what comes next begins."""

from contextlib import contextmanager

import pytest
from pipelines import settings_of
from videos import make_video

import cogedit
from cogedit.errors import Interrupted
from cogedit.progress import WindowInfo

PROMPT = "a blue cat"


@pytest.fixture(scope="module")
def inverted(tmp_path_factory):
    """A video, its trajectory and the settings of both; tests make other artifacts of them."""
    video = make_video(tmp_path_factory.mktemp("clip") / "clip.mp4", num_frames=17)
    settings = settings_of(video, load__max_num_frames=17)
    return video, cogedit.invert(video, settings).path, settings


def stopping(loop, seen):
    """A run that is asked to stop in the first step of a loop, and the steps of that loop."""

    @contextmanager
    def progress(doing, total):
        def on_step(step):
            if doing == loop and not isinstance(step, WindowInfo):
                seen.append((step.index, total))
                run.cancellation.request()

        yield on_step

    run = cogedit.Run(force=True, progress=progress)
    return run


@pytest.mark.parametrize("loop", ["encoding", "decoding", "writing", "resampling"])
def test_a_loop_of_which_nothing_is_kept_stops_after_its_step(inverted, tmp_path, loop):
    video, trajectory, settings = inverted
    seen = []
    run = stopping(loop, seen)
    call = {
        "encoding": lambda: cogedit.encode(video, settings, run=run),
        "decoding": lambda: cogedit.export(
            trajectory, settings, output=tmp_path / "noise.mp4", run=run
        ),
        "writing": lambda: cogedit.export(
            cogedit.load(video, settings).path, settings, output=tmp_path / "clip.mp4", run=run
        ),
        "resampling": lambda: cogedit.check_inversion(trajectory, settings, run=run),
    }[loop]
    with pytest.raises(Interrupted, match=f"interrupted while {loop}, after step 1 of ") as stopped:
        call()
    assert stopped.value.hint == "the same command begins it again"
    [(index, total)] = seen
    assert (index, total > 1) == (0, True)
    assert not [*tmp_path.iterdir()]


def test_a_stop_that_was_requested_before_a_call_begins_nothing(inverted, tmp_path):
    video, trajectory, settings = inverted
    run = cogedit.Run()
    run.cancellation.request()
    elsewhere = settings_of(video, workspace=tmp_path / "w", load__max_num_frames=17)
    for call in (
        lambda: cogedit.load(video, elsewhere, run=run),
        lambda: cogedit.edit(video, PROMPT, elsewhere, run=run),
        lambda: cogedit.export(trajectory, settings, output=tmp_path / "noise.mp4", run=run),
    ):
        with pytest.raises(Interrupted, match=r"interrupted before .* was begun"):
            call()
    assert not [*tmp_path.rglob("*.safetensors"), *tmp_path.rglob("*.mp4")]
    # What exists is found all the same.
    assert cogedit.invert(video, settings, run=run).reused


def test_an_interrupt_of_the_interpreter_keeps_the_steps_and_the_session(inverted, tmp_path):
    """As that of a notebook, wherever it comes."""
    video = inverted[0]
    elsewhere = settings_of(
        video, workspace=tmp_path / "w", load__max_num_frames=17, invert__num_inference_steps=5
    )
    steps = []

    @contextmanager
    def progress(doing, total):
        def on_step(step):
            if doing == "inverting" and not isinstance(step, WindowInfo):
                steps.append(step.index)
                if steps == [0, 1]:
                    raise KeyboardInterrupt

        yield on_step

    with cogedit.Session() as session:
        run = cogedit.Run(progress=progress)
        with pytest.raises(KeyboardInterrupt):
            cogedit.invert(video, elsewhere, run=run, session=session)
        written = cogedit.invert(video, elsewhere, run=run, session=session)
    assert steps == [0, 1, 2, 3, 4]
    whole = settings_of(
        video, workspace=tmp_path / "x", load__max_num_frames=17, invert__num_inference_steps=5
    )
    assert written.path.read_bytes() == cogedit.invert(video, whole).path.read_bytes()
