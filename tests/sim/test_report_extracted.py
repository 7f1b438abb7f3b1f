"""Models that were put together stand in the report beside what their owners and the colluders have."""

from veilmesh.sim.report.extracted import extracted
from veilmesh.sim.report.model import Adversary, Attacked, Summary
from veilmesh.sim.report.numbers import percent
from veilmesh.sim.report.rows import rows

BUILT = Attacked(
    attack="proxy-averaging", vantage="peer:0+peer:1", infers="model", accuracy_rebuilt=0.925, accuracy_proxy=0.813,
    accuracy_owner=0.918, accuracy_colluders=0.8, accuracy_floor=0.1, error_shown=0.08, error_shown_floor=0.62,
)  # fmt: skip


def test_a_model_that_was_put_together_stands_beside_its_owners() -> None:
    run = Summary(adversary=Adversary(vantage="peer:0+peer:1"), attacks=(Attacked(attack="analytic"), BUILT))
    table = extracted(rows([("first", run)]))
    assert table is not None
    [line] = table.rows
    assert line[0] == "proxy-averaging from 2 who collude: peer:0, peer:1"
    assert line[1:7] == ("first", *(percent(share) for share in (0.925, 0.813, 0.918, 0.8, 0.1)))
    assert line[7] == "0.080 (0.620)"
    assert len(line) == len(table.head)


def test_without_one_there_is_no_table() -> None:
    assert extracted(rows([("first", Summary(attacks=(Attacked(attack="analytic"),)))])) is None
