"""What is asked of the table ``traces``, for SQLite and PostgreSQL alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import sqlalchemy as sa

from ..traces.base import (
    ANY_ERROR,
    CLIENT_LEFT,
    MOST_GROUPS,
    MOST_OF_A_TRACE,
    Spread,
    Sums,
    TraceQuery,
    What,
    rank,
)
from .cursors import place_of
from .tables import TRACES

NOTHING = Sums()

_C = TRACES.c


def page(query: TraceQuery) -> sa.Select[Any]:
    """A page as one walk along the index of (tenant,) started, seq. Raises ValueError for a wrong cursor."""
    found = sa.select(TRACES)
    place = None if query.cursor is None else place_of(query.cursor)
    # One upper end, the nearer: of two a database might walk from the farther, past all the pages that were read before.
    if place is not None and (query.until is None or place[0] < query.until):
        here = sa.tuple_(sa.literal(place[0], sa.Float), sa.literal(place[1], sa.BigInteger))
        found = found.where(sa.tuple_(_C.started, _C.seq) < here)
    elif query.until is not None:
        found = found.where(_C.started < query.until)
    if query.since is not None:
        found = found.where(_C.started >= query.since)
    if query.tenant is not None:
        found = found.where(_C.tenant == query.tenant)
    if query.model is not None:
        found = found.where(_C.model == query.model)
    if query.status is not None:
        found = found.where(_C.status.between(*query.status))
    if query.min_duration is not None:
        found = found.where(_C.duration >= query.min_duration)
    if query.error == ANY_ERROR:
        found = found.where(_C.error.is_not(None))
    elif query.error is not None:
        found = found.where(_C.error == query.error)
    return found.order_by(_C.started.desc(), _C.seq.desc()).limit(query.limit)


def of_a_trace(id: str, tenant: str | None, oldest: float) -> sa.Select[Any]:
    """The newest calls of the trace with that id, or of the one that the request with that id belongs to."""
    # Said so that no index of times or tenants fits: SQLite would walk a tenant's whole share of it.
    own: list[sa.ColumnElement[bool]] = [_C.started + 0.0 >= oldest]
    if tenant is not None:
        own.append(_C.tenant.concat("") == tenant)
    asked = sa.select(_C.trace_id).where(_C.request_id == id, *own)
    # A union of two look-ups, since "or" makes a database read all.
    ids = sa.union(sa.select(_C.trace_id).where(_C.trace_id == id, *own), asked).subquery()
    found = sa.select(TRACES).where(_C.trace_id.in_(sa.select(ids.c.trace_id)), *own)
    return found.order_by(_C.started.desc(), _C.seq.desc()).limit(MOST_OF_A_TRACE)


class Range(NamedTuple):
    """The calls begun in [since, until), of one tenant where it is named; ``only`` with these values in a column."""

    since: float
    until: float
    tenant: str | None
    only: tuple[sa.ColumnElement[Any], tuple[str | None, ...]] | None = None

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """As SQL."""
        found = [_C.started >= self.since, _C.started < self.until]
        if self.tenant is not None:
            found.append(_C.tenant == self.tenant)
        if self.only is not None:
            column, names = self.only
            fits: sa.ColumnElement[bool] = column.in_([name for name in names if name is not None])
            found.append(sa.or_(fits, column.is_(None)) if None in names else fits)
        return found


def named(what: What) -> sa.ColumnElement[Any]:
    """The column of that name."""
    columns: dict[What, sa.ColumnElement[Any]] = {"model": _C.model, "tenant": _C.tenant, "provider": _C.provider}
    return columns[what]


def bucket(since: float, step: float, count: int) -> sa.ColumnElement[Any]:
    """The number, from 0, of the bucket that a call is in."""
    # PostgreSQL rounds where it casts, SQLite cuts off, and not every SQLite has floor(): half less, and both say the same.
    exact = (_C.started - sa.literal(since, sa.Float)) / sa.literal(step, sa.Float)
    rounded = sa.cast(exact, sa.BigInteger)
    number = rounded - sa.case((sa.cast(rounded, sa.Float) > exact, 1), else_=0)
    return sa.case((number >= count, count - 1), else_=number)


def _how_many(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[Any]:
    return sa.func.sum(sa.case((condition, 1), else_=0))


def sums(group: sa.ColumnElement[Any], within: Range) -> sa.Select[Any]:
    """The group, and the fields of Sums."""
    left = _C.error.in_(CLIENT_LEFT)
    failed = sa.or_(
        _C.status >= 500,
        sa.and_(sa.or_(_C.status.is_(None), _C.status < 400), _C.error.is_not(None), sa.not_(left)),
    )
    key = group.label("grp")
    found = sa.select(
        key,
        sa.func.count(),
        _how_many(failed),
        _how_many(_C.status.between(400, 499)),
        _how_many(_C.aborted),
        _how_many(_C.cache.in_(("hit", "joined"))),
        *(sa.func.sum(column) for column in (_C.tokens_in, _C.tokens_out, _C.cost, _C.saved)),
    )
    return found.where(*within.conditions()).group_by(sa.text("grp"))


def greatest(column: sa.ColumnElement[Any], within: Range) -> sa.Select[Any]:
    """As ``sums``, of the groups with the most calls."""
    return sums(column, within).order_by(sa.func.count().desc(), column.is_not(None), column).limit(MOST_GROUPS)


def sums_from(row: Any) -> Sums:
    """The sums in a row; PostgreSQL sums a bigint to a numeric, and nothing to NULL."""
    return Sums(*(int(value or 0) for value in row[1:]))


_PERCENTS = (50, 95, 99)


def ranked(group: sa.ColumnElement[Any], name: str, within: Range, every: int) -> sa.Select[Any]:
    """Group, rank, calls of the group and value, of those ranks that are percentiles; of every so many-th call."""
    value = _C[name]
    conditions = [*within.conditions(), value.is_not(None)]
    if every > 1:
        conditions.append(_C.seq % every == 0)
    inner = sa.select(group.label("grp"), value.label("value")).where(*conditions).subquery()
    ordered = sa.select(
        inner.c.grp,
        inner.c.value,
        sa.func.row_number().over(partition_by=inner.c.grp, order_by=inner.c.value).label("place"),
        sa.func.count().over(partition_by=inner.c.grp).label("many"),
    ).subquery()
    # Whole numbers divided are whole numbers in both databases. Source: base.rank.
    ranks = [(ordered.c.many * percent + 99) // 100 for percent in _PERCENTS]
    found = sa.select(ordered.c.grp, ordered.c.place, ordered.c.many, ordered.c.value)
    return found.where(ordered.c.place.in_(ranks))


def spreads_from(rows: Iterable[Any]) -> dict[Any, Spread]:
    """The percentiles of each group."""
    places: dict[Any, dict[int, float]] = {}
    many: dict[Any, int] = {}
    for group, place, count, value in rows:
        places.setdefault(group, {})[place] = value
        many[group] = count
    return {
        group: Spread(*(found[rank(percent, many[group])] for percent in _PERCENTS)) for group, found in places.items()
    }
