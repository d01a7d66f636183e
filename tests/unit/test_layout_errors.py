"""The exception hierarchy: one base, built-in bases kept, parts as attributes, readable text, picklable."""

import pickle

import pytest

from rdmakit import errors

CLASSES = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_takes_the_same_parts_and_survives_pickling(cls):
    error = cls("it broke", value=7, rule="at most 6", remedy="pass 6", rank=3)
    assert isinstance(error, errors.RdmakitError)
    assert str(error) == "it broke (value 7, rank 3)\nrule: at most 6; remedy: pass 6"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls and vars(again) == vars(error) and str(again) == str(error)


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.BadArgument, ValueError),
        (errors.BadKey, KeyError),
        (errors.NotAvailable, ImportError),
        (errors.HangError, TimeoutError),
        (errors.UnknownDevice, LookupError),
    ],
)
def test_builtin_bases(cls, builtin):
    with pytest.raises(builtin):
        raise cls("no")


def test_who_died_survives_pickling():
    error = errors.RankDied("rank 3 died", ranks=(3, 4), report=None)
    again = pickle.loads(pickle.dumps(error))
    assert again.ranks == (3, 4) and str(again) == str(error) == "rank 3 died (ranks 3, 4)"


def test_a_value_of_zero_is_shown():
    assert str(errors.BadArgument("no", value=0)) == "no (value 0)"


def test_extra_parts():
    assert "error: expected ;" in str(
        errors.CompileError("kernel.cu does not compile", log="error: expected ;")
    )
    assert str(errors.HangError("stuck", report="rank 0 waits")).endswith("\nrank 0 waits")
    error = errors.CompletionError("put", syndrome=0x13, wc_status="REM_ACCESS_ERR", qpn=0x1A, wqe_index=0)
    assert (error.syndrome, error.wc_status, error.qpn, error.wqe_index) == (0x13, "REM_ACCESS_ERR", 0x1A, 0)
    assert str(error) == "put (wc_status REM_ACCESS_ERR, syndrome 0x13, qpn 0x1a, wqe_index 0)"
