"""The arguments of one call; and of many calls, as one list for each parameter."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from batchstream.integrations.ray import _private

_VARIABLE: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_BY_NAME: Final = inspect.Parameter.KEYWORD_ONLY


class Call:
    """One request: what a decorated function was called with, and for which request of Ray.

    Attributes:
        instance: The instance whose method it is; None of a function.
        bound: The other arguments, by the signature.
        context: What Ray knows of the request.
        trace: The trace that it is part of, if any.
    """

    __slots__ = ("bound", "context", "instance", "trace")

    def __init__(self, instance: object, bound: inspect.BoundArguments) -> None:
        self.instance = instance
        self.bound = bound
        self.context = _private.request_context()
        self.trace = _private.trace_context()

    @property
    def item(self) -> Any:
        """The first argument, which `batch_size_fn` is given; None if there is none."""
        args = self.bound.args
        return args[0] if args else next(iter(self.bound.kwargs.values()), None)

    @property
    def model_id(self) -> str:
        """The multiplexed model that the request is for."""
        return _private.model_id(self.context)


class Parameters:
    """The parameters of a decorated function.

    Args:
        function: The function, as it was before.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._signature = inspect.signature(function)
        parameters = list(self._signature.parameters.values())
        self._without_self = self._signature.replace(parameters=parameters[1:])
        self._variable = [each.name for each in parameters if each.kind in _VARIABLE]
        self._methods: WeakKeyDictionary[type, bool] = WeakKeyDictionary()

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Read the arguments of a call.

        Raises:
            TypeError: The function does not take them.
        """
        if args and self._is_method_of(type(args[0])):
            return Call(args[0], self._without_self.bind(*args[1:], **kwargs))
        return Call(None, self._signature.bind(*args, **kwargs))

    def shape(self, call: Call) -> object:
        """Return what calls must have in common to be one call with lists; most have nothing."""
        values = [call.bound.arguments.get(name, ()) for name in self._variable]
        return tuple(frozenset(v) if isinstance(v, dict) else len(v) for v in values)

    def merged(self, calls: Sequence[Call]) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of many calls as one list for each parameter.

        A parameter that some of the calls leave out has its default in their places; what all of
        them leave out is left out.
        """
        signature = self._signature if calls[0].instance is None else self._without_self
        given = [call.bound.arguments for call in calls]
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        by_name = False  # from the first parameter on that is left out
        for name, parameter in signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                columns = zip(*(arguments.get(name, ()) for arguments in given), strict=True)
                args.extend(map(list, columns))
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                for key in given[0].get(name, ()):
                    kwargs[key] = [arguments[name][key] for arguments in given]
            elif not any(name in arguments for arguments in given):
                by_name = True
            else:
                column = [arguments.get(name, parameter.default) for arguments in given]
                if by_name or parameter.kind is _BY_NAME:
                    kwargs[name] = column
                else:
                    args.append(column)
        return args, kwargs

    def _is_method_of(self, kind: type) -> bool:
        """Whether the function is a method of this class, under whatever name."""
        known = self._methods.get(kind)
        if known is None:
            attributes = (value for base in kind.__mro__ for value in vars(base).values())
            known = any(self._wraps(value) for value in attributes)
            self._methods[kind] = known
        return known

    def _wraps(self, value: object) -> bool:
        """Whether the decorated function is this attribute of a class, or what it wraps is."""
        while inspect.isfunction(value):
            value = getattr(value, "__wrapped__", None)
            if value is self._function:
                return True
        return False
