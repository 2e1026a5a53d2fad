"""Who a process is, according to every launcher that is known; torchrun and torch.multiprocessing really run."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from programs import free_ports, needs

from periflow_otel.errors import ConfigurationError, PeriFlowInternalError
from periflow_otel.processes import process_started_unix_ns
from periflow_otel.ranks import CloudVariables, Identity, agree, describe, find_identity, require_cloud
from periflow_otel.ranks.launchers import LAUNCHERS, ONE_PER_NODE, Launcher
from periflow_otel.ranks.launchers import OPEN_MPI as OPEN_MPI_TABLE

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "TORCHELASTIC_RUN_ID": "job-7",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_MAX_RESTARTS": "3",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}
TORCHRUN_ON_ONE_NODE = TORCHRUN | {
    "LOCAL_WORLD_SIZE": "8",
    "LOCAL_RANK": "5",
    "GROUP_RANK": "0",
    "GROUP_WORLD_SIZE": "1",
}
SLURM_BATCH = {
    "SLURM_JOB_ID": "42",
    "SLURM_JOB_NAME": "train",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "5",
    "SLURM_NNODES": "3",
    "SLURM_TASKS_PER_NODE": "2(x2),1",
}
SLURM_STEP = SLURM_BATCH | {
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_NODE_RANK": "1",
    "PMIX_NAMESPACE": "prterun-host-99@1",
}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
PERIFLOW = {"WORLD_SIZE": "8", "NODE_RANK": "1", "NUM_NODES": "2", "PROCESSED_ITERS": "100"}


def found(environ: dict[str, str]) -> Identity:
    """Return the identity that an environment gives to a process without torch."""
    return find_identity(environ, {})


def placement(environ: dict[str, str]) -> tuple[int, ...]:
    """Return rank, local rank, node rank, world size and local world size."""
    return tuple(found(environ)[:5])


# Single processes


def test_a_process_without_launcher_is_alone():
    """No variable means one process with no identity to share."""
    assert found({}) == Identity(0, 0, 0, 1, 1, None, None, "a single process without a launcher")


def test_empty_variables_are_unset():
    """Variables that a template left empty say nothing."""
    assert placement({"RANK": "", "WORLD_SIZE": " ", "SLURM_STEP_ID": "", "LOCAL_RANK": ""}) == (0, 0, 0, 1, 1)


def test_ranks_are_described_in_one_line():
    """The line for the log says where the process is and who said so."""
    assert describe(found(TORCHRUN)) == "rank 5 of 8 (local rank 1 of 4 on node 1), from torchrun"
    assert describe(found({})) == "rank 0 of 1, from a single process without a launcher"


# torchrun


def test_torchrun_tells_everything():
    """All variables of torchrun are used."""
    assert placement(TORCHRUN) == (5, 1, 1, 8, 4)
    assert found(TORCHRUN).run_id == "job-7"


def test_one_torchrun_counts_restarts():
    """A single torchrun counts for all ranks."""
    assert found(TORCHRUN_ON_ONE_NODE).restarts == 2


def test_several_torchruns_disagree_on_restarts():
    """On several nodes each torchrun counts its own restarts, so the number is not used."""
    assert found(TORCHRUN).restarts is None


def test_restarts_by_slurm_and_torchrun_are_numbered_in_order():
    """SLURM starts the job again after torchrun has used up its restarts: every attempt has its own number."""
    assert found(TORCHRUN_ON_ONE_NODE | {"SLURM_RESTART_COUNT": "1"}).restarts == 4 + 2


def test_the_placeholder_of_torchrun_is_no_run_id():
    """What torchrun says when it was given no id is the same for all runs."""
    assert found(TORCHRUN | {"TORCHELASTIC_RUN_ID": "none"}).run_id is None


def test_one_torchrun_without_an_id_is_known_by_its_folder():
    """The folder of the error files has a random name that all ranks of one torchrun share."""
    folder = {"TORCHELASTIC_ERROR_FILE": "/tmp/torchelastic_6nz/none_0qhs_n5k/attempt_0/5/error.json"}  # noqa: S108
    assert found(TORCHRUN_ON_ONE_NODE | {"TORCHELASTIC_RUN_ID": "none"} | folder).run_id == "torchrun-0qhs_n5k"
    alone = found(TORCHRUN | {"TORCHELASTIC_RUN_ID": "none"} | folder)
    assert (alone.run_id, alone.is_common) == ("torchrun-0qhs_n5k", False)


def test_torchruns_without_an_id_in_one_slurm_step_share_the_step():
    """Where srun starts one torchrun per node, the step names the run."""
    step = {"SLURM_JOB_ID": "42", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    assert found(TORCHRUN | {"TORCHELASTIC_RUN_ID": "none"} | step).run_id == "slurm-42.0"


def test_torchruns_in_slurm_steps_of_their_own_share_nothing():
    """Where each torchrun is a step of its own, the steps have different ids."""
    step = {"SLURM_JOB_ID": "42", "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    assert found(TORCHRUN | {"TORCHELASTIC_RUN_ID": "none"} | step).run_id is None


def test_torchrun_inside_slurm_goes_first():
    """SLURM's task is the torchrun, not the rank."""
    assert placement(SLURM_STEP | TORCHRUN) == (5, 1, 1, 8, 4)


