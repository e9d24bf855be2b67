"""Foreign errors that a user can mend, mapped once, at the edge."""

from __future__ import annotations

import errno

from lorkd_deploy.errors import LorkdError, RuntimeUnavailableError, is_out_of_memory

SYSTEM = {
    errno.ENOSPC: ("the disk is full", "free some space and run the same command again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run the same command again"),
    errno.EACCES: ("access is not permitted", "check who owns the file, or choose another folder"),
    errno.EPERM: ("access is not permitted", "check who owns the file, or choose another folder"),
    errno.EROFS: ("the disk can only be read", "choose a folder on a disk that can be written"),
    errno.EMFILE: ("too many files are open", "raise the limit with `ulimit -n`"),
}


def missing_package(exc: ModuleNotFoundError) -> LorkdError:
    """A package of an extra that isn't installed; any other missing module is a bug and raised."""
    from lorkd_deploy.machine.packages import extra_with  # and with it a tenth of a start

    name = (exc.name or "").partition(".")[0]
    extra = extra_with(name)
    if extra is None:
        raise exc
    return RuntimeUnavailableError(
        f"{name} is not installed",
        fix=f"python -m pip install 'lorkd-deploy[{extra}]'",
    )


def unloadable_library(exc: ImportError) -> LorkdError:
    """A compiled library that the machine has no memory to load; any other is a bug and raised."""
    said = str(exc)
    if not ("failed to map segment" in said or "annot allocate memory" in said):
        raise exc
    return LorkdError(
        f"there is not enough memory to load a library: {said}",
        fix="end other programs, or raise the limit (`ulimit -v`, that of the container)",
    )


def out_of_memory(exc: MemoryError | RuntimeError) -> LorkdError:
    """Memory of the machine or the GPU that is used up; any other error is a bug and raised."""
    if not is_out_of_memory(exc):
        raise exc
    said = (str(exc).strip().splitlines() or ["no more can be had"])[0]
    return LorkdError(
        f"there is not enough memory: {said}",
        fix="end other programs; in training, `--auto-batch` finds how much of a batch fits and "
        "trains in such parts; or lower the batch size (train.batch_size, "
        "teacher.train.batch_size) or preprocess.size",
    )


def system_fault(exc: OSError) -> LorkdError:
    """A full disk, a missing permission and the like, with the file it happened to."""
    what, fix = SYSTEM.get(exc.errno or 0, (exc.strerror or str(exc), None))
    return LorkdError(what, where=exc.filename, fix=fix)
