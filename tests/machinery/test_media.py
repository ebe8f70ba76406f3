"""utils/media.py and the readers of data.py; the augmentation depends on the seed alone."""

import functools
import os
import struct

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_jpg, make_wav, raising
from PIL import Image

import data
from data import Samples, identity
from utils import decode, media
from utils.media import UnreadableFile, read_audio, read_image


def writer(content):
    """A function that writes these bytes into a file."""
    return lambda path: path.write_bytes(content)


def saver(array, **options):
    """A function that writes this array into a .npy file."""
    return lambda path: np.save(path, array, **options)


def tone(seconds=1.0, rate=16000, peak=0.3):
    return peak * np.sin(np.arange(int(seconds * rate)) / 9)


def test_samples_read_by_position_and_seed():
    """samples[i] reads without a seed, samples[i, seed] with it; a subset keeps the pairs."""
    readers = [lambda s, seed: (s, seed), identity]
    samples = Samples([["a", "b", "c"], torch.arange(3)], [7, 8, 9], readers)
    assert samples[1] == (("b", None), 1, 8) and samples[1, 5] == (("b", 5), 1, 8)
    part = samples.subset(np.array([2, 0]))
    assert len(part) == 2 and part[0] == (("c", None), 2, 9) and part[1] == (("a", None), 0, 7)


# --- sound ---


@pytest.mark.parametrize("seconds, frames", [(3, 299), (10, 1004)])
def test_spectrograms_have_the_papers_sizes(tmp_path, seconds, frames):
    """257 x 299 and 257 x 1004 (Sec. 4.1), for a shorter and for a longer recording."""
    for length in (1.3, 12.0):
        make_wav(tmp_path / "a.wav", length)
        decode.write_spectrogram(tmp_path / "a.wav", tmp_path / "a", seconds=seconds)
        x = data.sound(tmp_path / "a.npy", seconds=seconds)
        assert x.shape == (1, 257, frames) and x.dtype == torch.float16


def test_sound_is_the_log_of_a_windowed_transform(tmp_path):
    """16 kHz, repeated to 3 s, periodic Hann window of 512, hop 159, no padding; in half precision.

    Samples beyond 1 are cut to 1, and silence is not minus infinity.
    """
    wave = np.random.default_rng(0).uniform(-1.5, 1.5, 20000)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    decode.write_spectrogram(tmp_path / "a.wav", tmp_path / "a", seconds=3)
    result = data.sound(tmp_path / "a.npy", seconds=3)[0].numpy()
    long = np.tile(wave.clip(-1, 1), 3)
    window = np.sin(np.pi * np.arange(512) / 512) ** 2
    for n in (0, 1, 130, 298):
        expected = np.log(np.abs(np.fft.rfft(window * long[159 * n : 159 * n + 512])) + 1e-7)
        assert np.allclose(result[:, n], expected, atol=4e-3)
    assert np.allclose(media.spectrogram(np.zeros(9), 3), np.log(1e-7))


def test_sound_is_mono_at_16_khz(tmp_path):
    """Channels are averaged, and another rate is resampled: a tone stays at its pitch."""
    t = np.arange(44100) / 44100
    soundfile.write(tmp_path / "a.wav", np.stack([np.sin(2 * np.pi * 1000 * t), 0 * t], 1), 44100)
    wave = read_audio(tmp_path / "a.wav", 16000)
    assert len(wave) == 16000 and np.abs(wave[1000:-1000]).max() == pytest.approx(0.5, abs=0.02)
    assert np.abs(np.fft.rfft(wave)).argmax() == 1000


# RIFF size, data size of 0.5 s at 16 kHz, 16 bits: whole files with careless headers
SIZES = [(16037, 16000), (16044, 16044), (0, 0), (0x7FFFF024, 0x7FFFF000)]


