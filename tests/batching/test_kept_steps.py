"""Steps that are kept for metrics: what is read of runs that are over, and under way."""

from __future__ import annotations

from types import SimpleNamespace

from batchstream._batching.kept_steps import KeptSteps, StepKind

KIND, OTHER = StepKind(2, 4, 2, 0, 0), StepKind(1, 4, 1, 0, 0)


def test_each_step_and_output_is_read_once_while_runs_go_on_and_end():
    kept, core = KeptSteps(int), SimpleNamespace(outputs=3)
    run = kept.begin(KIND, core, 1)
    assert kept.take() == []  # whose step is still to come
    run.gaps.append(0.5)
    assert kept.take() == [(KIND, [0.5], 2)]
    core.outputs = 5
    run.gaps.append(0.25)
    assert kept.take() == [(KIND, [0.25], 2)]
    core.outputs = 6
    run.outputs_at_end = 6
    core.outputs = 9  # of the run behind it
    kept.begin(OTHER, core, 6).gaps.extend([1.0, 2.0])
    assert kept.take() == [(KIND, [], 1), (OTHER, [1.0, 2.0], 3)]
    assert kept.take() == []
    assert len(kept._runs) == 1


def test_a_run_that_another_thread_is_reading_gives_its_outputs_to_that_one():
    kept, core = KeptSteps(int), SimpleNamespace(outputs=3)
    run = kept.begin(KIND, core, 0)
    run.gaps.append(0.5)
    token = run._read.pop()  # as the other thread does
    assert kept.take() == [(KIND, [0.5], 0)]
    run._read.append(token)
    run.gaps.append(0.5)
    assert kept.take() == [(KIND, [0.5], 3)]