WHO_AM_I = """
import json, sys
from pathlib import Path
from periflow_otel.ranks import find_identity
def main():
    identity = find_identity()
    Path(sys.argv[1], f"{identity.rank}.{identity.restarts}").write_text(json.dumps(identity._asdict()))
    return identity
"""


def launch(tmp_path: Path, script: str, *arguments: str) -> dict[str, Any]:
    """Run a script whose ranks write down who they are; return what they wrote, by rank and restarts."""
    path, answers = tmp_path / "script.py", tmp_path / "answers"
    path.write_text(WHO_AM_I + script)
    answers.mkdir()
    command = [sys.executable, *arguments, str(path), str(answers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return {file.name: json.loads(file.read_text()) for file in answers.iterdir()}


@needs("torch")
def test_ranks_of_a_real_torchrun_know_each_other(tmp_path: Path):
    """Two ranks of one torchrun have one run id and different ranks."""
    answers = launch(tmp_path, "main()", "-m", "torch.distributed.run", "--nproc-per-node=2")
    assert sorted(answers) == ["0.0", "1.0"]
    assert {each["run_id"] for each in answers.values()} != {None}
    assert len({each["run_id"] for each in answers.values()}) == 1
    assert [answers["1.0"][name] for name in ("local_rank", "world_size", "local_world_size")] == [1, 2, 2]


@needs("torch")
def test_ranks_of_a_real_torchrun_know_of_a_restart(tmp_path: Path):
    """After a failure the same run has another restart; this torchrun has the id that static rendezvous gives."""
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node=1", "--max-restarts=1", "--monitor-interval=0.1",
                "--rdzv-backend=static", "--rdzv-id=none", "--master-port=0")  # fmt: skip
    answers = launch(tmp_path, "sys.exit(1 - main().restarts)", *torchrun)
    assert sorted(answers) == ["0.0", "0.1"]
    assert answers["0.0"]["run_id"] == answers["0.1"]["run_id"]
    assert answers["0.0"]["run_id"].startswith("torchrun-")


# torch.distributed


@pytest.fixture
def process_group() -> Iterator[None]:
    """Make this process rank 5 of a process group of 8 that exists in name only."""
    pytest.importorskip("torch", reason="torch is not installed")
    import torch.distributed as dist  # noqa: PLC0415  # no other test needs it
    from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: PLC0415  # registers the backend

    dist.init_process_group("fake", rank=5, world_size=8, store=FakeStore())
    yield
    dist.destroy_process_group()


@needs("torch")
@pytest.mark.usefixtures("process_group")
class TestProcessGroup:
    """A process group that was initialised knows best."""

    def test_it_wins_over_variables(self):
        """The rank that training uses is the rank."""
        identity = find_identity({"RANK": "1", "WORLD_SIZE": "2"})
        assert (identity.rank, identity.world_size) == (5, 8)

    def test_ranks_without_launcher_are_on_one_node(self):
        """A script that starts its ranks itself is taken to have one node."""
        assert find_identity({})[:5] == (5, 5, 0, 8, 8)

    def test_variables_still_tell_the_node(self):
        """What torchrun says about the node and the run is kept."""
        identity = find_identity(TORCHRUN)
        assert identity[:6] == (5, 1, 1, 8, 4, "job-7")

    def test_one_task_per_node_tells_the_nodes(self):
        """Where srun starts one task per node and the script starts the ranks, nodes are SLURM's."""
        step = SLURM_STEP | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_PROCID": "1"}
        identity = find_identity(step | {"SLURM_NODEID": "1"})
        assert identity[:6] == (5, 1, 1, 8, 4, "slurm-42.3")

    def test_nodes_may_have_different_numbers_of_ranks(self):
        """What SLURM says of the size of this node is kept."""
        step = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "3,5", "SLURM_PROCID": "5"}
        assert find_identity(SLURM_STEP | step | {"SLURM_NODEID": "1", "SLURM_LOCALID": "2"})[:5] == (5, 2, 1, 8, 5)

    def test_the_description_names_both_sources(self):
        """Who reads the log sees where the rank comes from, and where the node."""
        assert find_identity({}).source == "torch.distributed"
        assert find_identity(TORCHRUN).source == "torch.distributed and torchrun"

    def test_local_rank_is_what_the_launcher_says(self):
        """LOCAL_RANK is right where ranks are not numbered node by node."""
        assert find_identity({"LOCAL_RANK": "2", "WORLD_SIZE": "8", "RANK": "3", "LOCAL_WORLD_SIZE": "4"})[:2] == (5, 2)

    def test_half_set_variables_do_no_harm(self):
        """Who the process is is known, whatever the variables lack."""
        assert find_identity({"WORLD_SIZE": "8"})[:2] == (5, 5)


