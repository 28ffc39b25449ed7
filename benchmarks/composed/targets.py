"""The figures of shims and collections, taken from the results of one run."""

from __future__ import annotations

from collections.abc import Sequence

from aiodatastore.bench.report import Result, Target
from benchmarks.composed import cached, keyvalue, sharded, shims

__all__ = ["composed_targets"]


def composed_targets(results: Sequence[Result], tasks: int) -> list[Target]:
    """Each with what was wanted and measured."""
    found = {result.name: result for result in results}
    return [*_shims(found, tasks), *_cached(found, tasks), *_sharded(found, tasks), *_keyvalue(found, tasks)]


def _times(found: dict[str, Result], result: str, quick: str, slow: str, tasks: int = 1) -> float | None:
    """How many times as long the second one takes, which is how many times as fast the first one is."""
    return found[result].ratio(quick, slow, tasks) if result in found else None


def _most(*ratios: float | None) -> float | None:
    return max([each for each in ratios if each is not None], default=None)


def _shims(found: dict[str, Result], tasks: int) -> list[Target]:
    def through(work: str, case: str, tasks: int = 1) -> float | None:
        return _times(found, f"shims_{work}", f"{case}: {shims.PLAIN}", f"{case}: {shims.THROUGH}", tasks)

    wanted = [
        Target(
            f"memory get through {case.name}: time, of a plain get",
            1.15 if case.passing and case is not shims.SHIMS[0] else None,
            through("get", case.name),
            below=True,
        )
        for case in shims.SHIMS
    ]
    dearest = {
        number: _most(*(through("put", case, number) for case in shims.PASSING if case != shims.SHIMS[0].name))
        for number in (1, tasks)
    }
    deepest = [
        Target(
            f"memory get through {shims.DEEPEST} shims, {name}: time, of a plain get",
            None,
            through("stacks", f"{name} × {shims.DEEPEST}"),
            below=True,
        )
        for name in shims.STACKS
    ]
    return [
        *wanted,
        Target(
            "memory put through the dearest of those up to Namespaced: time, of a plain put",
            None,
            dearest[1],
            below=True,
        ),
        Target(f"– {tasks} tasks", None, dearest[tasks], below=True),
        *deepest,
    ]


def _cached(found: dict[str, Result], tasks: int) -> list[Target]:
    def faster(result: str, case: str, tasks: int = 1, ours: str = cached.CACHED) -> float | None:
        return _times(found, f"cached_{result}", f"{case}: {ours}", f"{case}: {cached.ALONE}", tasks)

    def longer(result: str, case: str, tasks: int = 1) -> float | None:
        ratio = faster(result, case, tasks)
        return None if not ratio else 1 / ratio

    def sweep(share: int, tasks: int) -> float | None:
        return _times(found, "cached_zipf", cached.share_name(share), cached.share_name(0), tasks)

    largest, middle = cached.SHARES[-1], cached.SHARES[2]
    return [
        Target("Cached hit, 1 task, against a get from PostgreSQL", 10, faster("get", cached.HIT)),
        Target("– told of commits by LISTEN", 10, faster("get", cached.HIT, 1, cached.PUSHED)),
        Target(f"Cached hit, {tasks} tasks, against a get from PostgreSQL", None, faster("get", cached.HIT, tasks)),
        Target("Cached miss, 1 task: latency, of a get from PostgreSQL", None, longer("get", cached.MISS), below=True),
        Target(f"– {tasks} tasks: time", None, longer("get", cached.MISS, tasks), below=True),
        Target("Cached put, 1 task: latency, of a put to PostgreSQL", None, longer("put", cached.COMMIT), below=True),
        Target(f"– {tasks} tasks: time", None, longer("put", cached.COMMIT, tasks), below=True),
        Target(
            "Cached put that others are told of by NOTIFY, 1 task: latency, of a put to PostgreSQL",
            None,
            longer("put", cached.COMMIT_PUSHED),
            below=True,
        ),
        Target(f"– {tasks} tasks: time", None, longer("put", cached.COMMIT_PUSHED, tasks), below=True),
        Target(
            "Cached hit in a second level in Redis, 1 task, against a get from PostgreSQL",
            None,
            faster("shared", cached.SHARED_HIT),
        ),
        Target(f"– {tasks} tasks", None, faster("shared", cached.SHARED_HIT, tasks)),
        Target(
            "Cached put with a second level in Redis, 1 task: latency, of a put to PostgreSQL",
            None,
            longer("shared", cached.COMMIT),
            below=True,
        ),
        Target(
            f"90% gets, 10% puts by Zipf's law, {tasks} tasks, {middle}% cached, against no cache",
            None,
            sweep(middle, tasks),
        ),
        Target(f"– {largest}% cached", None, sweep(largest, tasks)),
        Target(f"– {largest}% cached, 1 task", None, sweep(largest, 1)),
    ]


