"""Whom the engine runs as. Started as root with `[engine] user` set, it becomes that user, broker and actors alike,
before the first byte of mail, list or campaign is touched.

The state directory is given to that user, so that an engine that ran as root before goes on as the user afterwards.
"""

import os
import pwd
import sys
from pathlib import Path

from broker.contract.errors import EcmError
from broker.contract.log import log

__all__ = ["drop"]


def drop(user: str, root: Path) -> None:
    """Become `user` for good, if we are root and one is named; warn in one line if we stay root.

    root   the state directory, which is given to the user with all that is in it
    Needs `broker.lock`, and no other thread yet.
    """
    if os.geteuid() != 0:
        return
    if not user:
        log.warning("engine runs as root", hint="name a user with [engine] user")
        return
    entry = pwd.getpwnam(user)
    _give(root, entry.pw_uid, entry.pw_gid)
    os.initgroups(user, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    os.environ["HOME"] = entry.pw_dir
    for needed in (sys.executable, os.__file__, __file__):
        if not os.access(needed, os.R_OK):
            raise EcmError(
                "start_failed",
                f"user `{user}` cannot read the program: {needed}",
                hint="install it where that user may read it, such as /opt, or name another user",
            )
    log.info("privileges dropped", user=user)


def _give(root: Path, uid: int, gid: int) -> None:
    for directory, _, files in os.walk(root):
        for name in (directory, *(os.path.join(directory, file) for file in files)):
            status = os.lstat(name)
            if (status.st_uid, status.st_gid) != (uid, gid):
                os.lchown(name, uid, gid)
