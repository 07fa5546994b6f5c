"""The programs of a launch in other orders than that in which Triton's interpreter runs them: 0, 1, 2 and so on.

A GPU promises none. The interpreter calls a kernel once a program; here these calls are only noted, and after the last
one the programs run: all of one before the next, or each for a while, until one of its accesses of memory.
"""

import contextlib
import inspect
import random
import threading

from triton.runtime import interpreter

ACCESSES = ("create_masked_load", "create_masked_store", "create_load", "create_store", "create_atomic_rmw")


class Programs:
    """Stands in the place of a kernel's function for one launch."""

    def __init__(self, function, order):
        self.function, self.order, self.noted = function, order, []
        # What the interpreter asks of a function.
        self.__name__, self.__globals__ = function.__name__, function.__globals__
        self.__signature__ = inspect.signature(function)

    def __call__(self, **arguments):
        builder = interpreter.interpreter_builder
        self.noted.append(builder.grid_idx)
        columns, rows, planes = builder.grid_dim
        if len(self.noted) == columns * rows * planes:
            self.order(self.noted, lambda: self.function(**arguments))


def reverse(places, program):
    """From the last program to the first."""
    for place in places[::-1]:
        interpreter.interpreter_builder.set_grid_idx(*place)
        program()


def shuffled(random_seed):
    """One program after another, in a random order."""

    def order(places, program):
        places = random.Random(random_seed).sample(places, len(places))  # noqa: S311
        reverse(places, program)

    return order


class Interleaved:
    """All programs at once, of which one at a time goes on: at any access another one may take over."""

    def __init__(self, random_seed):
        self.random, self.running, self.switches = random.Random(random_seed), None, 0  # noqa: S311

    def __call__(self, places, program):
        self.places = places
        self.turns = [threading.Semaphore(0) for _ in places]
        self.alive, self.errors = set(range(len(places))), []
        threads = [threading.Thread(target=self._run, args=(index, program)) for index in self.alive]
        for thread in threads:
            thread.start()
        self._hand_over()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def _run(self, index, program):
        self._wait(index)
        try:
            program()
        except BaseException as error:
            # Raised again where the launch is.
            self.errors.append(error)
        self.alive.discard(index)
        self.running = None
        if self.alive:
            self._hand_over()

    def _wait(self, index):
        self.turns[index].acquire()
        self.running = index
        interpreter.interpreter_builder.set_grid_idx(*self.places[index])

    def _hand_over(self):
        self.turns[self.random.choice(sorted(self.alive))].release()

    def after_access(self):
        """The program that has just read or written memory goes on, or another does."""
        index = self.running
        if index is not None and len(self.alive) > 1 and self.random.random() < 0.5:
            self.switches += 1
            self._hand_over()
            self._wait(index)


@contextlib.contextmanager
def program_order(monkeypatch, order):
    """Within it the programs of every launch run in this order: `reverse`, `shuffled(0)` or `Interleaved(0)`."""
    call = interpreter.GridExecutor.__call__

    def launch(executor, *arguments, **options):
        function = executor.fn
        executor.fn = Programs(function, order)
        try:
            return call(executor, *arguments, **options)
        finally:
            executor.fn = function

    def noticing(access):
        def then(*arguments, **options):
            result = access(*arguments, **options)
            order.after_access()
            return result

        return then

    with monkeypatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "__call__", launch)
        for name in ACCESSES if isinstance(order, Interleaved) else ():
            patch.setattr(
                interpreter.InterpreterBuilder, name, noticing(getattr(interpreter.InterpreterBuilder, name))
            )
        yield
