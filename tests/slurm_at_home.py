"""A real SLURM of one machine, for tests: controller, node and munge in namespaces of their own, on loopback alone.

`python -m tests.slurm_at_home` fetches Debian's packages (4 MB) into a cache folder and unpacks them there; nothing is
installed. With them, and as root on Linux (for the namespaces), tests have a cluster in a second or two. When the
namespace's first process ends, so does everything in it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SLURM = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins")
NEEDED = ("munge", "libmunge2", "libhwloc15", "liblua5.1-0")
CACHE = Path(os.environ.get("GENTICKETS_SLURM") or Path.home() / ".cache" / "gentickets-slurm")
LIBRARIES = CACHE / "usr" / "lib" / f"{os.uname().machine}-linux-gnu"

CONFIGURATION = """
ClusterName=home
SlurmctldHost=home(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
PluginDir={libraries}/slurm-wlm
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=10
MailProg=/bin/true
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=home NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=usual Nodes=home Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace} MaxTime=INFINITE
PartitionName=urgent Nodes=home PriorityTier=9 PreemptMode=OFF MaxTime=INFINITE
"""


def missing() -> str | None:
    """Why there can be no SLURM here; None where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "namespaces of one's own need root on Linux"
    if lacking := [name for name in ("unshare", "nsenter", "ip", "hostname") if shutil.which(name) is None]:
        return f"no {', '.join(lacking)} here"
    if not (CACHE / "usr" / "sbin" / "slurmctld-wlm").exists():
        return f"no SLURM in {CACHE}: python -m tests.slurm_at_home fetches it, on Debian"
    return None


def fetch() -> None:
    """Puts Debian's packages into the cache, unpacked."""
    CACHE.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", *SLURM, *NEEDED], cwd=CACHE, check=True)
    for package in sorted(CACHE.glob("*.deb")):
        subprocess.run(["dpkg", "-x", package, CACHE], check=True)
        package.unlink()


class Slurm:
    """A cluster that runs. `place`: where its logs are."""

    def __init__(self, place: Path, cpus: int = 2, grace: int = 0):
        self.place = place
        place.mkdir(parents=True)
        conf = CONFIGURATION.format(place=place, libraries=LIBRARIES, cpus=cpus, grace=grace)
        (place / "slurm.conf").write_text(conf)
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("SLURM")},
            "SLURM_CONF": str(place / "slurm.conf"),
            "LD_LIBRARY_PATH": f"{LIBRARIES}:{LIBRARIES / 'slurm-wlm'}",
            "PATH": f"{CACHE / 'usr' / 'bin'}:{os.environ['PATH']}",
        }
        (place / "hosts").write_text("127.0.0.1 localhost home\n")
        # An address beside 127.0.0.1, or getaddrinfo finds none that is configured.
        begin = (
            "ip link set lo up && ip address add 10.0.0.1/32 dev lo && hostname home && mount --bind hosts /etc/hosts"
        )
        self._first = subprocess.Popen(
            ["unshare", "--net", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child",
             "sh", "-c", f"{begin} && echo up && exec sleep infinity"],
            cwd=place, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self._first.stdout is not None
        assert self._first.stdout.readline() == "up\n"
        children = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children")
        self._inside = int(children.read_text().split()[0])

    def start(self) -> None:
        """Starts the daemons; returns when the node takes jobs."""
        place, sbin = self.place, CACHE / "usr" / "sbin"
        (place / "state").mkdir()
        (place / "spool").mkdir()
        (place / "munge.key").write_bytes(os.urandom(128))
        (place / "munge.key").chmod(0o600)
        self.run(sbin / "munged", "--force", f"--socket={place}/munge.socket", f"--key-file={place}/munge.key",
                 f"--pid-file={place}/munge.pid", f"--log-file={place}/munge.log", f"--seed-file={place}/munge.seed",
                 "--num-threads=2")  # fmt: skip
        self.run(sbin / "slurmctld-wlm", "-c")
        self.run(sbin / "slurmd-wlm", "-d", sbin / "slurmstepd-wlm")
        deadline = time.monotonic() + 60
        while (state := self.output("sinfo", "-h", "-p", "usual", "-o", "%t")) != "idle":
            assert time.monotonic() < deadline, (
                f"the node is {state or 'unknown'}: {(place / 'slurmctld.log').read_text()}"
            )
            time.sleep(0.1)

    def command(self, *words: object, cwd: Path | None = None) -> list[str]:
        """The command line that runs `words` inside of the cluster's namespaces."""
        # By a shell: who enters a mount namespace is at its root.
        line = ["sh", "-c", 'cd "$0" && exec "$@"', cwd or self.place, *words]
        return ["nsenter", "-t", str(self._inside), "--net", "--uts", "--pid", "--mount", "--", *map(str, line)]

    def start_command(self, *words: object, cwd: Path | None = None) -> subprocess.Popen[str]:
        """Starts a command inside, as a child of this process."""
        return subprocess.Popen(
            self.command(*words, cwd=cwd), env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def signal(self, started: subprocess.Popen[str], which: int) -> None:
        """Sends a signal to a command that was started inside, which is the child of what led it there."""
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        os.kill(int(children[0]), which)

    def run(self, *words: object, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command inside, and returns what came of it, as text."""
        done = subprocess.run(
            self.command(*words, cwd=cwd), env=self.environment, text=True, timeout=300,
            stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done

    def output(self, *words: object) -> str:
        """What a command says inside."""
        return self.run(*words, check=False).stdout.strip()

    def jobs(self) -> dict[str, str]:
        """The jobs in the queue: id → state."""
        lines = self.output("squeue", "-h", "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    def field(self, job: str, name: str) -> str | None:
        """What the controller says of a job, also of one that has ended a while ago: JobState, Restarts, ExitCode, …"""
        words = self.output("scontrol", "show", "job", job).split()
        return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), None)

    def wait(self, job: str, *states: str, seconds: float = 300) -> str:
        """Waits until a job is in one of the states, and returns it."""
        deadline = time.monotonic() + seconds
        while (state := self.field(job, "JobState")) not in states:
            assert time.monotonic() < deadline, f"job {job} is {state}, and not {' or '.join(states)}"
            time.sleep(0.2)
        return str(state)

    def stop(self) -> None:
        """Ends everything inside."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._inside, signal.SIGKILL)
        self._first.wait(timeout=30)


@contextlib.contextmanager
def slurm_at_home(place: Path, cpus: int = 2, grace: int = 0) -> Iterator[Slurm]:
    """A cluster for as long as one is inside."""
    slurm = Slurm(place, cpus, grace)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()


if __name__ == "__main__":
    fetch()
    print(missing() or f"SLURM is in {CACHE}")