@pytest.mark.parametrize("riff, data", SIZES)
def test_a_whole_wav_may_state_any_size(riff, data, tmp_path):
    """Recorders and pipes write such headers: every sample is read."""
    soundfile.write(tmp_path / "a.wav", tone(0.5), 16000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    assert len(content) == 16044 and content[36:40] == b"data"
    content[4:8], content[40:44] = struct.pack("<I", riff), struct.pack("<I", data)
    (tmp_path / "a.wav").write_bytes(content)
    assert np.allclose(read_audio(tmp_path / "a.wav", 16000), tone(0.5), atol=1e-4)


@pytest.mark.parametrize("bits", ["PCM_U8", "PCM_24"])
def test_a_wav_without_its_last_byte_of_padding_is_read(bits, tmp_path):
    """An odd number of bytes."""
    soundfile.write(tmp_path / "a.wav", tone()[:7999], 16000, subtype=bits)
    content = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(content[:-1] if content[-1:] == b"\0" else content)
    assert np.allclose(read_audio(tmp_path / "a.wav", 16000), tone()[:7999], atol=0.01)


def test_a_cut_is_noticed_behind_a_chunk_of_odd_length(tmp_path):
    """A note of three bytes, which one more follows, before the samples."""
    soundfile.write(tmp_path / "a.wav", tone(), 16000)
    content = (tmp_path / "a.wav").read_bytes()
    content = content[:36] + b"note" + struct.pack("<I", 3) + b"abc\0" + content[36:]
    (tmp_path / "a.wav").write_bytes(content)
    assert len(read_audio(tmp_path / "a.wav", 16000)) == 16000
    (tmp_path / "a.wav").write_bytes(content[:20000])
    with pytest.raises(UnreadableFile, match="truncated: shorter than its header says"):
        read_audio(tmp_path / "a.wav", 16000)


FORMATS = {name: {"format": name.upper()} for name in ("wav", "aiff", "flac", "ogg", "mp3")}
FORMATS |= {"rifx": {"format": "WAV", "endian": "BIG"}, "w64": {"format": "W64"}}


@pytest.mark.parametrize("name", FORMATS)
def test_a_recording_is_whole_or_refused(name, tmp_path):
    """Of every format: all samples, under any name; without its last third it is truncated."""
    soundfile.write(tmp_path / "a", tone(), 16000, **FORMATS[name])
    content = (tmp_path / "a").read_bytes()
    for ending in (".wav", ".mp4", ""):
        (tmp_path / f"a{ending}").write_bytes(content)
        result = read_audio(tmp_path / f"a{ending}", 16000)
        assert len(result) == 16000
        assert np.allclose(result[2000:14000], tone()[2000:14000], atol=0.05)
    for part in (0.66, 0.9) if name != "w64" else ():  # in a w64 the cut is not noticed
        (tmp_path / "a").write_bytes(content[: int(part * len(content))])
        with pytest.raises(UnreadableFile, match="cannot be read"):
            read_audio(tmp_path / "a", 16000)


def test_decimals_on_the_scale_of_integers_are_refused(tmp_path):
    """SciPy writes such a wav from samples that were not divided; up to 8 they are read."""
    soundfile.write(tmp_path / "a.wav", tone(peak=8), 16000, subtype="FLOAT")
    assert np.abs(read_audio(tmp_path / "a.wav", 16000)).max() > 7
    soundfile.write(tmp_path / "a.wav", tone(peak=9000), 16000, subtype="FLOAT")
    with pytest.raises(UnreadableFile, match="a.wav cannot be read .*reach 9000, expected"):
        read_audio(tmp_path / "a.wav", 16000)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_of_a_long_recording_only_its_beginning_is_read(rate, tmp_path, monkeypatch):
    """1 s and 5 s for the resampler: to the bit as from all of it. A cut is still noticed."""
    wave = (3000 * np.random.default_rng(0).normal(size=(9 * rate, 2))).clip(-(2**15), 2**15 - 1)
    soundfile.write(tmp_path / "a.wav", wave.astype(np.int16), rate)
    whole, asked = read_audio(tmp_path / "a.wav", 16000), []

    class Sound(soundfile.SoundFile):
        def read(self, frames, **how):
            asked.append(frames)
            return super().read(frames, **how)

    monkeypatch.setattr(soundfile, "SoundFile", Sound)
    result = read_audio(tmp_path / "a.wav", 16000, 1)
    assert np.array_equal(result, whole[:16000]) and len(result) == 16000 and asked == [6 * rate]
    content = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(content[: int(0.9 * len(content))])
    with pytest.raises(UnreadableFile, match="truncated: shorter than its header says"):
        read_audio(tmp_path / "a.wav", 16000, 1)


def test_silence_is_noticed_in_a_spectrogram(tmp_path):
    """Nothing, or two channels that cancel out up to rounding; not a quiet or a late tone."""
    sounds = {
        "silent": 0 * tone(),
        "opposite": np.stack([tone(), 2**-16 - tone()], 1),
        "quiet": 1e-3 * tone(),
        "late": np.where(np.arange(16000) > 15000, tone(), 0),
    }
    found = []
    for name, wave in sounds.items():
        soundfile.write(tmp_path / "a.wav", wave, 16000)
        decode.write_spectrogram(tmp_path / "a.wav", tmp_path / name, seconds=3)
        found += [name] if media.remark_on_sound(tmp_path / f"{name}.npy") else []
    assert found == ["silent", "opposite"]


def test_an_impossible_rate_is_refused(tmp_path):
    """2 GHz in a header would leave one sample of the sound."""
    make_wav(tmp_path / "a.wav")
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[24:28] = struct.pack("<I", 2**31 - 1)
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UnreadableFile, match="its header says 2147483647 Hz"):
        read_audio(tmp_path / "a.wav", 16000)


