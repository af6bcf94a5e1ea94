"""Speaks a list of utterances with eSpeak NG. A script that is run, not imported.

eSpeak NG keeps state between utterances that it offers no way to reset; in a process of its own the
same list always gives the same samples. Standard library only, so that the process starts at once.

Input, JSON on stdin: {"library", "data", "seed", "utterances": [{"text", "voice", "rate", "volume",
"pitch", "range"}]}. Output on stdout: int32 sample rate, then per utterance int32 count and that
many int16 samples, in the machine's byte order.
"""

import ctypes
import json
import struct
import sys

# The library's constants (speak_lib.h).
_RETRIEVAL, _NO_EXIT, _UTF8, _END_PAUSE = 2, 0x8000, 1, 0x1000
_PARAMETERS = {"rate": 1, "volume": 2, "pitch": 3, "range": 4}
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


def speak(job: dict) -> None:
    """Synthesise every utterance of `job` and write the samples to stdout.

    Raises RuntimeError when the library refuses.
    """
    library = ctypes.CDLL(job["library"])
    # text, size, position, position_type, end_position, flags, unique_identifier, user_data
    uint, pointer = ctypes.c_uint, ctypes.c_void_p
    library.espeak_Synth.argtypes = [
        *(ctypes.c_char_p, ctypes.c_size_t, uint, ctypes.c_int, uint, uint, pointer, pointer)
    ]
    chunks: list[bytes] = []

    @_CALLBACK
    def collect(samples, count, _events):  # noqa: ANN001, ANN202
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    rate = library.espeak_Initialize(_RETRIEVAL, 0, job["data"].encode(), _NO_EXIT)
    if rate <= 0:
        raise RuntimeError(f"espeak_Initialize failed with data from {job['data']}")
    library.espeak_SetSynthCallback(collect)
    if hasattr(library, "espeak_ng_SetRandSeed"):
        library.espeak_ng_SetRandSeed(int(job["seed"]))
    sys.stdout.buffer.write(struct.pack("=i", rate))
    for utterance in job["utterances"]:
        chunks.clear()
        if library.espeak_SetVoiceByName(utterance["voice"].encode()) != 0:
            raise RuntimeError(f"no voice '{utterance['voice']}'")
        for name, number in _PARAMETERS.items():
            library.espeak_SetParameter(number, int(utterance[name]), 0)
        text = utterance["text"].encode() + b"\0"
        if library.espeak_Synth(text, len(text), 0, 1, 0, _UTF8 | _END_PAUSE, None, None) != 0:
            raise RuntimeError(f"espeak_Synth refused {utterance}")
        library.espeak_Synchronize()
        pcm = b"".join(chunks)
        sys.stdout.buffer.write(struct.pack("=i", len(pcm) // 2) + pcm)


if __name__ == "__main__":
    speak(json.load(sys.stdin))
