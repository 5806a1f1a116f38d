"""The page of guarantees, and the script that lists the tests of each rule, against the tests."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import list_rules
import pytest

ROOT = Path(__file__).parents[2]
PAGE = list_rules.GUARANTEES.read_text()


def rules_in(code):
    return dict(list_rules.rules_in(textwrap.dedent(code)))


def test_a_test_carries_the_rules_of_its_mark():
    assert rules_in(
        """
        @pytest.mark.rule(2, 3)
        def test_one(): ...

        @pytest.mark.rule(4)
        @pytest.mark.parametrize("n", [1, 2])
        async def test_another(): ...

        @pytest.mark.rule(5)
        def no_test(): ...
        """
    ) == {"test_one": {2, 3}, "test_another": {4}}


def test_a_test_carries_the_rules_of_its_class_and_module():
    assert rules_in(
        """
        pytestmark = [pytest.mark.timeout(3), pytest.mark.rule(1)]

        @pytest.mark.rule(2)
        class TestThing:
            pytestmark = pytest.mark.rule(3)

            @pytest.mark.rule(4)
            def test_it(self): ...

        def test_other(): ...
        """
    ) == {"TestThing::test_it": {1, 2, 3, 4}, "test_other": {1}}


def test_a_state_machine_carries_rules_under_the_name_that_runs_it():
    assert rules_in(
        """
        @pytest.mark.rule(30)
        class Machine(RuleBasedStateMachine):
            @rule(seconds=st.floats())
            def test_nothing(self, seconds): ...

        TestMachine = Machine.TestCase
        """
    ) == {"TestMachine": {30}}


def test_every_rule_of_the_page_has_a_test():
    assert set(list_rules.titles()) <= set(list_rules.carriers())


def test_every_rule_that_a_test_carries_is_on_the_page():
    assert set(list_rules.carriers()) <= set(list_rules.titles())


def test_the_rules_stand_in_their_order():
    assert list(list_rules.titles()) == sorted(list_rules.titles())
    assert len(list_rules.titles()) == len(re.findall(r"^### ", PAGE, re.MULTILINE))


@pytest.mark.parametrize("number", list_rules.titles())
def test_a_rule_has_one_link_to_its_tests_and_names_none(number):
    [rule] = re.findall(rf"^### R{number}: .*?(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert re.findall(r"guarantees-tests\.md#(\w+)", rule) == [f"r{number}"]
    assert f"[Tests of R{number}](" in rule
    assert "test_" not in rule


TESTS = (ROOT / "docs" / "guarantees-tests.md").read_text()


def test_each_link_to_the_tests_of_a_rule_has_a_target_in_the_page_as_it_is_written():
    sections = re.findall(r"^## R(\d+)$", TESTS, re.MULTILINE)
    assert list(map(int, sections)) == list(list_rules.titles())
    for number, title in list_rules.titles().items():
        assert list_rules.heading(number, title) in TESTS


def test_the_built_list_has_the_tests_of_each_rule():
    built = list_rules.with_tests(TESTS)
    carriers = list_rules.carriers()
    sections = re.split(r"^## R(\d+)$", built, flags=re.MULTILINE)
    assert len(sections) == 1 + 2 * len(list_rules.titles())
    for number, section in zip(map(int, sections[1::2]), sections[2::2], strict=True):
        names = re.findall(r"^- `(.*)`$", section, re.MULTILINE)
        assert names == [test.partition("::")[2] for test in carriers[number]]
        [link] = re.findall(r"\(guarantees\.md#([\w-]+)\)", section)
        assert link.startswith(f"r{number}-")
