"""Writes zip archives with Python's zipfile: python tests/golden/zip/make.py"""

import io
import pathlib
import zipfile

HERE = pathlib.Path(__file__).parent

with zipfile.ZipFile(HERE / "zipfile.zip", "w") as archive:
    archive.comment = b"PK\x05\x06 is no end record here"
    archive.writestr(zipfile.ZipInfo("stored.txt"), "stored")
    archive.writestr(zipfile.ZipInfo("empty"), "")
    with archive.open(zipfile.ZipInfo("zip64.bin"), "w", force_zip64=True) as entry:
        entry.write(b"forced zip64")
    archive.writestr(zipfile.ZipInfo("héllo/☃"), "unicode")
    archive.writestr(zipfile.ZipInfo("deflated.txt"), "deflated " * 20,
                     compress_type=zipfile.ZIP_DEFLATED)


class Pipe(io.RawIOBase):
    """Cannot seek, so zipfile puts sizes and CRC behind the payload."""

    data = b""

    def writable(self):
        return True

    def write(self, data):
        Pipe.data += bytes(data)
        return len(data)


with zipfile.ZipFile(Pipe(), "w") as archive:
    archive.writestr(zipfile.ZipInfo("first"), bytes(i % 251 for i in range(1000)))
    archive.writestr(zipfile.ZipInfo("second"), b"PK\x07\x08PK\x01\x02")
(HERE / "streamed.zip").write_bytes(Pipe.data)
