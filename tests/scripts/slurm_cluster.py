"""A Slurm of one node with pretended GPUs, started for a test from Debian's packages slurm-wlm and munge."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={controller}
SlurmdPort={daemon}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
GresTypes=gpu
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no Slurm here; nothing where there can."""
    if os.geteuid() != 0:
        return "Slurm's daemons are started as root"
    absent = [tool for tool in TOOLS if shutil.which(tool, path=_PATH) is None]
    return f"no {', '.join(absent)}: apt-get install slurm-wlm munge" if absent else ""


class Cluster:
    """What a user types into a shell of its login node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        outside = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH"))}
        self.environment = {**outside, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _PATH}

    def run(self, *words: str, cwd: Path | None = None, **environment: str) -> str:
        done = subprocess.run(
            words, cwd=cwd, env={**self.environment, **environment}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def submit(self, *words: str, cwd: Path, **environment: str) -> str:
        """The job's number."""
        return self.run("sbatch", "--parsable", *words, cwd=cwd, **environment).strip()

    def state(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job, as JobState, Restarts and ExitCode."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def time_is_up(self, job: str) -> None:
        """The signal that --signal=B:TERM@300 sends before the time limit: to the batch script alone."""
        self.run("scancel", "--batch", "--signal=TERM", job)

    def start_again(self, job: str, restarts: int) -> None:
        """Waits until the job is queued for the so-manieth time, and spares it Slurm's pause of two minutes."""
        self.wait(lambda: self.state(job)["JobState"] == "PENDING" and self.state(job)["Restarts"] == str(restarts))
        time.sleep(3)  # the node refuses a job that it ended in this second
        self.run("scontrol", "update", f"jobid={job}", "starttime=now")

    def wait(self, condition, seconds: float = 150.0) -> None:  # type: ignore[no-untyped-def]
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, self.logs()
            time.sleep(0.2)

    def logs(self) -> str:
        logs = [*self.folder.glob("*.log"), *self.folder.parent.rglob("slurm-*.log")]
        return "\n".join(f"== {path}\n{path.read_text()[-3000:]}" for path in logs)


@contextmanager
def started(folder: Path) -> Iterator[Cluster]:
    """The daemons run while entered."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    controller, daemon = _free_ports(2)
    text = _CONFIGURATION.format(
        host=socket.gethostname().split(".")[0],
        folder=folder,
        controller=controller,
        daemon=daemon,
        cpus=os.cpu_count(),
    )
    (folder / "slurm.conf").write_text(text)
    for index in range(2):
        (folder / f"gpu{index}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
    cluster = Cluster(folder)
    munge = ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
    munge += [f"--{kind}-file={folder}/munge.{kind}" for kind in ("pid", "log", "seed")]
    daemons = []
    try:
        for words in (munge, ["slurmctld", "-D"], ["slurmd", "-D"]):
            with open(folder / f"{words[0]}.out", "w") as out:
                daemons.append(subprocess.Popen(words, env=cluster.environment, stdout=out, stderr=out))
            time.sleep(0.5)
        cluster.wait(lambda: "idle" in _nodes(cluster), seconds=40)
        yield cluster
    finally:
        for process in reversed(daemons):  # munged last: the others sign their farewells
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()


def _nodes(cluster: Cluster) -> str:
    done = subprocess.run(["sinfo", "-h", "-o", "%T"], env=cluster.environment, capture_output=True, text=True)
    return done.stdout


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports
