"""The records of calls, read from SQL: SQLite (aiosqlite) or PostgreSQL (asyncpg). Ledgers write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

try:
    import sqlalchemy as sa
except ImportError as error:  # pragma: no cover - tried in a bare environment by the packaging test
    raise ModuleNotFoundError("a SQL store needs: pip install 'asgi-llm-gateway[sql]'", name=error.name) from None

from ..errors import StoreError
from ..records import Adjustment, CallRecord, Stats, Usage
from ._database import engine
from .base import Course, Page, Spend
from .cursors import cursor_of, place_of
from .tables import ADJUSTMENTS, RECORDS, SUMS


def _record(row: Any) -> CallRecord:
    return CallRecord(
        hold=row.hold,
        tenant=row.tenant,
        request_id=row.request_id,
        trace_id=row.trace_id,
        key=row.key_id,
        model=row.model,
        provider=row.provider,
        usage=Usage(
            prompt=row.prompt_tokens,
            completion=row.completion_tokens,
            cached=row.cached_tokens,
            cache_write=row.cache_write_tokens,
            reasoning=row.reasoning_tokens,
            estimated=row.estimated,
            provider_cost=row.provider_cost,
        ),
        cost=row.cost,
        status=row.status,
        started=row.started,
        ended=row.ended,
        aborted=row.aborted,
        overdraft=row.overdraft,
        lapsed=row.lapsed,
        local=row.local,
    )


def _adjustment(row: Any) -> Adjustment:
    return Adjustment(
        id=row.id,
        tenant=row.tenant,
        kind=row.kind,
        amount=row.amount,
        reason=row.reason,
        window=row.period_start,
        created=row.created,
        by=row.created_by,
    )


class SQLCallLog:
    """Call records and adjustments in a database whose tables are there (see ``migrate``).

    Args:
        url: A SQLAlchemy URL with an async driver: ``sqlite+aiosqlite:///...`` or ``postgresql+asyncpg://...``.
    """

    def __init__(self, url: str) -> None:
        self._engine = engine(url)

    async def _rows(self, query: sa.Select[Any] | sa.CompoundSelect[Any]) -> Sequence[Any]:
        """All rows; whatever the driver raises becomes a StoreError without the URL in it."""
        try:
            async with self._engine.connect() as connection:
                rows: Sequence[Any] = (await connection.execute(query)).all()
                return rows
        except (sa.exc.SQLAlchemyError, OSError) as error:
            raise StoreError(f"the database did not answer: {type(error).__name__}") from error

    async def records(
        self,
        tenant: str,
        *,
        limit: int = 100,
        cursor: str | None = None,
        since: float | None = None,
        until: float | None = None,
        model: str | None = None,
    ) -> Page:
        """See CallLog. The order is by ``started``, and by booking where that is equal."""
        limit = max(1, limit)
        rows = await self._rows(records_query(tenant, limit + 1, cursor, since, until, model))
        more = len(rows) > limit
        rows = rows[:limit]
        return Page([_record(row) for row in rows], cursor_of(rows[-1].started, rows[-1].seq) if more else None)

    async def stats(self, *, tenant: str | None = None, since: float | None = None) -> Stats:
        """See CallLog. Without ``since`` it reads one row a tenant, however many records there are."""
        if since is None:
            columns = [sa.func.sum(SUMS.c[name]) for name in Stats._fields]
            query = sa.select(*columns)
            if tenant is not None:
                query = query.where(SUMS.c.tenant == tenant)
        else:
            sums = (sa.func.sum(RECORDS.c[name]) for name in ("prompt_tokens", "completion_tokens", "cost"))
            query = sa.select(sa.func.count(), *sums).where(RECORDS.c.started >= since)
            if tenant is not None:
                query = query.where(RECORDS.c.tenant == tenant)
        rows = await self._rows(query)
        return Stats(*(int(value or 0) for value in rows[0]))  # PostgreSQL sums a bigint to a numeric

    async def spend(self, *, since: float, until: float, step: float, tenant: str | None = None) -> Spend:
        """See CallLog. The records of that time are walked once, along each tenant's index."""
        query = spend_query(since, until, step, tenant, postgresql=self._engine.dialect.name == "postgresql")
        over_time: list[tuple[int, Stats]] = []
        by_model: list[tuple[str, str | None, Stats]] = []
        for owner, model, bucket, *sums in await self._rows(query):
            stats = Stats(*map(int, sums))  # PostgreSQL sums a bigint to a numeric
            if owner is None:
                over_time.append((int(bucket), stats))
            else:
                by_model.append((owner, model, stats))
        return Spend(sorted(over_time), by_model)

    async def course(
        self, by: Literal["model", "tenant"], *, since: float, until: float, step: float, tenant: str | None = None,
        most: int = 5,
    ) -> Course:  # fmt: skip
        """See CallLog. One walk, as ``spend``."""
        query = course_query(by, since, until, step, tenant, most, postgresql=self._engine.dialect.name == "postgresql")
        names: dict[int, str | None] = {}
        over_time = []
        for place, name, bucket, *sums in await self._rows(query):
            if place <= most:
                names[place] = name
            over_time.append((int(place) - 1, int(bucket), Stats(*map(int, sums))))
        return Course([names[place] for place in sorted(names)], sorted(over_time))

    async def adjustments(self, tenant: str, *, limit: int = 100) -> Sequence[Adjustment]:
        """See CallLog."""
        query = sa.select(ADJUSTMENTS).where(ADJUSTMENTS.c.tenant == tenant)
        query = query.order_by(ADJUSTMENTS.c.created.desc(), ADJUSTMENTS.c.id.desc()).limit(max(1, limit))
        return [_adjustment(row) for row in await self._rows(query)]

    async def close(self) -> None:
        """Give back what it holds open."""
        await self._engine.dispose()


