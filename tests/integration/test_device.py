#!/usr/bin/python3
"""Filesystems on volumes on a real S3 server, through CSI driver, node agent, daemon, FUSE file and loop device: ext4 and
xfs under fio with verification, checked by fsck; the same content after a clean restart, without any local state, and on
another node; and a daemon that is killed under the filesystem: a pause (before Linux 6.9: errors at once, and what was
synced is there when it is mounted again).

Needs root, /dev/fuse and loop devices. By hand it works too: tests/integration/test_device.py [ext4|xfs|kill]...
timeout: 180
"""
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
    print("needs root and /dev/fuse")
    sys.exit(77)

from csi_client import (BUILD, GIB, MIB, Failed, Node, Run, loop_devices_below, mounts_below, need, pool_file,  # noqa: E402
                        program, s3_server)

POOL = "device"
FSCK = {"ext4": ["e2fsck", "-fn"], "xfs": ["xfs_repair", "-n"]}
# Several block sizes, past the page cache and through it; each file is written over in random order, twice.
FIO = {
    "direct-4k": ["--direct=1", "--bs=4k", "--size=8M", "--iodepth=16"],
    "direct-mixed": ["--direct=1", "--bsrange=4k-256k", "--blockalign=4k", "--size=24M", "--iodepth=8"],
    "buffered-mixed": ["--direct=0", "--bsrange=512-64k", "--bs_unaligned=1", "--size=16M", "--iodepth=4", "--fsync=64"],
    "buffered-1m": ["--direct=0", "--bs=1M", "--size=16M", "--iodepth=1", "--fdatasync=4"],
}


def say(text):
    print(f"-- {text}", flush=True)


def sh(*args, timeout=120, check=True, stderr=subprocess.STDOUT):
    """A program with a time limit; its output."""
    r = subprocess.run(args, timeout=timeout, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False)
    need(not check or r.returncode == 0, f"{' '.join(args)}: exit code {r.returncode}\n{r.stdout[-4000:]}")
    return r.stdout


def fio(folder, *more):
    for name, options in FIO.items():
        sh("fio", f"--name={name}", f"--filename={folder}/{name}", "--rw=randwrite", "--ioengine=libaio", "--randseed=11",
           "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--end_fsync=1", *options, *more)


def checksums(volume):
    return {name: volume.read(name) for name in volume.names()}


def fsck(volume, device):
    sh(*FSCK[volume.fstype], device)


def unmount_and_fsck(volume):
    """Off the path of the pod and off the staging path, with its device still there."""
    device = volume.device()
    volume.call("Node", "NodeUnpublishVolume", target_path=volume.target)
    volume.mounted = False
    sh("umount", volume.staging)
    fsck(volume, device)
    volume.unmount()


def verify(volume, wanted, where):
    started = time.monotonic()
    volume.mount()
    volume.check(wanted)
    fio(volume.target, "--verify_only=1")
    unmount_and_fsck(volume)
    say(f"{volume.fstype}: the same {where} ({time.monotonic() - started:.1f} s)")


def forget_everything(node):
    """The node restarts with nothing of what it knew."""
    node.stop()
    need(not mounts_below(node.run_dir), f"still mounted: {mounts_below(node.run_dir)}")
    shutil.rmtree(node.run_dir)
    node.start()


def filesystem(nodes, fstype):
    one, two = nodes
    volume = one.create("disk-" + fstype, GIB, fstype)
    volume.mount()
    need(sh("blockdev", "--getss", volume.device()).strip() == "4096", "the device's blocks are not of 4096 bytes")
    started = time.monotonic()
    fio(volume.target)
    volume.write("file", 8, fstype)
    wanted = checksums(volume)
    need(set(wanted) == {*FIO, "file"}, f"fio wrote {sorted(wanted)}")
    unmount_and_fsck(volume)
    say(f"{fstype}: fio with verification, fsck ({time.monotonic() - started:.1f} s)")
    verify(volume, wanted, "after a clean detach and attach")
    forget_everything(one)
    verify(volume, wanted, "without any local state")
    volume.unpublish()
    volume.node = two
    verify(volume, wanted, "on another node")
    volume.delete()
    need(not loop_devices_below(one.run_dir) + loop_devices_below(two.run_dir), "a loop device was left behind")


# --- a daemon that dies ------------------------------------------------------------------------------------------------


def status_of(node, volume):
    """What the volume's daemon says of itself."""
    out = sh(program("portalctl"), "--pools", node.pools, "--run-dir", node.run_dir, "-o", "json", "status", volume.id,
             stderr=None)
    answer = json.loads(out)
    return answer[0] if isinstance(answer, list) else answer


def resends():
    """The kernel sends requests that a dead daemon had not answered again: Linux 6.9."""
    return tuple(int(n) for n in os.uname().release.split(".")[:2]) >= (6, 9)


def in_time(what, function, seconds=10):
    """An error or a result, but not a thread that hangs."""
    result = []

    def body():
        try:
            result.append(function())
        except OSError as error:
            result.append(error)
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(seconds)
    need(result, f"{what} hangs")
    return result[0]


