"""A certificate authority for tests, made when it is needed, and certificates of servers."""

from __future__ import annotations

import datetime as dt
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["Authority"]


@dataclass(frozen=True, kw_only=True)
class Authority:
    """``certificate`` is what a client trusts."""

    certificate: Path
    _name: x509.Name
    _key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, folder: Path, name: str) -> Authority:
        key, subject = ec.generate_private_key(ec.SECP256R1()), _name(name)
        made = _builder(subject, subject, key).add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        path = folder / f"{name}.crt"
        path.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return cls(certificate=path, _name=subject, _key=key)

    def issue(self, folder: Path, host: str, stem: str = "server") -> None:
        """Write ``server.crt`` and ``server.key`` for a host into a folder."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = _builder(_name(host), self._name, key)
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), False)
        certificate = made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        for name, content in ((f"{stem}.crt", certificate), (f"{stem}.key", key.private_bytes(*plain))):
            # Written as whoever owns the folder, who is the server.
            path = folder / name
            path.write_bytes(content)
            path.chmod(0o600)
            _give_to_owner_of(folder, path)


def _give_to_owner_of(folder: Path, path: Path) -> None:
    owner = folder.stat()
    if os.geteuid() == 0:
        os.chown(path, owner.st_uid, owner.st_gid)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
    )
