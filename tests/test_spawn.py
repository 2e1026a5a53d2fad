"""An agent is born into a world of its own, whatever the program that starts it is and does."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from programs import wait_until
from training import Training, agents, end

import periflow_otel
from periflow_otel.agent.spawn import NotAPythonError, _execute
from periflow_otel.cli import main

METRICS = "\nfor number in range(3):\n    with pf.train_step():\n        pf.metric({'n': number})\n"
SCRIPT = f"import periflow_otel as pf\npf.init(local_log_name='train.log'){METRICS}"
PACKAGES = [each for each in sys.path if each.endswith("site-packages")]


def run(code: str = SCRIPT, *, python: str = sys.executable, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run a script in the current folder to its end."""
    given = {"PERIFLOW_STATE_DIR": str(Path.cwd() / "state"), "PERIFLOW_AGENT_LINGER": "1"}
    given["OTEL_EXPORTER_PROMETHEUS_PORT"] = "0"
    command, environ = [python, "-c", code], {**os.environ, **given, **environ}
    return subprocess.run(command, env=environ, text=True, capture_output=True, timeout=60, check=False)


def vendored(place: Path) -> Path:
    """Make a copy of the package in a folder, and return the folder."""
    source = Path(periflow_otel.__file__).parent
    shutil.copytree(source, place / "periflow_otel", ignore=shutil.ignore_patterns("__pycache__"))
    return place


def take_from(place: Path) -> str:
    """Return code that makes a script find the package in a place, and what the package needs where it always is."""
    return f"import sys\nsys.path[:0] = {[str(place), *PACKAGES]!r}\n"


def delivered() -> int:
    """Return how many values are in the metric log."""
    log = Path("train.log")
    return len(log.read_text("utf-8").splitlines()) if log.exists() else 0


class World:
    """What a process is and has, as the kernel knows it."""

    def __init__(self, pid: int) -> None:
        """Look at a process."""
        self.folder = Path("/proc", str(pid))
        lines = (self.folder / "status").read_text().splitlines()
        self.status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        fields = (self.folder / "stat").read_text().rpartition(")")[2].split()
        self.parent, self.session = int(fields[1]), int(fields[3])

    def signals(self, kind: str) -> set[int]:
        """Return the signals that are blocked (``SigBlk``) or ignored (``SigIgn``)."""
        mask = int(self.status[kind], 16)
        return {number for number in signal.valid_signals() if mask >> (number - 1) & 1}

    def sockets(self) -> set[str]:
        """Return the names of the sockets that are open."""
        opened = set()
        for each in (self.folder / "fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                opened.add(str(each.readlink()))
        return {each for each in opened if each.startswith("socket:")}


_STRANGE = """
import fcntl, os, signal, socket, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM])
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
kept = socket.create_server(("127.0.0.1", 0))
os.set_inheritable(kept.fileno(), True)
import periflow_otel as pf
pf.init(local_log_name="train.log")
print(open(f"/proc/self/task/{os.getpid()}/children").read().split(), flush=True)
sys.stdin.read()
"""


class Strange:
    """A script with blocked and ignored signals, one processor and a socket that every child gets; and its agent."""

    def __init__(self, folder: Path) -> None:
        """Start it, and wait until the agent is at work."""
        state = folder / "state"
        environ = {**os.environ, "PERIFLOW_STATE_DIR": str(state), "OTEL_EXPORTER_PROMETHEUS_PORT": "0"}
        environ |= {"PYTHONPATH": str(folder), "PYTHONWARNINGS": "default"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _STRANGE],
            cwd=folder, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout
        self.children = self.process.stdout.readline().strip()
        self.agent = agents(state)[0]
        wait_until(lambda: signal.SIGUSR2 in World(self.agent).signals("SigIgn"), 60, "the agent is at work")

    def end(self) -> None:
        """End both."""
        self.process.kill()
        self.process.communicate()
        end(self.agent)


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strange]:
    """Start the strange script once for all tests of what an agent takes over from it."""
    started = Strange(tmp_path_factory.mktemp("strange"))
    yield started
    started.end()


def test_an_agent_is_nobodys_child(strange: Strange):
    """Who waits for all children of the script, or kills them, does not meet the agent."""
    assert strange.children == "[]"
    assert World(strange.agent).parent != strange.process.pid


