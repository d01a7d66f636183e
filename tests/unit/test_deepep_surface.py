"""DeepEP V1's public surface: names, arguments and their order, sizes, and the ways to import it."""

import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import rdmakit.compat.deep_ep as deep_ep
from rdmakit.ep import engine as engines
from rdmakit.ep import rendezvous, tensors
from rdmakit.ep.config import get_low_latency_rdma_size_hint
from rdmakit.errors import BadArgument, NotAvailable

# deep_ep/buffer.py of DeepEP 1.2.1, github.com/deepseek-ai/DeepEP: names and defaults, in their order.
ASYNC = "previous_event=None async_finish=False allocate_on_comm_stream=False"
ROWS = ("x handle=None num_tokens_per_rank=None num_tokens_per_rdma_rank=None is_token_in_rank=None "
        "num_tokens_per_expert=None topk_idx=None topk_weights=None expert_alignment=1")  # fmt: skip
SURFACE = {
    "__init__": "group num_nvl_bytes=0 num_rdma_bytes=0 low_latency_mode=False num_qps_per_rank=24 "
                "allow_nvlink_for_low_latency_mode=True allow_mnnvl=False use_fabric=False explicitly_destroy=False "
                "enable_shrink=False comm=None ranks_per_host=None",
    "destroy": "",
    "is_sm90_compiled": "",
    "set_num_sms": "new_num_sms",
    "capture": "",
    "get_low_latency_rdma_size_hint": "num_max_dispatch_tokens_per_rank hidden num_ranks num_experts",
    "get_comm_stream": "",
    "get_local_buffer_tensor": "dtype size=None offset=0 use_rdma_buffer=False",
    "get_dispatch_config": "num_ranks",
    "get_combine_config": "num_ranks",
    "get_dispatch_layout": f"topk_idx num_experts {ASYNC}",
    "dispatch": f"{ROWS} num_worst_tokens=0 config=None {ASYNC}",
    "combine": f"x handle topk_weights=None bias=None config=None {ASYNC}",
    "internode_dispatch": f"{ROWS} config=None {ASYNC}",
    "internode_combine": f"x handle topk_weights=None bias=None config=None {ASYNC}",
    "clean_low_latency_buffer": "num_max_dispatch_tokens_per_rank hidden num_experts",
    "low_latency_dispatch": "x topk_idx num_max_dispatch_tokens_per_rank num_experts "
                            "cumulative_local_expert_recv_stats=None dispatch_wait_recv_cost_stats=None use_fp8=True "
                            "round_scale=False use_ue8m0=False async_finish=False return_recv_hook=False",
    "low_latency_combine": "x topk_idx topk_weights handle use_logfmt=False zero_copy=False async_finish=False "
                           "return_recv_hook=False out=None combine_wait_recv_cost_stats=None",
    "low_latency_update_mask_buffer": "rank_to_mask mask=False",
    "low_latency_query_mask_buffer": "mask_status",
    "low_latency_clean_mask_buffer": "",
    "get_next_low_latency_combine_buffer": "handle",
}  # fmt: skip


@pytest.mark.parametrize("name", SURFACE)
def test_arguments_are_deep_eps(name):
    parameters = list(inspect.signature(getattr(deep_ep.Buffer, name)).parameters.values())
    found = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters if p.name != "self"]
    assert found == SURFACE[name].split()


def test_nothing_of_the_surface_is_missing():
    assert {"Buffer", "Config", "EventOverlap", "topk_idx_t"} <= set(deep_ep.__all__)
    assert deep_ep.__version__.startswith("1.2.1")
    assert list(inspect.signature(deep_ep.EventOverlap).parameters) == ["event", "extra_tensors"]
    with pytest.raises(AttributeError):
        deep_ep.ElasticBuffer  # noqa: B018  DeepEP V2's


