"""The planted mistakes of mutants.py fit the package as it is; `make mutants` runs them."""

from __future__ import annotations

from dataclasses import replace

import pytest

import mutants


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies(mutant):
    assert mutants.misfit(mutant) is None


def test_a_mutant_whose_text_is_gone_or_is_not_unique_does_not_apply():
    for right in ("no line of the package is like this", "self._lock"):
        assert mutants.misfit(replace(mutants.UNBROKEN, right=right)).startswith("DOES NOT APPLY")


def test_a_mutant_whose_test_is_gone_does_not_apply():
    gone = replace(mutants.UNBROKEN, noticed_by=("test_demux.py::test_that_never_was",))
    assert "test_that_never_was" in mutants.misfit(gone)


def test_every_mutant_is_another_one():
    assert len({mutant.name for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS)
    assert all(mutant.right != mutant.wrong for mutant in mutants.MUTANTS)