# --- files that are no media ---


def broken_png(path):
    """A picture whose second piece of pixels is none."""
    pixels = np.random.default_rng(0).integers(256, size=(256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    content = path.read_bytes()
    second = content.index(b"IDAT", content.index(b"IDAT") + 4)
    path.write_bytes(content[:second] + bytes(4) + content[second + 4 :])


def bomb(path):
    """A picture that says of itself to be 40,000 x 40,000."""
    Image.new("RGB", (4, 4)).save(path, "BMP")
    content = path.read_bytes()
    path.write_bytes(content[:18] + np.array([40000, 40000], "<i4").tobytes() + content[26:])


def empty_wav(path):
    soundfile.write(path, np.zeros(0), 8000, format="WAV")


def mixed(folder):
    make_jpg(folder / "1.jpg", (64, 48))
    make_jpg(folder / "2.jpg", (48, 64))


def sound(path):
    return read_audio(path, 16000)


def nothing(path):
    pass


LFS, BAD = "git-lfs pointer", "undecodable"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic\0\0"
MIF1 = b"\0\0\0\x18ftypmif1\0\0\0\0mif1miaf\0\0"
SHAPE, FLOW = "expected numbers (H, W, 2, T)", (9, 9, 2, 9)
NO_MEDIA = [  # a reader, a function that makes the file, the sentence, the reason that is counted
    (read_image, nothing, "is missing; put it back, or run", "missing"),
    (read_image, os.mkdir, "is a folder, expected a file; give a file instead", BAD),
    (read_image, writer(b"version https://git-lfs.github.com/spec/v1\n"), "is a git-lfs", LFS),
    (read_image, broken_png, "cannot be read (broken PNG file", BAD),
    (read_image, writer(HEIC), "(it is a HEIC picture, expected JPEG or PNG; convert it to", BAD),
    (read_image, writer(MIF1), "(it is a HEIC picture, expected JPEG or PNG; convert it to", BAD),
    (read_image, writer(b"<html>"), "(cannot identify image file); replace it, or leave", BAD),
    (read_image, bomb, "could be decompression bomb", BAD),
    (sound, empty_wav, "it holds no samples", BAD),
    (data.flow, nothing, "is missing; put it back, or run", "missing"),
    (data.flow, saver(np.zeros((9, 9, 2, 0))), SHAPE, BAD),
    (data.flow, saver(np.full(FLOW, np.nan)), "not finite", "not finite"),
    (data.clip, nothing, "is missing; put it back, or run", "missing"),
    (data.clip, os.mkdir, "numbered pictures, expected names like 1.jpg, 1.jpeg", "no frames"),
    (data.clip, mixed, "has frames of several sizes", "mixed frames"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("read, make, said, reason", NO_MEDIA)
def test_what_is_no_media_is_one_sentence(tmp_path, read, make, said, reason):
    """The path, what is wrong, and by which reason it is counted."""
    path = tmp_path / ("x.npy" if read is data.flow else "x")
    make(path)
    with pytest.raises(UnreadableFile) as error:
        read(path)
    text = str(error.value)
    assert text.startswith(str(path)) and said in text and error.value.reason == reason


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, SyntaxError])
def test_any_error_of_a_library_names_the_file(error, tmp_path, monkeypatch):
    """On a damaged file the libraries raise whatever they like."""
    make_jpg(tmp_path / "1.jpg")
    make_wav(tmp_path / "a.wav")
    for name in ("PIL.Image.open", "soundfile.SoundFile", "av.open"):
        monkeypatch.setattr(name, raising(error("odd")))
    packets = functools.partial(media.read_packets, kind="audio")
    for name, read in [("1.jpg", read_image), ("a.wav", sound), ("a.wav", packets)]:
        with pytest.raises(UnreadableFile, match=f"{name} cannot be read .*odd"):
            read(tmp_path / name)


def test_too_many_open_files_are_no_fault_of_the_file(tmp_path, monkeypatch):
    """The error stays what it is, so that no sample is listed as broken."""
    make_jpg(tmp_path / "1.jpg")
    monkeypatch.setattr("PIL.Image.open", raising(OSError(24, "Too many open files")))
    with pytest.raises(OSError, match="Too many open files"):
        read_image(tmp_path / "1.jpg")


def test_a_file_without_permission_is_said(tmp_path, monkeypatch):
    """It is counted by a reason of its own."""
    make_jpg(tmp_path / "1.jpg")
    refused = PermissionError(13, "Permission denied", str(tmp_path / "1.jpg"))
    monkeypatch.setattr("builtins.open", raising(refused))
    with pytest.raises(UnreadableFile, match="1.jpg cannot be read: Permission den.*; ch") as error:
        read_image(tmp_path / "1.jpg")
    assert error.value.reason == "no permission"


# --- pictures as they are shown ---

UPRIGHT = np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 250]]], np.uint8)
STORED = {  # how a picture is stored under each orientation of EXIF
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
}


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def four_corners(x):
    """The corners of (3, H, W), as UPRIGHT has them."""
    h, w = x.shape[1] // 8, x.shape[2] // 8
    return x[:, [[h, h], [-h, -h]], [[w, -w], [w, -w]]].permute(1, 2, 0).numpy()


