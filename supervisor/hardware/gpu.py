"""GPU facts within a deadline, whatever NVML does.

NVML can block for ever in the kernel. The thread that waits for it is a daemon and is left
behind, so neither the boot nor the exit of the process waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from supervisor.hardware.facts import GpuFacts, GpuSample
from supervisor.hardware.nvml import NoNvidiaError, Nvml, NvmlError


def read_gpu() -> GpuFacts:
    """Ask NVML; never raises, may block for ever."""
    try:
        with Nvml() as nvml:
            return nvml.facts()
    except NoNvidiaError as exc:
        return GpuFacts(error=exc.message)
    except NvmlError as exc:
        hint = f" ({exc.hint})" if exc.hint else ""
        return GpuFacts(error=exc.message + hint, uncertain=True)
    except Exception as exc:  # noqa: BLE001 - a surprise of a driver library must not stop a boot
        return GpuFacts(error=f"Cannot read the GPU: {exc!r}", uncertain=True)


class GpuProbe:
    """A running ``read_gpu``; start it first thing, ask for the answer when it is needed."""

    def __init__(self, read: Callable[[], GpuFacts] = read_gpu) -> None:
        self._read = read
        self._facts: GpuFacts | None = None
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._waiters: list[Callable[[], None]] = []
        threading.Thread(target=self._run, name="nvml", daemon=True).start()

    def result(self, timeout_s: float) -> GpuFacts:
        """Block for at most ``timeout_s``."""
        self._done.wait(timeout_s)
        facts = self._facts
        return facts if facts is not None else _too_slow(timeout_s)

    async def wait(self, timeout_s: float) -> GpuFacts:
        """The same for the event loop; cancelling leaves the thread alone."""
        # Not at the top: the probe starts before anything slow is imported.
        import anyio  # noqa: PLC0415
        from anyio import from_thread, lowlevel  # noqa: PLC0415

        answered = anyio.Event()
        token = lowlevel.current_token()

        def wake() -> None:
            # The loop may be gone when a hung driver answers at last.
            with suppress(RuntimeError):
                from_thread.run_sync(answered.set, token=token)

        with self._lock:
            if self._facts is not None:
                return self._facts
            self._waiters.append(wake)
        with anyio.move_on_after(timeout_s):
            await answered.wait()
        return self.result(0) if self._done.is_set() else _too_slow(timeout_s)

    def _run(self) -> None:
        facts = self._read()
        with self._lock:
            self._facts = facts
            waiters, self._waiters = self._waiters, []
        self._done.set()
        for wake in waiters:
            wake()


def start_gpu_probe() -> GpuProbe:
    """Start asking NVML in the background."""
    return GpuProbe()


async def probe_gpu(timeout_s: float) -> GpuFacts:
    """GPU facts; after ``timeout_s`` a hung NVML is reported and left behind."""
    return await start_gpu_probe().wait(timeout_s)


class GpuSampler:
    """Samples all GPUs, keeping NVML open between samples. Blocking: call from a thread."""

    def __init__(self) -> None:
        self._nvml: Nvml | None = None

    def sample(self) -> tuple[GpuSample, ...]:
        """One sample per GPU; empty where there is none.

        Raises:
            NvmlError: NVML fails; the next call opens it again.
        """
        try:
            if self._nvml is None:
                self._nvml = Nvml()
            return self._nvml.sample()
        except NoNvidiaError:
            return ()
        except NvmlError:
            self.close()
            raise

    def close(self) -> None:
        """Release NVML."""
        if self._nvml is not None:
            self._nvml.close()
            self._nvml = None


def _too_slow(timeout_s: float) -> GpuFacts:
    return GpuFacts(error=f"NVML did not answer within {timeout_s:g} s", uncertain=True)
