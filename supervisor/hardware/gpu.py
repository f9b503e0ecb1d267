"""GPU facts within a deadline, whatever NVML does.

NVML can block for ever in the kernel. The thread that waits for it is a daemon and is left
behind, so neither the boot nor the exit of the process waits for it.
"""

from __future__ import annotations

import threading

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

    def __init__(self) -> None:
        self._facts: GpuFacts | None = None
        self._done = threading.Event()
        threading.Thread(target=self._run, name="nvml", daemon=True).start()

    def result(self, timeout_s: float) -> GpuFacts:
        """Block for at most ``timeout_s``."""
        self._done.wait(timeout_s)
        if self._facts is not None:
            return self._facts
        return GpuFacts(error=f"NVML did not answer within {timeout_s:g} s", uncertain=True)

    def _run(self) -> None:
        self._facts = read_gpu()
        self._done.set()


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