TURNED = [(orientation, "jpg") for orientation in STORED]
TURNED += [(6, "png"), (6, "webp"), (7, "tif")]


@pytest.mark.parametrize("orientation, ending", TURNED)
def test_a_photograph_is_turned_by_its_exif(orientation, ending, tmp_path):
    """All eight orientations, small and large; a large JPEG is halved."""
    path = tmp_path / f"a.{ending}"
    for h, w in [(24, 48), (450, 900)]:
        pixels = np.ascontiguousarray(STORED[orientation](UPRIGHT.repeat(h, 0).repeat(w, 1)))
        Image.fromarray(pixels).save(path, exif=exif(orientation), quality=95)
        x, scale = read_image(path), 1 if ending == "jpg" and h == 450 else 2
        assert np.allclose(four_corners(x), UPRIGHT, atol=12)
        assert x.shape == (3, scale * h, scale * w)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Tag data larger")
def test_damaged_exif_stops_no_picture(tmp_path):
    """It is read as stored; where the orientation can still be read, as shown."""
    Image.new("RGB", (96, 48)).save(tmp_path / "a.jpg", exif=exif(6))
    whole, shapes = (tmp_path / "a.jpg").read_bytes(), set()
    start = whole.index(b"Exif\0\0") + 6
    assert read_image(tmp_path / "a.jpg").shape == (3, 96, 48)
    for at in range(start, start + 26):
        content = bytearray(whole)
        content[at] ^= 255
        (tmp_path / "a.jpg").write_bytes(content)
        shapes.add(tuple(read_image(tmp_path / "a.jpg").shape))
    assert shapes == {(3, 48, 96), (3, 96, 48)}


RAMP = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
DEEP = {  # grey of 16 bits and more, and what it is to become
    "a.png": (RAMP, RAMP >> 8),
    "big.tif": (RAMP.astype(">u2"), RAMP >> 8),
    "a.jp2": (RAMP, RAMP >> 8),
    "a.pgm": (RAMP, RAMP >> 8),
    "long.tif": (RAMP.astype(np.int32) << 15, RAMP >> 9),
    "one.tif": (RAMP.astype(np.float32) / 65535, RAMP >> 8),
    "bytes.tif": (RAMP.astype(np.float32) / 257, RAMP >> 8),
    "nan.tif": (np.where(RAMP > 0, RAMP / np.float32(65535), np.float32("nan")), RAMP >> 8),
}


@pytest.mark.parametrize("name", DEEP)
def test_a_picture_of_more_than_8_bits_keeps_its_levels(name, tmp_path):
    """The highest 8 of 16 bits; not white, not black; three channels or one."""
    values, expected = DEEP[name]
    if name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 16 16 65535\n" + values.astype(">u2").tobytes())
    elif values.dtype == ">u2":
        Image.frombytes("I;16B", (16, 16), values.tobytes()).save(tmp_path / name)
    else:
        Image.fromarray(values).save(tmp_path / name)
    (tmp_path / name).rename(tmp_path / "a.jpg")
    for mode, channels in (("RGB", 3), ("L", 1)):
        x = read_image(tmp_path / "a.jpg", mode)
        assert x.shape == (channels, 16, 16) and x.dtype == torch.uint8
        assert all(np.allclose(channel, expected, atol=1) for channel in x.numpy())
    assert data.picture(tmp_path / "a.jpg", 1).shape == (3, 224, 224)


def test_depth_in_millimetres_keeps_its_steps(tmp_path):
    """16 bits: one range for all frames of a clip, in which a metre is a metre; no constant."""
    for i, far in enumerate([1000, 2000, 4000], 1):
        frame = np.full((48, 64), far, np.uint16)
        frame[:, 32:], frame[0, 0] = 500, 65535  # 65,535: not measured
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    x = media.read_frames(tmp_path, 3, mode="L")
    assert x.shape == (3, 1, 48, 64) and x.dtype == torch.uint8
    assert x[:, 0, 9, 9].tolist() == [62, 125, 250] and (x[:, 0, 9, 40] == 31).all()
    assert (x[:, 0, 0, 0] == 255).all()
    assert data.clip(tmp_path, seed=1, mode="L").shape == (3, 1, 224, 224)
    assert media.read_frames(tmp_path, 3)[:, :, 9, 9].tolist() == [[3] * 3, [7] * 3, [15] * 3]


