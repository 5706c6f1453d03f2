"""Files that a user names by path and the engine opens: people to send to, people not to mail.

Opened without waiting, so that a pipe or a terminal named by mistake cannot hold a worker; what may be wrong with the
path is said in the same words wherever it is met.
"""

import getpass
import os

from broker.contract.errors import EcmError

__all__ = ["open_named"]


def open_named(path: str) -> int:
    """A descriptor to read the file at `path`; whether it is a regular file is the caller's to look at.

    Raises EcmError file_missing, file_unreadable (naming the user who may not).
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise EcmError("file_missing", "no such file", file=path) from None
    except PermissionError:
        raise EcmError(
            "file_unreadable",
            f"the engine's user may not read it: {getpass.getuser()}",
            file=path,
            hint="give that user the right to read the file and to enter its directories",
        ) from None
    except (OSError, ValueError) as error:
        raise EcmError("file_unreadable", f"cannot be read: {error}", file=path) from None