def test_an_agent_has_a_session_of_its_own(strange: Strange):
    """Ctrl-C and the end of a terminal are not for it."""
    assert World(strange.agent).session not in (os.getsid(0), strange.process.pid)


def test_an_agent_is_in_no_folder_that_somebody_may_want_to_unmount(strange: Strange):
    """Its folder is the root."""
    assert (World(strange.agent).folder / "cwd").resolve() == Path("/")


def test_an_agent_has_every_signal(strange: Strange):
    """Nothing is blocked, and only that is ignored which it ignores itself."""
    own = {signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE, signal.SIGXFSZ}
    world = World(strange.agent)
    assert world.signals("SigIgn") == own
    # The C library blocks all while a thread begins.
    wait_until(lambda: not World(strange.agent).signals("SigBlk"), 10, "no signal is blocked")


def test_an_agent_may_use_all_processors(strange: Strange):
    """Training that is bound to one must not share it with its agent."""
    wait_until(lambda: os.sched_getaffinity(strange.agent) == os.sched_getaffinity(0), 60)


def test_an_agent_leaves_the_processors_to_training(strange: Strange):
    """Every thread of it, as soon as it is at work."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0)

    def steps_back() -> bool:
        threads = [int(each.name) for each in Path(f"/proc/{strange.agent}/task").iterdir()]
        return len(threads) > 1 and all(os.getpriority(os.PRIO_PROCESS, each) > niceness for each in threads)

    wait_until(steps_back, 60, "all threads have a lower priority")


def test_an_agent_has_none_of_the_starters_files(strange: Strange):
    """Nor a socket that was made for every child: it would keep the port from the next attempt."""
    (socket,) = World(strange.process.pid).sockets()
    assert socket not in World(strange.agent).sockets()


def test_no_python_variable_reaches_an_agent(strange: Strange):
    """It is the Python of its starter, and not what variables make of that."""
    environ = (World(strange.agent).folder / "environ").read_bytes().split(b"\0")
    assert not [each for each in environ if each.startswith(b"PYTHON")]


def test_a_script_may_wait_for_all_its_children():
    """It ends when its own have ended."""
    wait = "for _ in range(2):\n    if os.fork() == 0:\n        os._exit(0)\nwhile True:\n    os.wait()"
    ended = run(f"import os\n{SCRIPT}{wait}")
    assert "ChildProcessError" in ended.stderr
    assert delivered() == 3


def test_nothing_that_starts_with_every_python_starts_in_an_agent():
    """Auto-instrumentation, coverage and ``.pth`` files begin so."""
    Path("sitecustomize.py").write_text("import os\nopen(f'began-{os.getpid()}', 'w')")
    assert run(PYTHONPATH=str(Path.cwd())).returncode == 0
    assert delivered() == 3
    assert len([*Path().glob("began-*")]) == 1


def test_files_of_a_script_do_not_stand_in_for_modules():
    """A file may be called like something that only the agent imports."""
    for name in ("queue", "google", "grpc", "psutil", "prometheus_client", "http", "sqlite3"):
        Path(f"{name}.py").write_text("raise SystemExit('the wrong module')")
    Path("script.py").write_text(SCRIPT)
    assert (
        run("import runpy, sys\nsys.argv[0] = 'script.py'\nrunpy.run_path('script.py', run_name='__main__')").stderr
        == ""
    )
    assert delivered() == 3


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_an_agent_finds_the_package_where_its_starter_has_it(form: str, tmp_path: Path):
    """``pip install --target``, a vendored copy, PEX and a zip application put it where no other Python looks."""
    place = vendored(tmp_path / "vendor")
    if form == "zip":
        place = Path(shutil.make_archive(str(place), "zip", place))
    code = f"{take_from(place)}{SCRIPT}assert {str(place)!r} in pf.__file__"
    ended = run(code, python=os.path.realpath(sys.executable))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert delivered() == 3


NOT_A_PYTHON = {
    "a frozen program": "sys.frozen = True",
    "another program": "sys.executable = os.path.abspath('app')",
    "a program called like a Python": "os.rename('app', 'python-app'); sys.executable = os.path.abspath('python-app')",
    "a program that says nothing": "sys.executable = '/bin/true'",
    "nothing": "sys.executable = ''",
    "None": "sys.executable = None",
    "a file that is gone": "sys.executable = '/nowhere/python'",
}


@pytest.mark.parametrize("kind", NOT_A_PYTHON)
def test_where_there_is_no_python_the_agent_is_a_thread(kind: str):
    """One line says so, everything is delivered, and the program that this is does not train twice."""
    prepare = f"import os, sys\nopen('starts', 'a').write('.')\n{NOT_A_PYTHON[kind]}\n"
    Path("train.py").write_text(f"{prepare}{SCRIPT}open('trained', 'a').write('.')")
    Path("app").write_text(f"#!/bin/sh\nexec '{sys.executable}' '{Path.cwd()}/train.py'\n")
    Path("app").chmod(0o755)
    ended = run(Path("train.py").read_text())
    assert ended.returncode == 0
    assert ended.stderr.count("the agent runs in a thread of this process") == 1
    assert len(ended.stderr.splitlines()) == 1
    assert (delivered(), Path("trained").read_text()) == (3, ".")


def test_an_agent_that_is_a_thread_delivers_what_earlier_runs_have_left():
    """While its own run goes on."""
    assert run(SCRIPT.replace("train.log", "earlier.log"), PERIFLOW_AGENT="off").returncode == 0
    code = f"import os, time\n{SCRIPT}end = time.monotonic() + 20\n"
    code += "while not os.path.exists('earlier.log') or len(open('earlier.log').readlines()) < 3:\n"
    code += "    time.sleep(0.05)\n    assert time.monotonic() < end"
    ended = run(code, PERIFLOW_AGENT="thread")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_gives_no_answer_is_ended_with_all_that_it_has_started():
    """It may be a script around a Python that hangs."""
    began_s = time.monotonic()
    with pytest.raises(NotAPythonError, match="/bin/sh gives no answer"):
        _execute(("/bin/sh", "-c", "sleep 30; echo 1"), [], 2, os.environ, timeout_s=0.2)
    assert time.monotonic() - began_s < 10


def test_what_python_passes_over_in_its_path_is_passed_over():
    """Paths that are no text, for instance."""
    oddities = "import pathlib, sys\nsys.path += [pathlib.Path('/x'), b'/x', None]\n"
    assert run(f"{oddities}{SCRIPT}").returncode == 0
    assert delivered() == 3


def test_a_variable_that_is_ignored_is_said_once():
    """By the script; the agent reads the same variables, and says so in its log alone."""
    ended = run(OTEL_METRIC_EXPORT_INTERVAL="often")
    assert ended.stderr.count("OTEL_METRIC_EXPORT_INTERVAL is 'often', which is ignored") == 1, ended.stderr


def test_no_descriptor_is_free_while_a_run_begins():
    """Training goes on, and all is delivered when there is one again."""
    take_all = "lowest = os.dup(0); os.close(lowest)\nresource.setrlimit(resource.RLIMIT_NOFILE, (lowest, 4096))\n"
    give_back = "resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096)); time.sleep(1.1)"
    begin = (
        f"import os, resource, time, periflow_otel as pf\n{take_all}pf.init(local_log_name='train.log')\n{give_back}"
    )
    ended = run(f"{begin}{METRICS}")
    assert ended.returncode == 0, ended.stderr
    assert delivered() == 3


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_streams_that_are_closed_stay_closed(closed: tuple[int, ...]):
    """A service has none of them; no file of ours takes their place."""
    code = f"import os\nfor each in {closed}:\n    os.close(each)\n{SCRIPT}"
    assert run(code).returncode == 0
    assert delivered() == 3


def test_a_log_that_cannot_be_made_is_done_without():
    """The agent says less and delivers the same."""
    code = f"import os\n{SCRIPT.replace('pf.init', 'make(); pf.init')}"
    make = "def make():\n    folder = f'state/run/{os.uname().nodename}/agent.log'\n    os.makedirs(folder)\n"
    assert run(f"{make}{code}", PERIFLOW_RUN_ID="run").returncode == 0
    assert delivered() == 3


def test_the_output_of_a_rank_is_closed_when_it_ends():
    """Also while others live: a launcher that reads it to its end must see that the rank has failed."""
    code = f"{SCRIPT}print('up', flush=True)\nimport time\ntime.sleep(60)"
    ranks = [{"RANK": each, "LOCAL_RANK": each, "WORLD_SIZE": "2", "PERIFLOW_RUN_ID": "job"} for each in "01"]
    with Training(code=code, **ranks[0]) as first:
        first.read_line()  # so that it is this one that has started the agent
        with Training(code=code, **ranks[1]) as second:
            second.read_line()
            first.kill()  # returns when nobody has its output open any more
            assert second.process.poll() is None
            assert agents(second.state)


def test_a_relative_path_is_that_of_the_moment_of_the_import(tmp_path: Path):
    """A script may go elsewhere before it begins."""
    vendored(tmp_path / "vendor")
    Path("elsewhere").mkdir()
    path = ["vendor", *(os.path.relpath(each) for each in PACKAGES)]
    code = f"import os, sys\nsys.path[:0] = {path!r}\nimport periflow_otel\nos.chdir('elsewhere')\n{SCRIPT}"
    assert run(code, python=os.path.realpath(sys.executable)).returncode == 0
    os.chdir("elsewhere")
    assert delivered() == 3


def test_an_agent_that_cannot_start_is_tried_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Though every checkpoint asks for one; why it fails is said once, and the doctor knows it too."""
    place = vendored(tmp_path / "vendor")
    with (place / "periflow_otel/agent/agent.py").open("a") as module:
        module.write("\nraise MemoryError('this module is broken')\n")
    log = "open(glob.glob('state/*/*/agent.log')[0]).read()"
    wait = f"import glob, time\nwhile 'MemoryError' not in {log}:\n    time.sleep(0.1)\n"
    ask = "for _ in range(20):\n    with pf.train_step(): time.sleep(0.1)\n    pf.upload_checkpoint()"
    ended = run(f"{take_from(place)}{SCRIPT}{wait}{ask}", PERIFLOW_EXIT_TIMEOUT="0")
    assert ended.stderr.count("MemoryError: this module is broken") == 1
    (written,) = Path("state").glob("*/*/agent.log")
    assert written.read_text().count("MemoryError: this module is broken") <= 2  # a slow machine comes to the second
    monkeypatch.setenv("PERIFLOW_STATE_DIR", str(Path.cwd() / "state"))
    assert main(["doctor"]) == 1
    assert "the agent fails before it is at work: MemoryError: this module is broken" in capsys.readouterr().out