def smooth(height, width):
    """A colourful picture without hard edges."""
    small = np.random.default_rng(0).integers(256, size=(9, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def by_both(path, mode, monkeypatch):
    """[pixels or the error's text] as they are read, and by Pillow alone; was torchvision used?"""
    results, used = [], []

    def spy(image, decode=media.decode_jpeg):
        used.append(decode(image))
        return used[-1]

    for decoder in (spy, lambda image: None):
        monkeypatch.setattr(media, "decode_jpeg", decoder)
        try:
            results.append(media.read_pixels(path, mode))
        except UnreadableFile as error:
            results.append(str(error))
    monkeypatch.undo()
    assert isinstance(results[0], str) == isinstance(results[1], str)
    assert np.array_equal(*results)
    return results[0], any(values is not None for values in used)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0, "progressive": True}])
def test_torchvision_and_pillow_read_the_same_jpeg(options, mode, tmp_path, monkeypatch):
    """To the bit: in colour and grey, any subsampling, odd sizes, a short side under 896."""
    for picture in (smooth(91, 123), smooth(91, 123).convert("L"), smooth(895, 1800)):
        picture.save(tmp_path / "1.jpg", quality=90, **options)
        pixels, by_torchvision = by_both(tmp_path / "1.jpg", mode, monkeypatch)
        assert by_torchvision and pixels.dtype == np.uint8


def test_only_pillow_reads_what_torchvision_might_read_otherwise(tmp_path, monkeypatch):
    """CMYK, EXIF, XMP, a large one, one that is no JPEG; and all where the extension is missing."""
    smooth(48, 64).convert("CMYK").save(tmp_path / "cmyk.jpg")
    smooth(48, 64).save(tmp_path / "exif.jpg", exif=exif(6))
    smooth(48, 64).save(tmp_path / "xmp.jpg", xmp=b'<x tiff:Orientation="6"/>')
    smooth(896, 896).save(tmp_path / "large.jpg")
    smooth(48, 64).save(tmp_path / "png.jpg", "PNG")
    for path in tmp_path.iterdir():
        assert not by_both(path, "RGB", monkeypatch)[1], path.name
    smooth(48, 64).save(tmp_path / "1.jpg")
    monkeypatch.setattr(torch.ops, "image", None)
    assert read_image(tmp_path / "1.jpg").shape == (3, 48, 64)


def test_a_damaged_jpeg_is_read_or_refused_as_by_pillow(tmp_path, monkeypatch):
    """Cut off or with other bytes: the same pixels, or the same sentence."""
    smooth(91, 123).save(tmp_path / "1.jpg", quality=90)
    whole, rng, refused = (tmp_path / "1.jpg").read_bytes(), np.random.default_rng(0), 0
    for k in range(30):
        content = bytearray(whole)
        for at in rng.integers(len(content), size=rng.integers(1, 9)):
            content[at] = rng.integers(256)
        cut = len(content) if k % 3 else rng.integers(1, len(content))
        (tmp_path / "1.jpg").write_bytes(content[:cut])
        refused += isinstance(by_both(tmp_path / "1.jpg", "RGB", monkeypatch)[0], str)
    assert 10 <= refused < 28


def test_what_is_transparent_is_white(tmp_path):
    """As viewers show it, whatever colour is hidden there: RGBA, grey with alpha, a palette."""
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255  # black above, nothing below
    rgba = Image.fromarray(pixels)
    rgba.save(tmp_path / "rgba.png")
    rgba.convert("LA").save(tmp_path / "la.png")
    palette = Image.fromarray(np.arange(2, dtype=np.uint8).repeat(8).reshape(4, 4)).convert("P")
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.save(tmp_path / "p.png", transparency=1)
    palette.save(tmp_path / "p.gif", transparency=1)
    for name in ("rgba.png", "la.png", "p.png", "p.gif"):
        for mode in ("RGB", "L"):
            x = read_image(tmp_path / name, mode)
            assert (x[:, :2] == 0).all() and (x[:, 2:] == 255).all(), name


