"""What loggers are told is heard, whatever the script does to ``logging``, and nothing of it is disturbed."""

import io
import logging
import logging.config
import logging.handlers
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from periflow_otel.training.script_logs import ScriptLogs

CALL_HANDLERS = logging.Logger.callHandlers


@contextmanager
def heard(level: int | None = logging.INFO) -> Iterator[list[str]]:
    """Listen, and return what was heard."""
    messages: list[str] = []
    logs = ScriptLogs(level, lambda record: messages.append(record.getMessage()))
    try:
        yield messages
    finally:
        logs.close()


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """Return a logger of the script, which lets everything through and leaves no trace."""
    logger = logging.getLogger("script.loop")
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.handlers.clear()
    logger.propagate, logger.disabled = True, False
    logger.filters.clear()


@contextmanager
def bare_root() -> Iterator[logging.Logger]:
    """Return the root logger without handlers, as a script finds it."""
    root = logging.getLogger()
    before, root.handlers, level = root.handlers, [], root.level
    yield root
    root.handlers, root.propagate = before, True
    root.setLevel(level)


def test_what_is_said_is_heard_from_a_level_on(log: logging.Logger):
    """In order, and nothing below."""
    with heard() as messages:
        log.info("one %d", 1)
        log.debug("nothing")
        log.error("two")
    assert messages == ["one 1", "two"]


def test_nothing_is_touched_for_nobody(log: logging.Logger):
    """Without a level, and after the last that listens has gone, ``logging`` is as it was."""
    with heard(None) as messages:
        assert logging.Logger.callHandlers is CALL_HANDLERS
        log.error("unheard")
    with heard() as still:
        with heard():
            assert logging.Logger.callHandlers is not CALL_HANDLERS
        log.error("heard by one")
    assert still == ["heard by one"]
    assert logging.Logger.callHandlers is CALL_HANDLERS
    assert messages == []


def test_a_configuration_that_replaces_all_handlers_changes_nothing(log: logging.Logger):
    """Nor does one that keeps the root logger from propagating, or an end of ``logging``."""
    with bare_root() as plain_root, heard() as messages:
        plain_root.addHandler(logging.NullHandler())
        root = {"handlers": [], "level": "INFO", "propagate": False}
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "loggers": {"": root}})
        log.info("after dictConfig")
        logging.basicConfig(force=True, stream=io.StringIO())
        log.info("after basicConfig")
        logging.shutdown([])
        log.info("after shutdown")
    assert messages == ["after dictConfig", "after basicConfig", "after shutdown"]


def test_basic_config_still_configures(log: logging.Logger):
    """It does nothing where the root logger has a handler, so there must be none of ours."""
    shown = io.StringIO()
    with bare_root(), heard():
        logging.basicConfig(stream=shown, format="%(message)s")
        log.warning("shown")
    assert shown.getvalue() == "shown\n"


def test_without_handlers_warnings_still_go_to_stderr(log: logging.Logger, capsys: pytest.CaptureFixture[str]):
    """As ``logging`` does where nobody has configured it."""
    with bare_root(), heard() as messages:
        log.warning("the last resort")
    assert messages == ["the last resort"]
    assert capsys.readouterr().err == "the last resort\n"


def test_loggers_that_do_not_propagate_are_heard(log: logging.Logger):
    """As those of transformers."""
    log.propagate = False
    log.addHandler(logging.NullHandler())
    with heard() as messages:
        log.info("here")
    assert messages == ["here"]


def test_what_logging_filters_is_not_heard(log: logging.Logger):
    """Filters of loggers, levels and ``disable`` decide first."""
    log.addFilter(lambda record: "secret" not in record.getMessage())
    with heard() as messages:
        log.info("a secret")
        logging.disable(logging.INFO)
        try:
            log.info("disabled")
        finally:
            logging.disable(logging.NOTSET)
        log.disabled = True
        log.info("disabled too")
    assert messages == []


def test_a_record_that_goes_through_a_queue_is_heard_once(log: logging.Logger):
    """A listener hands records to handlers, not to loggers."""
    log.propagate = False
    records: queue.Queue[logging.LogRecord] = queue.Queue()
    log.addHandler(logging.handlers.QueueHandler(records))
    listener = logging.handlers.QueueListener(records, logging.NullHandler())
    with heard() as messages:
        listener.start()
        log.info("once")
        listener.stop()
    assert messages == ["once"]


def test_what_this_package_says_is_not_heard():
    """Neither by its name, nor what others say in a thread of its agent: each export would make another."""
    with heard(logging.DEBUG) as messages:
        logging.getLogger("periflow_otel").error("ours")
        logging.getLogger("periflow_otel.agent").error("ours")
        thread = threading.Thread(target=logging.getLogger("urllib3").error, args=("no route",), name="periflow-otlp")
        thread.start()
        thread.join()
        logging.getLogger("periflow_otelier").error("somebody else")
    assert messages == ["somebody else"]


def test_what_is_said_while_something_is_taken_comes_to_an_end(log: logging.Logger):
    """Text that says something each time it is asked for would never."""
    texts: list[str] = []

    def take(record: logging.LogRecord) -> None:
        log.info("while %s is taken", record.getMessage())
        texts.append(record.getMessage())

    logs = ScriptLogs(logging.INFO, take)
    try:
        log.info("a")
    finally:
        logs.close()
    assert texts[-1] == "a"
    assert len(texts) < 10


def test_whoever_takes_may_fail(log: logging.Logger):
    """The call that says something returns, and the handlers of the script get it."""

    def fail(_: logging.LogRecord) -> None:
        raise OSError

    shown = io.StringIO()
    log.addHandler(logging.StreamHandler(shown))
    logs = ScriptLogs(logging.INFO, fail)
    try:
        log.info("shown")
    finally:
        logs.close()
    assert shown.getvalue() == "shown\n"


def test_another_that_hooks_in_meanwhile_stays(log: logging.Logger, monkeypatch: pytest.MonkeyPatch):
    """Whoever comes second calls us, so we must not take his place when we leave, nor hear twice when we come back."""
    others: list[str] = []
    with heard() as messages:
        ours = logging.Logger.callHandlers

        def other(logger: logging.Logger, record: logging.LogRecord) -> None:
            others.append(record.getMessage())
            ours(logger, record)

        monkeypatch.setattr(logging.Logger, "callHandlers", other)
        log.info("both")
    log.info("he alone")
    with heard() as later:
        log.info("both again")
    monkeypatch.undo()
    with heard():
        pass
    assert (messages, later, others) == (["both"], ["both again"], ["both", "he alone", "both again"])
    assert logging.Logger.callHandlers is CALL_HANDLERS
