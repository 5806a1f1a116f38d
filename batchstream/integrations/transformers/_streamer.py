"""`BatchStreamer`: what `generate` is given as its streamer, for a call that is not ours.

Theory of operation
-------------------

`generate` puts each step into a streamer, here into a `Channel`, on whose other side the streams
are. The ids pass `decode_steps` on their way, which knows the ends of slots and decodes text. It
takes its steps from a source: what was put last.

`generate` says nothing of a failure. `run` calls it, and hands its error on. Where a program calls
it, the end of its thread is noticed: what a thread keeps for itself is dropped then. The guard lies
there from the first `put` on. Before, nothing has told in which thread `generate` runs: it fails
unnoticed then, as long as something keeps the streamer.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic

from transformers import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from typing_extensions import TypeVar

from batchstream import (
    AsyncStream,
    Channel,
    ClosedError,
    Many,
    SourceError,
    Stream,
)
from batchstream.integrations.transformers._ids import ids_of
from batchstream.integrations.transformers._limits import limits_of_slots
from batchstream.integrations.transformers._marks import (
    Left,
    Marks,
    RowCriteria,
    listed,
    taken_criteria,
)
from batchstream.integrations.transformers._prompts import unpadded
from batchstream.integrations.transformers._reader import Reader
from batchstream.integrations.transformers._settings import Settings, named
from batchstream.integrations.transformers._tokenizers import Decodes, checked_tokenizer
from batchstream.text import TextDecoder, decode_steps

if TYPE_CHECKING:
    from batchstream._core.arguments import OnOverflow

T = TypeVar("T", default=Any)
Returned = TypeVar("Returned")

_DEAD = (
    "the thread in which generate ran ended before the streams, perhaps with an error, which was "
    "shown there: call streamer.run(model.generate, ...), and the streams raise it"
)

_NOT_PUT = (
    "generate has returned and put nothing into its streamer: pass the method generate of a model "
    "of transformers to streamer.run"
)
_ONE_CALL = "a BatchStreamer is for one call of generate: make another one"


class BatchStreamer(BaseStreamer, Generic[T]):
    """A streamer for batches: a stream for each sequence, of text or of token ids.

    For a call of `generate` that is not yours to change into `stream_generate`. The first three
    arguments, and the arguments for decoding, are `TextIteratorStreamer`'s. With one sequence
    `BatchStreamer` takes its place: it is iterated over in the same way. With more, `streams` or
    `astreams` hands out the streams. Use one for each call.

    Call `generate` by `run`: it hands an error to the streams, knows what ends a sequence, and
    stops `generate` when no stream is live. Where it is called otherwise, pass `stopping_criteria`
    too: `generate` goes on as long as one of its sequences does. There, that a stopping criterion
    has ended a sequence shows in nothing but the padding that follows; so the padding id is taken
    for an end as well, and must be no id that the model gives.

    Args:
        tokenizer: A tokenizer of transformers, for streams of text; None for token ids.
        skip_prompt: Whether a stream leaves out its prompt; `stream_generate` always does.
        timeout: For how many seconds to wait for the next output when the streamer is iterated over
            itself, until it raises `TimeoutError`. None for ever: an error never needs it.
        size: How many sequences there are: prompts times `num_return_sequences`.
        eos_token_id: The id or the ids that end a sequence. None for the tokenizer's; with
            `run` the model's as well, or only the call's if the call has this argument.
        pad_token_id: The id of padding. None for the tokenizer's. With `run` it ends nothing, and
            prompts are without padding by their attention mask, if the call has one.
        max_new_tokens: How many tokens a stream may have: one number for all, or one for each.
            With `run`, no more than `generate` may have.
        stop: Stop strings, see `TextDecoder`; they need a tokenizer.
        max_buffered: How many outputs a stream may hold unread; 1024 if it is None.
        on_overflow: What happens to more; see `Channel`. With `"wait"`, `generate` does, and so
            must not run in the thread that reads the streams.
        merge: With `"merge"`, see `Channel`: `operator.add` joins the text.
        max_buffered_bytes: How many bytes a stream may hold unread; see `Channel`.
        size_of: How many bytes an output has; text needs none.
        **decode_kwargs: Passed to the tokenizer's `decode`. As there, special tokens are text
            unless `skip_special_tokens` is true; but the id that ends a stream never is.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or cannot work.

    Threads: `generate` runs in one, streams are read in others; each stream in one at a time.

    Example:
        >>> from threading import Thread
        >>> from batchstream.integrations.transformers import BatchStreamer
        >>> def replies(prompts):
        ...     inputs = tokenizer(
        ...         prompts, return_tensors="pt", padding=True, padding_side="left"
        ...     ).to(model.device)
        ...     streamer = BatchStreamer(tokenizer, skip_prompt=True, size=len(prompts))
        ...     call = dict(inputs, max_new_tokens=100)
        ...     Thread(target=streamer.run, args=[model.generate], kwargs=call).start()
        ...     return streamer.streams()
    """

    def __init__(
        self,
        tokenizer: Any = None,
        skip_prompt: bool = False,  # noqa: FBT001, FBT002 - as TextIteratorStreamer
        timeout: float | None = None,
        *,
        size: int = 1,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        max_new_tokens: int | Sequence[int | None] | None = None,
        stop: str | Sequence[str] | None = (),
        max_buffered: int | None = None,
        on_overflow: OnOverflow = "wait",
        merge: Callable[[Any, Any], Any] | None = None,
        max_buffered_bytes: int | None = None,
        size_of: Callable[[Any], int] | None = None,
        **decode_kwargs: Any,
    ) -> None:
        self._channel: Channel[Any] = Channel(
            size,
            max_buffered=max_buffered,
            on_overflow=on_overflow,
            merge=merge,
            max_buffered_bytes=max_buffered_bytes,
            size_of=size_of,
        )
        self._tokenizer = checked_tokenizer(tokenizer, stop, decode_kwargs)
        self._decode_kwargs = decode_kwargs
        self._skip_prompt = skip_prompt
        self._timeout = timeout
        self._eos = ids_of(eos_token_id)
        self._pad = pad_token_id
        self._has_eos = eos_token_id is not None
        if tokenizer is not None:
            self._eos = self._eos or ids_of(getattr(tokenizer, "eos_token_id", None))
            if pad_token_id is None:
                self._pad = getattr(tokenizer, "pad_token_id", None)
        self._stop = stop
        self._lent: weakref.ref[Reader[T]] | None = None
        self._kept: Reader[T] | None = None  # by `next`, between whose calls nothing else has it

        self._pushed = _Pushed()
        self._rows = RowCriteria(live=lambda: self._channel.live)
        self._marks: Marks | None = None  # from the prompts on
        self._steps: Any = None  # what decodes
        self._made = 0  # tokens of each row
        self._limit: int | None = None  # of generate, as far as `run` knows it
        self._mask: Any = None  # of the prompts, as far as `run` knows it
        self._runs = False  # by `run`, which catches `Left`
        self._over = False
        self._thread = threading.local()
        self._limits = limits_of_slots(max_new_tokens, size)
        self._decoder(())  # what it refuses, it refuses now

    # ---- the streams

    def streams(self) -> tuple[Stream[T], ...]:
        """Hand out the streams for consumers in threads, one for each sequence; see `Channel`."""
        return self._channel.streams()

    def astreams(self) -> tuple[AsyncStream[T], ...]:
        """Hand out the streams for consumers in event loops, one for each sequence."""
        return self._channel.astreams()

    def __iter__(self) -> Iterator[T]:
        """Return an iterator over the only stream, as a `TextIteratorStreamer` is one.

        The iterator owns the stream: a loop that is left cancels it, and `run` stops `generate`.

        Raises:
            TypeError: There are several streams.
            RuntimeError: The stream was handed out before.
        """
        reader, self._kept = self._reader(), None
        return reader

    def __next__(self) -> T:
        """Return the next output of the only stream, which the streamer then keeps.

        Raises:
            StopIteration: It has ended.
            TimeoutError: There was none for `timeout` seconds.
            Exception: What `generate` raised in `run`.
        """
        self._kept = self._reader()
        return next(self._kept)

    def _reader(self) -> Reader[T]:
        """Return the iterator over the only stream; the same one for as long as anything has it."""
        reader = None if self._lent is None else self._lent()
        if reader is None:
            self._check_single("streams")
            (stream,) = self.streams()
            reader = Reader(stream, self._timeout)
            self._lent = weakref.ref(reader)
        return reader

    def __aiter__(self) -> AsyncStream[T]:
        """Return the only stream, for `async for`; a loop that is left cancels it likewise."""
        self._check_single("astreams")
        (stream,) = self.astreams()
        return stream

    def _check_single(self, method: str) -> None:
        if len(self._channel) != 1:
            raise TypeError(
                f"a streamer of {len(self._channel)} sequences has as many streams: iterate over "
                f"the streams that streamer.{method}() returns"
            )

    # ---- for the call of generate

    @property
    def stopping_criteria(self) -> StoppingCriteriaList:
        """The argument of `generate` that ends sequences whose stream has ended, or has left."""
        return listed(self._rows)

    def run(
        self, generate: Callable[..., Returned], /, *args: Any, **kwargs: Any
    ) -> Returned | None:
        """Call `generate` with this streamer, and hand its error to the streams.

        Args:
            generate: The method of a model.
            *args: Its arguments.
            **kwargs: More of them. Stopping criteria among them are kept.

        Returns:
            What `generate` returns. None if it failed, and a stream raises why. None too if it was
            left, as no stream was live any more: each was cancelled, or has ended at a stop string
            or at a limit of this streamer before `generate` ended by itself.

        Raises:
            ClosedError: The streamer has had its call. Its streams go on.
            Exception: It failed, and no stream is live that could raise it.
            BaseException: An interrupt, for example. The streams have failed with it.

        Blocking: until `generate` has returned.
        """
        if self._runs:
            raise ClosedError(_ONE_CALL)
        self._check_new()
        self._runs = True
        if kwargs.get("streamer") is self:  # left over from a call of generate
            del kwargs["streamer"]
        try:
            unnamed, call = named(generate, args, kwargs)
            call = self._learn(Settings(getattr(generate, "__self__", None), call))
            returned = generate(
                *unnamed, **call, streamer=self, stopping_criteria=self.stopping_criteria
            )
            self._settle()
        except Left:
            self._close()
            return None
        except BaseException as error:
            stream_raises_it = bool(self._channel.live) and isinstance(error, Exception)
            self._fail(error)
            if stream_raises_it:
                return None
            raise
        return returned

    def _check_new(self) -> None:
        if self._over or self._marks is not None:
            raise ClosedError(_ONE_CALL)

    def _learn(self, settings: Settings) -> dict[str, Any]:
        """Take from a call what the program did not say here, and return its arguments."""
        if not self._has_eos:
            known = frozenset() if settings.has("eos_token_id") else self._eos
            self._eos = known | settings.eos
        self._limit = most = settings.max_new_tokens
        if most is not None:
            self._limits = [most if it is None else min(it, most) for it in self._limits]
        self._mask = settings.prompt_mask
        criteria, call = taken_criteria(settings)
        self._rows = RowCriteria(criteria, live=lambda: self._channel.live)
        return call

    def _settle(self) -> None:
        """Let the streams end where `generate` has returned and did not call `end`."""
        if self._over:
            return
        if self._marks is None:
            raise SourceError(_NOT_PUT)
        self.end()

    # ---- what generate calls

    def put(self, value: Any) -> None:
        """Take the prompts, or a step: ids of shape (rows,) or, for one row, (1, ids).

        Raises:
            ValueError: There are not as many rows as `size` says; the streams fail with it too.
            ClosedError: No stream is live, and nothing else ends `generate`.

        Blocking: with `on_overflow="wait"`, while a live stream has no room.
        """
        self._rows.put(value)
        if self._marks is None or self._over:
            self._begin(value.tolist())
        elif self._channel.live:
            self._step(self._marks, value)
        elif self._runs:
            raise Left
        elif not self._rows.asked:
            raise ClosedError(
                "no stream is live, so generate ends here: pass "
                "stopping_criteria=streamer.stopping_criteria, or call streamer.run(model.generate,"
                " ...), and it ends without an error"
            )

    def end(self) -> None:
        """Deliver what is held back, and end the streams that are live."""
        if self._marks is not None and self._channel.live:
            if stopped := self._marks.stopped():
                self._hand_out(stopped)
            self._hand_out(None)
        self._close()

    def _begin(self, prompts: list[list[int]]) -> None:
        self._check_new()
        size = len(self._channel)
        if len(prompts) != size:
            error = ValueError(
                f"generate has a batch of {len(prompts)} sequences, expected {size}: pass size="
                f"{len(prompts)} to the BatchStreamer (prompts times num_return_sequences)"
            )
            if not self._runs:  # which does it
                self._fail(error)
            raise error
        self._thread.guard = _Guard(self._channel)
        ids = unpadded(prompts, self._mask, self._pad)
        ends = self._eos if self._runs or self._pad is None else self._eos | {self._pad}
        self._marks = Marks(self._rows, len(prompts[0]), self._limits, ends)
        self._steps = decode_steps(self._pushed, [self._decoder(prompt) for prompt in ids])
        if not self._skip_prompt:
            decode = self._tokenizer and self._tokenizer.decode
            self._channel.put(
                [decode(it, **self._decode_kwargs) if decode else Many(it) for it in ids]
            )

    def _decoder(self, prompt: Sequence[int]) -> TextDecoder | None:
        if self._tokenizer is None:
            return None
        kwargs = dict(self._decode_kwargs)
        skips = kwargs.pop("skip_special_tokens", False)
        return TextDecoder(
            Decodes(self._tokenizer, self._decode_kwargs) if kwargs else self._tokenizer,
            stop=self._stop,
            prompt_ids=prompt,
            skip_special_tokens=skips,
        )

    def _step(self, marks: Marks, value: Any) -> None:
        self._made += value.shape[1] if value.dim() > 1 else 1
        marks.keep(self._channel.live)
        self._hand_out(marks.elements(value))
        if not self._runs or self._channel.live:
            return
        # If generate ends now by itself, it returns what it has made.
        known = marks.over | self._rows.known
        if len(known) < len(self._channel) and (self._limit is None or self._made < self._limit):
            raise Left

    def _hand_out(self, step: list[Any] | dict[int, Any] | None) -> None:
        """Let what decodes read a step, and put what it makes of it; None is the end."""
        self._pushed.step = step
        try:
            decoded = self._steps.send(self._channel.live)
        except StopIteration:
            return
        self._channel.put(decoded)

    def _close(self) -> None:
        self._over = True
        self._channel.close()
        vars(self._thread).clear()  # behind the end, the guard does nothing

    def _fail(self, error: BaseException) -> None:
        self._over = True
        self._channel.fail(error)
        vars(self._thread).clear()


class _Pushed:
    """The source of the steps that were put: the one that is there."""

    def __init__(self) -> None:
        self.step: list[Any] | dict[int, Any] | None = None

    def __iter__(self) -> Iterator[list[Any] | dict[int, Any]]:
        return self

    def __next__(self) -> list[Any] | dict[int, Any]:
        if self.step is None:
            raise StopIteration
        return self.step


class _Guard:
    """Lies in the thread that puts, and fails the streams if that ends before them."""

    def __init__(self, channel: Channel[Any]) -> None:
        self._channel = channel

    def __del__(self) -> None:
        self._channel.fail(SourceError(_DEAD))  # which does nothing behind the end
