"""utils/media.py and the readers of data.py; the augmentation depends on the seed alone."""

import functools
import pickle

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_jpg, make_wav
from PIL import Image

import data
from data import Samples, identity
from utils import decode, media


def test_samples_read_by_position_and_seed():
    """samples[i] reads without a seed, samples[i, seed] with it; a subset keeps the pairs."""
    samples = Samples(
        [["a", "b", "c"], torch.arange(3)], [7, 8, 9], [lambda s, seed: (s, seed), identity]
    )
    assert samples[1] == (("b", None), 1, 8) and samples[1, 5] == (("b", 5), 1, 8)
    part = samples.subset(np.array([2, 0]))
    assert len(part) == 2 and part[0] == (("c", None), 2, 9) and part[1] == (("a", None), 0, 7)


@pytest.mark.parametrize("seconds, frames", [(3, 299), (10, 1004)])
def test_spectrograms_have_the_papers_sizes(tmp_path, seconds, frames):
    """257 x 299 and 257 x 1004 (Sec. 4.1), for a shorter and for a longer recording."""
    for length in (1.3, 12.0):
        make_wav(tmp_path / "a.wav", length)
        decode.write_spectrogram(tmp_path / "a.wav", seconds, tmp_path / "a")
        x = data.sound(tmp_path / "a.npy", seconds=seconds)
        assert x.shape == (1, 257, frames) and x.dtype == torch.float16


def test_sound_is_the_log_of_a_windowed_transform(tmp_path):
    """16 kHz, repeated to 3 s, periodic Hann window of 512, hop 159, no padding: a few frames.

    Kept in half precision: to 0.004.
    """
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 20000)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    decode.write_spectrogram(tmp_path / "a.wav", 3, tmp_path / "a")
    result, long = data.sound(tmp_path / "a.npy", seconds=3)[0].numpy(), np.tile(wave, 3)[:48000]
    window = np.sin(np.pi * np.arange(512) / 512) ** 2
    for n in (0, 1, 130, 298):
        expected = np.log(np.abs(np.fft.rfft(window * long[159 * n : 159 * n + 512])) + 1e-7)
        assert np.allclose(result[:, n], expected, atol=4e-3)


def test_sound_is_mono_at_16_khz(tmp_path):
    """Channels are averaged, and another rate is resampled: a tone stays at its pitch."""
    t = np.arange(44100) / 44100
    soundfile.write(tmp_path / "a.wav", np.stack([np.sin(2 * np.pi * 1000 * t), 0 * t], 1), 44100)
    wave = media.read_audio(tmp_path / "a.wav", 16000)
    assert len(wave) == 16000 and np.abs(wave[1000:-1000]).max() == pytest.approx(0.5, abs=0.02)
    assert np.abs(np.fft.rfft(wave)).argmax() == 1000


def test_a_sound_louder_than_full_is_cut():
    """What goes beyond 1 is 1."""
    assert np.allclose(
        media.spectrogram(np.zeros(9), 3), np.log(1e-7)
    )  # and silence is not minus infinity
    wave = np.sin(np.arange(16000))
    assert np.array_equal(
        media.spectrogram(5 * wave, 3), media.spectrogram((5 * wave).clip(-1, 1), 3)
    )