def test_a_working_folder_that_is_gone_does_not_matter(tmp_path: Path):
    """A job may have cleaned it up."""
    script, log = tmp_path / "script.py", tmp_path / "train.log"
    leave = "import os\nos.makedirs('gone'); os.chdir('gone'); os.rmdir('../gone')"
    script.write_text(f"{leave}\n{SCRIPT.replace('train.log', str(log))}", "utf-8")
    # Of a file: with "-c", where this folder is in the path, Python 3.13.0 fails at half of its own library.
    begun = run(f"import os, sys\nos.execv(sys.executable, [sys.executable, {str(script)!r}])")
    assert begun.returncode == 0
    assert delivered() == 3


def test_the_last_line_of_progress_comes_before_the_script_has_ended():
    """And nothing after it: then the shell's prompt is there."""
    reader, writer = os.pipe()
    command = [sys.executable, "-c", f"{SCRIPT}pf.metric({{'loss': 7}})"]
    environ = {**os.environ, "PERIFLOW_STATE_DIR": str(Path.cwd() / "state"), "PERIFLOW_CONSOLE": "1"}
    subprocess.run(command, env=environ, stderr=writer, timeout=60, check=True)
    os.write(writer, b"$ ")
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as stream:
        *_, last, prompt = stream.read().splitlines()  # ends when the agent has closed it too
    assert "loss=7" in last
    assert prompt == "$ "


@pytest.mark.parametrize("agent", ["process", "thread"])
def test_a_pipe_that_is_full_holds_nothing_up(agent: str):
    """Nobody reads stderr: everything is delivered, and the script ends."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"." * 512)
    os.set_blocking(writer, True)
    environ = {**os.environ, "PERIFLOW_STATE_DIR": str(Path.cwd() / "state"), "PERIFLOW_CONSOLE": "1"}
    environ |= {"PERIFLOW_AGENT": agent, "OTEL_EXPORTER_PROMETHEUS_PORT": "0"}
    subprocess.run([sys.executable, "-c", SCRIPT], env=environ, stderr=writer, timeout=60, check=True)
    os.close(reader)
    assert delivered() == 3
