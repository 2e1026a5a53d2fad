"""Files that commands write: whole, or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """Give a place to write to, which takes that of a file once all is written; what was there stays until then.

    What is no file, such as ``/dev/stdout``, is written to as it is.

    Raises:
        OSError: It cannot be written; names the file.
    """
    is_file = out.is_file() or not out.exists()
    part = out.resolve().with_name(f"{out.name}.part") if is_file else out
    try:
        yield part
        if is_file:
            part.replace(out.resolve())
    except OSError as error:
        if error.filename in (None, str(part)):
            raise OSError(error.errno, error.strerror, str(out)) from error
        raise
    finally:
        if is_file:
            part.unlink(missing_ok=True)
