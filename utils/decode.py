"""From what was recorded to what training reads: frames, spectrograms, optical flow (Sec. 4.1).

Each function reads an original file and writes one prepared file or folder atomically. A file that
cannot be read raises utils.media.UnreadableFile.
"""

import itertools
from contextlib import contextmanager

import numpy as np

from utils.atomic import atomic
from utils.media import (
    UnreadableFile,
    frame_paths,
    frames_in_window,
    read_audio,
    read_image,
    spectrogram,
    unreadable,
)


@contextmanager
def open_video(path):
    """A video opened by PyAV; inside the block its errors become UnreadableFile."""
    import av

    try:
        with av.open(str(path)) as video:
            yield video
    except (av.FFmpegError, IndexError) as error:
        raise unreadable(path, error) from error


def count_frames(path):
    """The number of frames of a video, by its packets; UnreadableFile if it is truncated."""
    with open_video(path) as video:
        if not video.streams.video:
            message = f"{path} has no video track; download it again"
            raise UnreadableFile(message, "no video track")
        stream, n, end = video.streams.video[0], 0, 0.0
        for packet in video.demux():
            if packet.size:
                n += packet.stream is stream
                if packet.pts is not None:
                    after = packet.pts + (packet.duration or 0)
                    end = max(end, float(after * packet.time_base))
        start, length = (video.start_time or 0) / 1e6, (video.duration or 0) / 1e6  # s
        if n < 0.95 * stream.frames or end - start < 0.9 * length:
            raise unreadable(path, "truncated: shorter than its header says")
        return n


def extract_frames(path, target, choose):
    """Write a video's frames choose(n) of n into the folder `target`, JPEG, short side 256.

    Returns the folder.
    """
    n = count_frames(path)
    positions = [int(i) for i in choose(n)]
    if not n or positions[-1] >= n:
        expected = f"expected at least {max(positions, default=0) + 1}"
        message = f"{path} has {n} frames, {expected}; download it again"
        raise UnreadableFile(message, "too few frames")
    images = {}
    with open_video(path) as video:
        video.streams.video[0].codec_context.thread_count = 1  # the clips are decoded in parallel
        for i, frame in enumerate(video.decode(video=0)):
            if i in positions:
                scale = 256 / min(frame.width, frame.height)
                width, height = round(scale * frame.width), round(scale * frame.height)
                images[i] = frame.to_image(width=width, height=height)
            if i == positions[-1]:
                break
    if absent := set(positions) - set(images):
        raise unreadable(path, f"{len(absent)} of its frames cannot be decoded")
    with atomic(target) as part:
        part.mkdir()
        for number, i in enumerate(positions, 1):
            images[i].save(part / f"{number:05d}.jpg", "JPEG", quality=90)
    return target


def save_array(target, values):
    """Write an array into the file `target`.npy; returns its path."""
    target = target.with_name(f"{target.name}.npy")
    with atomic(target) as part, open(part, "wb") as file:
        np.save(file, values)
    return target


def pack_frames(folder):
    """Write a clip's frames as (F, H, W, 3) uint8 into `folder`.npy; returns its path."""
    frames = [read_image(path).permute(1, 2, 0).numpy() for path in frame_paths(folder)]
    return save_array(folder, np.stack(frames))


def audio_of_video(path):
    """A video's sound: (samples,) int16 at 16 kHz, mono."""
    import av

    with open_video(path) as video:
        if not video.streams.audio:
            what = "has no audio track, and there is no wav of its name"
            message = f"{path} {what}; add the wav, or download the video again"
            raise UnreadableFile(message, "no audio track")
        resampler = av.AudioResampler("s16", "mono", 16000)
        frames = itertools.chain(video.decode(audio=0), [None])  # None flushes the resampler
        parts = [part.to_ndarray()[0] for frame in frames for part in resampler.resample(frame)]
    if not parts:
        message = f"{path} has an empty audio track; download it again"
        raise UnreadableFile(message, "no audio track")
    return np.concatenate(parts)


def write_spectrogram(path, seconds, target):
    """Write the spectrogram of a wav, or of a video's sound, into `target`.npy: (257, T) float16.

    Returns its path.
    """
    if str(path).lower().endswith(".wav"):
        wave = read_audio(path, 16000)
    else:
        wave = audio_of_video(path).astype(np.float32) / 2**15
    return save_array(target, spectrogram(wave, seconds).astype(np.float16))


def compute_flow(folder, start, end, target):
    """Write DIS optical flow of a gesture, short side 128, into `target`.npy: (H, W, 2, T) float16.

    Returns its path.
    """
    import cv2

    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    images = [read_image(path, "L")[0].numpy() for path in frames_in_window(folder, start, end)]
    scale = 128 / min(images[0].shape)
    images = [
        cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for image in images
    ]
    fields = [method.calc(a, b, None) for a, b in itertools.pairwise(images)]
    return save_array(target, np.stack(fields, -1).astype(np.float16))
