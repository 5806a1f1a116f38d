"""What a criterion says of ids that are not put yet, and of a step without tokens."""

import torch
from transformers import MaxTimeCriteria, StoppingCriteria

from batchstream import End, Last
from batchstream.integrations.transformers._marks import Marks, RowCriteria, taken_criteria
from batchstream.integrations.transformers._settings import Settings


class EndsAt(StoppingCriteria):
    """Ends a row whose last id is this one, so that it may say no of more ids."""

    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, _scores, **_):
        return input_ids[:, -1] == self.token


def marked(*prompts):
    """Return the criteria and the marks of a call that has put its prompts, and ends at 7."""
    rows = RowCriteria([EndsAt(7)])
    rows.put(torch.tensor(prompts))
    return rows, Marks(rows, len(prompts[0]), [None] * len(prompts), frozenset({2}))


def asked(rows, *ids):
    return rows(torch.tensor(ids), None).tolist()


def put(rows, marks, *step):
    rows.put(torch.tensor(step))
    return marks.elements(torch.tensor(step))


def test_a_verdict_on_drafts_that_are_not_accepted_is_forgotten():
    rows, marks = marked([3, 4])
    assert asked(rows, [3, 4, 5, 7]) == [True]
    assert list(put(rows, marks, [5, 6])[0].outputs) == [5, 6]
    assert asked(rows, [3, 4, 5, 6]) == [False]
    assert marks.stopped() == {}
    assert put(rows, marks, 8) == [8]
    assert asked(rows, [3, 4, 5, 6, 8, 9, 7]) == [True]
    assert put(rows, marks, [9]) == [9]
    assert asked(rows, [3, 4, 5, 6, 8, 9]) == [False]
    assert rows.known == set()


def test_a_verdict_on_what_is_put_next_stands():
    rows, marks = marked([3, 4], [3, 4])
    assert asked(rows, [3, 4, 7], [3, 4, 5]) == [True, False]
    found = put(rows, marks, 7, 5)
    assert (type(found[0]), found[0].output, found[1]) == (Last, 7, 5)
    assert rows.known == {0}
    assert asked(rows, [3, 4, 7, 0], [3, 4, 5, 5]) == [True, False]


def test_a_verdict_on_what_was_put_stands_whatever_is_put_behind_it():
    rows, marks = marked([3, 4], [3, 4])
    put(rows, marks, 7, 5)
    assert asked(rows, [3, 4, 7], [3, 4, 5]) == [True, False]
    assert marks.stopped().keys() == {0}
    assert asked(rows, [3, 4, 7, 0], [3, 4, 5, 5]) == [True, False]
    found = put(rows, marks, 0, 5)
    assert type(found[0]) is End
    assert found[1] == 5


def test_criteria_of_the_caller_take_the_place_of_a_setting_of_their_type():
    own = MaxTimeCriteria(9)
    call = {"stopping_criteria": [own], "max_time": 1, "max_new_tokens": 3}
    assert taken_criteria(Settings(None, call)) == ([own], {"max_new_tokens": 3})


def test_a_step_may_have_no_token():
    rows, marks = marked([3, 7])
    assert asked(rows, [3, 7]) == [True]
    assert type(put(rows, marks, [])[0]) is End
    rows, marks = marked([3, 4])
    assert list(put(rows, marks, [])[0].outputs) == []
