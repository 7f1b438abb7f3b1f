"""The certificate of a broker, and the authority of its own that peers check it by. Both are made here; keys are P-256.

The authority is kept from one start to the next, so that peers go on with the file they have. The broker's certificate
is made anew every time, for the names the broker has now. The authority's key is of use for nothing but that.
"""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from veilmesh.core import BadInput
from veilmesh.peer.store import write_durably

__all__ = ["AUTHORITY", "BROKER_CERTIFICATE", "BROKER_KEY", "certify"]

AUTHORITY: Final = "ca.pem"
BROKER_CERTIFICATE: Final = "broker.pem"
BROKER_KEY: Final = "broker.key"
_AUTHORITY_KEY: Final = "ca.key"
_AUTHORITY_DAYS, _BROKER_DAYS = 3650, 397
_CLOCKS_DIFFER: Final = timedelta(days=1)


def certify(folder: Path, names: tuple[str, ...]) -> None:
    """Write a certificate for `names` (addresses or host names) into `folder`, and the authority if there is none.

    Raises BadInput: the files cannot be written, or what is there is no authority.
    """
    authority, signing = _authority(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    asked = _builder("veilmesh broker", authority.subject, key.public_key(), _BROKER_DAYS)
    made = (
        asked.add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
        .sign(signing, SHA256())
    )
    write_durably(folder / BROKER_KEY, _pem(key), mode=0o600)
    write_durably(folder / BROKER_CERTIFICATE, made.public_bytes(Encoding.PEM))


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    if not (folder / _AUTHORITY_KEY).exists():
        return _new_authority(folder)
    try:
        key = load_pem_private_key((folder / _AUTHORITY_KEY).read_bytes(), None)
        made = x509.load_pem_x509_certificate((folder / AUTHORITY).read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder} holds no whole certificate authority ({error}); take another folder.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != made.public_key():
        raise BadInput(f"{folder / AUTHORITY} and its key do not belong together; take another folder.")
    return made, key


def _new_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "veilmesh broker authority")])
    made = (
        _builder("veilmesh broker authority", name, key.public_key(), _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, SHA256())
    )
    write_durably(folder / AUTHORITY, made.public_bytes(Encoding.PEM))
    write_durably(folder / _AUTHORITY_KEY, _pem(key), mode=0o600)
    return made, key


def _builder(name: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=signs, crl_sign=signs, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
