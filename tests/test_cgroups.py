"""What control groups leave a process, on made-up trees of both versions; v2's files
nested as a container's are.
"""

import pytest

from batchline.kernels import cgroups

GIB = 2**30
V2 = "31 24 0:28 {mounted} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1 = "33 31 0:30 {mounted} /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}\n"


@pytest.fixture
def tree(tmp_path):
    """Write a tree: what /proc/self/cgroup and mountinfo say, and files by their path
    under /sys/fs/cgroup.
    """

    def write(groups, mounts, **files):
        proc = tmp_path / "proc" / "self"
        proc.mkdir(parents=True, exist_ok=True)
        (proc / "cgroup").write_text(groups)
        (proc / "mountinfo").write_text(
            "22 1 0:20 / / rw - ext4 /dev/vda rw\n" + mounts
        )
        return tmp_path

    def with_files(groups, mounts, files):
        root = write(groups, mounts)
        for name, text in files.items():
            path = root / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return root

    return with_files


def v2(tree, files, group="/a/b", mounted="/"):
    return tree(f"0::{group}\n", V2.format(mounted=mounted), files)


def v1(tree, files, group="/a/b", mounted="/"):
    groups = f"4:memory:{group}\n1:cpu,cpuacct:{group}\n0::/\n"
    return tree(
        groups,
        "".join(V1.format(mounted=mounted, name=name) for name in ("cpu", "memory")),
        files,
    )


@pytest.mark.parametrize(
    "files, quota, whole",
    [
        ({"a/b/cpu.max": "60000 100000"}, 0.6, 1),
        ({"a/b/cpu.max": "250000 100000"}, 2.5, 2),
        (
            {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 25000"},
            2.0,
            2,
        ),  # of the group above
        (
            {"a/b/cpu.max": "300000 100000", "a/cpu.max": "150000 100000"},
            1.5,
            1,
        ),  # the tightest of the two
        ({"a/b/cpu.max": "max 100000"}, None, None),
        ({"other/cpu.max": "10000 100000"}, None, None),
        ({"a/b/cpu.max": "nonsense"}, None, None),
        ({}, None, None),
    ],
)
def test_the_tightest_quota_on_the_way_up_counts(tree, files, quota, whole):
    root = v2(tree, files)
    assert cgroups.cpu_quota(root) == quota and cgroups.whole_cores(root) == whole


@pytest.mark.parametrize(
    "files, quota",
    [
        (
            {
                "cpu/a/b/cpu.cfs_quota_us": "60000",
                "cpu/a/b/cpu.cfs_period_us": "100000",
            },
            0.6,
        ),
        (
            {"cpu/a/b/cpu.cfs_quota_us": "-1", "cpu/a/b/cpu.cfs_period_us": "100000"},
            None,
        ),
        (
            {
                "cpu/a/b/cpu.cfs_quota_us": "-1",
                "cpu/a/b/cpu.cfs_period_us": "100000",
                "cpu/a/cpu.cfs_quota_us": "300000",
                "cpu/a/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
    ],
)
def test_version_1_has_quotas_too(tree, files, quota):
    assert cgroups.cpu_quota(v1(tree, files)) == quota


@pytest.mark.parametrize(
    "group, mounted",
    [
        ("/", "/"),  # in a namespace of its own
        ("/docker/ab", "/docker/ab"),  # its own group is what is mounted
        ("/../../pod/ab", "/"),  # another namespace's path
        ("/docker/ab", "/docker/another"),
    ],
)
def test_a_container_sees_its_own_group_at_the_mount(tree, group, mounted):
    root = v2(
        tree,
        {"cpu.max": "60000 100000", "memory.max": str(GIB), "memory.current": "0"},
        group,
        mounted,
    )
    assert cgroups.cpu_quota(root) == 0.6 and cgroups.memory_limit(root) == GIB


def test_periods_in_which_a_group_was_stopped_are_counted_wherever_there_is_a_quota(
    tree,
):
    root = v2(
        tree,
        {
            "a/b/cpu.max": "60000 100000",
            "a/b/cpu.stat": "usage_usec 5\nnr_periods 9\nnr_throttled 4",
            "a/cpu.max": "90000 100000",
            "a/cpu.stat": "nr_throttled 3",
            "cpu.max": "max 100000",
            "cpu.stat": "nr_throttled 100",
        },
    )
    assert cgroups.times_stopped(cgroups.stop_counters(root)) == 7


def test_room_is_what_the_limit_leaves_with_the_page_cache_given_back(tree):
    stat = f"anon 5\nfile {GIB}\ninactive_file {GIB // 2}\nactive_file {GIB // 4}\nslab_reclaimable {GIB // 4}"
    root = v2(
        tree,
        {
            "a/b/memory.max": str(4 * GIB),
            "a/b/memory.current": str(3 * GIB),
            "a/b/memory.stat": stat,
        },
    )
    assert (
        cgroups.memory_room(root) == 2 * GIB and cgroups.memory_limit(root) == 4 * GIB
    )


@pytest.mark.parametrize(
    "files, room",
    [
        ({"a/memory.max": str(2 * GIB), "a/memory.current": str(GIB)}, GIB),
        (
            {
                "a/b/memory.high": str(GIB),
                "a/b/memory.max": str(2 * GIB),
                "a/b/memory.current": "0",
            },
            GIB,
        ),
        ({"a/b/memory.max": str(GIB), "a/b/memory.current": str(2 * GIB)}, 0),
        ({"a/b/memory.max": "max", "a/b/memory.current": "0"}, None),
    ],
)
def test_the_tightest_room_counts_and_is_never_below_nothing(tree, files, room):
    assert cgroups.memory_room(v2(tree, files)) == room


@pytest.mark.parametrize(
    "limit, room", [(str(4 * GIB), 2 * GIB), ("9223372036854771712", None)]
)
def test_version_1_has_room_too(tree, limit, room):
    root = v1(
        tree,
        {
            "memory/a/b/memory.limit_in_bytes": limit,
            "memory/a/b/memory.usage_in_bytes": str(3 * GIB),
            "memory/a/b/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}",
        },
    )
    assert cgroups.memory_room(root) == room


def test_where_there_are_no_control_groups_nothing_is_limited(tmp_path):
    assert cgroups.cpu_quota(tmp_path) is None and cgroups.memory_room(tmp_path) is None
    assert (
        cgroups.memory_limit(tmp_path) is None and cgroups.stop_counters(tmp_path) == ()
    )


def test_this_machine_can_be_read():
    assert cgroups.times_stopped(cgroups.stop_counters()) >= 0
    assert cgroups.cpu_quota() is None or cgroups.cpu_quota() > 0