@needs("torch")
def test_torch_that_is_not_initialised_says_nothing():
    """Importing torch.distributed alone decides nothing."""
    import torch.distributed as dist  # noqa: PLC0415  # no other test needs it

    assert find_identity({}, {"torch.distributed": dist}).world_size == 1
    assert agree("job", {"torch.distributed": dist}) is None
    assert agree("job", {}) is None


@pytest.fixture(params=["memory", "file", "tcp"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Return the key-value store of the process group that this process is in; there is one of every kind."""
    import torch.distributed as dist  # noqa: PLC0415  # no other test needs it

    stores = {
        "memory": dist.HashStore,
        "file": lambda: dist.FileStore(str(tmp_path / "store"), 2),
        "tcp": lambda: dist.TCPStore("127.0.0.1", 0, is_master=True),
    }
    store = stores[request.param]()
    begin_group(store)
    yield store
    dist.destroy_process_group()


def begin_group(store: Any) -> None:
    """Be in a new process group with a store."""
    import torch.distributed as dist  # noqa: PLC0415  # no other test needs it
    from torch.testing._internal.distributed import fake_pg  # noqa: F401, PLC0415  # registers the backend

    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("fake", rank=0, world_size=2, store=store)


@needs("torch")
class TestAgreement:
    """Ranks that have nothing in common but a process group; this process is rank 0, and another one too."""

    @pytest.mark.usefixtures("store")
    def test_what_rank_0_says_is_heard(self):
        """Whoever comes first; each time it is about something else."""
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(agree, None)
            assert agree("one") == waiting.result() == "one"
        assert agree("läuft") == agree(None) == "läuft"

    @pytest.mark.usefixtures("store")
    def test_what_was_said_before_this_process_began_is_not_heard(self):
        """The store of torchrun outlives the ranks of an attempt."""
        import torch.distributed as dist  # noqa: PLC0415  # no other test needs it

        inside = dist.distributed_c10d._get_default_store()
        inside.set("periflow_otel/agreement/1", f"{process_started_unix_ns() - 1_000_000_000} before")
        inside.add("periflow_otel/agreement/1/is_set", 1)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(agree, None)
            assert agree("now") == waiting.result() == "now"

    def test_nothing_is_heard_twice(self, store: Any):
        """A process that makes its group anew, in the same store, waits for news."""
        assert agree("before") == agree(None)
        begin_group(store)
        assert agree(None, timeout_s=0) is None

    def test_a_rank_that_comes_later_hears_what_the_others_hear(self, store: Any):
        """Rank 0 began runs in another group, before the new rank was there: each group counts anew."""
        agree("before")
        begin_group(store)
        agree("now")
        assert agree(None) == "now"

    @pytest.mark.usefixtures("store")
    def test_ranks_wait_for_rank_0_only_so_long(self):
        """It may never call init."""
        assert agree(None, timeout_s=0) is None


@pytest.mark.usefixtures("process_group")
def test_a_store_that_does_not_work_is_no_store():
    """Whatever it raises."""
    assert agree("text") is None


BY_HAND = """
import json, os, sys
from pathlib import Path
import torch.distributed as dist
import periflow_otel as pf
dist.init_process_group("gloo")
runs = [pf.TrainingRun(10) for _ in range(2)]
answer = [(run.run_id, run.info.attempt) for run in runs]
Path("answer." + os.environ["RANK"]).write_text(json.dumps(answer))
dist.barrier()
dist.destroy_process_group()
"""


@needs("torch")
def test_ranks_that_were_started_by_hand_agree_on_an_id(tmp_path: Path):
    """On one for each run that they begin."""
    (port,) = free_ports(1)
    environ = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PERIFLOW_AGENT": "off"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", BY_HAND], env={**environ, "RANK": rank, "WORLD_SIZE": "2"})
        for rank in ("0", "1")
    ]
    assert [each.wait(100) for each in ranks] == [0, 0]
    one, other = (json.loads((tmp_path / f"answer.{rank}").read_text()) for rank in (0, 1))
    assert one == other
    assert [attempt for _, attempt in one] == [1, 1]
    assert one[0][0] != one[1][0]


@needs("torch")
def test_ranks_of_multiprocessing_share_a_run_id(tmp_path: Path):
    """Ranks that torch.multiprocessing.spawn started know that they belong together."""
    spawn = """
import os
import torch.distributed as dist, torch.multiprocessing as mp
def rank(number, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=number, world_size=2)
    main()
    dist.destroy_process_group()
if __name__ == "__main__":
    import socket
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(rank, (port,), nprocs=2)
"""
    answers = launch(tmp_path, spawn)
    assert sorted(answers) == ["0.None", "1.None"]
    (run_id,) = {each["run_id"] for each in answers.values()}
    assert run_id.startswith("spawn-")


# SLURM


def test_slurm_tells_everything():
    """All variables of a step are used, also where nodes have different numbers of tasks."""
    assert placement(SLURM_STEP) == (4, 0, 2, 5, 1)
    assert placement(SLURM_STEP | {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}) == (3, 1, 1, 5, 2)


def test_a_slurm_step_names_the_run():
    """Job and step together are shared by all tasks and by no other run."""
    assert found(SLURM_STEP).run_id == "slurm-42.3"


def test_a_slurm_step_tells_its_attempts_apart():
    """Also from those of another cluster, and of a job that has the same number years later."""
    others = ({}, {"SLURM_RESTART_COUNT": "1"}, {"SLURM_CLUSTER_NAME": "b"}, {"SLURM_JOB_START_TIME": "1"})
    assert len({found(SLURM_STEP | other).launch for other in others}) == 4


def test_slurm_counts_how_often_it_queued_a_job_again():
    """The restart count of the job, which SLURM sets from the first restart on, is the same for all tasks."""
    assert found(SLURM_STEP).restarts == 0
    assert found(SLURM_STEP | {"SLURM_RESTART_COUNT": "2"}).restarts == 2


def test_python_in_a_batch_script_is_alone():
    """Without srun there is one process, though SLURM_PROCID and SLURM_NTASKS look like rank 0 of 5."""
    identity = found(SLURM_BATCH)
    assert identity[:6] == (0, 0, 0, 1, 1, None)
    assert "not started by srun" in identity.source


@pytest.mark.parametrize("step", ["4294967290", "4294967291", "-6"])
def test_the_shell_of_an_allocation_is_no_step(step: str):
    """The numbers that SLURM gives to interactive shells and batch scripts are no steps of srun."""
    assert found(SLURM_BATCH | {"SLURM_STEP_ID": step}).world_size == 1


def test_a_step_counts_its_own_tasks():
    """A step smaller than its job has the world size of the step."""
    smaller = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    assert placement(SLURM_STEP | smaller | {"SLURM_LOCALID": "1"}) == (1, 1, 0, 2, 2)


def test_runs_in_a_terminal_of_slurm_are_different_runs():
    """In a step with a terminal a person starts one run after another."""
    shell = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_PTY_PORT": "44263"}
    assert found(SLURM_STEP | shell).run_id is None


# MPI


def test_open_mpi_tells_everything():
    """All variables are used; OMPI_COMM_WORLD_NODE_RANK, which numbers no nodes, is not."""
    assert placement(OPEN_MPI | {"OMPI_COMM_WORLD_NODE_RANK": "7"}) == (3, 1, 1, 4, 2)
    assert found(OPEN_MPI).run_id == "prterun-host-99@1"


def test_open_mpi_is_told_apart_by_what_it_chose_at_random():
    """Its namespace comes again, with a host name and a process id; twice the same is not random."""
    random = {"OMPI_MCA_orte_precondition_transports": "5d546db0395fa8b9-a26b826472069fc4"}
    identity = found(OPEN_MPI | random)
    assert (identity.run_id, identity.launch) == ("prterun-host-99@1-5d546db0", *random.values())
    same = {"OMPI_MCA_orte_precondition_transports": "017569a900000000-017569a900000000"}
    assert found(OPEN_MPI | same) == found(OPEN_MPI)


def test_horovod_tells_everything():
    """Without MPI its own launcher sets these."""
    environ = {"HOROVOD_RANK": "3", "HOROVOD_SIZE": "4", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"}
    assert placement(environ | {"HOROVOD_CROSS_RANK": "1"}) == (3, 1, 1, 4, 2)


def test_flux_tells_the_nodes():
    """And a job that is its own."""
    environ = {"FLUX_TASK_RANK": "3", "FLUX_JOB_SIZE": "4", "FLUX_TASK_LOCAL_ID": "1", "FLUX_JOB_NNODES": "2"}
    assert placement(environ) == (3, 1, 1, 4, 2)
    assert found(environ | {"FLUX_JOB_ID": "f2Wq"}).run_id == "f2Wq"


def test_jsrun_tells_everything():
    """As Open MPI does."""
    environ = {"JSM_NAMESPACE_RANK": "3", "JSM_NAMESPACE_SIZE": "4", "JSM_NAMESPACE_LOCAL_RANK": "1"}
    assert placement(environ | {"JSM_NAMESPACE_LOCAL_SIZE": "2"}) == (3, 1, 1, 4, 2)


def test_processes_of_jax_are_ranks():
    """One on each node."""
    assert placement({"JAX_PROCESS_ID": "1", "JAX_NUM_PROCESSES": "2"}) == (1, 0, 1, 2, 1)


def test_nodes_of_skypilot_are_ranks():
    """Of a task that has an id; with torchrun, its ranks are."""
    environ = {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_TASK_ID": "sky-2026-11-25_train"}
    assert placement(environ) == (1, 0, 1, 2, 1)
    assert found(environ).run_id == "sky-2026-11-25_train"
    assert placement(environ | TORCHRUN) == (5, 1, 1, 8, 4)


def test_hosts_of_sagemaker_are_ranks():
    """Numbered by their place in the list that all of them get."""
    environ = {"SM_CURRENT_HOST": "algo-2", "SM_HOSTS": '["algo-1", "algo-2"]'}
    assert placement(environ) == (1, 0, 1, 2, 1)
    assert found(environ | {"SM_TRAINING_ENV": '{"job_name": "train-1"}'}).run_id == "train-1"
    assert placement(environ | {"SM_HOSTS": "algo-1,algo-2"}) == (0, 0, 0, 1, 1)


def test_workers_of_a_tpu_slice_are_ranks():
    """As many as there are host names."""
    assert placement({"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "host-0,host-1"}) == (1, 0, 1, 2, 1)


@pytest.mark.parametrize("launcher", [OPEN_MPI_TABLE, *LAUNCHERS, *ONE_PER_NODE], ids=lambda each: each.name)
def test_every_launcher_of_the_table_is_documented(launcher: Launcher):
    """With all variables that are read."""
    page = (Path(__file__).parents[1] / "docs" / "distributed.md").read_text("utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| {launcher.name}")]
    assert not [name for name in launcher.variables if f"`{name}`" not in row]


def test_hydra_tells_everything():
    """All variables of MPICH and Intel MPI are used."""
    assert placement(HYDRA) == (3, 1, 1, 4, 2)


@pytest.mark.parametrize("launcher", [OPEN_MPI, HYDRA])
def test_mpirun_inside_slurm_goes_first(launcher: dict[str, str]):
    """SLURM's task is the daemon of mpirun, not the rank."""
    assert placement(SLURM_STEP | launcher) == (3, 1, 1, 4, 2)


def test_slurm_with_pmi_is_slurm():
    """A step of srun --mpi=pmi2 knows more of itself than PMI does."""
    assert placement(SLURM_STEP | {"PMI_RANK": "4", "PMI_SIZE": "5"}) == (4, 0, 2, 5, 1)


def test_bare_pmi_is_taken_for_one_node():
    """Rank and size alone do not tell nodes apart."""
    assert placement({"PMI_RANK": "1", "PMI_SIZE": "4"}) == (1, 1, 0, 4, 4)


# RANK, NODE_RANK, Kubernetes


def test_deepspeed_tells_the_node():
    """DeepSpeed's names for local size and node are known."""
    variables = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4", "CROSS_RANK": "1"}
    assert placement(variables) == (5, 1, 1, 8, 4)


def test_rank_and_nodes_tell_the_local_rank():
    """The original's rule: local rank is rank modulo WORLD_SIZE // NUM_NODES."""
    assert placement(PERIFLOW | {"RANK": "6"}) == (6, 2, 1, 8, 4)


def test_rank_inside_slurm_goes_first_and_shares_its_step():
    """Who translates SLURM's variables by hand still has SLURM's run id, if the step has just these tasks."""
    assert found(SLURM_STEP | {"RANK": "4", "WORLD_SIZE": "5"}).run_id == "slurm-42.3"
    assert found(SLURM_STEP | {"RANK": "4", "WORLD_SIZE": "10"}).run_id is None


def test_a_process_of_periflow_without_rank_is_the_first_of_its_node():
    """PeriFlow sets no RANK: the process that it starts itself is the first of the node."""
    assert placement(PERIFLOW) == (4, 0, 1, 8, 4)


def test_workers_of_lightning_are_placed_by_node_and_local_rank():
    """Lightning sets no RANK before it has made its process group."""
    assert placement({"NODE_RANK": "0", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}) == (1, 1, 0, 2, 2)


def test_pods_of_an_indexed_job_are_ranks():
    """With WORLD_SIZE each pod of an Indexed Job is one rank on a node of its own."""
    assert placement({"JOB_COMPLETION_INDEX": "2", "WORLD_SIZE": "4"}) == (2, 0, 2, 4, 1)


def test_pods_without_world_size_are_runs_of_their_own():
    """An Indexed Job may well be independent trainings."""
    assert placement({"JOB_COMPLETION_INDEX": "2"}) == (0, 0, 0, 1, 1)


# Mistakes


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "eight", "WORLD_SIZE": "8"}, "RANK is 'eight'; give an integer of at least 0, or unset it"),
        ({"RANK": "-1", "WORLD_SIZE": "8"}, "RANK is '-1'; give an integer of at least 0, or unset it"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE is '0'; give an integer of at least 1, or unset it"),
        ({"RANK": "3"}, "RANK is '3' but WORLD_SIZE is not set; set both, or unset RANK"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is '4' but RANK is not set; set both, or unset WORLD_SIZE"),
        ({"RANK": "8", "WORLD_SIZE": "8"}, "RANK is 8 but WORLD_SIZE is 8; give a rank from 0 to 7"),
        ({"NODE_RANK": "1", "WORLD_SIZE": "4"}, "NODE_RANK is '1' but NUM_NODES is not set; set both, or unset NODE"),
        ({"NODE_RANK": "2", "WORLD_SIZE": "4", "NUM_NODES": "2"}, "make rank 4 but WORLD_SIZE is 4; set RANK, or corr"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": ""}, "OMPI_COMM_WORLD_RANK is '3' but OMPI_COMM_WORLD_SIZE is not set"),
        (SLURM_STEP | {"SLURM_PROCID": "x"}, "SLURM_PROCID is 'x'; give an integer of at least 0"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(environ: dict[str, str], message: str):
    """Malformed, missing and contradicting variables raise, naming variable, value and remedy."""
    with pytest.raises(ConfigurationError) as caught:
        found(environ)
    assert message in str(caught.value)


# Cloud mode


def test_cloud_mode_returns_what_periflow_set():
    """The four variables come back as integers."""
    assert require_cloud(PERIFLOW) == CloudVariables(8, 1, 2, 100)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "8"}, "NODE_RANK is not set"),
        ({"WORLD_SIZE": "8", "NODE_RANK": "0"}, "NUM_NODES is not set"),
        ({"WORLD_SIZE": "8", "NODE_RANK": "0", "NUM_NODES": "2"}, "PROCESSED_ITERS is not set; cloud mode needs it."),
        (PERIFLOW | {"WORLD_SIZE": "eight"}, "WORLD_SIZE is 'eight'; cloud mode needs an integer of at least 1."),
        (PERIFLOW | {"PROCESSED_ITERS": ""}, "PROCESSED_ITERS is ''; cloud mode needs an integer of at least 0."),
        (PERIFLOW | {"NUM_NODES": "0"}, "NUM_NODES is '0'; cloud mode needs an integer of at least 1."),
        (PERIFLOW | {"NUM_NODES": "3"}, "WORLD_SIZE is 8 and NUM_NODES is 3; cloud mode needs the same number"),
    ],
)
def test_cloud_mode_names_what_periflow_did_not_set(environ: dict[str, str], message: str):
    """The first variable that is missing or malformed is named, with the way out."""
    with pytest.raises(PeriFlowInternalError) as caught:
        require_cloud(environ)
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith("Unset PERIFLOW_ENABLED to train locally.")
