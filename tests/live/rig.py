# SPDX-License-Identifier: LGPL-2.1-or-later
"""A libvirt of our own, and machines on it, for as long as a test runs.

The daemon runs unprivileged in a folder of its own (as user nobody, if we are root): its sockets, domains,
snapshots and logs are all in there, nobody else's are seen, and at the end everything is stopped by pid and removed.
QEMU runs under emulation (TCG), so that no /dev/kvm is needed, with a guest of 16 MiB that only writes (guest.py).
"""

import collections
import contextlib
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import guest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SKIP = 77
DAEMON = "/usr/sbin/libvirtd"
PATIENCE = 120  # seconds for what takes one on an idle machine
RATE = "50000"  # bytes a second: what fill() writes then takes minutes, so that a job is still there on any machine
SLOW = ("--bytes", "--bandwidth=" + RATE)  # the first 2 MiB or so go at once

Result = collections.namedtuple("Result", "rc out err")


class Fail(Exception):
    """The program under test is wrong."""


def die_skip(why):
    print(f"skip: {why}")
    sys.exit(SKIP)


def find_qmeld():
    given = os.environ.get("QMELD")
    if given:
        return os.path.abspath(given)
    for preset in ("dev", "release", "plain"):
        path = os.path.join(ROOT, "build", preset, "qmeld")
        if os.access(path, os.X_OK):
            return path
    return None


def check_tools():
    """Ends the run with SKIP if something is not installed; otherwise the program under test."""
    for tool in ("virsh", "qemu-img", "qemu-system-x86_64", "setpriv"):
        if not shutil.which(tool):
            die_skip(f"{tool} is not installed")
    if not os.access(DAEMON, os.X_OK):
        die_skip(f"{DAEMON} is not installed")
    if not any(glob.glob(f"/usr/lib*/{sub}libvirt/connection-driver/libvirt_driver_qemu.so") for sub in ("", "*/")):
        die_skip("libvirt's QEMU driver is not installed (libvirt-daemon-driver-qemu)")
    qmeld = find_qmeld()
    if not qmeld:
        die_skip("qmeld is not built")
    if not os.path.exists(os.path.join(os.path.dirname(qmeld), "qmeld-live.so")):
        die_skip("qmeld-live.so is not built (libvirt-dev, libxml2-dev)")
    return qmeld


def wait_for(what, condition, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Fail(f"waited {seconds} s in vain for: {what}")
        time.sleep(0.05)


class Lab:
    """The daemon, its folder, and the programs under test copied into it so that its user may run them."""

    def __init__(self, qmeld):
        self.dir = tempfile.mkdtemp(prefix="ql", dir="/tmp")  # short: sockets' paths end at 108 bytes
        self.root = os.geteuid() == 0
        for name in ("run", "cfg/libvirt", "cache", "data", "d", "bin"):
            os.makedirs(os.path.join(self.dir, name))
        for name in ("qmeld", "qmeld-live.so"):
            shutil.copy(os.path.join(os.path.dirname(qmeld), name), os.path.join(self.dir, "bin", name))
        with open(os.path.join(self.dir, "cfg/libvirt/qemu.conf"), "w", encoding="utf-8") as f:
            f.write('stdio_handler = "file"\nseccomp_sandbox = 0\n')
        self.qmeld = os.path.join(self.dir, "bin", "qmeld")
        self.env = {
            "PATH": os.environ["PATH"], "HOME": self.dir, "XDG_RUNTIME_DIR": self.dir + "/run",
            "XDG_CONFIG_HOME": self.dir + "/cfg", "XDG_CACHE_HOME": self.dir + "/cache",
            "XDG_DATA_HOME": self.dir + "/data", "LIBVIRT_DEFAULT_URI": "qemu:///session",
            "LIBVIRT_AUTOSTART": "0", "LC_ALL": "C", "QMELD_TEST_NO_SYNC": "1",
        }
        # the search for leaks at the end trips over libvirt's threads, now and then, and then fails by itself
        self.env["ASAN_OPTIONS"] = "detect_leaks=0"
        for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS", "LSAN_OPTIONS"):
            if name in os.environ:
                self.env[name] = os.environ[name]
        if self.root:
            os.chmod(self.dir, 0o755)
            subprocess.run(["chown", "-R", "nobody:nogroup", self.dir], check=True)
        self.daemon = None
        self.start_daemon()

    def as_user(self, words):
        drop = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]
        return (drop if self.root else []) + list(words)

    def start_daemon(self):
        socket = self.dir + "/run/libvirt/libvirt-sock"
        with open(self.dir + "/libvirtd.log", "ab") as log:
            self.daemon = subprocess.Popen(self.as_user([DAEMON]), env=self.env, stdout=log, stderr=log,
                                           stdin=subprocess.DEVNULL, cwd=self.dir)

        def answers():
            if self.daemon.poll() is not None:
                with open(self.dir + "/libvirtd.log", encoding="utf-8", errors="replace") as f:
                    raise Fail(f"libvirtd ended: {f.read()[-2000:]}")
            return os.path.exists(socket) and self.run(["virsh", "-q", "list"]).rc == 0

        wait_for("libvirtd", answers)

    def stop_daemon(self, how=signal.SIGTERM):
        self.daemon.send_signal(how)
        self.daemon.wait(PATIENCE)

    def run(self, words, seconds=300, env=None):
        done = subprocess.run(self.as_user(words), env=dict(self.env, **(env or {})), cwd=self.dir + "/d",
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=seconds, check=False)
        return Result(done.returncode, done.stdout.decode(errors="replace"),
                      done.stderr.decode(errors="replace"))

    def begin(self, words, env=None):
        """A process that goes on beside the test."""
        return subprocess.Popen(self.as_user(words), env=dict(self.env, **(env or {})), cwd=self.dir + "/d",
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True)

    def close(self):
        for path in glob.glob(self.dir + "/run/libvirt/qemu/run/*.pid"):
            if os.path.basename(path) == "driver.pid":
                continue
            try:
                with open(path, encoding="utf-8") as f:
                    os.kill(int(f.read()), signal.SIGKILL)
            except (OSError, ValueError):
                pass
        if self.daemon.poll() is None:
            self.stop_daemon()
        shutil.rmtree(self.dir, ignore_errors=True)


