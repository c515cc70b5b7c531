"""The table of cases: all ops are in it, and all cases pass."""

import numpy as np
import pytest

from minisagan import ops, selfcheck
from minisagan.autograd import Tensor
from minisagan.errors import UsageError

RECORDED = {"subtract": "add", "mean": "sum", "embeddings": "embedding"}  # of others


def test_every_op_is_in_the_table():
    assert set(ops.__all__) <= set(selfcheck.OPS)


@pytest.mark.parametrize("op", selfcheck.CASES)
def test_every_case_of_the_table_passes(op):
    rows = list(selfcheck.run(op))
    assert [str(row) for row in rows if not row.passed] == []
    assert len(rows) >= len(selfcheck.cases(op)) > 0
    assert len({(row.name, row.method == "adjoint") for row in rows}) == len(rows)


@pytest.mark.parametrize("op", list(selfcheck.OPS))
def test_a_case_of_an_op_runs_that_op(op):
    for case in selfcheck.cases(op):
        tape, seen = [case.f(*map(Tensor, case.inputs))], set()
        while tape:
            node = tape.pop()
            seen.add(node.op)
            tape += node.parents
        assert RECORDED.get(op, op) in seen, case.name


def test_the_table_is_the_same_each_time():
    for op in selfcheck.CASES:
        for one, other in zip(selfcheck.cases(op), selfcheck.cases(op), strict=True):
            assert all(map(np.array_equal, one.inputs, other.inputs)), one.name


def test_strided_cases_are_not_contiguous():
    for op in selfcheck.OPS:
        first, strided = selfcheck.cases(op)[:2]
        for x, s in zip(first.inputs, strided.inputs, strict=True):
            assert np.array_equal(x, s) and not s.flags.c_contiguous and not s.flags.f_contiguous


def test_run_without_a_name_goes_through_all(monkeypatch):
    asked = []
    monkeypatch.setattr(selfcheck, "cases", lambda op: asked.append(op) or [])
    assert list(selfcheck.run()) == [] and asked == list(selfcheck.CASES)


def test_run_of_an_unknown_op_names_the_known():
    with pytest.raises(UsageError, match="there is no op 'con' to check; there are .*conv"):
        list(selfcheck.run("con"))
