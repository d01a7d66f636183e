"""A story says what a schedule shows: who did what, what was old, who is late. Also as a picture, also from a file."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from rdmakit.cli import main
from rdmakit.errors import CorruptFile
from rdmakit.explore import Explorer, load_schedule, save_schedule
from rdmakit.explore.sites import Kind
from rdmakit.show import step_chart

ROOT = Path(__file__).resolve().parents[2]
QUEUE = "rdmakit/queue.cuh"
LINES = enumerate((ROOT / "cuda" / QUEUE).read_text().splitlines(), 1)
RECORD_FENCE = next(number for number, line in LINES if "the record before the register" in line)
FLAG = '''
import numpy as np

KERNEL = r"""
#include <rdmakit/warp.cuh>
RDMAKIT_KERNEL produce(unsigned* data, unsigned* flag) {
    if (threadIdx.x != 0) return;
    for (unsigned i = 0; i < 8; ++i) data[i] = 10 + i;
    *(volatile unsigned*)flag = 1;
}
RDMAKIT_KERNEL consume(const unsigned* data, const unsigned* flag, unsigned* copy) {
    if (threadIdx.x != 0) return;
    while (*(const volatile unsigned*)flag == 0) {}
    for (unsigned i = 0; i < 8; ++i) copy[i] = data[i];
}
"""


def flag_without_release(scene):
    """a flag that nothing orders behind its data"""
    world = scene.world(hosts=1)
    data, flag, copy = (world.array(n, np.uint32, name=name) for n, name in ((8, "data"), (1, "flag"), (8, "copy")))
    kernels = world.compile(KERNEL, name="flag.cu")
    kernels.get_function("consume")(1, 32, [data, flag, copy])
    kernels.get_function("produce")(1, 32, [data, flag], stream=1)
    scene.expect(copy, np.arange(10, 18))
    if scene.options.get("values_only"):
        scene.allow_latent_races()


def checked(scene):
    """checks that answer what the options say"""
    module = scene.world(hosts=1).compile("__global__ void nothing(int) {}")
    module.get_function("nothing")(1, 1, (np.int32(0),))
    scene.keep(module)
    for answer in scene.options["answers"]:
        scene.check(lambda answer=answer: answer)


def broken(scene):
    raise KeyError("oh")
'''


@pytest.fixture(scope="module")
def no_fence():
    explorer = Explorer("put-signal")
    explorer.core.mutate(QUEUE, RECORD_FENCE, int(Kind.FENCE), True)
    failure = explorer.run(2000).failure
    return explorer, explorer.shrink(failure)


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "user_flag.py"
    path.write_text(FLAG)
    return str(path)


def test_a_calm_story_names_what_happens_and_leaves_out_the_rest():
    story = Explorer("put-signal").story(decisions=())
    text = str(story)
    assert not story.failed and not story.stale and text.endswith("held")
    for said in (
        "rank 0 put_and_signal", "writes WQE 0: RDMA_WRITE", "writes WQE 1: ATOMIC_FA", "fence.sys",
        "rings the doorbell", "NIC 0", "hears the doorbell", "reads the doorbell record: posted up to 2",
        "sends WQE 0: RDMA_WRITE",
        "NIC 1", "executes WQE 0: RDMA_WRITE", "places payload in sink[0…31]", "adds: sink[32] is now 1",
        "WQE 1: ATOMIC_FA is acknowledged", "writes a CQE: WQE 1 is complete", "reads sink[0…31]: 7 … 38",
        "writes sum = 720",
    ):  # fmt: skip
        assert said in text, said
    assert "handle of" not in text and "SqState" not in text and "report of" not in text
    assert len(story.lines) < 30 < story.hidden
    assert story.hidden + sum(len(line.steps) for line in story.lines) > 150  # of primitives, arguments and memory


def test_an_old_value_is_told_with_the_new_one_and_its_writer(no_fence):
    explorer, failure = no_fence
    story = explorer.story(decisions=failure.decisions)
    (old,) = story.stale
    assert old.who == "NIC 0" and "posted up to 0; old: posted up to 2 was written in step" in old.what
    assert "rank 0 put_and_signal" in old.what
    assert [line.number for line in story.lines if set(line.steps) & set(old.should_see)], "the newer write is told"
    assert "waits for completion of all posted work, expected 2, seen 0" in story.verdict
    assert "nothing made that write visible to it in time" in story.why[0]


def test_a_story_is_drawn_with_its_arrows_and_fits_its_page(no_fence):
    explorer, failure = no_fence
    for story in (explorer.story(decisions=failure.decisions), Explorer("put-signal").story(seed=5)):
        picture = ElementTree.fromstring(story._repr_html_())
        texts = ["".join(e.itertext()) for e in picture.iter() if e.tag.endswith("text")]
        assert {"rank 0 put_and_signal", "NIC 0"} <= set(texts)
        assert "max-width:100%" in picture.attrib["style"] and float(picture.attrib["width"]) <= 900
        assert sum(1 for e in picture.iter() if e.tag.endswith("polygon")) >= (2 if story.failed else 9)
    assert picture.attrib["aria-label"].endswith("held")


def test_columns_stand_so_that_neighbours_talk():
    lanes = Explorer("put-signal").story(seed=2).lanes
    assert lanes == ["rank 0 put_and_signal", "NIC 0", "NIC 1", "rank 1 wait_and_sum"]


def test_a_race_is_told_with_both_places_and_both_steps(user_file):
    explorer = Explorer(f"{user_file}:flag_without_release")
    story = explorer.story(decisions=explorer.shrink(explorer.run(500).failure).decisions)
    bad = [line for line in story.lines if line.bad]
    assert {line.who for line in bad} == {"rank 0 produce", "rank 0 consume"}
    assert "nothing orders two accesses to data[" in story.why[-1] and "flag.cu:5" in story.why[-1]
    assert all(str(line.number) in story.why[-1] for line in bad)
    assert "reads flag = 0" in str(story) and "times)" in str(story)


def test_a_wrong_value_is_told_with_the_read_that_made_it(user_file):
    explorer = Explorer(f"{user_file}:flag_without_release", values_only=True)
    story = explorer.story(decisions=explorer.shrink(explorer.run(2000).failure).decisions)
    assert "copy[" in story.verdict and "should be" in story.verdict
    assert any("data[" in line.what and "old" in line.what for line in story.stale)


def test_many_steps_are_drawn_from_the_end():
    explorer = Explorer("put-signal")
    story = explorer.story(seed=1)
    story.lines = [line for _ in range(8) for line in story.lines]
    assert "earlier lines are not drawn" in story._repr_html_()
    assert len(str(story).splitlines()) > 100


def test_a_schedule_survives_its_file(no_fence, tmp_path):
    explorer, failure = no_fence
    save_schedule(tmp_path / "s.json", explorer, failure)
    saved = load_schedule(tmp_path / "s.json")
    assert (saved.decisions, saved.seed, saved.scenario) == (failure.decisions, failure.seed, "put-signal")
    assert saved.explorer().one(decisions=saved.decisions) is None, "without the mutant it holds"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schedule": 2}', '{"schedule": 1}', '{"schedule": 1, "decisions": [-1]}', "\xff"]
)
def test_a_file_that_is_no_schedule_is_refused(tmp_path, capsys, text):
    path = tmp_path / "s.json"
    path.write_bytes(text.encode("latin-1"))
    assert main(["replay", "--schedule", str(path)]) == 2
    assert "schedule" in capsys.readouterr().err


def test_a_schedule_of_another_version_is_refused(tmp_path, no_fence):
    path = tmp_path / "s.json"
    save_schedule(path, *no_fence)
    path.write_text(path.read_text().replace('"schedule": 1', '"schedule": 7'))
    with pytest.raises(CorruptFile, match=r"another version \(value 7\)"):
        load_schedule(path)


@pytest.mark.parametrize("answers", [(True, "no"), ("no", True), (False, True), (None, True)])
def test_of_several_checks_all_have_to_hold(user_file, answers):
    failure = Explorer(f"{user_file}:checked", answers=answers).run(3).failure
    assert (failure is None) == (answers == (None, True))
    assert failure is None or "no" in failure.what


def said(capsys, *words: str) -> tuple[int, dict]:
    status = main([*words, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_explore_says_whether_it_held(capsys):
    status, result = said(capsys, "explore", "put-signal", "--schedules", "300", "--set", "words=4")
    assert status == 0 and result["ok"] and result["config"]["options"]["words"] == 4
    assert set(result["figures"]) == {"schedules", "schedules_per_s", "distinct", "failures", "first_failing_seed"}
    assert result["figures"]["schedules"] == 300 and result["figures"]["distinct"] > 5
    assert main(["explore", "put-signal", "--seconds", "0.2"]) == 0
    assert "held over" in capsys.readouterr().out


def test_explore_all_of_them(capsys):
    status, result = said(capsys, "explore", "put-signal", "--exhaustive", "--stale", "1", "--switches", "3")
    assert status == 0 and result["figures"]["complete"] == 1 and result["figures"]["states"] > 100
    assert result["config"]["bounds"] == "at most 1 stale loads, at most 3 switches"


def test_a_failure_is_saved_and_told_again(capsys, tmp_path, user_file):
    schedule, picture, scenario = str(tmp_path / "s.json"), tmp_path / "s.html", f"{user_file}:flag_without_release"
    status, result = said(capsys, "explore", scenario, "--save", schedule)
    assert status == 1 and result["figures"]["failures"] == 1
    seed = str(result["figures"]["first_failing_seed"])
    status, result = said(capsys, "replay", "--schedule", schedule, "--html", str(picture))
    assert status == 1 and "nothing orders" in result["story"]["why"][-1]
    ElementTree.fromstring(picture.read_text().partition("</style>\n")[2].partition("<h2>")[0])
    for more in ([], ["--no-shrink"]):
        assert main(["replay", scenario, "--seed", seed, *more]) == 1
        assert "raced: two accesses that nothing orders" in capsys.readouterr().out
    assert main(["explore", scenario]) == 1
    assert f"rdmakit replay {scenario} --seed {seed}" in capsys.readouterr().out


def test_scenarios_are_listed(capsys):
    status, result = said(capsys, "explore", "--list")
    assert status == 0 and "put-signal" in {s["name"] for s in result["scenarios"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["explore"], "no scenario given"),
        (["explore", "nosuch"], "no such scenario"),
        (["explore", "nosuch.py:f"], "no such file"),
        (["explore", "FILE:nothing"], "no such function"),
        (["explore", "FILE:broken"], "cannot be set up: KeyError: 'oh'"),
        (["explore", "put-signal", "--set", "words"], "no setting"),
        (["explore", "put-signal", "--set", "faults='loss'"], "by two names"),
        (["explore", "put-signal", "--faults", "nosuch"], ""),
        (["explore", "put-signal", "--schedules", "0"], "--schedules makes no search"),
        (["explore", "put-signal", "--seconds", "nan"], "--seconds makes no search"),
        (["explore", "put-signal", "--stale", "1"], "go with --exhaustive"),
        (["replay", "put-signal", "--seed", "-1"], "--seed makes no schedule"),
        (["replay", "--seed", "1"], "no scenario given"),
        (["replay", "--schedule", "/nosuch.json"], "cannot read the schedule"),
        (["replay", "put-signal", "--seed", "1", "--html", "/nosuch/x.html"], "cannot write the picture"),
    ],
)
def test_bad_input_is_a_typed_error(capsys, user_file, words, message):
    assert main([word.replace("FILE", user_file) for word in words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err


def test_a_chart_of_steps_refuses_a_lane_that_is_not_there():
    with pytest.raises(ValueError, match="not among the lanes"):
        step_chart(["A"], [(1, "B", "x")])


def test_a_chart_of_steps_draws_arrows_between_columns_only():
    steps = [(1, "A", "a"), (2, "A", "b"), (3, "B", "c" * 400)]
    assert step_chart(["A", "B"], steps, [(1, 2), (1, 9)]).svg.count("<polygon") == 0
    assert step_chart(["A", "B"], steps, [(1, 3), (2, 3, "bad")]).svg.count("<polygon") == 2


def test_words_of_a_plain_array_are_one_line(user_file):
    story = Explorer(f"{user_file}:flag_without_release").story(decisions=())
    assert np.count_nonzero(["copy[" in line.what for line in story.lines]) <= 2
