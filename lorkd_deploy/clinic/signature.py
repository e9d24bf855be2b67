"""`lorkd sign` and `verify --public-key`: who made the bundle and engines that run here.

By OpenSSF model-signing, with a key of an elliptic curve and without a network. The signature
covers every file of bundle and engines: one that is changed, added or taken away is found.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.artifact import artifact_folders, check_files, read_artifact
from lorkd_deploy.errors import GateError, UsageError
from lorkd_deploy.run import SIGNATURE, Run, open_run
from lorkd_deploy.storage import LOCK

MADE_BY = "openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem"


def sign(run: str | Path, key: str | Path) -> Path:
    """Sign the bundle and the engines of `run` by the private `key` (PEM); gives RUN/signature.

    All hashes are checked first. An older signature is replaced. Raises `UsageError` for a key
    that can't be used, `BundleError` or `ArtifactError` for what is damaged already.
    """
    from model_signing import signing

    opened = open_run(run)
    load_bundle(opened.bundle)
    for folder in artifact_folders(opened.export):
        check_files(read_artifact(folder))
    place = opened.path / SIGNATURE
    fresh = place.with_name(f".{SIGNATURE}.tmp")
    try:
        config = signing.Config()  # type: ignore[no-untyped-call]
        config.use_elliptic_key_signer(private_key=_file(key))
        config.set_hashing_config(_hashed(opened))
        config.sign(opened.path, fresh)
    except (ValueError, TypeError) as exc:
        fresh.unlink(missing_ok=True)
        raise UsageError(
            f"the key can't be used: {exc}",
            where=key,
            fix=f"an unencrypted private key of an elliptic curve is needed: {MADE_BY}",
        ) from exc
    fresh.replace(place)
    return place


def check_signature(run: str | Path, public_key: str | Path) -> None:
    """Raise `GateError` where `run` has no signature, or another than `public_key`'s over exactly
    the files that are here; `UsageError` for a key that can't be used.
    """
    from model_signing import verifying

    opened = open_run(run)
    place = opened.path / SIGNATURE
    if not place.is_file():
        raise GateError(
            "there is no signature", where=place, fix="get a signed copy: `lorkd sign` makes one"
        )
    try:
        config = verifying.Config()  # type: ignore[no-untyped-call]
        config.use_elliptic_key_verifier(public_key=_file(public_key))
    except (ValueError, TypeError) as exc:
        raise UsageError(
            f"the key can't be used: {exc}",
            where=public_key,
            fix="give the public key: openssl ec -in KEY.pem -pubout -out PUBLIC.pem",
        ) from exc
    config.set_hashing_config(_hashed(opened))
    try:
        config.verify(opened.path, place)
    except Exception as exc:  # whatever is wrong with a signature, it doesn't hold
        raise GateError(
            f"the signature doesn't hold: {exc or type(exc).__name__}",
            where=place,
            fix="don't use these engines; get a fresh copy from who signed them",
        ) from exc


def _file(key: str | Path) -> Path:
    path = Path(key)
    if not path.is_file():
        raise UsageError("there is no such key", where=path, fix=f"make one: {MADE_BY}")
    return path


def _hashed(run: Run) -> Any:
    """Bundle and engines alone: the profile and the report beside them change."""
    from model_signing import hashing

    signed = {run.bundle.name, run.export.name} if run.bundle != run.path else None
    left_out = [
        Path(entry.name)  # model-signing takes them from the folder that is signed
        for entry in run.path.iterdir()
        if (signed is not None and entry.name not in signed)
        or entry.name in (SIGNATURE, f".{SIGNATURE}.tmp", LOCK)
    ]
    config = hashing.Config()  # type: ignore[no-untyped-call]
    return config.set_ignored_paths(paths=left_out, ignore_git_paths=False)
