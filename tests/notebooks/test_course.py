"""What a learner meets: checks that help and never wedge, hints that grow, predictions, cells for real
hardware."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from rdmakit import course
from rdmakit.course.deadline import OutOfTime, bounded
from rdmakit.course.exercise import find
from rdmakit.course.trial import Trial, Wrong

HINTS = ("Look at the sizes.", "Every size changes.", "Add each size to itself.")


@course.exercise("98.double", hints=HINTS, seconds=0.2)
def _double(trial: Trial, double) -> None:
    answer = trial.call(double, [2, 8])
    trial.is_a(answer, list, "what double returns")
    trial.equal(answer, [4, 16], "what double returns")


@pytest.fixture(autouse=True)
def fresh():
    course.forget()
    yield
    assert (
        signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, signal.SIG_IGN, None)
        or signal.getitimer(signal.ITIMER_REAL)[0] > 0
    )


def right(sizes):
    return [2 * size for size in sizes]


def swallows_everything(sizes):
    while True:
        try:
            while True:
                pass
        except:  # noqa: E722  the point: a bare except must not swallow the alarm for ever
            pass


def swallows_in_its_handler_too(sizes):
    while True:
        try:
            try:
                time.sleep(9)
            finally:
                time.sleep(9)
        except BaseException:
            try:
                time.sleep(9)
            except:  # noqa: E722
                continue


def swallows_at_every_level(sizes):
    while True:
        try:
            swallows_in_its_handler_too(sizes)
        except:  # noqa: E722
            swallows_everything(sizes)


def suppresses(sizes):
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(9)


def exits(sizes):
    raise SystemExit(3)


def test_hints_grow_and_never_hold_the_answer():
    said = [str(course.check("98.double", lambda sizes: [1, 1])) for _ in range(4)]
    assert [next(h for h in HINTS if h in text) for text in said] == [*HINTS, HINTS[2]]
    assert ["hint 1 of 3" in said[0], "hint 2 of 3" in said[1], "hint 3 of 3" in said[3]] == [True] * 3
    assert not any("16" in text or "[4" in text for text in said)


def test_a_right_answer_passes_and_a_later_wrong_one_takes_it_back():
    assert not course.passed("98.double")
    result = course.check("98.double", right)
    assert result and result.passed and course.passed("98.double") and "hint" not in str(result)
    course.check("98.double", lambda sizes: sizes)
    assert not course.passed("98.double")
    assert course.results() == {"98.double": {"passed": False, "attempts": 2, "kind": "wrong"}}


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (lambda sizes: None, "type", "should be of type list, but is NoneType: None (nothing was returned"),
        (lambda sizes: np.array([4, 16]), "type", "should be of type list, but is ndarray"),
        (lambda sizes: [4], "type", "should have 2 elements, but has 1"),
        (lambda sizes: [4, 15], "wrong", "element 1 is 15, which is not right"),
        (lambda sizes: sizes[7], "exception", "raised IndexError: list index out of range in line"),
        (lambda: None, "exception", "takes 0 positional arguments"),
        (lambda sizes: right(right), "exception", "TypeError"),
        (exits, "exception", "exits raised SystemExit: '3' in line"),
        (42, "type", "pass the function itself; got 42, of type int"),
        (None, "type", "pass the function itself"),
        (swallows_everything, "timeout", "still running after 0.2 s in line"),
    ],
)
def test_a_wrong_answer_gets_a_useful_message(answer, kind, words):
    result = course.check("98.double", answer)
    assert (result.passed, result.kind) == (False, kind)
    assert words in result.message
    ElementTree.fromstring(result._repr_html_())


@pytest.mark.parametrize(
    "stubborn", [swallows_everything, swallows_in_its_handler_too, swallows_at_every_level, suppresses]
)
def test_no_loop_outlives_its_bound_for_long(stubborn):
    traced, started = sys.gettrace(), time.monotonic()
    for _ in range(3):
        with pytest.raises(OutOfTime, match=r"still running after 0\.02 s"):
            bounded(0.02, stubborn, [])
    assert time.monotonic() - started < 3
    assert (sys.gettrace(), sys.getprofile()) == (traced, None)


def test_a_bound_inside_a_bound_ends_with_the_outer():
    started = time.monotonic()
    with pytest.raises(OutOfTime):
        bounded(0.05, bounded, 60, swallows_everything, [])
    assert time.monotonic() - started < 2


def test_a_message_names_the_learners_own_line():
    def reads_too_far(sizes):
        return sizes[99]

    assert "`return sizes[99]`" in course.check("98.double", reads_too_far).message


def test_endless_recursion_is_an_answer_too():
    def again(sizes):
        return again(sizes)

    assert "calls itself without end" in course.check("98.double", again).message


def test_an_answer_that_never_ends_when_looked_at():
    class Tar:
        def __eq__(self, other):
            while True:
                pass

        def __hash__(self):
            return 0

    started = time.monotonic()
    result = course.check("98.double", lambda sizes: [Tar(), Tar()], seconds=0.05)
    assert result.kind == "timeout" and time.monotonic() - started < 5


def test_a_broken_check_says_so_and_does_not_pass():
    @course.exercise("98.broken", hints=HINTS)
    def broken(trial, answer):
        return answer.nothing

    result = course.check("98.broken", "text")
    assert not result and result.kind == "check" and "could not make sense of 'text' (str)" in result.message


def test_names_are_checked():
    with pytest.raises(KeyError, match=r"did you mean '98\.double'"):
        course.check("98.duoble", right)
    with pytest.raises(KeyError, match=r"no exercise '97\.nothing'"):
        find("97.nothing")
    with pytest.raises(ValueError, match="two digits, a dot and a word"):
        course.exercise("double", hints=HINTS)
    with pytest.raises(ValueError, match="needs three hints"):
        course.exercise("98.other", hints=("one", "two", " "))


def test_one_name_belongs_to_one_module():
    def stranger(trial):
        pass

    stranger.__module__ = "somewhere.else"
    with pytest.raises(ValueError, match="registered twice"):
        course.exercise("98.double", hints=HINTS)(stranger)


def test_the_bound_gives_back_the_former_handler_and_timer():
    fired = []
    former = signal.signal(signal.SIGALRM, lambda *_: fired.append(1))
    outer = signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(OutOfTime):
            bounded(0.05, swallows_everything, [])
        assert not fired and 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.3
        time.sleep(0.35)
        assert fired == [1]
    finally:
        signal.signal(signal.SIGALRM, former)
        signal.setitimer(signal.ITIMER_REAL, *outer)


def test_the_bound_says_where_it_works():
    said = []

    def elsewhere():
        try:
            bounded(1, right, [1])
        except RuntimeError as error:
            said.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "main thread" in said[0]


def test_the_questions_of_a_trial():
    trial = Trial()
    trial.is_a(np.int32(3), int)
    trial.is_a(np.float32(3), float)
    trial.is_a(3, float)
    trial.equal(np.uint8(3), 3)
    trial.equal(np.arange(3), np.array([0, 1, 2]))
    trial.equal([0, 1, 2], np.array([0, 1, 2]))
    trial.equal(bytearray(b"ab"), b"ab")
    trial.equal({"a": 1}, {"a": 1})
    trial.near(1.1, 1.0, 0.2)
    trial.has_shape(np.zeros((2, 3), "f4"), (2, 3), "f4")
    for question, words in [
        (lambda: trial.is_a(True, int), "should be of type int, but is bool"),
        (lambda: trial.equal(b"ab", b"ac"), "element 1 is 0x62, which is not right"),
        (lambda: trial.equal("RTS", "RTR"), "is 'RTS', which is not right"),
        (lambda: trial.equal([[1], [2, 3]], np.zeros((2, 2))), "does not make an array"),
        (lambda: trial.equal(np.zeros(3), np.zeros((3, 1))), "should have shape (3, 1), but has (3,)"),
        (lambda: trial.near(2.0, 1.0, 0.2), "too high"),
        (lambda: trial.near(float("nan"), 1.0, 0.2), "a finite number"),
        (lambda: trial.near("2", 1.0, 0.2), "should be of type float, but is str"),
        (lambda: trial.has_length(3, 2), "should have 2 elements, but is int"),
        (lambda: trial.has_shape([1], (1,)), "should be a NumPy array of shape (1,), but is list"),
        (lambda: trial.has_shape(np.zeros(2), (2,), "u1"), "should have dtype uint8, but has float64"),
        (lambda: trial.require(False, "no"), "no"),
    ]:
        with pytest.raises(Wrong) as caught:
            question()
        assert words in str(caught.value)


def test_predictions():
    assert "Type your number" in str(course.predict("p", "How many?"))
    assert course.plot_prediction("p", 3, "B").title == "Result 3 B: you made no prediction"
    assert "got 'ten', of type str" in str(course.predict("p", "How many?", "ten"))
    assert "finite" in str(course.predict("p", "How many?", float("inf"))) and course.predicted("p") is None
    made = course.predict("p", "How <many>?", np.int64(6), "B")
    assert course.predicted("p") == 6.0 and "&lt;many&gt;" in made._repr_html_()
    assert course.reveal("p", 3).title == "Result 3 B: you said 2x too much"
    assert [line.split()[0] for line in str(course.reveal("p", 6)).splitlines()] == [
        "Result",
        "your",
        "result",
    ]


def _device(root, name, driver, ports):
    device = root / "sys/class/infiniband" / name
    for port in range(ports):
        (device / "ports" / str(port + 1)).mkdir(parents=True)
    (root / "drivers" / driver).mkdir(parents=True, exist_ok=True)
    (device / "device").mkdir()
    (device / "device/driver").symlink_to(root / "drivers" / driver)


def test_hardware_is_asked_for_by_name(tmp_path, capsys, monkeypatch):
    assert "no NVIDIA GPU here" in course.missing("gpu", tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "CuPy is not installed (pip install" in course.missing("gpu+cupy", tmp_path)
    assert course.missing("rdma+dual-port", tmp_path).startswith("no RDMA device here")
    _device(tmp_path, "rxe0", "rdma_rxe", 1)
    assert course.missing("rdma", tmp_path) == ""
    assert course.missing("mlx5", tmp_path) == "no mlx5 device here, only rxe0 (rdma_rxe)"
    assert "1 here" in course.missing("dual-port", tmp_path)
    _device(tmp_path, "mlx5_0", "mlx5_core", 2)
    assert course.missing("mlx5+dual-port", tmp_path) == ""
    with pytest.raises(ValueError, match="unknown requirement 'mlx6'"):
        course.hardware_cell("mlx6", tmp_path)
    capsys.readouterr()

    @course.hardware_cell("mlx5", tmp_path)
    def there():
        return 7

    @course.hardware_cell("gpu", tmp_path)
    def not_there():
        raise AssertionError("must not run")

    assert there == 7 and "skipped: no NVIDIA GPU" in capsys.readouterr().out
    assert "Skipped: no NVIDIA GPU" in not_there._repr_html_()


def test_a_plot_needs_a_finding_and_units():
    with pytest.raises(ValueError, match="states its finding"), course.plot(" ", "size (B)", "time (ns)"):
        pass
    with (
        pytest.raises(ValueError, match="y label 'time' names no unit"),
        course.plot("It grows", "size (B)", "time"),
    ):
        pass


def test_a_plot_takes_its_ink_from_the_page(monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'rdmakit[notebooks]'")
    shown = []
    monkeypatch.setattr("rdmakit.course.plots.display", shown.append)
    for _ in range(2):
        with course.plot("Time <grows>", "size (B)", "time (ns)") as axes:
            axes.plot([1, 2], [3, 4])
    html = shown[0]._repr_html_()
    assert "currentColor" in html and "#010203" not in html and "<style" not in html
    assert "Time &lt;grows&gt;" in html and html == shown[1]._repr_html_()
