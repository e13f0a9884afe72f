"""Files of strangers: whatever the bytes, a value or one line of DataError."""

import bz2
import gzip
import io
import json
import os
import pickle
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from poiesis import files
from poiesis.errors import DataError


def idx_bytes(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def image_bytes(size=(9, 7), mode="RGB", kind="PNG", **options):
    rng = np.random.default_rng(0)
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = rng.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    out = io.BytesIO()
    Image.frombytes(mode, size, pixels.tobytes()).save(out, kind, **options)
    return out.getvalue()


def refused(match, function, *args, **options):
    with pytest.raises(DataError, match=match) as error:
        function(*args, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress])
def test_idx_reads_the_mnist_format(tmp_path, pack):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / "x-idx3-ubyte"
    path.write_bytes(pack(idx_bytes(array)))
    assert np.array_equal(files.read_idx(path), array)


def test_idx_must_be_as_long_as_its_header_says(tmp_path):
    path = tmp_path / "x.idx"
    whole = idx_bytes(np.zeros((2, 3, 4)))
    path.write_bytes(whole[:-1])
    refused("header says 24 bytes .* it has 23", files.read_idx, path)
    path.write_bytes(whole + b"!")
    refused("it has more", files.read_idx, path)
    path.write_bytes(whole[:6])
    refused("ends inside its header", files.read_idx, path)
    path.write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, 60_000, 60_000, 60_000))
    refused("asks for 216,000,000,000,000 bytes", files.read_idx, path)
    path.write_bytes(b"")
    refused("not an idx file", files.read_idx, path)


def test_gzip_bomb_is_cut_off(tmp_path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b"\0" * (32 << 20)))
    assert path.stat().st_size < 64 << 10
    refused("holds more than", files.read_bytes, path)
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((32, 1 << 20)))))
    refused("asks for", files.read_idx, path)


def test_missing_file_and_folder(tmp_path):
    refused("check the path", files.read_bytes, tmp_path / "none")
    refused("check the path", files.read_bytes, tmp_path)
    refused("check the path", files.Zip, tmp_path / "none.zip")
    refused("check the path", files.read_safetensors, tmp_path / "none.safetensors")


# -- text -----------------------------------------------------------------------------------------


def test_invalid_utf8_names_byte_and_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("één\ntwö\n".encode() + b"thr\xffee")
    refused(r"a\.txt: invalid UTF-8 at byte 14 \(line 3\)", files.read_text, path)
    assert files.read_text(path, replace=True).endswith("thr\ufffdee")


def test_text_is_kept_as_it_is(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("a\r\nb\nç😀".encode())
    assert files.read_text(path) == "a\r\nb\nç😀"


def test_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": [1, None]}))
    assert files.read_json(path) == {"a": [1, None]}
    path.write_text('{"a": ')
    refused("not valid JSON", files.read_json, path)
    path.write_text("[" * 100_000)
    refused("not valid JSON", files.read_json, path)


# -- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("RGBA", "PNG"), ("RGB", "BMP")])
def test_lossless_image_round_trip(mode, kind):
    data = image_bytes(mode=mode, kind=kind)
    assert files.read_image(data, "x").tobytes() == Image.open(io.BytesIO(data)).tobytes()


def test_photo_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = image_bytes(size=(16, 8), kind="JPEG", exif=exif)
    assert files.read_image(data, "x").size == (8, 16)


def png_header(width, height):
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_001, 10_000, 60_000])
def test_huge_image_is_refused_from_its_header(side):
    refused("more than 64,000,000", files.read_image, png_header(side, side), "huge.png")


def test_broken_images_name_the_file_and_the_way_out():
    whole = image_bytes(kind="JPEG")
    for data in (b"", b"hello", whole[:40], whole[: len(whole) // 2]):
        refused("bad.jpg: .*--skip-bad", files.read_image, data, "bad.jpg")
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    refused("animation of 2 frames", files.read_image, out.getvalue(), "x.gif")
    out = io.BytesIO()
    Image.new("I;16", (4, 4)).save(out, "PNG")
    refused("not 8 bits", files.read_image, out.getvalue(), "deep.png")


def test_only_listed_formats_are_opened():
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "TGA")
    refused("not a readable", files.read_image, out.getvalue(), "x.tga")


# -- archives -------------------------------------------------------------------------------------


def make_zip(path, members, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data, **options)
    return path


def test_zip_members_by_name(tmp_path):
    archive = files.Zip(make_zip(tmp_path / "a.zip", {"x/1.txt": b"one", "y\\2.txt": b"two"}))
    assert archive.names == ["x/1.txt", "y/2.txt"]
    assert [archive.read(name) for name in archive.names] == [b"one", b"two"]
    archive.close()


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "C:/x", "..\\x", "C:\\x"])
def test_zip_path_traversal(tmp_path, name):
    refused("points outside", files.Zip, make_zip(tmp_path / "a.zip", {name: b"!"}))


