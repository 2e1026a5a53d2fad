"""A step as a ``with`` block, and as a decorator."""

import functools
import inspect
import weakref
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from periflow_otel.training.endings import failure

P = ParamSpec("P")
T = TypeVar("T")

EndStep = Callable[[str | None], None]
Begin = Callable[[int | None, "weakref.ref[StepContext]"], EndStep]
"""Begins a step for a context, and returns what ends it."""


class StepContext:
    """Starts a step and ends it, also when the body raises. Works as a decorator too, and any number of times."""

    def __init__(self, begin: Begin, step: int | None) -> None:
        """Prepare; nothing is started yet."""
        self._begin = begin
        self._step = step
        self._end: EndStep | None = None

    def __enter__(self) -> None:
        """Start a step."""
        self._end = self._begin(self._step, weakref.ref(self))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, with the type of the exception if there is one that is an error."""
        if self._end is not None:
            self._end(None if kind is None else failure(error))

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """Make every call of a function a step: of a coroutine or a generator while it runs.

        Raises:
            TypeError: It is an asynchronous generator.
        """
        called = type(function).__call__
        if inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(called):
            message = f"{_name(function)} is an asynchronous generator; use 'with pf.train_step():' inside it"
            raise TypeError(message)
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called):
            wrapper: Any = self._around_coroutine(function)
        elif inspect.isgeneratorfunction(function) or inspect.isgeneratorfunction(called):
            wrapper = self._around_generator(function)
        else:
            wrapper = self._around_call(function)
        decorated: Callable[P, T] = functools.update_wrapper(wrapper, function)
        return decorated

    def _again(self) -> "StepContext":
        return StepContext(self._begin, self._step)

    def _around_call(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self._again():
                return function(*args, **kwargs)

        return wrapper

    def _around_coroutine(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self._again():
                return await function(*args, **kwargs)

        return wrapper

    def _around_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            with self._again():
                return (yield from function(*args, **kwargs))

        return wrapper


def _name(function: object) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)
