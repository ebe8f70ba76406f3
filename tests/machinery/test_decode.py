"""utils/decode.py: videos as a player shows them, sound as it is heard."""

import multiprocessing
import os
import shutil
import struct
import threading
from fractions import Fraction

import av
import damage
import numpy as np
import pytest
import soundfile
from conftest import encode_sound, make_video
from PIL import Image

from utils import decode, media
from utils.media import UnreadableFile


def write_video(path, times, picture, codec="mpeg4", size=(64, 48), form=(), **options):
    """A video with the frame picture(t), an array or a grey level, at each of the times t in ms."""
    container = {"avoid_negative_ts": "disabled", **dict(form)}
    with av.open(os.fspath(path), "w", options=container) as file:
        file.metadata["title"] = "cafe"
        track = file.add_stream(codec, rate=1000, width=size[0], height=size[1], options=options)
        track.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        track.time_base = Fraction(1, 1000)
        if codec != "ffv1":
            track.codec_context.qmin = track.codec_context.qmax = 2
        for t in times:
            pixels = np.zeros((size[1], size[0], 3), np.uint8) + np.array(picture(t), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = t, track.time_base
            file.mux(track.encode(frame))
        file.mux(track.encode())
    return path


def grey_levels(folder):
    """The mean of each picture in a folder."""
    return [np.asarray(Image.open(file).convert("L")).mean() for file in sorted(folder.iterdir())]


def clock(t):
    """The grey level at t ms."""
    return 100 + t // 100


def seconds(path, choose, target):
    """The times at which a video's extracted frames were written, by their grey level."""
    shutil.rmtree(target, ignore_errors=True)
    return [(x - 100) / 10 for x in grey_levels(decode.extract_frames(path, target, choose))]


SECONDS = np.arange(10) + 0.5


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "flv", "avi", "wmv"])
def test_frames_are_even_in_time_where_the_rate_varies(ending, tmp_path):
    """25 frames a second for 5 s, then 3 a second: one from each second, whatever the container."""
    codec = {"flv": "flv", "wmv": "wmv2"}.get(ending, "mpeg4")
    times = [*range(0, 5000, 40), *range(5000, 10000, 320)]
    path = write_video(tmp_path / f"a.{ending}", times, clock, codec)
    assert np.allclose(seconds(path, 10, tmp_path / "a"), SECONDS - 0.15, atol=0.35)


def test_frames_of_a_fixed_rate_are_those_of_their_numbers(tmp_path):
    """250 at 25 a second: 12, 37, 62, ...; also where the clip starts late; a number repeats."""
    numbers = media.sample_positions(250, 10)
    for start in (0, 3000):
        times = range(start, start + 10000, 40)
        path = write_video(tmp_path / "a.mkv", times, clock)
        shown = seconds(path, 10, tmp_path / "a")
        assert shown == seconds(path, lambda n: media.sample_positions(n, 10), tmp_path / "a")
        assert np.allclose(shown, [times[n] / 1000 for n in numbers], atol=0.3)
    path = write_video(tmp_path / "b.mkv", [0], clock)
    assert len(seconds(path, 10, tmp_path / "a")) == 10


@pytest.mark.parametrize("ending", ["mp4", "mov"])
def test_what_an_edit_list_hides_is_not_shown(ending, tmp_path):
    """12 s of which the first 2 are hidden, as `ffmpeg -c copy` leaves them; also by number."""
    times = range(-2000, 10000, 40)
    path = write_video(tmp_path / f"a.{ending}", times, clock, g="50")
    assert np.allclose(seconds(path, 10, tmp_path / "a"), SECONDS, atol=0.3)
    counted = []
    shown = seconds(path, lambda n: counted.append(n) or range(2), tmp_path / "a")
    assert counted == [250] and np.allclose(shown, [0, 0.04], atol=0.3)


