"""How much of a recording or a video is missing, by the sizes that its container states.

Headers often state a wrong size of the whole file. What counts here is the chunk that holds the
media: samples are missing only if that chunk ends after the file does.
"""

import os
import struct

RIFF = {b"RIFF": "<4sI", b"RF64": "<4sI", b"RIFX": ">4sI", b"FORM": ">4sI"}  # wav, avi; aiff
W64 = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")  # wma, wmv
ASF_DATA = b"\x36" + ASF[1:]
MP4 = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof")
OPEN = 0x7FFFF000  # this size or a larger one: written before the end was known


def riff_media(file, form):
    """Yield (start, end) of the samples of a wav or aiff, or of the frames of an avi."""
    position, long_size = 0, 0
    while len(head := file.read(12)) >= 8:
        name, size = struct.unpack(form, head[:8])
        if name == bytes(4):
            return  # zeros after the end
        if name in RIFF:  # a large avi has several
            position += 12
        else:
            if name == b"ds64":  # RF64: sizes of 64 bits
                long_size = struct.unpack("<Q", (head + file.read(12))[16:24])[0]
            if name in (b"data", b"SSND") or head[8:] == b"movi":
                is_open = size >= OPEN or size == 0
                yield position + 8, position + 8 + (long_size if is_open else size)
            position += 8 + size + size % 2
        file.seek(position)


def guid_media(file, align):
    """Likewise for W64 and ASF: a name of 16 bytes, a size of 8 that counts both."""
    position = 40 if align == 8 else 0
    file.seek(position)
    while len(head := file.read(24)) == 24:
        (size,) = struct.unpack("<Q", head[16:])
        if size < 24:
            return
        if head[:4] == b"data" or head[:16] == ASF_DATA:
            yield position + 24, position + size
        position += size + -size % align
        file.seek(min(position, 2**62))


def mp4_media(file):
    """Likewise for mp4, mov, m4a and 3gp. Nothing says how much follows a fragment: endlessly."""
    position, fragmented = 0, False
    while len(head := file.read(16)) >= 8:
        size, name = struct.unpack(">I4s", head[:8])
        if size == 1 and len(head) == 16:
            size = struct.unpack(">Q", head[8:])[0]
        if size < 8:
            return  # 0: to the end of the file
        position += size
        fragmented |= name == b"moof"
        if name in (b"mdat", b"moof"):
            cut_off = fragmented and position > os.fstat(file.fileno()).st_size
            yield position - size + 8, 2**62 if cut_off else position
        file.seek(min(position, 2**62))


def ebml_media(file):
    """Likewise for mkv and webm: their one segment."""
    head, position = file.read(4096), 4
    for _ in range(2):  # the header, then the segment: a name of 4 bytes, a size of 1 to 8
        if position >= len(head) or not head[position]:
            return
        length = 9 - head[position].bit_length()
        size = int.from_bytes(head[position : position + length], "big") - (1 << 7 * length)
        start, position = position + length, position + length + size + 4
    if size != (1 << 7 * length) - 1:  # all ones: not known
        yield start, start + size


def flv_is_whole(file):
    """Whether an flv ends with a complete tag, as its last four bytes count it."""
    file.seek(-4, os.SEEK_END)
    length = int.from_bytes(file.read(4), "big")
    if length > file.tell() - 4:
        return False
    file.seek(-4 - length, os.SEEK_END)
    return int.from_bytes(file.read(4)[1:], "big") + 11 == length


def ogg_is_whole(file):
    """Whether the last page of an ogg is marked as the last one."""
    file.seek(-min(65307, os.fstat(file.fileno()).st_size), os.SEEK_END)  # a page is no larger
    _, _, page = file.read().rpartition(b"OggS")
    return len(page) > 23 and bool(page[1] & 4)


def missing_part(path):
    """The part of the media's bytes that the file lacks, 0 to 1; 0 where nothing says it.

    1 also for an ogg without its last page. None: an flv that is cut off; its header has no sizes.
    Up to 64 bytes count as nothing, because a careless header counts itself.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(16)
        file.seek(0)
        chunks = ()
        if head[:4] in RIFF:
            chunks = riff_media(file, RIFF[head[:4]])
        elif head in (W64, ASF):
            chunks = guid_media(file, 8 if head == W64 else 1)
        elif head[4:8] in MP4:
            chunks = mp4_media(file)
        elif head[:4] == b"\x1a\x45\xdf\xa3":
            chunks = ebml_media(file)
        elif head[:3] == b"FLV":
            return 0 if flv_is_whole(file) else None
        elif head[:4] == b"OggS":
            return 0 if ogg_is_whole(file) else 1
        missing = [(end - size) / (end - start) for start, end in chunks if end - size > 64]
    return min(1, max(missing, default=0))