def records_query(
    tenant: str, limit: int, cursor: str | None, since: float | None, until: float | None, model: str | None
) -> sa.Select[Any]:
    """A page as one walk along the index of tenant, started, seq. Raises ValueError for a wrong cursor."""
    query = sa.select(RECORDS).where(RECORDS.c.tenant == tenant)
    place = None if cursor is None else place_of(cursor)
    # One upper end, the nearer: of two a database might walk from the farther, past all the pages that were read before.
    if place is not None and (until is None or place[0] < until):
        here = sa.tuple_(sa.literal(place[0], sa.Float), sa.literal(place[1], sa.BigInteger))
        query = query.where(sa.tuple_(RECORDS.c.started, RECORDS.c.seq) < here)
    elif until is not None:
        query = query.where(RECORDS.c.started < until)
    if since is not None:
        query = query.where(RECORDS.c.started >= since)
    if model is not None:
        query = query.where(RECORDS.c.model == model)
    return query.order_by(RECORDS.c.started.desc(), RECORDS.c.seq.desc()).limit(limit)


def spend_query(
    since: float, until: float, step: float, tenant: str | None, *, postgresql: bool
) -> sa.CompoundSelect[Any]:
    """Sums by bucket of time (tenant ``null``), and by tenant and model (bucket 0): one statement, so of one moment."""
    parts = _parts((RECORDS.c.tenant, RECORDS.c.model), since, until, step, tenant, postgresql)
    sums = [sa.func.sum(parts.c[name]) for name in _SUMMED]
    nobody = sa.cast(sa.null(), sa.Text)
    over_time = sa.select(nobody.label("tenant"), nobody.label("model"), parts.c.bucket, *sums).group_by(parts.c.bucket)
    by_model = sa.select(parts.c.tenant, parts.c.model, sa.cast(sa.literal(0), sa.BigInteger), *sums)
    return sa.union_all(over_time, by_model.group_by(parts.c.tenant, parts.c.model))


def course_query(
    by: Literal["model", "tenant"], since: float, until: float, step: float, tenant: str | None, most: int, *,
    postgresql: bool,
) -> sa.Select[Any]:  # fmt: skip
    """Sums by place in the order of cost and by bucket; place ``most + 1``, without a name, is all behind the dearest."""
    parts = _parts((RECORDS.c[by].label("name"),), since, until, step, tenant, postgresql)
    cost, calls = sa.func.sum(parts.c.cost), sa.func.sum(parts.c.requests)
    order = sa.func.row_number().over(order_by=(cost.desc(), calls.desc(), parts.c.name.asc().nulls_first()))
    ranked = sa.select(parts.c.name, order.label("place")).group_by(parts.c.name).cte("ranked")
    named = ranked.c.place <= most
    place = sa.case((named, ranked.c.place), else_=most + 1).label("place")
    name = sa.case((named, ranked.c.name)).label("name")
    return (
        sa.select(place, name, parts.c.bucket, *(sa.func.sum(parts.c[column]) for column in _SUMMED))
        .join_from(parts, ranked, parts.c.name.is_not_distinct_from(ranked.c.name))
        .group_by(place, name, parts.c.bucket)
    )


_SUMMED = ("requests", "prompt_tokens", "completion_tokens", "cost")


def _parts(
    columns: Sequence[Any], since: float, until: float, step: float, tenant: str | None, postgresql: bool
) -> sa.CTE:
    """Sums over the records of a time by these columns and by bucket."""
    place = (RECORDS.c.started - since) / step
    # A cast rounds at PostgreSQL and cuts at SQLite, whose builds need not have floor().
    bucket = sa.cast(sa.func.floor(place) if postgresql else place, sa.BigInteger).label("bucket")
    # All tenants by name: there is an index for one tenant's time, and none for everybody's, which each call would pay for.
    owner = RECORDS.c.tenant.in_(sa.select(SUMS.c.tenant)) if tenant is None else RECORDS.c.tenant == tenant
    return (
        sa.select(
            *columns, bucket, sa.func.count().label("requests"),
            *(sa.func.sum(RECORDS.c[name]).label(name) for name in _SUMMED[1:]),
        )
        .where(owner, RECORDS.c.started >= since, RECORDS.c.started < until)
        .group_by(*columns, bucket)
        .cte("parts")
    )  # fmt: skip
