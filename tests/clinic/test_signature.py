"""A signature over bundle and engines: what is changed, swapped, added or unsigned fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorkd_deploy.cli import main
from lorkd_deploy.clinic.signature import check_signature, sign
from lorkd_deploy.errors import GateError, UsageError
from lorkd_deploy.schema import document_bytes

pytest.importorskip("model_signing", reason="the extra `sign` is not installed")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A private key, its public key, and the public key of somebody else."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("keys")
    files = []
    for name in ("own", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        private, public = folder / f"{name}.pem", folder / f"{name}-public.pem"
        private.write_bytes(
            key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
        )
        public.write_bytes(
            key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
        )
        files += [private, public]
    return files[0], files[1], files[3]


def rename_a_class(run: Path) -> None:
    """As someone who knows the digests would."""
    file = run / "bundle" / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    manifest["tasks"][0]["classes"][0] = "healthy"
    file.write_bytes(document_bytes(manifest))


def swap_experts(run: Path) -> None:
    one, other = sorted((run / "bundle" / "experts").iterdir())[:2]
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def add_a_file(run: Path) -> None:
    (run / "export" / "clinic" / "eye" / "onnx-fp32" / "extra.bin").write_bytes(b"1")


def take_an_engine(run: Path) -> None:
    shutil.rmtree(run / "export" / "clinic" / "eye" / "openvino-fp32")


@pytest.mark.parametrize("change", [rename_a_class, swap_experts, add_a_file, take_an_engine])
def test_what_was_changed_after_signing_fails(
    department: Path, keys: Any, change: Callable[[Path], None]
) -> None:
    private, public, _ = keys
    sign(department, private)
    check_signature(department, public)
    change(department)
    with pytest.raises(GateError, match="the signature doesn't hold"):
        check_signature(department, public)


def test_unsigned_or_signed_by_somebody_else(department: Path, keys: Any) -> None:
    private, public, other = keys
    with pytest.raises(GateError, match="there is no signature"):
        check_signature(department, public)
    sign(department, private)
    with pytest.raises(GateError, match="the signature doesn't hold"):
        check_signature(department, other)
    (department / "signature.json").write_text("{}", encoding="utf-8")
    with pytest.raises(GateError, match="the signature doesn't hold"):
        check_signature(department, public)


def test_keys_that_are_none(department: Path, keys: Any, tmp_path: Path) -> None:
    private = keys[0]
    with pytest.raises(UsageError, match="there is no such key"):
        sign(department, tmp_path / "none.pem")
    (tmp_path / "bad.pem").write_text("no key", encoding="utf-8")
    with pytest.raises(UsageError, match="the key can't be used"):
        sign(department, tmp_path / "bad.pem")
    sign(department, private)
    with pytest.raises(UsageError, match="the key can't be used"):
        check_signature(department, tmp_path / "bad.pem")
    assert not [file for file in department.iterdir() if file.name.endswith(".tmp")]


def test_by_the_command_and_verify_leaves_it_whole(
    department: Path, keys: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    private, public, _ = keys
    monkeypatch.chdir(department.parent)  # by a relative path, as one types it
    department = Path(department.name)
    (department / "notes.txt").write_text("beside it", encoding="utf-8")
    assert main(["sign", str(department), "--key", str(private)]) == 0
    for _ in range(2):
        assert main(["verify", str(department), "--public-key", str(public)]) == 0
    (department / "report.md").write_text("beside it", encoding="utf-8")
    check_signature(department, public)
    add_a_file(department)
    capsys.readouterr()
    assert main(["verify", str(department), "--public-key", str(public)]) == 3
    assert "the signature doesn't hold" in capsys.readouterr().err
