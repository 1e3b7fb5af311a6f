"""The speed benchmark on a tiny model: what it counts, what it times, and that its rows agree."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from cogedit.lab.jobs import job_flops, job_work, make_jobs, run_job
from cogedit.lab.measure import StepClock, count_flops, time_in_turns
from cogedit.lab.random_model import SIZES, Size, random_inputs, random_transformer
from cogedit.lab.speed import main
from cogedit.lab.steps import measure_steps, steps_of
from cogedit.progress import StepInfo

CPU = torch.device("cpu")
TINY = Size(2, 2, 32, 8, 16, (2, 8, 8))
TARGETS = {
    "exact": (1.16, 1.55, 1.64),
    "shared": (1.40, 2.00, 2.15),
    "shared-half": (1.74, 2.43, 2.60),
    "shared-half-guided": (1.98, 2.93, 3.18),
    "default": (3.45, 5.4, 5.9),
    "fast": (6.0, 8.8, 9.5),
}


@pytest.fixture(scope="module")
def inputs():
    transformer = random_transformer(TINY, device=CPU, dtype=torch.float32)
    return random_inputs(transformer, TINY, num_prompts=3)


@pytest.fixture(scope="module")
def jobs():
    return {job.name: job for job in make_jobs(4)}


def test_the_counter_counts_attention_on_the_cpu():
    q, k = torch.randn(2, 3, 10, 16), torch.randn(2, 3, 25, 16)
    _, flops = count_flops(lambda: functional.scaled_dot_product_attention(q, k, k))
    assert flops == 2 * (2 * 2 * 3 * 10 * 25 * 16)
    result, flops = count_flops(lambda: torch.ones(4, 5) @ torch.ones(5, 6))
    assert result.shape == (4, 6)
    assert flops == 2 * 4 * 5 * 6


def test_random_weights_are_never_zero(inputs):
    for name, weight in inputs.predictor.transformer.named_parameters():
        assert bool((weight != 0).all()), name
    assert not list(inputs.predictor.transformer.buffers())


@pytest.mark.parametrize("count", [1, 3])
def test_exact_makes_upstream_s_edits_with_fewer_operations(inputs, jobs, count):
    expected, written = count_flops(lambda: run_job(jobs["upstream"], inputs, count))
    found, flops = count_flops(lambda: run_job(jobs["exact"], inputs, count))
    assert expected.shape == (count, 2, 16, 8, 8)
    assert torch.allclose(found, expected, atol=1e-5)
    assert expected.std() > 0.1
    assert flops < 0.9 * written


def test_what_is_counted_is_what_the_formulas_say(inputs, jobs):
    count = 3
    for job in jobs.values():
        _, flops = count_flops(lambda job=job: run_job(job, inputs, count))
        expected = job_work(job, count, TINY.sizes, TINY.latent_shape).flops.total
        assert flops == pytest.approx(expected, rel=0.01), job.name


def test_other_rows_make_other_edits_of_the_same_clip(inputs, jobs):
    first = run_job(jobs["upstream"], inputs, 2)
    for name in ("shared", "fast"):
        edits = run_job(jobs[name], inputs, 2)
        assert edits.shape == first.shape
        assert not torch.allclose(edits, first, atol=1e-3)


def test_the_rows_reach_their_targets_on_5b():
    rows = make_jobs(50)
    upstream = rows[0]
    for job in rows[1:]:
        for count, target in zip((1, 4, 8), TARGETS[job.name], strict=True):
            fewer = job_flops(upstream, count) / job_flops(job, count)
            assert fewer > target - 0.005, (job.name, count)  # as they are written, to two decimals


def test_upstream_on_5b_is_what_is_known_of_it():
    assert job_flops(make_jobs(50)[0], 1) == pytest.approx(116.6e15, rel=0.005)


def test_fewer_steps_keep_their_proportions(jobs):
    assert [job.invert.num_inference_steps for job in jobs.values()] == [4] * 5 + [2] * 2
    assert jobs["fast"].reconstruct.num_inference_steps == 1
    fast = make_jobs(50)[-1]
    assert fast.invert.num_inference_steps == 12
    assert fast.reconstruct.num_inference_steps == 12


@pytest.mark.parametrize("count", [1, 3])
def test_the_steps_of_a_job_add_up_to_it(count):
    for job in make_jobs(50):
        steps = steps_of(job, count)
        added = sum(
            number * kind.flops(TINY.sizes, TINY.latent_shape) for kind, number in steps.items()
        )
        expected = job_work(job, count, TINY.sizes, TINY.latent_shape).flops.total
        assert added == pytest.approx(expected, rel=1e-6), job.name


def test_kinds_of_step_are_shared_by_the_jobs():
    kinds = {kind for job in make_jobs(50) for count in (1, 4, 8) for kind in steps_of(job, count)}
    assert sum(kind.part == "invert" for kind in kinds) == 3
    assert sum(kind.part == "edit" for kind in kinds) == 1 + 6 * 3
    assert len({kind.name for kind in kinds}) == len(kinds)


def test_a_model_by_its_steps(inputs):
    steps, jobs = measure_steps(
        make_jobs(50)[:3], inputs, TINY, prompts=(2,), repeats=2, num_warmup=1, num_timed=2
    )
    assert [job.name for job in jobs] == ["upstream", "exact", "shared"]
    assert len(steps) == 6
    assert all(len(step.seconds) == 4 for step in steps)
    assert all(len(job.seconds) == 2 and job.median > 0 for job in jobs)


def test_turns_are_interleaved_and_every_run_is_kept():
    order = []
    timings = time_in_turns(
        {name: lambda n=name: order.append(n) for name in "ab"}, repeats=3, device=CPU
    )
    assert order == ["a", "b"] * 3
    assert [len(seconds) for seconds in timings.values()] == [3, 3]


def test_the_clock_leaves_the_warm_up_out_and_counts_calls():
    clock = StepClock(num_warmup=2, device=CPU)
    for index in range(5):
        clock(StepInfo(index, 5, 0))
    assert len(clock.seconds) == 3


def test_a_run_from_end_to_end(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(SIZES, "cpu", TINY)
    arguments = ["--prompts", "2", "--steps", "4", "--repeats", "2"]
    assert main([*arguments, "--output", str(tmp_path / "bench")]) == 0
    out = capsys.readouterr().out
    for text in ("CogVideoX-5B, counted", "Measured jobs", "N = 2: shared", "speed-cpu.json"):
        assert text in out
    found = json.loads((tmp_path / "bench" / "speed-cpu.json").read_text())
    assert found["run"]["num_inference_steps"] == 4
    assert [(one["name"], one["num_prompts"]) for one in found["jobs"]][:2] == [
        ("upstream", 2),
        ("exact", 2),
    ]
    assert all(len(one["seconds"]) == 2 for one in found["jobs"])
    assert found["jobs"][1]["distance"] < 1e-5


def test_some_rows_of_a_model_with_fewer_layers(monkeypatch, tmp_path):
    monkeypatch.setitem(SIZES, "cpu", TINY)
    arguments = ["--prompts", "2", "--steps", "4", "--repeats", "1", "--layers", "1"]
    assert main([*arguments, "--jobs", "shared", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "speed-cpu.json").read_text())
    assert [one["name"] for one in found["jobs"]] == ["upstream", "shared"]
    jobs = {job.name: job for job in make_jobs(4)}
    sizes = replace(TINY, num_layers=1).sizes
    for one in found["jobs"]:
        expected = job_work(jobs[one["name"]], 2, sizes, TINY.latent_shape).flops.total
        assert one["flops"] == pytest.approx(expected, rel=0.01)
    assert found["run"]["num_layers"] == 1


def test_counting_alone_runs_nothing(tmp_path, capsys):
    assert main(["--count-only", "--size", "5b", "--prompts", "4", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "CogVideoX-5B, counted" in out
    assert "Measured" not in out
    found = json.loads((tmp_path / "speed-5b.json").read_text())
    assert found["jobs"] == []
    assert [one["num_prompts"] for one in found["full_size"]] == [4] * 7


def row(seen, psnr):
    """A row of `quality.json`, as far as this benchmark reads it."""
    return {"target_seen": {"mean": seen}, "counterfactual_psnr": {"mean": psnr}}


def test_quality_stands_beside_the_cost(tmp_path, capsys):
    rows = {name: row(0.25, 20.0) for name in ("upstream", "default")} | {"fast": row(0.5, 24.0)}
    kinds = {"shape": rows | {"shared": row(0.1, 9.0)}, "color": rows | {"fast": row(1.0, 26.0)}}
    kinds["same"] = {}
    (tmp_path / "quality.json").write_text(json.dumps({"edits": kinds}))
    arguments = ["--count-only", "--prompts", "4", "--output", str(tmp_path)]
    assert main([*arguments, "--quality", str(tmp_path / "quality.json")]) == 0
    out = capsys.readouterr().out
    assert "shape edits" in out
    assert "same edits" not in out
    assert "75.0 %, 25.0 dB" in out
    written = json.loads((tmp_path / "speed-cpu.json").read_text())["quality"]
    assert written["exact"] == written["upstream"]
    assert "shared" not in written  # not measured for every kind
    assert written["fast"] == {"shape": [0.5, 24.0], "color": [1.0, 26.0]}


@pytest.mark.parametrize(
    "text", [None, "no json", "[]", "{}", '{"edits": {"shape": {"mine": {}}}}', '{"edits": {}}']
)
def test_quality_of_other_rows_is_refused(text, tmp_path, capsys):
    file = tmp_path / "quality.json"
    if text is not None:
        file.write_text(text)
    arguments = ["--count-only", "--quality", str(file), "--output", str(tmp_path)]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert str(file) in said
    assert "cogedit.lab.quality" in said


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--steps", "1"], "--steps is 1; it must be at least 4"),
        (["--timed-steps", "0"], "--timed-steps is 0; it must be at least 1"),
        (["--prompts", "0"], "--prompts has 0"),
    ],
)
def test_mistakes_end_with_a_sentence(arguments, text, tmp_path, capsys):
    assert main([*arguments, "--output", str(tmp_path)]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_5b_without_a_cuda_device_is_refused(tmp_path, capsys):
    assert main(["--size", "5b", "--output", str(tmp_path)]) == 2
    assert "--size 5b needs a CUDA device" in capsys.readouterr().err