def test_a_picture_may_carry_long_notes(tmp_path):
    """A PNG with 3 MB of compressed text."""
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    notes.add_text("parameters", "a" * 3 * 2**20, zip=True)
    Image.new("RGB", (9, 9), (200, 40, 10)).save(tmp_path / "a.png", pnginfo=notes)
    assert read_image(tmp_path / "a.png")[:, 0, 0].tolist() == [200, 40, 10]


# --- crops ---


def box(height, width, seed):
    """crop_box as torchvision has it: top, left, height, width."""
    rows, columns = media.crop_box(height, width, seed)
    return rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start


IMAGES = [((3, 256, 341), torch.uint8), ((4, 1, 300, 200), torch.uint8)]
IMAGES += [((8, 2, 128, 171), torch.float32)]


@pytest.mark.parametrize("shape, dtype", IMAGES)
def test_a_crop_is_resized_as_by_torchvision(shape, dtype):
    """All of an image, or any part of it: torchvision's v2.functional gives the same values."""
    from torchvision.transforms.v2 import functional

    def close(a, b):  # without AVX2 torchvision resizes bytes as float32, and rounds
        return (a.double() - b.double()).abs().max() <= (1 if a.dtype == torch.uint8 else 1e-4)

    images = torch.randint(256, shape, generator=torch.Generator().manual_seed(0))
    images = images.to(dtype)
    for x in (images, images.movedim(-3, -1).contiguous().movedim(-1, -3)):  # both layouts
        expected = functional.resize(x, [224, 224])
        assert media.crop(x, None, True).dtype == images.dtype
        assert close(media.crop(x, None, True), expected)
        for seed in range(4):
            expected = functional.resized_crop(x, *box(*shape[-2:], seed), [224, 224])
            expected = expected.flip(-1) if seed % 2 else expected
            assert close(media.crop(x, seed, True), expected)


def test_crops_are_distributed_as_torchvisions():
    """Area, ratio and place of RandomResizedCrop; where no part fits, the same middle."""
    from torchvision.transforms import RandomResizedCrop

    def draw(shape):
        return RandomResizedCrop.get_params(torch.zeros(3, *shape), [0.08, 1], [3 / 4, 4 / 3])

    def measured(top, left, height, width):
        place = top / max(1, 256 - height), left / max(1, 341 - width)
        return height * width / (256 * 341), np.log(width / height), *place

    torch.manual_seed(0)
    ours = [measured(*box(256, 341, seed)) for seed in range(3000)]
    theirs = [measured(*draw((256, 341))) for _ in range(3000)]
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        a, b = (np.quantile(x, quantile, axis=0) for x in (ours, theirs))
        assert np.allclose(a, b, atol=0.04), quantile
    for shape in [(30, 2000), (2000, 30)]:
        assert box(*shape, 1) == box(*shape, 2) == draw(shape)
    assert media.crop_box(30, 2000, None) == (slice(None), slice(None))


def test_the_positions_of_frames_do_not_depend_on_the_crop():
    """For one seed both are drawn, but from other numbers."""
    seeds = range(1000)
    place, _, height, _ = zip(*(box(256, 341, seed) for seed in seeds))
    first = [media.sample_positions(1000, 1, seed)[0] for seed in seeds]
    odd = [seed % 2 for seed in seeds]
    for drawn in (place, height, odd):
        assert abs(np.corrcoef(first, drawn)[0, 1]) < 0.1
    assert abs(np.corrcoef(odd, height)[0, 1]) < 0.1


