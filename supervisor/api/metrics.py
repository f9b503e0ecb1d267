"""Prometheus metrics, read from the snapshot when somebody scrapes.

Levels need no bookkeeping: the collector renders the current snapshot. Only what a level
cannot say (how long probes and uploads took, how often something failed) is counted, by
the ``Recorder``, from the events that the components publish anyway.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from supervisor.core.events import Event, EventBus
from supervisor.core.status import DownloadsStatus, DownloadState, ServiceState, Snapshot

if TYPE_CHECKING:
    from prometheus_client.core import Metric

SYNC_BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
PROBE_BOUNDS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(slots=True)
class Histogram:
    """Counts per bucket, with a last one for everything above the bounds."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Return Prometheus buckets: (upper bound, count up to it)."""
        buckets: list[tuple[str, float]] = []
        running = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            running += count
            buckets.append(("+Inf" if bound == float("inf") else repr(bound), running))
        return buckets


class Recorder:
    """What the snapshot does not hold: distributions and counts of this boot.

    Output sync reports to ``stored`` and ``failed`` itself; downloads are seen through
    their events and, while a file is on its way, through the status.
    """

    def __init__(self) -> None:
        self.sync_latency = Histogram(SYNC_BOUNDS_S)
        self.sync_failures: Counter[str] = Counter()
        self.probes: dict[tuple[str, str], Histogram] = {}
        self.download_failures: Counter[tuple[str, str]] = Counter()
        self.downloaded_bytes: Counter[str] = Counter()
        self.advice: Counter[str] = Counter()
        self._position_bytes: dict[str, int] = {}
        self._counted_bytes: Counter[str] = Counter()

    def probe(self, service: str, probe: str, seconds: float) -> None:
        """Note how long one probe took."""
        key = (service, probe)
        if key not in self.probes:
            self.probes[key] = Histogram(PROBE_BOUNDS_S)
        self.probes[key].observe(seconds)

    def stored(self, *, size_bytes: int, latency_s: float | None) -> None:
        """Note how long after its close an output was stored; None = not known."""
        if latency_s is not None:
            self.sync_latency.observe(latency_s)

    def failed(self, reason: str) -> None:
        """Count one failed try of an upload."""
        self.sync_failures[reason] += 1

    def advised(self, code: str) -> None:
        """Count one sighting of a known trouble in a log."""
        self.advice[code] += 1

    def event(self, event: Event) -> None:
        """Count what an event tells about downloads."""
        if not event.kind.startswith("download.") or event.subject is None:
            return
        source = str(event.data.get("source", "unknown"))
        counted = self._counted_bytes.pop(event.subject, 0)
        self._position_bytes.pop(event.subject, None)
        if event.kind == "download.done":
            fetched = int(event.data.get("bytes_fetched", 0))
            self.downloaded_bytes[source] += max(fetched - counted, 0)
        elif event.kind in ("download.failed", "download.retry"):
            self.download_failures[source, str(event.data.get("reason", "transient"))] += 1

    def downloads(self, status: DownloadsStatus) -> None:
        """Count what arrived of unfinished files since the last look.

        The first bytes that are seen of a file are only the baseline, because a resumed
        file begins with what was on the disk; its end settles the difference.
        """
        for file in status.files:
            if file.state is not DownloadState.ACTIVE or not file.bytes_done:
                continue
            before = self._position_bytes.get(file.name, file.bytes_done)
            gained = max(file.bytes_done - before, 0)
            self._position_bytes[file.name] = file.bytes_done
            self._counted_bytes[file.name] += gained
            self.downloaded_bytes[file.source] += gained

    async def follow(self, bus: EventBus) -> None:
        """Count events until cancelled."""
        with bus.subscribe() as events:
            async for event in events:
                self.event(event)