def test_a_stream_whose_size_was_left_open_is_read(tmp_path):
    """All ones in its header."""
    make_wav(tmp_path / "a.wav")
    whole = media.read_audio(tmp_path / "a.wav", 16000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[4:8] = b"\xff" * 4
    (tmp_path / "a.wav").write_bytes(content)
    assert np.array_equal(media.read_audio(tmp_path / "a.wav", 16000), whole)


def broken_png(path):
    """A picture whose second piece of pixels is none."""
    Image.fromarray(
        np.random.default_rng(0).integers(256, size=(256, 256, 3), dtype=np.uint8)
    ).save(path, "PNG")
    content = path.read_bytes()
    second = content.index(b"IDAT", content.index(b"IDAT") + 4)
    path.write_bytes(content[:second] + bytes(4) + content[second + 4 :])


def bomb(path):
    """A picture that says of itself to be 40,000 x 40,000."""
    Image.new("RGB", (4, 4)).save(path, "BMP")
    content = path.read_bytes()
    path.write_bytes(content[:18] + np.array([40000, 40000], "<i4").tobytes() + content[26:])


def mixed(folder):
    make_jpg(folder / "1.jpg", (64, 48))
    make_jpg(folder / "2.jpg", (48, 64))


NO_MEDIA = [  # what is read, made into what, what is said, counted as
    (media.read_image, lambda p: None, "is missing; download it again", "missing"),
    (media.read_image, lambda p: p.mkdir(), "is a folder, expected a file", "undecodable"),
    (
        media.read_image,
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "is a git-lfs pointer",
        "git-lfs pointer",
    ),
    (media.read_image, broken_png, "cannot be read (broken PNG file", "undecodable"),
    (media.read_image, bomb, "could be decompression bomb", "undecodable"),
    (
        lambda p: media.read_audio(p, 16000),
        lambda p: soundfile.write(p, np.zeros(0), 8000, format="WAV"),
        "it holds no samples",
        "undecodable",
    ),
    (data.flow, lambda p: None, "is missing; download it again", "missing"),
    (
        data.flow,
        lambda p: np.save(p, np.zeros((9, 9, 2, 0))),
        "expected numbers (H, W, 2, T)",
        "undecodable",
    ),
    (
        data.flow,
        lambda p: np.save(p, np.full((9, 9, 2, 9), "x")),
        "expected numbers (H, W, 2, T)",
        "undecodable",
    ),
    (
        data.flow,
        lambda p: np.save(p, np.full((9, 9, 2, 9), {}), allow_pickle=True),
        "cannot be read",
        "undecodable",
    ),
    (
        data.flow,
        lambda p: p.write_bytes(pickle.dumps(np.zeros((9, 9, 2, 9)))),
        "cannot be read",
        "undecodable",
    ),
    (
        data.flow,
        lambda p: np.save(p, np.array([0, np.nan] * 324).reshape(9, 9, 2, 4)),
        "not finite",
        "undecodable",
    ),
    (data.clip, lambda p: None, "is missing; download it again", "missing"),
    (data.clip, lambda p: p.mkdir(), "holds no numbered pictures", "no frames"),
    (data.clip, mixed, "has frames of several sizes", "mixed frames"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("read, make, said, reason", NO_MEDIA)
def test_what_is_no_media_is_one_sentence(tmp_path, read, make, said, reason):
    """The path, what is wrong, and by which reason it is counted."""
    path = tmp_path / "x.npy" if read is data.flow else tmp_path / "x"
    make(path)
    with pytest.raises(media.UnreadableFile) as error:
        read(path)
    assert (
        str(error.value).startswith(str(path))
        and said in str(error.value)
        and error.value.reason == reason
    )


def test_spread_takes_one_position_of_each_part():
    """The middles without a seed; with one a random one within each part; short clips repeat."""
    assert media.sample_positions(10, 3).tolist() == [1, 5, 8]
    seen = np.array([media.sample_positions(9, 3, seed) for seed in range(200)])
    assert all(set(seen[:, part]) == {3 * part, 3 * part + 1, 3 * part + 2} for part in range(3))
    assert media.sample_positions(1, 3, 5).tolist() == [0, 0, 0] and media.sample_positions(
        2, 3
    ).tolist() == [0, 1, 1]


def numbered_frames(folder, n, first=1, size=(64, 48)):
    """frame_1.jpg, frame_2.jpg, ... whose grey level is 10 times their number."""
    for i in range(first, first + n):
        make_jpg(folder / f"frame_{i}.jpg", size, (10 * i, 10 * i, 10 * i))
    return folder


def levels(x):
    """The grey level of each frame of a clip in steps of 10."""
    return (x.float().mean((1, 2, 3)) / 10).round().int().tolist()


def test_a_clip_is_sorted_by_number(tmp_path):
    """frame_2 comes before frame_10; three frames, 224 x 224."""
    x = data.clip(numbered_frames(tmp_path, 10))
    assert x.shape == (3, 3, 224, 224) and levels(x) == [2, 6, 9]


def test_other_frames_with_another_seed(tmp_path):
    """Of pictures, of bytes and of flow; whatever the case of their endings."""
    for i in range(1, 9):
        make_jpg(
            tmp_path / f"frames/{i}{['.JPG', '.jpeg', '.jpg', '.JPEG'][i % 4]}",
            (64, 48),
            (10 * i,) * 3,
        )
    np.save(
        tmp_path / "raw.npy",
        np.arange(10, 90, 10, np.uint8).repeat(64 * 48 * 3).reshape(8, 48, 64, 3),
    )
    np.save(tmp_path / "flow.npy", np.zeros((8, 8, 2, 8)) + 10 * np.arange(1, 9))
    for source, read in [("frames", data.clip), ("raw.npy", data.clip), ("flow.npy", data.flow)]:
        assert (
            len({tuple(levels(read(tmp_path / source, seed, frames=2))) for seed in range(9)}) > 3
        )
        assert levels(read(tmp_path / source, frames=2)) == [3, 7]


def test_a_gesture_is_read_within_its_window(tmp_path):
    """Frames start..end-1, or all of a folder of exactly so many; fewer are an error."""
    whole, cut = (
        numbered_frames(tmp_path / "whole", 20),
        numbered_frames(tmp_path / "cut", 4, first=11),
    )
    for folder in (whole, cut):
        assert levels(data.clip((folder, 10, 14), frames=4)) == [11, 12, 13, 14]
    assert levels(data.clip((whole, 16, 20), frames=4)) == [17, 18, 19, 20]  # its end is the clip's
    with pytest.raises(media.UnreadableFile, match="has 4 frames, expected 5 or at least 15"):
        data.clip((cut, 10, 15))


def test_augmentation_is_drawn_from_the_seed(tmp_path):
    """Whatever was drawn before; the global random state stays."""
    noise = np.random.default_rng(0).integers(256, size=(90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "1.png")
    state = torch.get_rng_state()
    a, b, c = (data.picture(tmp_path / "1.png", seed) for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(5)
    assert (
        torch.equal(a, b)
        and torch.equal(a, data.picture(tmp_path / "1.png", 3))
        and not torch.equal(a, c)
    )
    assert torch.equal(data.picture(tmp_path / "1.png"), data.picture(tmp_path / "1.png"))


def test_a_large_jpeg_is_decoded_small(tmp_path):
    """1200 x 900 at one half, so that both sides keep 448; colours stay; a PNG is read whole."""
    small = np.random.default_rng(0).integers(256, size=(9, 12, 3), dtype=np.uint8)
    large = Image.fromarray(small).resize((1200, 900), Image.NEAREST)
    for ending, shape in [("jpg", (3, 450, 600)), ("png", (3, 900, 1200))]:
        large.save(tmp_path / f"a.{ending}", quality=95)
        x = media.read_image(tmp_path / f"a.{ending}")
        assert x.shape == shape
        squares = (
            x.float().unflatten(1, (9, -1)).unflatten(3, (12, -1)).mean((2, 4)).permute(1, 2, 0)
        )
        assert np.allclose(squares, small, atol=6)


def test_the_frames_of_a_clip_are_cropped_alike(tmp_path):
    """The same picture three times stays the same three times, also mirrored."""
    noise = np.random.default_rng(0).integers(256, size=(90, 120, 3), dtype=np.uint8)
    for i in range(3):
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    x = data.clip(tmp_path, seed=1)
    assert torch.equal(x[0], x[1]) and torch.equal(x[0], x[2])


def test_a_direction_is_not_mirrored(tmp_path):
    """Flow never swaps left and right, nor does a clip with flip=False; images sometimes do."""
    ramp = np.arange(64, dtype=np.uint8).repeat(3).reshape(1, 64, 3).repeat(48, 0)
    Image.fromarray(ramp).save(tmp_path / "1.png")
    np.save(tmp_path / "flow.npy", ramp[..., :2, None].repeat(8, 3))
    readers = {
        data.picture: tmp_path / "1.png",
        data.clip: tmp_path,
        data.flow: tmp_path / "flow.npy",
        functools.partial(data.clip, flip=False): tmp_path,
    }
    for read, path in readers.items():
        rising = [
            bool((read(path, seed).flatten(0, -2)[0].float().diff() >= -1e-3).all())
            for seed in range(40)
        ]
        assert (0 < sum(rising) < 40) if read in (data.picture, data.clip) else all(rising)


def test_depth_has_one_channel(tmp_path):
    """Mode L."""
    x = data.clip(numbered_frames(tmp_path, 3), mode="L")
    assert x.shape == (3, 1, 224, 224) and levels(x) == [1, 2, 3]


def test_flow_is_read_from_h_w_2_t(tmp_path):
    """(H, W, 2, T) -> (frames, 2, 224, 224), the frames spread over T, values as they are."""
    np.save(
        tmp_path / "a.npy", np.broadcast_to(np.arange(16.0), (20, 30, 2, 16)).astype(np.float16)
    )
    x = data.flow(tmp_path / "a.npy", frames=8)
    assert x.shape == (8, 2, 224, 224) and x[:, 0, 5, 5].tolist() == [1, 3, 5, 7, 9, 11, 13, 15]


def test_text_is_ids_and_mask(tiny_bert, tiny_clip):
    """[CLS] words [SEP], mask 1; not padded; cut to 128 tokens or to what the encoder reads."""
    from utils.pretrained import load_tokenizer

    bert, clip = (load_tokenizer(str(folder)) for folder in (tiny_bert, tiny_clip))
    assert data.text("The dog", tokenizer=bert).tolist() == [[2, 5, 7, 3], [1] * 4]
    assert data.text("a " * 300, tokenizer=bert).shape == (2, 128)
    assert data.text("a " * 300, tokenizer=clip).shape == (2, 16)