def write_synced(path, data):
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def read_direct(device):
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
    try:
        return sh("dd", f"if={device}", "of=/dev/null", "bs=4k", "count=1", "iflag=direct", check=False)
    finally:
        os.close(fd)


def write_files(volume, kept, turn):
    for i in range(4):
        data = os.urandom(300000 + 4097 * turn + i)
        name = f"synced-{turn}-{i}"
        write_synced(f"{volume.target}/{name}", data)
        kept[name] = hashlib.sha256(data).hexdigest()
    fd = os.open(volume.target, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)  # their names
    os.close(fd)


def check_files(volume, kept):
    names = volume.names() - {"lost", *FIO}
    need(names == set(kept), f"after kill -9 there are {sorted(names)}")
    for name, digest in kept.items():
        need(volume.read(name) == digest, f"{name} was synced before kill -9 and reads back differently")


def survives_kills(nodes, fstype):
    """The journal outlives the daemon: who uses the filesystem notices a pause."""
    node = nodes[0]
    volume = node.create("killed-" + fstype, GIB, fstype)
    kept = {}
    volume.mount()
    for turn in range(3):
        write_files(volume, kept, turn)
        device, pid = volume.device(), status_of(node, volume)["pid"]
        with open(f"{volume.target}/unsynced-{turn}", "wb") as f:
            data = os.urandom(200000)
            f.write(data)
            kept[f"unsynced-{turn}"] = hashlib.sha256(data).hexdigest()
        os.kill(pid, signal.SIGKILL)
        result = in_time("an fsync while there is no daemon",
                         lambda t=turn: write_synced(f"{volume.target}/after-{t}", b"after") or "acknowledged", 60)
        need(result == "acknowledged", f"an fsync while there is no daemon: {result}")
        kept[f"after-{turn}"] = hashlib.sha256(b"after").hexdigest()
        out = in_time("a read", lambda d=device: read_direct(d), 60)
        need("error" not in str(out).lower(), f"a read after the death of a daemon: {out}")
        status = status_of(node, volume)
        need(status["pid"] != pid and status["resumed"], f"another daemon has resumed: {status}")
        need(volume.device() == device, "the device is another one")
        check_files(volume, kept)
    fio(volume.target)
    check_files(volume, kept)
    unmount_and_fsck(volume)
    volume.mount()
    fio(volume.target, "--verify_only=1")
    check_files(volume, kept)
    unmount_and_fsck(volume)
    volume.delete()
    say(f"{fstype}: three times kill -9 under a mounted filesystem were a pause")


def fails_at_once(nodes, fstype):
    """Before Linux 6.9."""
    node = nodes[0]
    volume = node.create("killed-" + fstype, GIB, fstype)
    kept = {}
    for turn in range(3):
        volume.mount()
        volume.check(kept)
        write_files(volume, kept, turn)
        device, pid = volume.device(), status_of(node, volume)["pid"]
        os.kill(pid, signal.SIGKILL)
        error = in_time("an fsync on a dead device",
                        lambda: write_synced(f"{volume.target}/lost", os.urandom(100000)))
        need(isinstance(error, OSError), "an fsync was acknowledged by a device whose daemon is dead")
        out = in_time("a read of a dead device", lambda d=device: read_direct(d))
        need("error" in str(out).lower(), f"a read of a dead device: {out}")
        in_time("unmounting and detaching", volume.unmount, 30)
        need(not loop_devices_below(node.run_dir), "the dead device was left behind")
        need(not mounts_below(node.run_dir), f"left mounted: {mounts_below(node.run_dir)}")
    volume.mount()  # which replays the filesystem's journal
    check_files(volume, kept)
    unmount_and_fsck(volume)
    volume.delete()
    say(f"{fstype}: 12 synced files outlived three times kill -9")


def main():
    parts = sys.argv[1:] or ["ext4", "xfs", "kill"]
    if not os.access(os.path.join(BUILD, "tools", "versitygw"), os.X_OK):
        print(f"needs {BUILD}/tools/versitygw (make deps gets it)")
        return 77
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run = Run("device.")
    status = 1
    try:
        s3_server(run)
        pools = pool_file(run, POOL, "s3://bucket/device")
        nodes = [Node(run, name, pools).start() for name in ("node-1", "node-2")]
        for fstype in ("ext4", "xfs"):
            if fstype in parts:
                filesystem(nodes, fstype)
        if "kill" in parts:
            for fstype in ("ext4", "xfs"):
                (survives_kills if resends() else fails_at_once)(nodes, fstype)
        for node in nodes:
            node.stop()
        run.undo.clear()
        status = 0
    except KeyboardInterrupt:
        status = 130
    except (Failed, subprocess.TimeoutExpired) as why:
        run.show_logs()
        print(f"FAILED: {why}", flush=True)
    finally:
        if status:
            run.undo.clear()  # by force: what is wrong may hang a polite end
        run.clean_up()
        run.remove()
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as why:
        sys.exit(f"FAILED: {why}")