def test_zip_bomb_link_and_password(tmp_path):
    bomb = make_zip(tmp_path / "bomb.zip", {"zeros": b"\0" * (32 << 20)})
    refused("looks like a bomb", files.Zip, bomb)
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused("is a link", files.Zip, make_zip(tmp_path / "link.zip", {link: b"/etc/passwd"}))
    path = make_zip(tmp_path / "a.zip", {"secret": b"x"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    refused("encrypted", files.Zip, path)


def test_zip_of_many_members_is_capped_in_total(tmp_path, monkeypatch):
    monkeypatch.setattr("poiesis.files._archives.GIB", 1 << 20)
    path = make_zip(tmp_path / "a.zip", {str(i): b"\0" * (1 << 20) for i in range(8)})
    refused("expands to more than", files.Zip, path)


def test_zip_member_that_lies_about_its_size(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a": os.urandom(5000)})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", 4000)
    path.write_bytes(data)
    archive = files.Zip(path)
    refused("a.zip:a: ", archive.read, "a")
    archive.close()


def make_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return path


def plain(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def test_tar_members_stream_in_order(tmp_path):
    path = make_tar(tmp_path / "a.tar.gz", [(plain("b", 2), b"bb"), (plain("d/a", 1), b"a")])
    assert list(files.tar_members(path)) == [("b", b"bb"), ("d/a", b"a")]
    assert list(files.tar_members(path, lambda name: name == "b")) == [("b", b"bb")]


def test_tar_traversal_link_truncation_and_bomb(tmp_path, monkeypatch):
    def read(path):
        return list(files.tar_members(path))

    refused("outside", read, make_tar(tmp_path / "a.tgz", [(plain("../x", 1), b"!")]))
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    refused("no plain file", read, make_tar(tmp_path / "b.tgz", [(link, b"")]))
    cut = make_tar(tmp_path / "c.tar", [(plain("x", 5000), b"x" * 5000)], "w")
    cut.write_bytes(cut.read_bytes()[:3000])
    refused("broken or truncated|ends inside", read, cut)
    monkeypatch.setattr("poiesis.files._archives.GIB", 1 << 20)
    bomb = make_tar(tmp_path / "d.tgz", [(plain("x", 8 << 20), b"\0" * (8 << 20))])
    refused("bomb", read, bomb)


# -- arrays ---------------------------------------------------------------------------------------


def npy(array, **options):
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.random.default_rng(0).normal(size=(3, 4, 2))),
        np.array(3.5, np.float32),
        np.array(["a", "bcd"]),
        np.zeros((0, 5), np.uint8),
    ],
)
def test_npy_agrees_with_numpy(array):
    read = files.parse_npy(npy(array), "x")
    assert read.dtype == array.dtype
    assert np.array_equal(read, array)


def test_npy_header_is_judged_before_allocating():
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (500000, 1000000), }\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 64
    refused("asks for shape", files.parse_npy, data, "tiny.npy")
    refused("not an npy", files.parse_npy, data.replace(b"(500000", b"(-50000"), "x")
    refused("not an npy", files.parse_npy, b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "x")
    refused("pickled objects", files.parse_npy, npy(np.array([{}]), allow_pickle=True), "x")


def test_npz_bomb_and_plain_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(32 << 20, np.uint8))
    refused("looks like a bomb", files.read_npz, path)
    np.savez_compressed(path, a=np.arange(5), b=np.eye(2))
    read = files.read_npz(path)
    assert list(read) == ["a", "b"]
    assert np.array_equal(read["b"], np.eye(2))


def test_safetensors_values_are_checked(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.tensor([1.0, float("nan")])}, path)
    refused("'w' holds NaN", files.read_safetensors, path)
    assert files.read_safetensors(path, finite=False)["w"][0] == 1
    path.write_bytes(path.read_bytes()[:-2])
    refused("not a whole safetensors", files.read_safetensors, path)


