"""benchmarks/run and benchmarks/profile: the options, the rounds, and which target does which step.

A round runs every step on every target, one right after the other, in turning order; results.py says what is made of
the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flakebench import workloads
from flakebench.content import entries, source_tree
from flakebench.profiling import find_py_spy, recording, summary
from flakebench.raw import RawMongo
from flakebench.results import Results, Step, as_json, as_text
from flakebench.targets import HERE, BenchmarkError, FlakeMount, NullMount, PassMount, Target, drop_page_cache
from flakebench.workloads import Sizes
from flakefs.errors import FlakeError
from flakefs.mongo.embedded import EmbeddedOptions, hold

QUICK = Sizes(bulk_mib=128, files=500, transactions=50, random_writes=500)
RESULTS = HERE / "results"
GROUPS = {
    "bulk": ("write", "read"),
    "files": ("files",),
    "tree": ("unpack", "find", "remove"),
    "sqlite": ("sqlite",),
    "random": ("random",),
}


def arguments(profile: bool) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/profile" if profile else "benchmarks/run",
        description="Profile FlakeFS mounts while a workload runs (needs py-spy)."
        if profile
        else __doc__.splitlines()[0],
    )
    steps = sorted({step for group in GROUPS.values() for step in group} | set(GROUPS))
    parser.add_argument(
        "--only", action="append", choices=steps, metavar="NAME", help=f"one of {', '.join(steps)}; may be repeated"
    )
    parser.add_argument(
        "--rounds", type=int, default=1 if profile else 3, help="how often everything is measured (medians are shown)"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, the figures mean little")
    parser.add_argument(
        "--without", action="append", default=[], choices=["flakefs", "raw", "null", "pass", "local"], metavar="TARGET"
    )
    parser.add_argument(
        "--scratch", help="a folder on the disk to measure (default: the system's folder for temporary files)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


class Run:
    """One run of the program: the targets, and the steps that are wanted."""

    def __init__(self, options: argparse.Namespace, sizes: Sizes, tree: Path | None, py_spy: str) -> None:
        self.options = options
        self.sizes = sizes
        self.tree = tree
        self.entries = entries(tree) if tree else 0
        self.py_spy = py_spy
        self.results = Results()
        self.targets: list[Target] = []
        self.raw: RawMongo | None = None
        self._round = 0

    def wants(self, *names: str) -> bool:
        only = self.options.only
        return not only or bool(set(only) & set(names))

    def round(self, number: int) -> None:
        self._round = number
        for group, steps in GROUPS.items():
            if self.wants(group, *steps):
                getattr(self, f"_{group}")(group)

    def measure(
        self,
        step: Step,
        work: Callable[[Target], float],
        *,
        raw: Callable[[], float] | None = None,
        cold: bool = False,
        content: bool = False,
    ) -> None:
        """Run a step on every target that can do it; the order turns around with every round."""
        turns: list[Target | None] = [t for t in self.targets if t.keeps_content or not content]
        if self.raw and raw:
            turns.insert(1, None)  # next to FlakeFS, which is compared with it
        if self._round % 2:
            turns.reverse()
        for target in turns:
            if target is None:
                assert raw is not None
                self._quiet(cold)
                self._note(step, "raw", raw())
                continue
            if cold:
                target.remount()
            self._quiet(cold)
            with self._profiled(step, target):
                seconds = work(target)
            self._note(step, target.name, seconds)
            self.results.peak_memory[target.name] = target.peak_memory()
        self.results.peak_memory = {name: peak for name, peak in self.results.peak_memory.items() if peak}

    def _quiet(self, cold: bool) -> None:
        """Nothing of the last measurement is still on its way to the disk when the next one starts."""
        if self.raw:
            self.raw.checkpoint()
        os.sync()
        if cold and not drop_page_cache() and not self.results.notes:
            self.results.notes.append("note   not root: the page cache could not be dropped, cold figures are not cold")

    def _note(self, step: Step, target: str, seconds: float) -> None:
        self.results.add(step, target, seconds)
        figure = "" if step.unit == "s" else f"  {step.amount / seconds:,.0f} {step.unit}"
        print(
            f"round {self._round + 1}  {step.title:<26} {target:<8} {seconds:8.2f} s{figure}",
            file=sys.stderr,
            flush=True,
        )

    @contextmanager
    def _profiled(self, step: Step, target: Target) -> Iterator[None]:
        if not self.py_spy or not isinstance(target, FlakeMount):
            yield
            return
        record = RESULTS / f"profile-{step.name}.txt"
        with recording(self.py_spy, target.pid, record):
            yield
        print(f"\n{step.title}: {record}\n{summary(record)}\n", flush=True)

    def _clean(self, name: str) -> None:
        for target in self.targets:
            workloads.clean(target.folder, name)

    def _bulk(self, group: str) -> None:
        sizes, mib = self.sizes, self.sizes.bulk_mib
        raw = self.raw
        write = Step(name="write", title=f"write {mib} MiB + fsync", amount=mib * 1.048576, unit="MB/s")
        read = Step(name="read", title=f"cold read {mib} MiB", amount=mib * 1.048576, unit="MB/s")
        self.measure(
            write, lambda t: workloads.sequential_write(t.folder, sizes), raw=raw and (lambda: raw.write(sizes))
        )
        if self.wants(group, "read"):
            self.measure(
                read,
                lambda t: workloads.sequential_read(t.folder, sizes),
                raw=raw and raw.read,
                cold=True,
                content=True,
            )
        self._clean("bulk")

    def _files(self, group: str) -> None:
        sizes, raw = self.sizes, self.raw
        step = Step(name="files", title=f"{sizes.files} new 4 KiB files", amount=sizes.files, unit="files/s")
        self.measure(
            step, lambda t: workloads.new_files(t.folder, sizes), raw=raw and (lambda: raw.small_documents(sizes.files))
        )
        self._clean("small")

    def _tree(self, group: str) -> None:
        tree, count, raw = self.tree, self.entries, self.raw
        assert tree is not None
        unpack = Step(name="unpack", title=f"unpack {count} entries", amount=count, unit="s")
        find = Step(name="find", title="cold find + stat of them", amount=count, unit="s")
        remove = Step(name="remove", title="rm -rf of them", amount=count, unit="s")
        self.measure(
            unpack, lambda t: workloads.unpack(t.folder, tree), raw=raw and (lambda: raw.small_documents(count))
        )
        if self.wants(group, "find"):
            self.measure(
                find,
                lambda t: workloads.find_and_stat(t.folder, count),
                raw=raw and raw.find_small,
                cold=True,
                content=True,
            )
        self.measure(remove, lambda t: workloads.remove_tree(t.folder))

    def _sqlite(self, group: str) -> None:
        sizes = self.sizes
        step = Step(
            name="sqlite", title=f"sqlite {sizes.transactions} transactions", amount=sizes.transactions, unit="1/s"
        )
        self.measure(step, lambda t: workloads.sqlite_transactions(t.folder, sizes), content=True)

    def _random(self, group: str) -> None:
        sizes, count = self.sizes, self.sizes.random_writes
        step = Step(name="random", title=f"{count} random 4 KiB writes", amount=count, unit="writes/s")
        self.measure(step, lambda t: workloads.random_writes(t.folder, sizes, self._round))


@contextmanager
def prepared(run: Run, scratch: Path, baselines: bool) -> Iterator[None]:
    """Targets and servers, started; all gone afterwards."""
    without = set(run.options.without)
    with ExitStack() as stack:
        data = scratch / "data"
        if not {"flakefs", "raw"} <= without:
            urls = stack.enter_context(hold(EmbeddedOptions(data=str(data))))
            if baselines and "raw" not in without:
                run.raw = RawMongo(urls.metadata, urls.node)
                stack.callback(run.raw.close)
        if "flakefs" not in without:
            flake = FlakeMount(scratch, data)
            flake.format()
            run.targets.append(flake)
        if baselines:
            kinds = [kind for kind in (NullMount, PassMount, Target) if kind.name not in without]
            run.targets += [kind(scratch) for kind in kinds]
        for target in run.targets:
            stack.callback(target.stop)
            target.start()
        yield


def main(*, profile: bool = False) -> int:
    options = arguments(profile)
    try:
        py_spy = find_py_spy() if profile else ""
        needs_tree = not options.only or bool(set(options.only) & {"tree", *GROUPS["tree"]})
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flakefs-benchmarks"
        run = Run(options, QUICK if options.quick else Sizes(), source_tree(cache) if needs_tree else None, py_spy)
        with (
            tempfile.TemporaryDirectory(
                prefix="flakebench-", dir=options.scratch, ignore_cleanup_errors=True
            ) as scratch,
            prepared(run, Path(scratch), baselines=not profile),
        ):
            for number in range(options.rounds):
                run.round(number)
    except (BenchmarkError, FlakeError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print(json.dumps(as_json(run.results), indent=2) if options.json else as_text(run.results))
    return 0
