import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fb3.data.ids import match_ids
from fb3.errors import Fb3Error


@given(st.lists(st.text(), unique=True).flatmap(lambda ids: st.tuples(st.just(ids), st.permutations(ids))))
def test_each_wanted_id_is_found_in_whatever_order(both):
    ids, wanted = both
    assert [ids[row] for row in match_ids(ids, wanted, "one", "other")] == wanted
    part = wanted[: len(wanted) // 2]
    assert [ids[row] for row in match_ids(pd.Series(ids, dtype=object), part, "one", "other", subset=True)] == part


@pytest.mark.parametrize(
    ("ids", "wanted", "subset", "words"),
    [
        ("xy", "xyz", False, r"0 only in one.csv \[\], 1 only in other.csv \['z'\]"),
        ("zyx", "y", False, r"2 only in one.csv \['z', 'x'\], 0 only in other.csv \[\]"),
        ("abcdefg", "a", False, r"6 only in one.csv \['b', 'c', 'd', 'e', 'f'\], 0"),
        ("xyz", "xw", True, r"different ids: 1 only in other.csv \['w'\]; mend it$"),
    ],
)
def test_ids_on_one_side_only_are_counted_and_shown(ids, wanted, subset, words):
    with pytest.raises(Fb3Error, match=r"^one\.csv and other\.csv hold different ids: .*; mend it$") as error:
        match_ids(list(ids), np.array(list(wanted), object), "one.csv", "other.csv", "; mend it", subset=subset)
    error.match(words)


@pytest.mark.parametrize(("ids", "wanted", "source"), [("xxy", "xy", "1"), ("xy", "xyy", "2"), ("xx", "xx", "1")])
def test_an_id_that_stands_twice_matches_nothing(ids, wanted, source):
    with pytest.raises(Fb3Error, match=rf"^{source}: 1 duplicate ids: \['[xy]'\]$"):
        match_ids(list(ids), list(wanted), "1", "2")
