"""Life in terminals, in made-up ones and in a real one."""

from __future__ import annotations

import os
import pty
from pathlib import Path

from supervisor.pod.terminals import DIRECTORY, Terminals


def looked_once(folder: Path) -> Terminals:
    terminals = Terminals(folder, own=frozenset())
    assert terminals.used() == 0
    return terminals


def test_reading_and_writing_count_and_silence_does_not(tmp_path: Path) -> None:
    for name in ("0", "1", "2", "ptmx"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000, 1000))
    terminals = looked_once(tmp_path)
    assert terminals.used() == 0
    os.utime(tmp_path / "0", (1008, 1000))  # somebody types
    os.utime(tmp_path / "1", (1000, 1016))  # a program prints
    os.utime(tmp_path / "ptmx", (1008, 1008))
    assert terminals.used() == 2
    assert terminals.used() == 0


def test_a_closed_terminal_is_no_use(tmp_path: Path) -> None:
    (tmp_path / "0").touch()
    terminals = looked_once(tmp_path)
    (tmp_path / "0").unlink()
    assert terminals.used() == 0


def test_no_terminals_at_all(tmp_path: Path) -> None:
    assert Terminals(tmp_path / "none").used() == 0


def test_what_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert Terminals(tmp_path / "file").used() is None


def test_a_real_terminal_is_seen_unless_it_is_the_supervisors_own() -> None:
    everybody = Terminals()
    everybody.used()
    master, slave = pty.openpty()
    try:
        opened = Path(os.ttyname(slave))
        used = everybody.used()
        assert used is not None
        assert used >= 1
        own = frozenset(path.stat().st_rdev for path in DIRECTORY.iterdir())
        nobody = Terminals(own=own)
        nobody.used()
        os.utime(opened, (1000, 1000))
        assert nobody.used() == 0
    finally:
        os.close(slave)
        os.close(master)