def _sharded(found: dict[str, Result], tasks: int) -> list[Target]:
    def shards(shape: str, tasks: int = 1) -> float | None:
        return _times(found, "sharded_query", f"{shape}: {sharded.ALONE}", f"{shape}: {sharded.FOUR}", tasks)

    def merged(engine: str, width: int) -> float | None:
        return _times(found, "sharded_width", sharded.merged_name(engine, None), sharded.merged_name(engine, width))

    def through(work: str, name: str, tasks: int = 1) -> float | None:
        return _times(found, "sharded_plain", f"{work}: {sharded.ALONE}", f"{work}: {name}", tasks)

    def transaction(quick: str, slow: str, tasks: int = 1) -> float | None:
        return _times(found, "sharded_transaction", quick, slow, tasks)

    def cluster(work: str, tasks: int = 1) -> float | None:
        return _times(found, "sharded_cluster", f"{work}: {sharded.CLUSTER}", f"{work}: {sharded.ALONE}", tasks)

    widest = sharded.WIDTHS[-1]
    at = f"{tasks} tasks"
    return [
        *(
            Target(f"Four SQLite shards, {shape}: time, of one store", 2, shards(shape), below=True)
            for shape in sharded.SHAPES_MEASURED
        ),
        Target(f"– {sharded.TOP}, {at}", None, shards(sharded.TOP, tasks), below=True),
        *(
            Target(
                f"Page of {sharded.PAGE} merged from {widest} shards, {engine}: time, of one store",
                None,
                merged(engine, widest),
                below=True,
            )
            for engine in sharded.ENGINES
        ),
        *(
            Target(f"{work}, 1 task, {name}: time, of one store", None, through(work, name), below=True)
            for work in ("get, memory", "put, memory", "put, SQLite", "transaction, SQLite")
            for name in (sharded.ONE, sharded.FOUR)
        ),
        Target(
            f"put, SQLite, {at}, {sharded.FOUR}: time, of one store",
            None,
            through("put, SQLite", sharded.FOUR, tasks),
            below=True,
        ),
        Target(
            "PostgreSQL transfer in one shard, 1 task: latency, of one without shards",
            None,
            transaction(sharded.ALONE, sharded.INSIDE),
            below=True,
        ),
        Target(
            "PostgreSQL transfer over two shards, two-phase commit, 1 task: latency, of one in one shard",
            None,
            transaction(sharded.INSIDE, sharded.ACROSS),
            below=True,
        ),
        Target(f"– {at}: time", None, transaction(sharded.INSIDE, sharded.ACROSS, tasks), below=True),
        *(
            Target(f"Redis Cluster {work}, {told}, against one server", None, cluster(work, number))
            for work in ("get", "put")
            for told, number in (("1 task", 1), (at, tasks))
        ),
    ]


def _keyvalue(found: dict[str, Result], tasks: int) -> list[Target]:
    return [
        Target(
            f"KeyValue {work}, {engine}, {number} task{'s' if number > 1 else ''}, against {peer}",
            None,
            _times(found, f"keyvalue_{work}", f"{engine}: {keyvalue.OURS}", f"{engine}: {peer}", number),
        )
        for work in ("get", "put")
        for engine, peer in (("memory", keyvalue.MEMORY), ("SQLite", keyvalue.DISK))
        for number in (1, tasks)
    ]