def test_config():
    config = deep_ep.Config(24, 8, 256)
    assert config == deep_ep.Config(num_sms=24, num_max_nvl_chunked_send_tokens=8)
    assert deep_ep.Config(20, 24, 256, 6, 128).num_max_rdma_chunked_recv_tokens == 128
    for arguments, text in [((24, 256, 256), "does not fit its ring .nvl"), ((24, 6, 256, 128, 128), "ring .rdma"),
                            ((24, 0), "send_tokens is no positive"), ((-2,), "num_sms is no number"),
                            ((24, 6.5), "send_tokens is no positive")]:  # fmt: skip
        with pytest.raises(BadArgument, match=text):
            deep_ep.Config(*arguments)


def test_configs_follow_the_number_of_sms(monkeypatch):
    monkeypatch.setattr(deep_ep.Buffer, "num_sms", 20)
    assert deep_ep.Buffer.get_dispatch_config(8).num_sms == 20
    deep_ep.Buffer.set_num_sms(24)
    assert deep_ep.Buffer.get_combine_config(160).num_sms == deep_ep.Buffer.num_sms == 24
    for wrong in (23, -2, "24", True):
        with pytest.raises(BadArgument, match="num_sms is no even number"):
            deep_ep.Buffer.set_num_sms(wrong)


def test_size_hints():
    config = deep_ep.Config()
    assert config.get_nvl_buffer_size_hint(14336, 8) >= 8 * 4096 * 14336
    assert config.get_nvl_buffer_size_hint(14336, 64) == config.get_nvl_buffer_size_hint(14336, 8)
    assert config.get_rdma_buffer_size_hint(14336, 8) == 0 < config.get_rdma_buffer_size_hint(14336, 16)
    small, large = (get_low_latency_rdma_size_hint(n, 7168, 8, 288) for n in (64, 128))
    # At least what comes in and goes home, twice: a row of BF16 each for every token of every rank.
    assert 2 * 8 * 64 * 2 * 2 * 7168 <= small < large and small % 128 == 0
    with pytest.raises(BadArgument, match="hidden % 128"):
        get_low_latency_rdma_size_hint(128, 7000, 8, 288)
    with pytest.raises(BadArgument, match="experts cannot be split"):
        get_low_latency_rdma_size_hint(128, 7168, 8, 289)


# ---- importing it
def run(code, **environment):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={"PYTHONPATH": str(Path(deep_ep.__file__).parents[3]), **environment})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_install_makes_the_name():
    print(run("import rdmakit.compat.deep_ep as ours; ours.install(); ours.install()\n"
              "import importlib.util, deep_ep, deep_ep.utils; from deep_ep.buffer import Buffer\n"
              "from deep_ep.utils import EventHandle, EventOverlap\n"
              "assert deep_ep is ours and deep_ep.Buffer is Buffer and EventOverlap is deep_ep.EventOverlap\n"
              "assert importlib.util.find_spec('deep_ep')"))  # fmt: skip


def test_install_does_not_hide_another():
    run("import sys, types; sys.modules['deep_ep'] = types.ModuleType('deep_ep')\n"
        "import rdmakit.compat.deep_ep as ours\n"
        "from rdmakit.errors import BadState\n"
        "try: ours.install()\n"
        "except BadState as error: assert 'imported already' in str(error)\n"
        "else: raise SystemExit('installed')")  # fmt: skip


def test_a_directory_on_the_path_makes_the_name():
    directory = run("import runpy; runpy.run_module('rdmakit.compat', run_name='__main__')").strip()
    assert [path.name for path in Path(directory).iterdir() if path.is_dir() and path.name != "__pycache__"] == [
        "deep_ep"
    ], "the directory goes on sys.path: what else lies there would hide modules of that name"
    root = str(Path(deep_ep.__file__).parents[3])
    run("import deep_ep, rdmakit.ep; from deep_ep.utils import EventOverlap\n"
        "assert deep_ep.Buffer is rdmakit.ep.Buffer and 'torch' not in __import__('sys').modules",
        PYTHONPATH=f"{root}:{directory}")  # fmt: skip


