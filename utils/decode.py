"""From recordings to the files that training reads: frames, spectrograms, flow (Sec. 4.1).

Each function reads an original file and writes one prepared file or folder atomically. A file that
cannot be read raises utils.media.UnreadableFile.
"""

import io
import itertools

import numpy as np

from utils import media
from utils.atomic import atomic


def layout(frame):
    """How all pictures of a video are made, by its first frame: their size, the display matrix.

    The short side has 256 pixels before the matrix turns it; the long one at most 8,192. A matrix
    [a, b, _, c, d, ...] shows (x, y) at (a x + c y, b x + d y).
    """
    sides = frame.width, frame.height
    scale = min(256 / min(sides), 8192 / max(sides))
    matrix = frame.side_data.get("DISPLAYMATRIX")
    matrix = np.frombuffer(bytes(matrix), np.int32).tolist() if matrix else [1, 0, 0, 0, 1]
    return [max(1, round(scale * side)) for side in sides], matrix


def frame_to_image(frame, size, matrix):
    """A video's frame as an upright PIL image; see layout."""
    from av.video.reformatter import VideoReformatter
    from PIL.Image import Transpose

    # frame.to_image keeps a reformatter with threads for good; a process that is forked from
    # another thread frees it, and waits for these threads forever.
    image = VideoReformatter().reformat(frame, *size, "rgb24").to_image()
    a, b, _, c, d = matrix[:5]
    if abs(b) > abs(a):
        image, a, d = image.transpose(Transpose.TRANSPOSE), c, b
    if a < 0:
        image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
    return image.transpose(Transpose.FLIP_TOP_BOTTOM) if d < 0 else image


def shown_at(path, wanted, least, by_number=False):
    """The pictures that a video shows at the ascending times `wanted`, as PIL images.

    Times are in units of the track's time base; by_number: they are the numbers of frames. None if
    they run backwards. UnreadableFile if decoding ends before the time `least`.
    """
    pictures, shown, since, form = [], None, None, None
    with media.open_media(path) as file:
        track = media.find_track(path, file, "video")
        for number, frame in enumerate(media.decoded(file, track)):
            time = number if by_number else frame.pts
            if time is None or (shown and time < since):
                return None
            form = form or layout(frame)
            while len(pictures) < len(wanted) and time > wanted[len(pictures)]:
                pictures.append(frame_to_image(shown or frame, *form))
            if len(pictures) == len(wanted):
                return pictures
            shown, since = frame, time
        left = len(wanted) - len(pictures)
        if not shown or since < least:
            raise media.unreadable(path, f"{left} of its frames cannot be decoded")
        return pictures + [frame_to_image(shown, *form)] * left


def even_pictures(path, packets, k):
    """k pictures, the middles of k equal parts of the time that a video's packets are shown.

    By number where the packets have no times, or times that run backwards, as in many avi.
    """
    n, pictures = len(packets), None
    if None not in dict(packets):
        (start, _), (last, duration) = min(packets), max(packets)
        end = last + (duration or (last - start) // max(1, n - 1))
        middles = [start + (2 * i + 1) * (end - start) // (2 * k) for i in range(k)]
        pictures = shown_at(path, middles, min(last, end - (end - start) // k))
    positions = media.sample_positions(n, k)
    return pictures or shown_at(path, positions, positions[-1], by_number=True)


def extract_frames(path, target, choose):
    """Write frames of a video, as a player shows them, into the folder `target`; returns it.

    JPEG, short side 256. choose: how many, evenly spaced in time; or a function from the number of
    frames n to the ascending numbers of the chosen frames.
    """
    packets = media.read_packets(path, "video")
    n = len(packets)
    positions = [int(i) for i in choose(n)] if callable(choose) else [0]
    if not n or positions[-1] >= n:
        expected = f"expected at least {max(positions, default=0) + 1}"
        message = f"{path} has {n} frames, {expected}; download it again"
        raise media.UnreadableFile(message, "too few frames")
    if callable(choose):
        pictures = shown_at(path, positions, positions[-1], by_number=True)
    else:
        pictures = even_pictures(path, packets, choose)
    with atomic(target) as part:
        part.mkdir()
        for number, image in enumerate(pictures, 1):
            content = io.BytesIO()  # Pillow's own writing does not say that the disk is full
            image.save(content, "JPEG", quality=90)
            (part / f"{number:05d}.jpg").write_bytes(content.getbuffer())
    return target


def save_array(target, values):
    """Write an array into the file `target`.npy; returns its path."""
    target = target.with_name(f"{target.name}.npy")
    content = io.BytesIO()  # np.save into a file does not say that the disk is full
    np.save(content, values)
    with atomic(target) as part:
        part.write_bytes(content.getbuffer())
    return target


def pack_frames(folder):
    """Write a clip's frames as (F, H, W, 3) uint8 into `folder`.npy; returns its path."""
    paths = media.frame_paths(folder)
    frames = [media.read_image(path).permute(1, 2, 0).numpy() for path in paths]
    return save_array(folder, np.stack(media.check_sizes(folder, frames)))


def ten_frames(path, target, window=None):
    """extract_frames: ten of a video, evenly spaced in time."""
    return extract_frames(path, target, 10)


def window_frames(path, target, window):
    """extract_frames: the frames of the window (start, end)."""
    return extract_frames(path, target, lambda n: range(*window))


def write_spectrogram(path, target, window=None, seconds=10):
    """Write the spectrogram of a recording, or of a video's sound, into `target`.npy.

    (257, T) float16. Returns its path.
    """
    wave = media.read_audio(path, 16000, seconds)
    return save_array(target, media.spectrogram(wave, seconds).astype(np.float16))


def compute_flow(folder, target, window):
    """Write DIS optical flow of a gesture, short side 128, into `target`.npy: (H, W, 2, T) float16.

    window: (start, end), the frames of the folder. Returns its path.
    """
    import cv2

    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    paths = media.frames_in_window(folder, *window)
    images = [media.read_image(path, "L")[0].numpy() for path in paths]
    scale = 128 / min(media.check_sizes(folder, images)[0].shape)
    with media.reading(folder):
        images = [
            cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            for image in images
        ]
        fields = [method.calc(a, b, None) for a, b in itertools.pairwise(images)]
    return save_array(target, np.stack(fields, -1).astype(np.float16))