def test_gestures_are_taken_by_number(tmp_path):
    """Frames 5 to 84, where the rate varies; also of an avi whose times run backwards."""
    times = np.cumsum([40, 200] * 60).tolist()
    path = write_video(tmp_path / "a.mkv", times, lambda t: 10 + times.index(t))
    shown = seconds(path, lambda n: range(5, 85), tmp_path / "a")
    assert np.allclose(np.array(shown) * 10 + 100, 10 + np.arange(5, 85), atol=1.5)
    path = write_video(tmp_path / "a.avi", range(0, 4000, 40), clock, "libx264", bf="2", g="12")
    with av.open(str(path)) as video:
        pts = [frame.pts for frame in video.decode(video=0)]
    assert pts != sorted(pts)
    for choose in (lambda n: range(0, 100, 10), 10):
        shown = seconds(path, choose, tmp_path / "a")
        assert np.allclose(shown, np.arange(10) * 0.4, atol=0.35) and shown == sorted(shown)


def test_two_recordings_in_one_file_are_one_clip(tmp_path):
    """Times that start again at 0: by number."""
    for name, size in (("a", (64, 48)), ("b", (64, 64))):
        make_video(tmp_path / f"{name}.ts", size=size, sound=False, video="mpeg1video")
    whole = (tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes()
    (tmp_path / "c.ts").write_bytes(whole)
    folder = decode.extract_frames(tmp_path / "c.ts", tmp_path / "c", 10)
    assert np.allclose(grey_levels(folder), 2 * [24, 72, 120, 168, 216], atol=8)
    assert {Image.open(file).size for file in folder.iterdir()} == {(341, 256)}  # as the first


def test_a_recording_may_begin_between_key_frames(tmp_path):
    """What comes before the first key frame is passed over."""
    with av.open(str(tmp_path / "a.ts"), "w") as file:
        track = file.add_stream("libx264", rate=30, width=64, height=48, options={"g": "10"})
        track.pix_fmt = "yuv420p"
        for n in range(30):
            grey = np.full((48, 64, 3), 8 * n, np.uint8)
            file.mux(track.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        file.mux(track.encode())
    content = (tmp_path / "a.ts").read_bytes()
    start = content.index(b"\x47\x41\x00", 188 * 5)  # the second picture
    (tmp_path / "a.ts").write_bytes(content[start:])
    folder = decode.extract_frames(tmp_path / "a.ts", tmp_path / "a", 10)
    levels = grey_levels(folder)
    assert levels[0] > 70 and np.allclose(levels[-2:], [200, 224], atol=14)


# --- turned and odd pictures ---

CORNERS = {"R": (220, 30, 30), "G": (30, 180, 30), "B": (30, 30, 220), "W": (240, 240, 240)}


def four_corners(size=(64, 48)):
    """Red green / blue white."""
    colours = np.array([[CORNERS[c] for c in row] for row in ("RG", "BW")], np.uint8)
    return colours.repeat(size[1] // 2, 0).repeat(size[0] // 2, 1)


def corners(image):
    """The letters of a picture's four corners: "RG/BW" if it is upright."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    h, w = pixels.shape[:2]
    letters = [
        min(CORNERS, key=lambda c: np.abs(pixels[y, x] - CORNERS[c]).sum())
        for y in (h // 8, -h // 8)
        for x in (w // 8, -w // 8)
    ]
    return "{}{}/{}{}".format(*letters)


MATRICES = {  # (a, b, c, d): (x, y) is shown at (a x + c y, b x + d y)
    (1, 0, 0, 1): "RG/BW",
    (-1, 0, 0, 1): "GR/WB",
    (1, 0, 0, -1): "BW/RG",
    (-1, 0, 0, -1): "WB/GR",
    (0, 1, 1, 0): "RB/GW",
    (0, 1, -1, 0): "BR/WG",
    (0, -1, 1, 0): "GW/RB",
    (0, -1, -1, 0): "WG/BR",
    (0, 0, 0, 0): "RG/BW",
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_turned_video_is_read_as_it_is_shown(matrix, tmp_path):
    """By the display matrix of an mp4, turned or mirrored; the short side stays 256."""
    path = write_video(tmp_path / "a.mp4", range(0, 1000, 40), lambda t: four_corners())
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44
    a, b, c, d = (65536 * x for x in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 2**30)
    path.write_bytes(content)
    for choose in (3, lambda n: range(3)):
        folder = decode.extract_frames(path, tmp_path / f"{choose}", choose)
        for file in folder.iterdir():
            picture = Image.open(file)
            assert corners(picture) == MATRICES[matrix]
            assert picture.size == ((256, 341) if matrix[1] else (341, 256))


@pytest.mark.parametrize(
    "size, expected", [((1920, 4), (8192, 17)), ((4, 1920), (17, 8192)), ((1, 1), (256, 256))]
)
def test_a_video_of_any_shape_gives_pictures(size, expected, tmp_path):
    """No side is longer than a JPEG can be, none is empty."""
    path = write_video(tmp_path / "a.mkv", range(0, 400, 40), lambda t: 90, "ffv1", size)
    picture = Image.open(decode.extract_frames(path, tmp_path / "a", 3) / "00003.jpg")
    assert picture.size == expected and abs(np.asarray(picture).mean() - 90) < 3


# --- headers that lie ---


def replaced(path, before, offset, new):
    """The file with the bytes `new`, `offset` bytes after the end of each `before`."""
    content, at = bytearray(path.read_bytes()), -1
    while (at := content.find(before, at + 1)) >= 0:
        start = at + len(before) + offset
        content[start : start + len(new)] = new
    path.write_bytes(content)
    return path


LIES = [  # a duration of 9,000 s in the header, of 1 s in the file
    ("mkv", b"\x44\x89\x88", 0, struct.pack(">d", 9e6)),
    ("flv", b"duration", 1, struct.pack(">d", 9e3)),
    ("avi", b"vids", 28, struct.pack("<I", 270000)),
    ("mp4", b"mvhd", 16, struct.pack(">I", 9000000)),
    ("mp4", b"mdhd", 16, struct.pack(">I", 9000000)),
    ("mp4", b"tkhd", 20, struct.pack(">I", 9000000)),
]


@pytest.mark.parametrize("ending, before, offset, new", LIES)
def test_a_whole_video_may_state_any_duration(ending, before, offset, new, tmp_path):
    """A header that says more than there is: all frames and all of the sound are read."""
    path, codec = tmp_path / f"a.{ending}", "flv" if ending == "flv" else "mpeg4"
    make_video(path, video=codec)
    replaced(path, before, offset, new)
    assert len(media.read_packets(path, "video")) == 30
    folder = decode.extract_frames(path, tmp_path / "a", 10)
    levels = grey_levels(folder)
    assert np.allclose(levels, 8 * np.arange(1, 30, 3), atol=13)  # avi: its first lasts two frames
    assert 0.95 < len(media.read_audio(path, 16000)) / 16000 < 1.15


@pytest.mark.parametrize("ending", ["mp4", "mov", "flv", "avi"])
def test_a_video_that_is_cut_off_is_refused(ending, tmp_path):
    """Half of a file; an mp4 has its index in front."""
    path, noise = tmp_path / f"a.{ending}", np.random.default_rng(0).integers(256, size=(48, 64, 3))
    codec = "flv" if ending == "flv" else "mpeg4"
    form = {"movflags": "faststart"} if ending in ("mp4", "mov") else {}
    write_video(path, range(0, 1200, 40), lambda t: np.roll(noise, t), codec, form=form)
    assert len(media.read_packets(path, "video")) == 30
    content = path.read_bytes()
    for part in (0.5, 0.75):
        path.write_bytes(content[: int(part * len(content))])
        with pytest.raises(UnreadableFile, match="truncated: shorter than its header says"):
            decode.extract_frames(path, tmp_path / "a", 10)


def test_the_end_that_an_edit_list_hides_is_not_missing(tmp_path):
    """A clip of 3 s of which a phone shows the first one: 30 of its 90 frames, not "truncated"."""
    make_video(tmp_path / "a.mp4", frames=90)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    at = -1
    while (at := content.find(b"elst", at + 1)) >= 0:
        (whole,) = struct.unpack(">I", content[at + 12 : at + 16])
        content[at + 12 : at + 16] = struct.pack(">I", whole // 3)
    (tmp_path / "a.mp4").write_bytes(content)
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert file.streams.video[0].frames == 90
    assert len(media.read_packets(tmp_path / "a.mp4", "video")) == 30


def test_an_unknown_codec_is_named(tmp_path):
    """Its track cannot be decoded; that of the sound can."""
    make_video(tmp_path / "a.mkv")
    content = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(content.replace(b"V_MPEG4/ISO/ASP", b"V_XVC9/ISO/ASP_"))
    with pytest.raises(UnreadableFile, match="a.mkv cannot be read .its video is in a format"):
        decode.extract_frames(tmp_path / "a.mkv", tmp_path / "a", 10)
    assert len(media.read_audio(tmp_path / "a.mkv", 16000)) > 15000


@pytest.mark.parametrize("ending", ["avi", "mp4", "mkv", "flv"])
def test_tags_may_be_in_any_encoding(ending, tmp_path):
    """A title in Latin-1."""
    codec = "flv" if ending == "flv" else "mpeg4"
    path = write_video(tmp_path / f"a.{ending}", range(0, 360, 40), lambda t: 90, codec)
    assert b"cafe" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"cafe", b"caf\xe9"))
    assert np.allclose(seconds(path, 2, tmp_path / "a"), -1, atol=0.3)


# --- sound ---


def write_sound(path, codec, parts, muxer=None):
    """One or several tracks of tones: parts is a list of (Hz, seconds, rate, channels)."""
    with av.open(os.fspath(path), "w", format=muxer) as file:
        tracks = [
            file.add_stream(codec, rate=rate, layout="mono" if channels == 1 else "stereo")
            for _, _, rate, channels in parts
        ]
        for track, (pitch, length, rate, channels) in zip(tracks, parts):
            wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(int(length * rate)) / rate)
            encode_sound(file, track, np.tile(wave.astype(np.float32), (channels, 1)))
    return path


def pitch(wave, rate=16000):
    """The loudest tone of a sound, in Hz, and its amplitude."""
    part = wave[len(wave) // 4 : 3 * len(wave) // 4]
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part))))
    return spectrum.argmax() * rate / len(part), np.abs(part).max()


RECORDINGS = {"m4a": "aac", "aac": "aac", "mp3": "libmp3lame", "oga": "flac", "wav": "pcm_s16le"}
RECORDINGS |= {"mka": "flac", "mpg": "mp2"}


@pytest.mark.parametrize("ending, codec", RECORDINGS.items())
def test_sound_of_any_format_is_one_tone(ending, codec, tmp_path):
    """By its content, whatever the name's ending: 440 Hz for a second at 0.3, mono at 16 kHz."""
    path = write_sound(tmp_path / f"a.{ending}", codec, [(440, 1, 44100, 2)])
    for name in (f"a.{ending}", "a.wav", "a.mp4", "a"):
        if name != path.name:
            path = path.replace(tmp_path / name)
        wave = media.read_audio(path, 16000)
        assert wave.dtype == np.float32 and abs(len(wave) / 16000 - 1) < 0.06
        assert np.allclose(pitch(wave), (440, 0.3), atol=(2.5, 0.03))
    decode.write_spectrogram(path, tmp_path / "a", seconds=3)
    assert (np.load(tmp_path / "a.npy")[:, 20:60].argmax(0) == 14).all()  # 437.5 Hz


def test_sound_may_change_within_a_file(tmp_path):
    """Mono, then stereo, then another rate: a second each, at its pitch."""
    parts = [(440, 1, 44100, 1), (880, 1, 44100, 2), (1320, 1, 32000, 1)]
    content = b""
    for part in parts:
        content += write_sound(tmp_path / "part.aac", "aac", [part], "adts").read_bytes()
    (tmp_path / "a.aac").write_bytes(content)
    wave = media.read_audio(tmp_path / "a.aac", 16000)
    assert abs(len(wave) / 16000 - 3) < 0.2
    for i, expected in enumerate([440, 880, 1320]):
        start = int((i + 0.25) * len(wave) / 3)
        assert abs(pitch(wave[start : start + 8000])[0] - expected) < 10


@pytest.mark.parametrize("codec", ["libvorbis", "libopus"])
def test_an_ogg_without_the_mark_of_its_last_page_is_read(codec, tmp_path):
    """As Telegram writes it: an ogg states no length, so nothing is missing."""
    if codec == "libvorbis":
        soundfile.write(tmp_path / "a.ogg", 0.3 * np.sin(np.arange(48000) / 9), 16000)
    else:
        write_sound(tmp_path / "a.ogg", codec, [(440, 3, 48000, 1)], "ogg")
    content = bytearray((tmp_path / "a.ogg").read_bytes())
    page = content.rindex(b"OggS")
    assert content[page + 5] & 4
    content[page + 5] &= ~4
    content[page + 22 : page + 26] = bytes(4)
    content[page + 22 : page + 26] = struct.pack("<I", ogg_checksum(content[page:]))
    (tmp_path / "a.ogg").write_bytes(content)
    wave = media.read_audio(tmp_path / "a.ogg", 16000)
    assert len(wave) == pytest.approx(48000, abs=320)
    expected = 440 if codec == "libopus" else 16000 / 9 / (2 * np.pi)
    assert np.allclose(pitch(wave), (expected, 0.3), atol=(2.5, 0.05))


def ogg_checksum(page):
    """The CRC of an ogg page whose field of it is 0: polynomial 0x04c11db7, nothing reflected."""
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = crc << 1 ^ (0x104C11DB7 if crc & 0x80000000 else 0)
    return crc


@pytest.mark.parametrize("ending, codec", [("m4a", "aac"), ("mka", "libopus")])
def test_of_a_long_sound_track_only_its_beginning_is_decoded(ending, codec, tmp_path, monkeypatch):
    """1 of 30 s: to the bit as from all of it, and few frames."""
    path, frames = write_sound(tmp_path / f"a.{ending}", codec, [(440, 30, 48000, 1)]), []

    def decoded(*arguments, decode=media.decoded):
        for frame in decode(*arguments):
            frames.append(frame)
            yield frame

    monkeypatch.setattr(media, "decoded", decoded)
    part = media.decode_audio(path, 16000, 1)
    count = len(frames)
    whole = media.decode_audio(path, 16000)
    assert 16000 <= len(part) < 18000 and np.array_equal(part, whole[: len(part)])
    assert count < (len(frames) - count) / 20 and len(whole) == pytest.approx(480000, abs=2000)


def test_of_two_sound_tracks_the_default_one_is_heard(tmp_path):
    """The second one of an mkv, where it alone is marked so; without a mark the first one."""
    parts = [(440, 1, 44100, 1), (880, 1, 44100, 1)]
    path = write_sound(tmp_path / "a.mkv", "flac", parts)
    content = path.read_bytes()
    assert abs(pitch(media.read_audio(path, 16000))[0] - 440) < 3
    before, second = content.rsplit(b"\x88\x81\x00", 1)  # FlagDefault: 0
    path.write_bytes(before + b"\x88\x81\x01" + second)
    assert abs(pitch(media.read_audio(path, 16000))[0] - 880) < 3


def test_a_cover_is_no_video(tmp_path):
    """An mp3 with a picture in its tag has no video track."""
    path = write_sound(tmp_path / "a.mp3", "libmp3lame", [(440, 1, 44100, 1)])
    Image.new("RGB", (64, 48)).save(tmp_path / "cover.png")
    body = b"\0image/png\0\3\0" + (tmp_path / "cover.png").read_bytes()
    frame = b"APIC" + struct.pack(">IH", len(body), 0) + body
    size = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\3\0\0" + size + frame + path.read_bytes())
    with av.open(str(path)) as file:
        assert len(file.streams.video) == 1
    with pytest.raises(UnreadableFile, match="has no video track"):
        decode.extract_frames(path, tmp_path / "a", 10)
    assert abs(pitch(media.read_audio(path, 16000))[0] - 440) < 3


def test_noise_in_place_of_a_sound_is_unreadable(tmp_path):
    """PyAV takes such a file for an mp3, in which it finds nothing."""
    path = tmp_path / "noise.flac"
    path.write_bytes(np.random.default_rng(0).bytes(50000))
    with pytest.raises(UnreadableFile, match=r"noise.flac cannot be read \(") as error:
        media.read_audio(path, 16000)
    assert error.value.reason == "undecodable"


def test_without_a_track_the_file_is_named(tmp_path):
    """No sound, no picture, or neither."""
    make_video(tmp_path / "silent.mp4", sound=False)
    with pytest.raises(UnreadableFile, match="no audio track; give a file that has") as error:
        media.read_audio(tmp_path / "silent.mp4", 16000)
    assert error.value.reason == "no audio track"
    write_sound(tmp_path / "dark.m4a", "aac", [(440, 1, 44100, 1)])
    with pytest.raises(UnreadableFile, match="dark.m4a has no video track") as error:
        decode.extract_frames(tmp_path / "dark.m4a", tmp_path / "a", 10)
    assert error.value.reason == "no video track"
    (tmp_path / "text.mp4").write_text("a page that says: not found")
    for read in (lambda p: media.read_audio(p, 16000), lambda p: media.read_packets(p, "video")):
        with pytest.raises(UnreadableFile, match="text.mp4 cannot be read"):
            read(tmp_path / "text.mp4")


def test_names_may_be_in_any_encoding(tmp_path):
    """A name in Latin-1 is read; an error about it can be printed and written as UTF-8."""
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9:%d")
    os.mkdir(folder)
    name = os.fsdecode(os.path.join(folder, b"\xe9"))
    make_video(tmp_path / "a.mp4")
    shutil.copy(tmp_path / "a.mp4", f"{name}.mp4")
    soundfile.write(tmp_path / "a.wav", np.zeros(800) + 0.1, 16000)
    shutil.copy(tmp_path / "a.wav", f"{name}.wav")
    assert len(seconds(f"{name}.mp4", 10, tmp_path / "a")) == 10
    assert len(media.read_audio(f"{name}.mp4", 16000)) > 15000
    assert len(media.read_audio(f"{name}.wav", 16000)) == 800
    for read in (media.read_image, lambda p: media.read_audio(p, 16000), media.frame_paths):
        with pytest.raises(UnreadableFile) as error:
            read(f"{name}.jpg")
        assert "caf\\udce9:%d/\\udce9.jpg" in str(error.value) and str(error.value).encode()


@pytest.mark.parametrize("kind", damage.KINDS)
def test_damaged_files_are_read_or_refused(kind, tmp_path):
    """Cut, flipped, renamed: no other error, no long sentence; a whole file is read."""
    rng = np.random.default_rng(5)
    pictures = kind in damage.PICTURES
    alike = damage.PICTURES if pictures else damage.RECORDINGS | damage.VIDEOS  # other endings
    for name, harm in damage.DAMAGES.items():
        ending = kind if kind == "npy" or rng.integers(2) else rng.choice(list(alike))
        path = tmp_path / f"{name}.{ending}"
        path.write_bytes(harm(damage.KINDS[kind], rng))
        try:
            damage.read(path, kind, tmp_path / name)
        except UnreadableFile as error:
            said = str(error)
            assert str(path) in said and len(said) < 600 and "\n" not in said and name != "whole"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_process_forked_from_another_thread_ends(tmp_path):
    """Decoding leaves no threads that a forked process would wait for (PyAV 19 kept some)."""
    make_video(tmp_path / "clip.mp4")
    decode.extract_frames(tmp_path / "clip.mp4", tmp_path / "clip", 2)
    process = multiprocessing.get_context("fork").Process(target=len, args=("",))
    thread = threading.Thread(target=lambda: (process.start(), process.join(60)))
    thread.start()
    thread.join()
    ended = process.exitcode
    process.kill()
    assert ended == 0
