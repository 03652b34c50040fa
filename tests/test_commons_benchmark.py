"""Late tenants: rows that were measured before stay beside new ones."""

import json

from benchmarks.commons import with_earlier


def row(name, size, points):
    return {"what": f"late tenant, {name}, {size} kB, 1/2 of LoRA r16's, 5 of 15 runs (task, seed)",
            "difference": points, "bytes": {"ours": size}}  # fmt: skip


def test_a_candidate_that_is_measured_again_is_one_row(tmp_path):
    path = tmp_path / "commons.json"
    assert with_earlier([row("b", 2, 0.5)], path) == [row("b", 2, 0.5)]
    there, other = {"cpu": "one"}, {"machine": {"cpu": "another"}}
    held = [row("a", 1, 0.1), row("b", 2, 0.2), row("bc", 3, 0.3) | other]
    path.write_text(json.dumps({"machine": there, "rows": held}))
    want = [row("a", 1, 0.1) | {"machine": there}, row("b", 2, 0.5), row("bc", 3, 0.3) | other]
    assert with_earlier([row("b", 2, 0.5)], path) == want
