"""GPT-2's writing of bytes as visible characters, in which byte-level tokenizers spell their tokens."""


def _byte_of() -> dict[str, int]:
    """Bytes that are visible as themselves, the others from 256 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(visible)]
    return {chr(byte): byte for byte in visible} | {chr(256 + number): byte for number, byte in enumerate(hidden)}


BYTE_OF = _byte_of()


def read_bytes(written: str) -> bytes | None:
    """The bytes that are so written; None where some character writes none."""
    try:
        return bytes(BYTE_OF[character] for character in written)
    except KeyError:
        return None