# -- pickles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_unpickle_reads_arrays_and_plain_values(protocol):
    ragged = np.empty(2, object)
    ragged[:] = [np.arange(3, dtype=np.int16), np.ones((2, 2))]
    value = OrderedDict(a=[1, "x", None, 2.5], b=(np.eye(2), np.array(["u"])), r=ragged)
    read = files.unpickle(pickle.dumps(value, protocol=protocol), "x")
    assert list(read) == list(value)
    assert read["a"] == value["a"]
    assert np.array_equal(read["b"][0], np.eye(2))
    assert read["b"][1].tolist() == ["u"]
    assert all(np.array_equal(a, b) for a, b in zip(read["r"], ragged, strict=True))
    assert read["r"][0].dtype == np.int16


class Evil:
    def __reduce__(self):
        return os.system, ("touch broken-in",)


def test_unpickle_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("wants to run code .*system", files.unpickle, pickle.dumps([Evil()]), "evil.pkl")
    assert not list(tmp_path.iterdir())
    for data in (
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(dS'build'\nI1\nsb.",
        b"cnumpy\nload\n.",
    ):
        refused("run code", files.unpickle, data, "x")


def test_unpickle_of_a_huge_claim_allocates_nothing():
    claims = (
        # _reconstruct(ndarray, (10**13,), 'b') without content
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I10000000000000\ntS'b'\ntR.",
        # a memo index of 2**31 and a byte string of 4 GiB
        b"\x80\x04Nr\xff\xff\xff\x7f.",
        b"\x80\x04B\xff\xff\xff\xff.",
    )
    for data in claims[::2]:
        refused("broken pickle", files.unpickle, data, "x")
    assert files.unpickle(claims[1], "x") is None


def test_shared_lists_do_not_multiply():
    value = ["x"]
    for _ in range(60):
        value = [value, value]
    read = files.unpickle(pickle.dumps(value), "x")
    assert read[0] is read[1]


# -- noise ----------------------------------------------------------------------------------------


def damage(whole, cut, flips):
    data = bytearray(whole[: int(len(whole) * cut)])
    for place, value in flips:
        if data:
            data[int(place * (len(data) - 1))] ^= value
    return bytes(data)


flips = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=6)
damaged = given(cut=st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.1]), flips=flips)
quick = settings(max_examples=25, deadline=None)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
@damaged
@quick
def test_damaged_images(kind, cut, flips):
    data = damage(image_bytes(kind=kind), cut, flips)
    try:
        files.read_image(data, "x")
    except DataError as error:
        assert "\n" not in str(error)


READERS = {
    "idx": (files.read_idx, idx_bytes(np.arange(60).reshape(3, 4, 5))),
    "idx.gz": (files.read_idx, gzip.compress(idx_bytes(np.arange(60).reshape(3, 4, 5)))),
    "txt": (files.read_text, "naïve text\n".encode() * 5),
    "json": (files.read_json, json.dumps({"a": [1, 2, {"b": "ü"}]}).encode()),
}


def _more_readers():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b", b"hello " * 20)
        archive.writestr("c", b"x")

    def read_zip(path):
        archive = files.Zip(path)
        try:
            return [archive.read(name) for name in archive.names]
        finally:
            archive.close()

    READERS["zip"] = (read_zip, out.getvalue())
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        archive.addfile(plain("a", 600), io.BytesIO(b"y" * 600))
    READERS["tar"] = (lambda path: list(files.tar_members(path)), out.getvalue())
    out = io.BytesIO()
    ragged = np.empty(2, object)
    ragged[:] = [np.arange(3), np.arange(4)]
    np.savez_compressed(out, a=np.arange(5), r=ragged)
    READERS["npz"] = (lambda path: files.read_npz(path, objects=True), out.getvalue())
    data = pickle.dumps({"a": np.arange(9), "b": ["x", 1]}, protocol=2)
    READERS["pickle"] = (lambda path: files.unpickle(path.read_bytes(), path), data)
    array = npy(np.arange(12).reshape(3, 4))
    READERS["npy"] = (lambda path: files.parse_npy(path.read_bytes(), path), array)
    from safetensors.torch import save

    READERS["safetensors"] = (files.read_safetensors, save({"w": torch.arange(4.0)}))


_more_readers()


@pytest.mark.parametrize("kind", READERS)
def test_damaged_files(kind, tmp_path_factory):
    read, whole = READERS[kind]
    path = tmp_path_factory.mktemp("damaged") / "x"
    path.write_bytes(whole)
    read(path)

    @damaged
    @quick
    def check(cut, flips):
        path.write_bytes(damage(whole, cut, flips))
        try:
            read(path)
        except DataError as error:
            assert "\n" not in str(error)

    check()