DISK = """<disk type='file' device='disk'><driver name='qemu' type='{fmt}'/><source file='{path}'/>
<target dev='{target}' bus='virtio'/>{more}</disk>"""

DOMAIN = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os><devices>{disks}
<serial type='file'><source path='{serial}'/></serial><controller type='usb' model='none'/>
<memballoon model='none'/></devices></domain>"""


class Machine:
    """One test: a domain with its folder, the commands to do things to it, and the questions to ask."""

    def __init__(self, lab, name):
        self.lab = lab
        self.name = name
        self.dir = f"{lab.dir}/d/{name}"
        self.serial = self.dir + "/serial"
        os.mkdir(self.dir)
        self.own(self.dir)

    # ---- the stage ----

    def path(self, name):
        return f"{self.dir}/{name}"

    def own(self, path):
        if self.lab.root:
            shutil.chown(path, "nobody", "nogroup")

    def run(self, *words, rc=0, **kw):
        for _ in range(9):
            result = self.lab.run(words, **kw)
            if "Unable to get accurate CPU usage" not in result.err:  # qemu-img's, of LUKS on a busy machine
                break
        if rc is not None and result.rc != rc:
            raise Fail(f"{' '.join(words)}: exit {result.rc}, not {rc}\n{result.out}{result.err}")
        return result

    def virsh(self, *words, rc=0):
        return self.run("virsh", "-q", *words, rc=rc)

    def img(self, *words):
        return self.run("qemu-img", *words).out

    def disk(self, name, fmt="raw", size=16 << 20):
        """A disk with the guest on it."""
        guest.make_disk(self.path(name), size, fmt)
        self.own(self.path(name))
        return self.path(name)

    def define(self, disks=None, start=True, persistent=True):
        """disks: (path, format, target, more elements)."""
        disks = disks or [(self.path("base.raw"), "raw", "vda", "")]
        xml = DOMAIN.format(name=self.name, serial=self.serial, disks="".join(
            DISK.format(path=p, fmt=f, target=t, more=m) for p, f, t, m in disks))
        self.define_xml(xml, start, persistent)

    def define_xml(self, xml, start=True, persistent=True):
        with open(self.path("domain.xml"), "w", encoding="utf-8") as f:
            f.write(xml)
        if not persistent:
            self.virsh("create", self.path("domain.xml"))
            return
        self.virsh("define", self.path("domain.xml"))
        if start:
            self.virsh("start", self.name)

    def define_bus(self, bus, target, driver="", more=""):
        """base.raw with the guest on it, as a disk of another kind."""
        self.disk("base.raw")
        disk = f"<disk type='file' device='disk'><driver name='qemu' type='raw' {driver}/>" \
               f"<source file='{self.path('base.raw')}'/><target dev='{target}' bus='{bus}'/></disk>{more}"
        self.define_xml(DOMAIN.format(name=self.name, serial=self.serial, disks=disk))
        self.writes()

    def snapshot(self, name, target="vda", metadata=False, path=None):
        """A new overlay on the running machine."""
        path = path or self.path(name + ".qcow2")
        self.virsh("snapshot-create-as", self.name, name, "--diskspec", f"{target},file={path}", "--disk-only",
                   "--atomic", *([] if metadata else ["--no-metadata"]))
        return path

    def chain(self, *names, passes=1, **kw):
        """The running machine on base.raw <- names, each layer written to."""
        self.disk("base.raw")
        self.define(**kw)
        self.writes()
        for name in names:
            self.snapshot(name)
            self.writes(passes)

    def fill(self):
        """So much more in the active layer that a slow job (SLOW) stays."""
        self.virsh("qemu-monitor-command", self.name, "--hmp",
                   'qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "write -P 9 8M 7M"')

    # ---- questions ----

    def passes(self):
        try:
            return os.stat(self.serial).st_size
        except FileNotFoundError:
            return 0

    def writes(self, more=1):
        """Waits until the guest has gone through its range so many times more."""
        wanted = self.passes() + more
        wait_for(f"{self.name} to write", lambda: self.passes() >= wanted)

    def xml(self, *flags):
        return self.virsh("dumpxml", self.name, *flags).out

    def layers(self, target="vda"):
        """Paths of the running chain, as qmeld tells them; the active layer first."""
        info = json.loads(self.run(self.lab.qmeld, "info", "--output=json", "-c", "qemu:///session", self.name).out)
        for disk in info["disks"]:
            if disk["target"] == target:
                return [layer["filename"] for layer in disk["chain"]]
        raise Fail(f"{self.name} has no {target}")

    def source(self, *flags):
        """Path of vda's active layer by virsh."""
        out = self.virsh("domblklist", self.name, *flags).out
        return dict(line.split(None, 1) for line in out.strip().split("\n"))["vda"].strip()

    def is_chain(self, *names):
        """The chain is this, top first: by libvirt, and by the headers."""
        wanted = [self.path(n) for n in names]
        got = self.layers()
        if [os.path.normpath(g) for g in got] != wanted:
            raise Fail(f"libvirt's chain is {got}, not {wanted}")
        info = json.loads(self.img("info", "-U", "--backing-chain", "--output=json", wanted[0]))
        real = [os.path.realpath(i["filename"]) for i in info]
        if real != [os.path.realpath(w) for w in wanted]:
            raise Fail(f"the headers' chain is {real}, not {wanted}")

    @contextlib.contextmanager
    def still(self):
        """Meanwhile the guest does not write, and what it wrote is in the files: a reader beside a running machine
        sees some clusters earlier than others, lacks mappings that QEMU has in memory only, and after a pivot reads
        a layer that is left through a base that goes on."""
        running = self.virsh("domstate", self.name, rc=None).out.strip() == "running"
        if running:
            self.virsh("suspend", self.name)
        try:
            yield
        finally:
            if running:
                self.virsh("resume", self.name)

    def is_right(self, name=None):
        """What the guest wrote is all there, in order, read through this layer, or the active one."""
        with self.still():
            name = name or os.path.basename(self.layers()[0])
            passes = self.passes()
            found = guest.judge(self.path(name), "raw" if name.endswith(".raw") else "qcow2")
        if found.wrong:
            raise Fail(f"{name}: {found.wrong}")
        if found.newest < passes:
            raise Fail(f"{name}: the guest finished pass {passes}, the disk holds pass {found.newest}")
        return found

    def has(self, result, *sentences):
        for sentence in sentences:
            if sentence not in result.out + result.err:
                raise Fail(f"no \"{sentence}\" in:\n{result.out}{result.err}")

    def exists(self, *names):
        for name in names:
            if not os.path.exists(self.path(name)):
                raise Fail(f"{name} is gone")

    def gone(self, *names):
        for name in names:
            if os.path.exists(self.path(name)):
                raise Fail(f"{name} is still there")

    # ---- actions ----

    def commit(self, *options, rc=0, disk="vda", **kw):
        """qmeld blockcommit on it."""
        return self.run(self.lab.qmeld, "blockcommit", self.name, disk, *options, rc=rc, **kw)

    def commit_beside(self, *options, disk="vda"):
        return self.lab.begin([self.lab.qmeld, "blockcommit", self.name, disk, *options])

    def under_way(self, *words):
        """A command of qmeld's, begun beside, that knows its job: it tells how far that is."""
        beside = self.lab.begin([self.lab.qmeld, *words, "--progress=json"])
        told = b""
        while not re.search(rb'"copy", "done": \d+, "total": [1-9]', told):
            more = os.read(beside.stderr.fileno(), 1)  # past Python's buffer, so that communicate() gets the rest
            if not more:
                raise Fail(f"no job: {told.decode(errors='replace')}")
            told += more
        return beside

    def end(self, process, rc, seconds=PATIENCE):
        """Of a process that was begun beside."""
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise Fail(f"it hangs:\n{out}{err}") from None
        if process.returncode != rc:
            raise Fail(f"exit {process.returncode}, not {rc}\n{out}{err}")
        return Result(process.returncode, out, err)

    def preload(self, source):
        """The environment in which the program under test has this library in it, built where its user can read it."""
        out = f"{self.lab.dir}/bin/{os.path.basename(source)}.so"
        if not os.path.exists(out):
            subprocess.run(["cc", "-shared", "-fPIC", "-o", out, source, "-ldl"], check=True)
            os.chmod(out, 0o755)
        options = os.environ.get("ASAN_OPTIONS", "")
        return {"LD_PRELOAD": out, "ASAN_OPTIONS": options + ":verify_asan_link_order=0:detect_leaks=0"}

    def kill_env(self, call, after=False, nth=1):
        """... in which it dies at a call (killcall.c)."""
        env = dict(self.preload(os.path.dirname(os.path.abspath(__file__)) + "/killcall.c"), KILL_CALL=call,
                   KILL_NTH=str(nth))
        return dict(env, KILL_AFTER="1") if after else env

    def job(self):
        """What runs on vda, in virsh's words; "" if nothing does."""
        told = self.virsh("blockjob", self.name, "vda", rc=None)
        return told.out + told.err

    def qemu_pid(self):
        with open(f"{self.lab.dir}/run/libvirt/qemu/run/{self.name}.pid", encoding="utf-8") as f:
            return int(f.read())

    def destroy(self):
        self.virsh("destroy", self.name)

    def close(self):
        self.virsh("destroy", self.name, rc=None)
        for name in self.virsh("snapshot-list", self.name, "--name", rc=None).out.split():
            self.virsh("snapshot-delete", self.name, name, "--metadata", rc=None)
        self.virsh("managedsave-remove", self.name, rc=None)
        self.virsh("undefine", self.name, rc=None)
        shutil.rmtree(self.dir, ignore_errors=True)


CASES = []


def case(name, what):
    def add(function):
        CASES.append((name, what, function))
        return function
    return add


def main(argv):
    """Runs the cases that are named, or all; one daemon for them, a domain and a folder for each."""
    qmeld = check_tools()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # nothing is left behind then, either
    keep = "--keep" in argv
    wanted = [a for a in argv if not a.startswith("-")]
    failed = 0
    lab = Lab(qmeld)
    try:
        for name, what, function in CASES:
            if wanted and name not in wanted:
                continue
            began = time.monotonic()
            machine = Machine(lab, name)
            try:
                function(machine)
                print(f"ok    {time.monotonic() - began:5.1f}s  {name}: {what}", flush=True)
            except (Fail, subprocess.TimeoutExpired) as e:
                failed += 1
                print(f"FAIL  {time.monotonic() - began:5.1f}s  {name}: {what}\n      {e}", flush=True)
                if keep:
                    print(f"      {machine.dir}", flush=True)
                    return 1
            finally:
                if not (keep and failed):
                    machine.close()
    finally:
        if not (keep and failed):
            lab.close()
    print(f"{failed} of {len(wanted) or len(CASES)} failed" if failed else "all passed")
    return 1 if failed else 0
