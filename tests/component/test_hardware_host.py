"""Host facts from recorded trees: cgroup v1 and v2, mounts, libraries."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from supervisor.config.settings import Settings
from supervisor.hardware.host import (
    find_programs,
    find_tcmalloc,
    read_cgroup,
    read_host,
    read_mounts,
)
from supervisor.plan.context import programs_to_find

GIB = 1024**3


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


V2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"
V1 = (
    "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n"
    "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
    "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
)


def test_v2_limits_of_a_container(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/mounts": V2,
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "650000 100000\n",
            "sys/fs/cgroup/memory.max": f"{32 * GIB}\n",
        },
    )
    limits = read_cgroup(root)
    assert (limits.version, limits.cpu_cores, limits.memory_bytes) == (2, 6.5, 32 * GIB)


def test_v2_the_tightest_of_the_nested_limits_counts(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/mounts": V2,
            "proc/self/cgroup": "0::/pods/one/app\n",
            "sys/fs/cgroup/pods/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/pods/one/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pods/one/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/pods/one/app/cpu.max": "800000 100000\n",
            "sys/fs/cgroup/pods/one/app/memory.max": "max\n",
        },
    )
    limits = read_cgroup(root)
    assert (limits.cpu_cores, limits.memory_bytes) == (4.0, 8 * GIB)


def test_v2_without_limits(tmp_path: Path) -> None:
    files = {"proc/self/mounts": V2, "proc/self/cgroup": "0::/\n"}
    files |= {"sys/fs/cgroup/cpu.max": "max 100000\n", "sys/fs/cgroup/memory.max": "max\n"}
    limits = read_cgroup(tree(tmp_path, files))
    assert (limits.version, limits.cpu_cores, limits.memory_bytes) == (2, None, None)


def test_v1_limits_when_the_path_is_the_hosts(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/mounts": V1,
            # Docker without a cgroup namespace: the path is not visible inside.
            "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/docker/abc\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{16 * GIB}\n",
        },
    )
    limits = read_cgroup(root)
    assert (limits.version, limits.cpu_cores, limits.memory_bytes) == (1, 1.5, 16 * GIB)


def test_v1_unlimited_is_no_number(tmp_path: Path) -> None:
    files = {"proc/self/mounts": V1, "proc/self/cgroup": "4:memory:/\n3:cpu,cpuacct:/\n"}
    files["sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us"] = "-1\n"
    files["sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us"] = "100000\n"
    files["sys/fs/cgroup/memory/memory.limit_in_bytes"] = "9223372036854771712\n"
    limits = read_cgroup(tree(tmp_path, files))
    assert (limits.cpu_cores, limits.memory_bytes) == (None, None)


def test_a_path_outside_the_cgroup_namespace_is_not_followed(tmp_path: Path) -> None:
    files = {"proc/self/mounts": V2, "proc/self/cgroup": "0::/../../other\n"}
    files |= {"sys/fs/cgroup/memory.max": f"{GIB}\n", "sys/other/memory.max": "1\n"}
    assert read_cgroup(tree(tmp_path, files)).memory_bytes == GIB


def test_cores_never_exceed_the_affinity_mask(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/mounts": V2,
            "proc/self/cgroup": "0::/\n",
            "proc/self/status": "Name:\tx\nCpus_allowed_list:\t0-2,8\n",
            "proc/meminfo": "MemTotal:       65536000 kB\nMemAvailable:   32768000 kB\n",
            "sys/fs/cgroup/cpu.max": "1600000 100000\n",
        },
    )
    host = read_host([], system_root=root)
    assert (host.cpu_count, host.cpu_limit) == (4, 4.0)
    assert (host.memory_total_bytes, host.memory_available_bytes) == (
        65536000 * 1024,
        32768000 * 1024,
    )


def test_an_empty_tree_is_survived(tmp_path: Path) -> None:
    host = read_host([Path("/workspace")], system_root=tmp_path)
    assert host.cgroup_version is None
    assert host.cpu_limit >= 1
    assert host.mounts[Path("/workspace")].kind == "unknown"


def test_mounts_by_longest_prefix_with_escapes_and_overmounts(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/mounts": (
                "overlay / overlay rw,lowerdir=/x 0 0\n"
                "/dev/sda1 /workspace ext4 rw 0 0\n"
                "mfs#master:9421 /workspace fuse.moosefs rw 0 0\n"
                "/dev/sdb1 /my\\040disk\\134x xfs ro 0 0\n"
                "/dev/sdc1 /work btrfs rw 0 0\n"
            ),
            "workspace/models/.keep": "",
            "my disk\\x/.keep": "",
            "opt/.keep": "",
        },
    )
    inside, beside, odd, plain = map(
        Path, ("/workspace/models", "/workspace2", "/my disk\\x", "/opt")
    )
    mounts = read_host([inside, beside, odd, plain], system_root=root).mounts
    assert (mounts[inside].kind, mounts[inside].network) == ("fuse.moosefs", True)
    assert mounts[inside].mount_point == Path("/workspace")
    assert (mounts[beside].kind, mounts[beside].exists) == ("overlay", False)
    assert (mounts[odd].kind, mounts[odd].writable) == ("xfs", False)
    assert (mounts[plain].kind, mounts[plain].writable) == ("overlay", True)
    assert mounts[plain].total_bytes > 0


def test_a_link_leads_to_the_mount_of_its_target(tmp_path: Path) -> None:
    mounts = "overlay / overlay rw 0 0\n/dev/sda1 /volume ext4 rw 0 0\n"
    root = tree(tmp_path, {"proc/self/mounts": mounts, "volume/data/.keep": ""})
    (root / "workspace").symlink_to("volume/data")
    facts = read_host([Path("/workspace")], system_root=root).mounts[Path("/workspace")]
    assert (facts.mount_point, facts.exists) == (Path("/volume"), True)


def test_this_machine() -> None:
    host = read_host([Path("/")])
    assert 0 < host.cpu_limit <= host.cpu_count <= (os.cpu_count() or 1)
    assert host.memory_bytes > 0
    assert host.mounts[Path("/")].total_bytes > 0
    assert any(entry.mount_point == Path("/proc") for entry in read_mounts())


@pytest.mark.needs("gcc")
def test_tcmalloc_counts_only_when_the_linker_takes_it(tmp_path: Path) -> None:
    folder = tmp_path / "usr/lib/x86_64-linux-gnu"
    folder.mkdir(parents=True)
    broken = folder / "libtcmalloc_minimal.so.4"
    broken.write_bytes(b"\x7fELF of another machine")
    assert find_tcmalloc(tmp_path) is None
    source = tmp_path / "empty.c"
    source.write_text("int nothing;", encoding="utf-8")
    good = folder / "libtcmalloc.so.4"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(good), str(source)], check=True)
    found = find_tcmalloc(tmp_path)
    assert found == Path("/usr/lib/x86_64-linux-gnu/libtcmalloc.so.4")


def test_programs_are_found_on_the_path_and_beside_comfyuis_python(tmp_path: Path) -> None:
    for folder, name in (("bin", "one"), ("venv", "two"), ("venv", "one")):
        path = tree(tmp_path, {f"{folder}/{name}": "#!/bin/sh"}) / folder / name
        path.chmod(0o755)
    found = find_programs(
        ["one", "two", "three", str(tmp_path / "bin" / "one")],
        environ={"PATH": str(tmp_path / "bin")},
        folders=[tmp_path / "venv"],
    )
    assert found == {
        "one": str(tmp_path / "bin/one"),
        "two": str(tmp_path / "venv/two"),
        "three": None,
        str(tmp_path / "bin/one"): str(tmp_path / "bin/one"),
    }
    assert "jupyter" in programs_to_find(Settings())