class SnapshotCollector:
    """A prometheus-client collector over the current snapshot."""

    def __init__(self, snapshot: Callable[[], Snapshot], recorder: Recorder) -> None:
        self._snapshot = snapshot
        self._recorder = recorder

    def describe(self) -> list[Metric]:
        """Promise nothing, so that registering does not collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Render everything."""
        snapshot = self._snapshot()
        self._recorder.downloads(snapshot.downloads)
        yield from _pod(snapshot)
        yield _counter(
            "supervisor_advice",
            "Times that logs gave away a known trouble.",
            {(code,): n for code, n in self._recorder.advice.items()},
            "code",
        )
        yield from _services(snapshot, self._recorder)
        yield from _downloads(snapshot, self._recorder)
        yield from _sync(snapshot, self._recorder)
        yield from _gpu(snapshot)
        yield from _host(snapshot)


def render(
    snapshot: Callable[[], Snapshot], recorder: Recorder, accept: str = ""
) -> tuple[bytes, str]:
    """Return the exposition and its content type, as ``accept`` wants it."""
    from prometheus_client import CollectorRegistry  # noqa: PLC0415 - 50 ms, first scrape only
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415

    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(snapshot, recorder))
    encoder, content_type = choose_encoder(accept)
    return encoder(registry), content_type


def _gauge(
    name: str, text: str, samples: Mapping[tuple[str, ...], float | None], *labels: str
) -> Any:
    """Build a gauge: its name is always there, values that nobody knows are not."""
    from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415

    family = GaugeMetricFamily(name, text, labels=labels)
    for values, number in samples.items():
        if number is not None:
            family.add_metric(values, number)
    return family


def _counter(name: str, text: str, samples: Mapping[tuple[str, ...], float], *labels: str) -> Any:
    from prometheus_client.core import CounterMetricFamily  # noqa: PLC0415

    family = CounterMetricFamily(name, text, labels=labels)
    for values, number in samples.items():
        family.add_metric(values, number)
    return family


def _histogram(
    name: str, text: str, samples: Mapping[tuple[str, ...], Histogram], *labels: str
) -> Any:
    from prometheus_client.core import HistogramMetricFamily  # noqa: PLC0415

    family = HistogramMetricFamily(name, text, labels=labels)
    for values, histogram in samples.items():
        family.add_metric(values, histogram.cumulative(), histogram.total)
    return family


def _pod(snapshot: Snapshot) -> Iterator[Metric]:
    yield _gauge(
        "supervisor_build_info",
        "Always 1; the version is the label.",
        {(snapshot.version,): 1},
        "version",
    )
    yield _gauge(
        "supervisor_boot_seconds",
        "Seconds from exec to the end of each phase of this boot.",
        {(phase,): seconds for phase, seconds in snapshot.boot.spans_s.items()},
        "phase",
    )
    yield _gauge(
        "supervisor_boot_usual_seconds",
        "Median of the same over the last boots.",
        {(phase,): seconds for phase, seconds in snapshot.boot.median_s.items()},
        "phase",
    )
    yield _gauge(
        "supervisor_alert_active",
        "1 for each alert that is raised now.",
        {(alert.name,): 1 for alert in snapshot.alerts},
        "alert",
    )
    idle = snapshot.idle
    yield _gauge(
        "supervisor_idle_seconds",
        "Seconds since the pod was last in use.",
        {(): idle.idle_s if idle.enabled else None},
    )
    yield _gauge(
        "supervisor_idle_limit_seconds",
        "Seconds without use after which the pod ends.",
        {(): (idle.limit_s or 0.0) if idle.enabled else None},
    )


def _services(snapshot: Snapshot, recorder: Recorder) -> Iterator[Metric]:
    services = snapshot.services.values()
    yield _gauge(
        "supervisor_service_up",
        "1 while the service is ready.",
        {(s.name,): float(s.ready) for s in services},
        "service",
    )
    yield _gauge(
        "supervisor_service_state",
        "1 for the state that the service is in.",
        {(s.name, str(state)): float(s.state is state) for s in services for state in ServiceState},
        "service",
        "state",
    )
    yield _counter(
        "supervisor_service_restarts",
        "Restarts by reason.",
        {(s.name, why): n for s in services for why, n in s.restart_reasons.items()},
        "service",
        "reason",
    )
    yield _histogram(
        "supervisor_probe_seconds",
        "Duration of readiness and liveness probes.",
        {(service, probe): h for (service, probe), h in recorder.probes.items()},
        "service",
        "probe",
    )


