"""Transfer without blocks, beside that within them: what a study that ignores its design would report."""

from __future__ import annotations

import operator
from collections.abc import Iterator

from evalengine.analysis.estimates.tables import Row
from evalengine.analysis.figure import Folded, Heading, Part, Table
from evalengine.analysis.protocols import transfer
from evalengine.analysis.protocols.protocol import Protocol, StudyData
from evalengine.analysis.results import Results, p_value, with_interval


def rows(study: StudyData) -> list[Row]:
    """The rows of `transfer` with all mixtures exchangeable; none where there are no blocks."""
    return transfer.rows(study.across) if study.across else []


def shown(results: Results) -> Iterator[Part]:
    across = results.rows("across_blocks")
    if not across:
        return
    key = operator.attrgetter("protocol", "quantity", "scale", "category", "name")
    within = {key(row): row for row in results.rows("transfer")}
    factor = results.method["block"]["factor"]
    table = [
        [
            f"{row.category} ({row.name})" if row.protocol == "category_transfer" else row.name,
            row.quantity,
            row.scale,
            with_interval(within.get(key(row))),
            with_interval(row),
            p_value(row.p),
            str(row.n),
        ]
        for row in sorted(across, key=lambda row: row.protocol != "category_transfer")
    ]
    columns = ["", "quantity", "scale", f"r within {factor}", "plain r", "p of the plain r", "n"]
    yield Heading(f"Across {factor}")
    yield (
        f"The plain r takes all mixtures as exchangeable. It includes the differences across {factor}, and its interval "
        f"and p ignore that mixtures of the same {factor} are alike. It is here to be compared with published figures."
    )
    yield Folded("Transfer with and without blocks", [Table("", columns, [table], texts=3)])


PROTOCOL = Protocol("across_blocks", rows, shown)