def test_augmentation_is_drawn_from_the_seed(tmp_path):
    """Whatever was drawn before; the global random state stays; a clip's frames are alike."""
    noise = np.random.default_rng(0).integers(256, size=(90, 120, 3), dtype=np.uint8)
    for i in range(3):
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    state = torch.get_rng_state()
    a, b, c = (data.picture(tmp_path / "1.png", seed) for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(5)
    assert torch.equal(a, b) and torch.equal(a, data.picture(tmp_path / "1.png", 3))
    assert not torch.equal(a, c)
    assert torch.equal(data.picture(tmp_path / "1.png"), data.picture(tmp_path / "1.png"))
    x = data.clip(tmp_path, seed=1)
    assert torch.equal(x[0], x[1]) and torch.equal(x[0], x[2])


def test_a_direction_is_not_mirrored(tmp_path):
    """Flow never swaps left and right, nor does a clip with flip=False; images sometimes do."""
    ramp = np.arange(64, dtype=np.uint8).repeat(3).reshape(1, 64, 3).repeat(48, 0)
    Image.fromarray(ramp).save(tmp_path / "1.png")
    np.save(tmp_path / "flow.npy", ramp[..., :2, None].repeat(8, 3))

    def rising(read, name):
        rows = [read(tmp_path / name, seed).flatten(0, -2)[0].float() for seed in range(20)]
        return sum(bool((row.diff() >= -1e-3).all()) for row in rows)

    still = functools.partial(data.clip, flip=False)
    assert rising(data.flow, "flow.npy") == rising(still, "") == 20
    assert 0 < rising(data.picture, "1.png") < 20 and 0 < rising(data.clip, "") < 20


# --- arrays ---

NUMBERS = [  # arrays, and the values that training sees
    (np.arange(4, dtype=">f8"), [0, 1, 2, 3]),
    (np.arange(4, dtype=">u2"), [0, 1, 2, 3]),
    (np.array([0.5, -2], np.longdouble), [0.5, -2]),
    (np.array([7, -7]), [7, -7]),
    (np.array([0.5, 65504], np.float16), [0.5, 65504]),
]


@pytest.mark.parametrize("values, expected", NUMBERS)
def test_any_numbers_are_read_as_float32(values, expected, tmp_path):
    """A vector, or a picture of 2 channels; whatever the order of their bytes."""
    np.save(tmp_path / "vector.npy", values)
    np.save(tmp_path / "grid.npy", np.tile(values, (2, 3, 1)))
    vector, grid = media.vector(tmp_path / "vector.npy"), media.grid(tmp_path / "grid.npy")
    assert vector.dtype == grid.dtype == torch.float32 and vector.tolist() == expected
    assert grid.shape == (2, 3, len(values)) and (grid == vector).all()
    np.save(tmp_path / "matrix.npy", np.zeros((50, 6)))
    with pytest.raises(UnreadableFile, match=r"\(C, H, W\); reshape it to \(1, 50, 6\)"):
        media.grid(tmp_path / "matrix.npy")


@pytest.mark.parametrize("channels", [2, 3])
def test_bytes_of_any_number_of_channels_are_pixels(channels, tmp_path):
    """Three channels have ImageNet's mean and deviation; others become 0..1."""
    np.save(tmp_path / "a.npy", np.full((channels, 5, 6), 51, np.uint8))
    grid = media.grid(tmp_path / "a.npy")
    assert grid.dtype == torch.uint8 and grid.shape == (channels, 5, 6)
    x = media.normalize(grid[None], media.IMAGENET)[0, :, 0, 0]
    red = (0.2 - 0.485) / 0.229
    assert x[0].item() == pytest.approx(red if channels == 3 else 0.2) and len(x) == channels


def archive(path):
    np.savez(path.with_suffix(".npz"), np.zeros(4), np.zeros(4))
    path.with_suffix(".npz").rename(path)


NO_NUMBERS = [  # a function that writes the file, the sentence
    (archive, "cannot be read (it is an .npz archive; save one array"),
    (writer(b"1 2 3"), "it is no .npy file; save one array"),
    (saver(np.array([{}] * 4)), "it holds Python objects; save one array"),
    (saver(np.zeros(4, "f4,O")), "it holds Python objects; save one array"),
    (saver(np.array(list("abcd"))), "<U1 (4,), expected numbers (d)"),
    (saver(np.zeros(4, complex)), "complex128 (4,), expected numbers (d)"),
    (saver(np.zeros((5, 5))), "float64 (5, 5), expected numbers (d)"),
    (saver(np.zeros(0)), "float64 (0,), expected numbers (d)"),
    (saver(np.array([0, 1, 2, 1e300])), "not finite in float32"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("write, said", NO_NUMBERS)
def test_an_array_that_is_of_no_use_is_one_sentence(write, said, tmp_path):
    """Nothing in the file is executed; a truncated file is refused, too."""
    path = tmp_path / "a.npy"
    write(path)

    for _ in range(2):
        with pytest.raises(UnreadableFile) as error:
            media.vector(path)
        text = str(error.value)
        assert text.startswith(str(path)) and said in text and "\n" not in text
        path.write_bytes(path.read_bytes()[:-1])
        said = "cannot be read"


# --- frames ---


def test_spread_takes_one_position_of_each_part():
    """The middles without a seed; with one a random one within each part; short clips repeat."""
    assert media.sample_positions(10, 3) == [1, 5, 8]
    seen = np.array([media.sample_positions(9, 3, seed) for seed in range(200)])
    assert all(set(seen[:, part]) == {3 * part, 3 * part + 1, 3 * part + 2} for part in range(3))
    assert media.sample_positions(1, 3, 5) == [0, 0, 0]
    assert media.sample_positions(2, 3) == [0, 1, 1]


def numbered_frames(folder, n, first=1):
    """frame_1.jpg, frame_2.JPEG, ... whose grey level is 10 times their number."""
    for i in range(first, first + n):
        ending = ["jpg", "JPEG", "JPG", "jpeg"][i % 4]
        make_jpg(folder / f"frame_{i}.{ending}", (64, 48), (10 * i, 10 * i, 10 * i))
    return folder


def levels(x):
    """The grey level of each frame of a clip in steps of 10."""
    return (x.float().mean((1, 2, 3)) / 10).round().int().tolist()


def test_a_clip_is_sorted_by_number(tmp_path):
    """frame_2 comes before frame_10; three frames, 224 x 224; three channels, or one in mode L.

    macOS leaves a file `._frame_1.jpg` beside each frame on other systems' disks: it is no frame.
    """
    for i in (1, 2, 10):
        (tmp_path / f"._frame_{i}.jpg").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    numbered_frames(tmp_path, 10)
    for mode, channels in (("RGB", 3), ("L", 1)):
        x = data.clip(tmp_path, mode=mode)
        assert x.shape == (3, channels, 224, 224) and levels(x) == [2, 6, 9]
    names = [os.path.basename(path).split(".")[0] for path in media.frame_paths(tmp_path)]
    assert names == [f"frame_{i}" for i in range(1, 11)]


def test_other_frames_with_another_seed(tmp_path):
    """Of pictures, of bytes and of flow."""
    numbered_frames(tmp_path / "frames", 8)
    raw = np.arange(10, 90, 10, np.uint8).repeat(64 * 48 * 3).reshape(8, 48, 64, 3)
    np.save(tmp_path / "raw.npy", raw)
    np.save(tmp_path / "flow.npy", np.zeros((8, 8, 2, 8)) + 10 * np.arange(1, 9))
    for source, read in [("frames", data.clip), ("raw.npy", data.clip), ("flow.npy", data.flow)]:
        drawn = {tuple(levels(read(tmp_path / source, seed, frames=2))) for seed in range(9)}
        assert len(drawn) > 3 and levels(read(tmp_path / source, frames=2)) == [3, 7]


def test_a_gesture_is_read_within_its_window(tmp_path):
    """Frames start..end-1, or all of a folder of exactly so many; fewer are an error."""
    whole = numbered_frames(tmp_path / "whole", 20)
    cut = numbered_frames(tmp_path / "cut", 4, first=11)
    for folder in (whole, cut):
        assert levels(data.clip((folder, 10, 14), frames=4)) == [11, 12, 13, 14]
    assert levels(data.clip((whole, 16, 20), frames=4)) == [17, 18, 19, 20]  # its end is the clip's
    with pytest.raises(UnreadableFile, match="has 4 frames, expected 5 or at least 15"):
        data.clip((cut, 10, 15))


def test_frames_are_cropped_before_or_after_they_are_copied(tmp_path):
    """Packed frames, JPEGs and depth of 16 bits: the same as a crop of the whole frames."""
    (tmp_path / "jpg").mkdir()
    (tmp_path / "depth").mkdir()
    for i in range(1, 5):
        smooth(48, 64).rotate(20 * i).save(tmp_path / f"jpg/{i}.jpg")
        deep = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * i
        Image.fromarray(deep).save(tmp_path / f"depth/{i}.png")
    raw = decode.pack_frames(tmp_path / "jpg")
    for source, mode in [(raw, "RGB"), (tmp_path / "jpg", "RGB"), (tmp_path / "depth", "L")]:
        for seed in (None, 1, 2, 3):
            whole = media.read_frames(source, 3, seed, mode)
            assert whole.shape[-2:] == (48, 64)
            expected = media.crop(whole, seed, True)
            assert torch.equal(data.clip(source, seed, mode=mode), expected)


def test_flow_is_read_from_h_w_2_t(tmp_path):
    """(H, W, 2, T) -> (frames, 2, 224, 224), the frames spread over T, values as they are."""
    values = np.broadcast_to(np.arange(16.0), (20, 30, 2, 16)).astype(np.float16)
    np.save(tmp_path / "a.npy", values)
    x = data.flow(tmp_path / "a.npy", frames=8)
    assert x.shape == (8, 2, 224, 224) and x[:, 0, 5, 5].tolist() == [1, 3, 5, 7, 9, 11, 13, 15]


def test_text_is_ids_and_mask(tiny_bert, tiny_clip):
    """[CLS] words [SEP], mask 1; not padded; cut to 128 tokens or to what the encoder reads."""
    from utils.pretrained import load_tokenizer

    bert, clip = (load_tokenizer(str(folder)) for folder in (tiny_bert, tiny_clip))
    assert data.text("The dog", tokenizer=bert).tolist() == [[2, 5, 7, 3], [1] * 4]
    assert data.text("a " * 300, tokenizer=bert).shape == (2, 128)
    assert data.text("a " * 300, tokenizer=clip).shape == (2, 16)