def test_without_torch():
    run("import sys; sys.modules['torch'] = None\n"
        "from rdmakit.errors import NotAvailable\n"
        "from rdmakit.ep import Buffer, Config\n"
        "import rdmakit.compat.deep_ep as deep_ep\n"
        "Config(24, 8, 256).get_nvl_buffer_size_hint(14336, 8)\n"
        "def probe(call):\n"
        "    try: call()\n"
        "    except NotAvailable as error: assert 'pip install torch' in str(error), error\n"
        "    else: raise SystemExit('available')\n"
        "group = type('Group', (), {'rank': lambda self: 0, 'size': lambda self: 1})()\n"
        "probe(lambda: Buffer(group, 1024)); probe(Buffer.capture); probe(lambda: deep_ep.topk_idx_t)")  # fmt: skip


# ---- meeting the other ranks
def test_a_torch_group_introduces_ranks(monkeypatch):
    gathered = []

    def all_gather_object(found, value, group):
        gathered.append(group)
        found[:] = [value, "theirs"]

    monkeypatch.setattr(
        tensors, "torch", lambda: SimpleNamespace(distributed=SimpleNamespace(all_gather_object=all_gather_object))
    )
    group = SimpleNamespace(rank=lambda: 0, size=lambda: 2)
    met = rendezvous.introduce(group)
    assert (met.rank, met.size, met.all_gather("mine")) == (0, 2, ["mine", "theirs"])
    met.barrier()
    assert gathered == [group, group]


def test_a_host_is_known_by_its_boot(monkeypatch, tmp_path):
    assert rendezvous.host_identity() == rendezvous.host_identity() != ""
    monkeypatch.setattr(rendezvous, "BOOT_ID", tmp_path / "absent")
    assert rendezvous.host_identity()


def test_nvlink_check(monkeypatch):
    reach = SimpleNamespace(device=lambda: SimpleNamespace(index=0), reaches=lambda index: index < 2)
    monkeypatch.setattr(tensors, "backend", lambda: reach)
    from rdmakit.compat.deep_ep import utils

    def met(indices):
        monkeypatch.setattr(utils, "introduce", lambda group: SimpleNamespace(rank=0, all_gather=lambda _: indices))

    met([0, 1])
    utils.check_nvlink_connections(None)
    met([0, 2])
    with pytest.raises(NotAvailable, match=r"rank 0, peer 1, gpu 2"):
        utils.check_nvlink_connections(None)


def test_a_host_of_processes_is_what_they_see(monkeypatch):
    here = rendezvous.runner_host()
    assert here == rendezvous.runner_host() and rendezvous.host_identity() in here
    monkeypatch.setattr(rendezvous.socket, "gethostname", lambda: "another container")
    assert rendezvous.runner_host() != here
    monkeypatch.undo()
    monkeypatch.setattr(rendezvous.os, "readlink", lambda path: f"{path}:[1]")  # a namespace of its own
    assert rendezvous.runner_host() != here


@pytest.mark.parametrize(("machines", "asked", "each"), [
    ("aaaa", None, 4), ("aabb", None, 2), ("ab", None, 1), ("a", None, 1),
    ("aaaa", 2, 2), ("aaaa", 1, 1), ("aabb", 2, 2), ("aabb", 1, 1), ("aaaaaabbbbbb", 3, 3),
])  # fmt: skip
def test_ranks_of_a_host(machines, asked, each):
    assert engines._ranks_of_a_host(list(machines), asked) == each


@pytest.mark.parametrize(("machines", "asked", "text"), [
    ("aab", None, r"not spread evenly over hosts, host by host .value \[2, 1\]"),
    ("abab", None, r"not spread evenly over hosts, host by host .value \[1, 1, 1, 1\]"),
    ("abba", None, r"not spread evenly"),
    ("aabb", 4, "ranks of one host are on several machines .value ranks 0 … 3"),
    ("aaabbb", 2, "ranks of one host are on several machines .value ranks 2 … 3"),
    ("aaaa", 3, "ranks cannot be split evenly over hosts .value 3"),
])  # fmt: skip
def test_ranks_that_make_no_hosts(machines, asked, text):
    with pytest.raises(BadArgument, match=text):
        engines._ranks_of_a_host(list(machines), asked)
