# SPDX-License-Identifier: LGPL-2.1-or-later
"""A cluster of Slurm on this machine alone: munged, slurmctld and slurmd in a folder of their own, stopped by pid at
the end.  No cgroups, no accounting, and no file outside of the folder."""

import os
import pwd
import shutil
import socket
import subprocess
import time

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")

# cred_expire: a job that went back into the queue waits so long, 120 s otherwise.
CONF = """\
ClusterName=qmeld
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,sched_min_interval=500000
SelectType=select/cons_res
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PreemptExemptTime=0
ReturnToService=2
KillWait=20
MinJobAge=600
SlurmctldParameters=idle_on_node_suspend
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=100 State=UNKNOWN
PartitionName=night Nodes={host} Default=YES MaxTime=60 PriorityTier=1 GraceTime=20 State=UP
PartitionName=urgent Nodes={host} MaxTime=60 PriorityTier=9 PreemptMode=OFF State=UP
"""


def missing():
    """What is not installed; None: nothing."""
    for tool in TOOLS:
        if not shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
            return f"{tool} is not installed"
    return None


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Cluster:
    def __init__(self, folder):
        self.folder, self.daemons = folder, []
        self.env = dict(os.environ, SLURM_CONF=f"{folder}/slurm.conf",
                        PATH=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        for name in ("state", "spool"):
            os.mkdir(f"{folder}/{name}")
        with open(f"{folder}/slurm.conf", "w", encoding="utf-8") as f:
            f.write(CONF.format(folder=folder, host=socket.gethostname().split(".")[0], port=free_port(),
                                node_port=free_port(), user=pwd.getpwuid(os.getuid()).pw_name))
        with open(f"{folder}/munge.key", "wb") as f:
            f.write(os.urandom(1024))
        os.chmod(f"{folder}/munge.key", 0o400)

    def start(self):
        f = self.folder
        self.spawn("munged", "--foreground", "--force", f"--key-file={f}/munge.key", f"--socket={f}/munge.socket",
                   f"--pid-file={f}/munged.pid", f"--log-file={f}/munged.log", f"--seed-file={f}/munge.seed")
        self.until(lambda: os.path.exists(f"{f}/munge.socket"), 20, "munged listens")
        self.spawn("slurmctld", "-D", "-c")
        self.spawn("slurmd", "-D")
        self.until(lambda: "idle" in self.ask("sinfo", "-h", "-p", "night", "-o", "%t"), 60, "the node is idle")

    def spawn(self, *argv):
        with open(f"{self.folder}/{argv[0]}.out", "w", encoding="utf-8") as log:
            self.daemons.append(subprocess.Popen(argv, env=self.env, stdout=log, stderr=log, cwd=self.folder,
                                                 stdin=subprocess.DEVNULL, start_new_session=True))

    def stop(self):
        for p in reversed(self.daemons):
            p.terminate()
            try:
                p.wait(15)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()

    def ask(self, *argv, check=False):
        try:
            done = subprocess.run(argv, env=self.env, capture_output=True, text=True, cwd=self.folder, timeout=20,
                                  stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired as e:
            raise RuntimeError(f"{' '.join(argv)} does not end: {e.stdout} {e.stderr}{self.logs()}") from None
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: {done.stdout}{done.stderr}{self.logs()}")
        return done.stdout

    def until(self, test, seconds, what):
        ends = time.monotonic() + seconds
        while not test():
            if time.monotonic() > ends:
                raise RuntimeError(f"not within {seconds} s: {what}{self.logs()}")
            time.sleep(0.2)

    def logs(self):
        told = ""
        for name in ("munged.out", "munged.log", "slurmctld.out", "slurmctld.log", "slurmd.out", "slurmd.log"):
            try:
                with open(f"{self.folder}/{name}", encoding="utf-8") as f:
                    told += f"\n--- {name}\n" + f.read()[-1500:]
            except OSError:
                pass
        return told

    def signal(self, job):
        """As an administrator stops a job.  The job goes back into the queue by itself, and then scancel would wait
        until it can signal it once more: it is ended with the daemons."""
        self.daemons.append(subprocess.Popen(["scancel", "--batch", "--signal=TERM", job], env=self.env, cwd=self.folder,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def submit(self, *argv):
        return self.ask("sbatch", "--parsable", *argv, check=True).strip().split(";")[0]

    def jobs(self, job):
        """{index: state} of an array; of what is over, too."""
        found = {}
        for line in self.ask("scontrol", "-o", "show", "job", job).splitlines():
            words = dict(w.split("=", 1) for w in line.split() if "=" in w)
            if words.get("ArrayTaskId", "0").isdigit():
                found[int(words.get("ArrayTaskId", 0))] = words
        return found
