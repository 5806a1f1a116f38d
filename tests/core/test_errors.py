"""The copy of an error that each consumer gets."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import pytest

import batchstream
from batchstream import (
    BatchStreamError,
    BufferOverflowError,
    ClosedError,
    ConcurrentConsumerError,
    DeadlineError,
    Fail,
    ForkedError,
    MissingEOSError,
    NotNow,
    OverloadedError,
    RequestError,
    SlowConsumerError,
    SourceError,
    demux,
)
from batchstream._core.errors import (
    CostError,
    StepError,
    begin_in_source,
    consumer_error,
    forget_context,
)


class Formatted(Exception):
    """Its text is made of the arguments, so that running `__init__` again would spoil it."""

    def __init__(self, what, *, why):
        super().__init__(f"{what} because {why}")
        self.why = why


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, code):
        super().__init__("slotted")
        self.code = code


class NeedsMore(Exception):
    def __new__(cls, message, extra):
        return super().__new__(cls, message)

    def __init__(self, message, extra):
        super().__init__(message)


class Unshowable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def decode_error():
    try:
        b"\xff".decode()
    except UnicodeDecodeError as error:
        return error


def raised_by_a_source(error):
    try:
        raise error
    except StepError as caught:
        return caught


@pytest.mark.rule(16)
@pytest.mark.parametrize(
    "error",
    [
        ValueError("plain"),
        ValueError(),
        Formatted("failed", why="tired"),
        OSError(2, "No such file", "name"),
        OSError("only text"),
        KeyError("key"),
        decode_error(),
        SyntaxError("bad", ("file", 1, 2, "text")),
        ImportError("no module", name="module", path="path"),
        ExceptionGroup("several", [ValueError(1), TypeError(2)]),
        raised_by_a_source(StepError("step 7 is wrong", step=7)),
    ],
    ids=lambda error: f"{type(error).__name__}-{error.args!r:.20}",
)
def test_a_copy_says_the_same_and_shares_nothing(error):
    error.add_note("a note")
    own = consumer_error(error)
    assert own is not error
    assert type(own) is type(error)
    assert str(own) == str(error)
    assert own.args == error.args
    assert own.__cause__ is error
    assert own.__traceback__ is None
    assert own.__notes__ == ["a note"]
    own.add_note("mine")
    assert error.__notes__ == ["a note"]


@pytest.mark.rule(16)
def test_attributes_and_slots_are_copied():
    assert consumer_error(Formatted("x", why="y")).why == "y"
    assert consumer_error(Slotted(5)).code == 5
    assert consumer_error(OSError(2, "text", "name")).filename == "name"


class Frozen(Exception):
    """Refuses every attribute, as the exception of a frozen dataclass does."""

    __slots__ = ("code",)

    def __init__(self, code):
        super().__init__(code)
        vars(Frozen)["code"].__set__(self, code)

    def __setattr__(self, name, value):
        raise OSError(f"cannot set {name}")


@pytest.mark.rule(16)
def test_an_error_that_refuses_attributes_is_copied_all_the_same():
    original = Frozen(7)
    own = consumer_error(original)
    assert (type(own), own.code, own.args) == (Frozen, 7, (7,))
    assert own.__cause__ is original


class NamelessType(type):
    @property
    def __name__(cls):
        raise OSError("no name")


class Nameless(BaseException, metaclass=NamelessType):
    pass


@pytest.mark.rule(16)
def test_an_error_whose_class_refuses_its_name_reaches_the_consumer():
    assert str(consumer_error(Nameless("text"))) == "the stream failed with Nameless: text"


@pytest.mark.rule(16, 18)
def test_what_cannot_be_copied_becomes_a_source_error_with_type_and_text():
    own = consumer_error(NeedsMore("short of something", 1))
    assert type(own) is SourceError
    assert str(own) == "the stream failed with NeedsMore: short of something"


@pytest.mark.rule(16)
def test_an_exception_that_exists_once_is_wrapped_and_not_shared():
    class Single(Exception):
        instance = None

        def __new__(cls, *args):
            cls.instance = cls.instance or super().__new__(cls, *args)
            return cls.instance

    error = Single("one for all")
    assert type(consumer_error(error)) is SourceError


@pytest.mark.rule(18)
def test_an_error_without_a_text_still_has_a_type():
    error = Unshowable()
    assert type(consumer_error(error)) is Unshowable

    class AlsoUncopyable(Unshowable):
        def __new__(cls, *args):
            if args:
                raise TypeError
            return super().__new__(cls)

    broken = AlsoUncopyable()
    broken.args = ("x",)
    assert str(consumer_error(broken)) == "the stream failed with AlsoUncopyable: <no text>"


@pytest.mark.rule(17)
@pytest.mark.parametrize(
    "error", [StopIteration("x"), StopAsyncIteration("x"), KeyboardInterrupt("x"), SystemExit("x")]
)
def test_what_would_be_misunderstood_is_wrapped(error):
    own = consumer_error(error)
    assert type(own) is SourceError
    assert isinstance(own, BatchStreamError)
    assert str(own) == f"the stream failed with {type(error).__name__}: x"
    assert own.__cause__ is error


@pytest.mark.rule(16)
def test_the_context_of_the_consumer_that_pulled_is_cut_off_at_any_depth():
    handled, middle, error = KeyError("consumer"), ValueError("source"), OSError("source")
    middle.__context__, error.__context__ = handled, middle
    forget_context(error, handled)
    assert error.__context__ is middle
    assert middle.__context__ is None


@pytest.mark.rule(16)
def test_a_context_of_the_sources_own_is_kept():
    inner, error = ValueError("source"), OSError("source")
    error.__context__ = inner
    forget_context(error, None)
    forget_context(error, KeyError("another"))
    assert error.__context__ is inner


RAISE = compile("raise ValueError", "<raised>", "exec")
CALL = compile("raise_there()", "<called>", "exec")


def names_left(*modules):
    """Raise through the modules named, the outermost first; return what the cut leaves of them."""

    def enter(depth=0):
        inner = depth + 1 < len(modules)
        namespace = {"__name__": modules[depth], "raise_there": lambda: enter(depth + 1)}
        exec(CALL if inner else RAISE, namespace)  # noqa: S102 - a module of any name

    try:
        enter()
    except ValueError as error:
        reached = error.__traceback__.tb_next.tb_next  # behind this function and `enter`
        error.__traceback__ = reached
        begin_in_source(error)
        left = []
        traceback = error.__traceback__
        while traceback is not None:
            left.append(traceback.tb_frame.f_globals["__name__"])
            traceback = traceback.tb_next
        return [name for name in left if name != __name__]


def test_the_traceback_of_an_error_of_a_source_begins_in_the_source():
    assert names_left("batchstream._pumps.pull", "model", "batchstream.model") == [
        "model",
        "batchstream.model",
    ]


def test_the_traceback_of_an_error_that_never_left_the_package_keeps_no_frame():
    assert names_left("batchstream._pumps.pull") == []


@pytest.mark.parametrize("name", [None, 3])
def test_a_module_may_have_any_name(name):
    assert names_left(name, "model") == [name, "model"]


# ---- errors of classes that have their own ideas


class MadeItsOwnWay(Exception):
    """Its `args` do not make it, but `copy.copy` does."""

    def __new__(cls, message, *, code):
        made = super().__new__(cls, message)
        made.code = code
        return made

    def __init__(self, message, *, code):
        super().__init__(message)

    def __reduce__(self):
        return _make_its_own_way, (self.args[0], self.code)


def _make_its_own_way(message, code):
    return MadeItsOwnWay(message, code=code)


@dataclass(frozen=True)
class FrozenRecord(Exception):
    code: int


class Measured(Exception):
    """It is empty, and false."""

    def __len__(self):
        return 0


@pytest.mark.rule(16)
@pytest.mark.parametrize(
    "error", [MadeItsOwnWay("text", code=7), FrozenRecord(7), Measured("text")]
)
def test_an_error_that_copy_can_copy_keeps_its_type(error):
    error.__dict__["__notes__"] = ["a note"]
    own = consumer_error(error)
    assert type(own) is type(error)
    assert own is not error
    assert (str(own), getattr(own, "code", None)) == (str(error), getattr(error, "code", None))
    assert own.__cause__ is error
    assert own.__notes__ == ["a note"]
    assert own.__notes__ is not error.__notes__
    assert (own.__context__, own.__traceback__) == (None, None)


@pytest.mark.rule(9)
def test_an_error_whose_class_refuses_attributes_reaches_every_stream():
    def source():
        yield ["a", "x"]
        raise Frozen(7)

    for make in (source, lambda: [[Fail(Frozen(7)), Fail(Frozen(7))]]):
        for stream in demux(make(), 2):
            with pytest.raises(Frozen):
                list(stream)


# ---- pickling


OURS = [
    BatchStreamError("text"),
    SourceError("text"),
    StepError("text", step=3),
    RequestError("text"),
    CostError("text"),
    NotNow("text"),
    MissingEOSError("text", slot=1, outputs=2),
    BufferOverflowError("text", slots=(1, 2), max_buffered=3),
    SlowConsumerError("text", slot=1, max_buffered=3),
    ConcurrentConsumerError("text"),
    OverloadedError("text", pending=7, max_pending=5),
    DeadlineError("text", timeout=1.5),
    ClosedError("text"),
    ForkedError("text"),
]


def test_all_errors_are_pickled_here():
    public = {getattr(batchstream, name) for name in batchstream.__all__}
    errors = {each for each in public if isinstance(each, type) and issubclass(each, Exception)}
    assert errors | {CostError} == {type(error) for error in OURS}


@pytest.mark.rule(18)
@pytest.mark.parametrize("error", OURS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_of_ours_is_pickled_with_type_text_and_data(error, protocol):
    error.add_note("a note")
    try:
        for own in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):  # noqa: S301
            assert type(own) is type(error)
            assert (str(own), own.args, vars(own)) == ("text", ("text",), vars(error))
    finally:
        del error.__notes__


def raise_overloaded():
    raise OverloadedError("text", pending=7, max_pending=5)


@pytest.mark.rule(18)
def test_an_error_of_ours_breaks_no_pool_of_processes():
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for _ in range(2):
            with pytest.raises(OverloadedError, match="text") as raised:
                pool.submit(raise_overloaded).result()
            assert (raised.value.pending, raised.value.max_pending) == (7, 5)
