# SPDX-License-Identifier: LGPL-2.1-or-later
"""Running a program and saying what it cost; file systems to run it on; the page cache."""

import collections
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import traceback

MIB = 1 << 20

# seconds: until the program has ended and what it wrote is durable; cpu: user and system; rss:
# greatest resident size, mapped file pages included; anon: without them, as sampled; read and written:
# bytes that reached the block layer
Cost = collections.namedtuple("Cost", "seconds cpu rss anon read written")


class Failed(Exception):
    """A program failed, or two that should agree do not."""


class Cannot(Exception):
    """This row cannot be measured here; says why."""


def tool(argv, cwd=None, what=None):
    """Runs a helper that has to succeed."""
    p = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
    if p.returncode != 0:
        raise Failed(f"{what or ' '.join(argv)}: exit {p.returncode}\n{p.stdout.strip()}")
    return p.stdout


class Sampler(threading.Thread):
    """The greatest anonymous memory of a process (RssAnon), looked at all the time."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.most, self.ended = pid, 0, threading.Event()

    def run(self):
        while not self.ended.wait(0.002):
            try:
                with open(f"/proc/{self.pid}/status", encoding="ascii") as f:
                    for line in f:
                        if line.startswith("RssAnon"):
                            self.most = max(self.most, int(line.split()[1]) * 1024)
            except (OSError, ValueError):
                return


def io_of(pid):
    """Bytes through the block layer, of a process that has ended and was not waited for yet."""
    try:
        with open(f"/proc/{pid}/io", encoding="ascii") as f:
            fields = dict(line.split(": ") for line in f)
        return int(fields["read_bytes"]), int(fields["write_bytes"])
    except (OSError, KeyError, ValueError):
        return 0, 0


def make_durable(paths):
    for path in paths:
        if not os.path.exists(path):
            continue
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def ended(p, sample):
    """Waits for a process: (exit code, resources, bytes read, bytes written, greatest anonymous memory)"""
    sampler = Sampler(p.pid) if sample else None
    if sampler:
        sampler.start()
    os.waitid(os.P_PID, p.pid, os.WEXITED | os.WNOWAIT)
    read, wrote = io_of(p.pid)
    _, status, usage = os.wait4(p.pid, 0)
    p.returncode = os.waitstatus_to_exitcode(status)
    if sampler:
        sampler.ended.set()
        sampler.join()
    return usage, read, wrote, sampler.most if sampler else 0


def run(argv, cwd, written=(), out=None, sample=False, timeout=3600):
    """Runs argv and returns its Cost.  The clock stops when all of `written` is durable, whoever made it so."""
    with open(out or os.devnull, "wb") as sink, tempfile.TemporaryFile() as complaints:
        began = time.monotonic()
        p = subprocess.Popen(argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=sink,
                             stderr=complaints)
        watch = threading.Timer(timeout, p.kill)
        watch.start()
        try:
            usage, read, wrote, anon = ended(p, sample)
            make_durable(os.path.join(cwd, path) for path in written)
            took = time.monotonic() - began
        finally:
            watch.cancel()
            if p.returncode is None:  # we are being ended ourselves
                p.kill()
                p.wait()
        complaints.seek(0)
        said = complaints.read().decode("utf-8", "replace").strip()
    if p.returncode != 0:
        why = f"signal {signal.Signals(-p.returncode).name}" if p.returncode < 0 else \
            f"exit {p.returncode}"
        raise Failed(f"{' '.join(argv)}: {why}\n{said[-2000:]}")
    return Cost(took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, anon, read, wrote)


# ---- files and the page cache ----

def copy(source, target):
    """A copy with the same holes that shares nothing with its source."""
    tool(["cp", "--sparse=always", "--reflink=never", source, target])


def data_ranges(fd):
    end, at = os.fstat(fd).st_size, 0
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return
        stop = os.lseek(fd, at, os.SEEK_HOLE)
        yield at, stop
        at = stop


def warm(paths):
    """All data of the files into the page cache."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            for at, stop in data_ranges(fd):
                while at < stop:
                    n = len(os.pread(fd, min(4 * MIB, stop - at), at))
                    if n == 0:
                        break
                    at += n
        finally:
            os.close(fd)


def cool(paths):
    """Nothing of the files stays in the page cache.  Returns how."""
    make_durable(paths)
    try:
        os.sync()
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as f:
            f.write("3\n")
        return "drop_caches"
    except OSError:
        for path in paths:
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
        return "fadvise"


def plain_copy(sources, target):
    """Seconds that all data of these files take to one new file and the disk: what no program that moves
    them can beat."""
    buffer = memoryview(bytearray(4 * MIB))
    out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    warm(sources)
    began = time.monotonic()
    for path in sources:
        fd = os.open(path, os.O_RDONLY)
        for at, stop in data_ranges(fd):
            while at < stop:
                n = os.preadv(fd, [buffer[:min(len(buffer), stop - at)]], at)
                if n == 0:
                    break
                os.write(out, buffer[:n])
                at += n
        os.close(fd)
    os.fsync(out)
    took = time.monotonic() - began
    os.close(out)
    os.unlink(target)
    return took


# ---- file systems ----

def kind_of(folder):
    return tool(["stat", "-f", "-c", "%T", folder]).strip().replace("ext2/ext3", "ext4")


def room(folder):
    st = os.statvfs(folder)
    return st.f_bavail * st.f_frsize


class Loop:
    """A file system in a sparse file of `folder`, mounted while the context lasts."""

    def __init__(self, folder, kind, size):
        self.kind, self.size = kind, max(-(-size // MIB) * MIB, 512 * MIB)
        self.file = os.path.join(folder, f"{kind}.disk")
        self.at = os.path.join(folder, kind)
        self.device = None

    def __enter__(self):
        if os.geteuid() != 0:
            raise Cannot("only root may mount")
        make = {"xfs": ["mkfs.xfs", "-q", "-f"], "btrfs": ["mkfs.btrfs", "-q", "-f"]}[self.kind]
        for name in (make[0], "losetup", "mount"):
            if not shutil.which(name):
                raise Cannot(f"{name} is not installed")
        with open(self.file, "wb") as f:
            f.truncate(self.size)
        try:
            tool(make + [self.file])
            self.device = tool(["losetup", "-f", "--show", self.file]).strip()
            os.makedirs(self.at, exist_ok=True)
            tool(["mount", "-t", self.kind, self.device, self.at])
        except Failed as e:
            self.__exit__()
            raise Cannot(f"{self.kind} cannot be mounted here ({str(e).splitlines()[-1]})") from None
        return self.at

    def __exit__(self, *_):
        if os.path.ismount(self.at):
            for _ in range(20):
                if subprocess.run(["umount", self.at], check=False,
                                  stderr=subprocess.DEVNULL).returncode == 0:
                    break
                time.sleep(0.2)
        if self.device:
            subprocess.run(["losetup", "-d", self.device], check=False)
        if os.path.exists(self.file):
            os.unlink(self.file)


def in_child(fn):
    """Calls fn in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            fn()
            os._exit(0)
        except BaseException:  # noqa: B902, told and ended here: nothing of this process may go on
            traceback.print_exc()
        os._exit(1)
    if os.waitpid(pid, 0)[1] != 0:
        raise Failed("the chain could not be made")


def raise_limits():
    """Chains of a thousand layers need as many descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