def _downloads(snapshot: Snapshot, recorder: Recorder) -> Iterator[Metric]:
    downloads = snapshot.downloads
    yield _counter(
        "supervisor_download_bytes",
        "Bytes of models that arrived in this boot.",
        {(source,): n for source, n in recorder.downloaded_bytes.items()},
        "source",
    )
    yield _gauge(
        "supervisor_download_remaining_bytes",
        "Known bytes of wanted models that are not here yet.",
        {(): max(downloads.bytes_total - downloads.bytes_done, 0)},
    )
    yield _counter(
        "supervisor_download_failures",
        "Failed tries of downloads.",
        {(source, why): n for (source, why), n in recorder.download_failures.items()},
        "source",
        "reason",
    )


def _sync(snapshot: Snapshot, recorder: Recorder) -> Iterator[Metric]:
    sync = snapshot.sync
    yield _counter("supervisor_sync_uploaded", "Outputs stored in this boot.", {(): sync.uploaded})
    yield _counter(
        "supervisor_sync_uploaded_bytes", "Bytes stored in this boot.", {(): sync.uploaded_bytes}
    )
    yield _gauge(
        "supervisor_sync_pending_files", "Finished outputs not stored yet.", {(): sync.pending}
    )
    yield _histogram(
        "supervisor_sync_latency_seconds",
        "Time from a file's close to its copy being stored.",
        {(): recorder.sync_latency},
    )
    yield _counter(
        "supervisor_sync_failures",
        "Failed tries of uploads.",
        {(reason,): n for reason, n in recorder.sync_failures.items()},
        "reason",
    )


def _gpu(snapshot: Snapshot) -> Iterator[Metric]:
    devices = snapshot.gpu.devices
    yield _gauge(
        "supervisor_gpu_memory_used_bytes",
        "VRAM in use.",
        {(str(d.index),): d.memory_used_bytes for d in devices},
        "gpu",
    )
    yield _gauge(
        "supervisor_gpu_utilization_ratio",
        "Share of time in which a kernel ran, 0 to 1.",
        {(str(d.index),): d.utilization_ratio for d in devices},
        "gpu",
    )
    yield _gauge(
        "supervisor_gpu_temperature_celsius",
        "Temperature of the GPU.",
        {(str(d.index),): d.temperature_celsius for d in devices},
        "gpu",
    )


def _host(snapshot: Snapshot) -> Iterator[Metric]:
    host = snapshot.host
    for name, text, value in (
        ("comfyui_queue_length", "Jobs running and waiting.", host.comfyui_queue_length),
        ("comfyui_response_seconds", "Time of ComfyUI's last answer.", host.comfyui_response_s),
        ("cpu_ratio", "CPU use of the container's share, 0 to 1.", host.cpu_ratio),
        ("memory_used_bytes", "Memory in use by the container.", host.memory_used_bytes),
        ("memory_limit_bytes", "Memory that the container may use.", host.memory_limit_bytes),
    ):
        yield _gauge(f"supervisor_{name}", text, {(): value})
    yield _gauge(
        "supervisor_disk_free_bytes",
        "Free space of each mount.",
        {(mount,): disk.free_bytes for mount, disk in host.disks.items()},
        "mount",
    )
    yield _gauge(
        "supervisor_service_memory_bytes",
        "Resident memory of the service and what it started.",
        {(name,): size for name, size in host.service_memory_bytes.items()},
        "service",
    )
    yield _gauge(
        "supervisor_service_cpu_cores",
        "Cores that the service and what it started use.",
        {(name,): cores for name, cores in host.service_cpu_cores.items()},
        "service",
    )
