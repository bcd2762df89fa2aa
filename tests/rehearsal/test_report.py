from dataclasses import replace

from fb3.bundles.bundle import read_bundle
from fb3.rehearsal.report import projection


def test_nothing_is_projected_where_a_run_had_no_part(bundle):
    one = read_bundle(bundle).members()[0]
    layout = {"rows": 9, "seconds": 2.0, "phases": {"tokens": 1.0}, "flops": {one.name: 1e9}}
    assert projection(layout, [one])["rows"] == 9
    assert projection(layout, [one, replace(one, name="without tokens")]) == {}
    assert projection(None, [one]) == {}
