"""Miniature corpora in the layouts in which the real ones are unpacked, made in a second or two."""

import csv
from pathlib import Path

import numpy as np
import soundfile

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
# Close to the bounds of the corpus's hash: 9.993 and 0.02 %, which are dev; 10.006 and 19.997 %,
# in no split; 20.008, 99.997 and 49.5 %, which are train.
DEV_SPEAKERS = ("51e6f6f0", "0bee0caf")
TRAIN_SPEAKERS = ("e7ceb97d", "b325ad1f", "ef30a029")
SPEAKERS = (*DEV_SPEAKERS, "91f3d6a7", "871a9f12", *TRAIN_SPEAKERS)
LETTERS = "ABCDEF"
SIZES = {"train": 33, "dev": 9, "test": 5}  # the last batch of train and of dev has one utterance
# A bigram model of two words.
ARPA = (
    "\\data\\\nngram 1=5\nngram 2=2\n\n"
    "\\1-grams:\n-1\t<s>\t-0.5\n-1\t</s>\n-2\t<unk>\n-0.5\tAB\t-0.3\n-3\tAC\t-0.3\n\n"
    "\\2-grams:\n-0.1\t<s> AB\n-0.5\tAB </s>\n\n\\end\\\n"
)


def write_noise(
    path: Path, seconds: float, generator: np.random.Generator, rate: int = 16000, channels: int = 1
) -> None:
    """A recording of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.1 * generator.standard_normal((round(seconds * rate), channels))
    soundfile.write(path, wave.astype("float32"), rate)


def make_speech_commands(root: Path) -> Path:
    """Speech Commands v1: root/train as speech_commands_v0.01, root/test as SUPERB's test set."""
    generator = np.random.default_rng(0)
    train, test = root / "train", root / "test"
    for word in (*WORDS, "bed", "cat"):
        for speaker in SPEAKERS:
            name = f"{speaker}_nohash_{generator.integers(3)}.wav"
            write_noise(train / word / name, generator.uniform(0.05, 0.2), generator)
    for name in ("white_noise", "doing_the_dishes"):
        write_noise(train / "_background_noise_" / f"{name}.wav", 1.3, generator)
    (train / "_background_noise_" / "README.md").write_text("Sounds of the house.\n")
    for label in (*WORDS, "_unknown_", "_silence_"):
        for number in range(2):
            write_noise(test / label / f"{number}.wav", generator.uniform(0.05, 0.2), generator)
    # longer than a second, and in another form than the rest
    write_noise(test / "_silence_" / "long.wav", 1.2, generator)
    write_noise(test / "go" / "stereo.wav", 0.1, generator, rate=8000, channels=2)
    for folder in (train, test):
        (folder / "LICENSE").write_text("CC BY 4.0\n")
    return root


INTENTS = (
    ("turn on the lights in the kitchen", "activate", "lights", "kitchen"),
    ("lights off", "deactivate", "lights", "none"),
    ("bring me my shoes", "bring", "shoes", "none"),
    ("louder", "increase", "volume", "none"),
    ("turn up the heat in the bedroom", "increase", "heat", "bedroom"),
)


def make_fluent_commands(root: Path) -> Path:
    """Fluent Speech Commands: data/*.csv and wavs/speakers/SPEAKER/UUID.wav."""
    generator = np.random.default_rng(1)
    (root / "data").mkdir(parents=True)
    for table, size in (("train", 15), ("valid", 7), ("test", 8)):
        with open(root / "data" / f"{table}_data.csv", "w", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            columns = ("path", "speakerId", "transcription", "action", "object", "location")
            rows.writerow(["", *columns])
            for number in range(size):
                speaker = f"{table}{number % 3}"
                path = f"wavs/speakers/{speaker}/{generator.integers(2**32):08x}-4474.wav"
                write_noise(root / path, generator.uniform(0.05, 0.2), generator)
                rows.writerow([number, path, speaker, *INTENTS[number % len(INTENTS)]])
    return root


VOICES = {"dev": ("id10001", "id10002", "id11251"), "test": ("id10270", "id10271")}


def make_voxceleb(root: Path) -> Path:
    """VoxCeleb1: dev/wav and test/wav with speakers of their own, and iden_split.txt."""
    generator = np.random.default_rng(2)
    lines = []
    for part, speakers in VOICES.items():
        for speaker in speakers:
            for number, split in enumerate((1, 1, 2, 3, 3)):
                clip = f"{speaker}/vid-{generator.integers(1000)}_{number}/{number:05d}.wav"
                write_noise(root / part / "wav" / clip, generator.uniform(0.05, 0.3), generator)
                lines.append(f"{split} {clip}\n")
    (root / "iden_split.txt").write_text("".join(generator.permutation(lines)))
    return root


def make_voices(root: Path, speakers: int = 6, clips: int = 3) -> Path:
    """A folder for each speaker: noise without quiet moments, of a colour of its own."""
    generator = np.random.default_rng(4)
    for number in range(speakers):
        for clip in range(clips):
            wave = generator.standard_normal(round(16000 * generator.uniform(0.3, 0.6)))
            coloured = np.convolve(wave, np.cos(np.arange(40) * (0.2 + 0.4 * number)), "same")
            path = root / f"speaker {number}" / f"{clip}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, (coloured / 20).clip(-1, 1).astype("float32"), 16000)
    return root


def make_verification(root: Path) -> Path:
    """VoxCeleb1 for verification: dev/wav, test/wav, a list of trials; a pitch for each voice."""
    generator = np.random.default_rng(3)
    clips: dict[str, list[str]] = {}
    for part, speakers in {"dev": range(10001, 10006), "test": range(10270, 10273)}.items():
        for speaker in (f"id{number}" for number in speakers):
            for number in range(4):
                clip = f"{speaker}/vid{number // 2}/{number:05d}.wav"
                time = np.arange(int(16000 * generator.uniform(0.1, 0.6))) / 16000
                wave = 0.2 * np.sin(2 * np.pi * 150 * (int(speaker[-1]) + 2) * time)
                wave += 0.05 * generator.standard_normal(len(time))
                path = root / part / "wav" / clip
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, wave.astype("float32"), 16000)
                if part == "test":
                    clips.setdefault(speaker, []).append(clip)
    names = [clip for mine in clips.values() for clip in mine]
    lines = [
        f"{int(one.split('/')[0] == other.split('/')[0])} {one} {other}\n"
        for place, one in enumerate(names)
        for other in names[place + 1 :]
    ]
    (root / "voxceleb1_test_v2.txt").write_text("".join(generator.permutation(lines)))
    return root


def spell(text: str, generator: np.random.Generator) -> np.ndarray:
    """80 ms of a pitch for each letter and for the space, then 40 ms of quiet.

    A head for single frames can tell them apart.
    """
    parts = []
    for letter in text:
        time = np.arange(1280) / 16000
        pitch = 300 + 250 * (LETTERS + " ").index(letter)
        parts += [0.3 * np.sin(2 * np.pi * pitch * time), np.zeros(640)]
    wave = np.concatenate(parts)
    noise = 1e-5 * generator.standard_normal(len(wave))
    return (wave * generator.uniform(0.5, 1) + noise).astype("float32")


def write_chapter(folder: Path, texts: list[str], generator: np.random.Generator) -> None:
    """A chapter of LibriSpeech: SPEAKER-CHAPTER-NNNN.flac and SPEAKER-CHAPTER.trans.txt."""
    folder.mkdir(parents=True)
    chapter = f"{folder.parent.name}-{folder.name}"
    lines = []
    for number, text in enumerate(texts):
        name = f"{chapter}-{number:04d}"
        soundfile.write(folder / f"{name}.flac", spell(text, generator), 16000)
        lines.append(f"{name} {text}\n")
    (folder / f"{chapter}.trans.txt").write_text("".join(lines))


def make_letters(root: Path) -> Path:
    """LibriSpeech's layout, not prepared: train, dev and test with a speaker each."""
    generator = np.random.default_rng(0)

    def word() -> str:
        return "".join(generator.choice(list(LETTERS), generator.integers(1, 4)))

    for number, (split, size) in enumerate(SIZES.items()):
        texts = [" ".join(word() for _ in range(generator.integers(1, 4))) for _ in range(size)]
        write_chapter(root / split / str(number) / "7", texts, generator)
    return root


WORDS_OF_LETTERS = ("BED FACE", "CAB", "BAD CAFE", "DAD FED", "BEEF ADD", "DEAF")


def make_phones(root: Path) -> Path:
    """LibriSpeech as unpacked, of words that a pronouncing dictionary has."""
    generator = np.random.default_rng(3)
    for number, (split, size) in enumerate(
        {"train-clean-100": 9, "dev-clean": 3, "test-clean": 4, "dev-other": 1}.items()
    ):
        texts = [WORDS_OF_LETTERS[each % len(WORDS_OF_LETTERS)] for each in range(size)]
        write_chapter(root / split / str(number) / "7", texts, generator)
    return root


# Words, slots and intent as SUPERB's all.iob.snips.txt has them.
SENTENCES = (
    ("PLAY QUEEN & ABBA ON SPOTIFY", "O artist artist artist O service", "PlayMusic"),
    ("BOOK A TABLE FOR TWO , PLEASE", "O O O O party_size_number O O", "BookRestaurant"),
    ("ADD THIS TO DRIVE TIME !", "O O O playlist playlist O", "AddToPlaylist"),
    ("WEATHER IN ROME TOMORROW", "O O city timerange", "GetWeather"),
)
TALKERS = {"train": ("Ivy", "Joey", "Amy"), "valid": ("Amy", "Nicole"), "test": ("Brian", "Emma")}


def make_snips(root: Path) -> Path:
    """Audio SNIPS as SUPERB distributes it; one speaker of train is no training speaker."""
    generator = np.random.default_rng(4)
    lines = []
    for split, speakers in TALKERS.items():
        for speaker in speakers:
            for number, (words, slots, intent) in enumerate(SENTENCES):
                name = f"{speaker}-snips-{split}-{number}"
                write_noise(root / split / f"{name}.wav", generator.uniform(1, 1.5), generator)
                lines.append(f"{name} BOS {words} EOS\tO {slots} {intent}\n")
    (root / "all.iob.snips.txt").write_text("".join(lines))
    (root / "slots.txt").write_text(
        "O\nartist\nplaylist\nservice\nparty_size_number\ncity\ntimerange"
    )
    return root


# Sentence, accent, the text that is left of it (none: the clip is left out).
SPOKEN = (
    ("¿Qué tal, señor?", "mexicano", "QUÉ TAL SEÑOR"),
    ('"Adiós" \u2013 dijo.', "mexicano", "ADIÓS DIJO"),
    ("Buenos días.", "caribe", ""),
    ("Dice 消 aquí.", "mexicano", ""),
    ("El niño come", "mexicano", "EL NIÑO COME"),
)


def make_common_voice(root: Path) -> Path:
    """A language of Common Voice: clips/*.mp3 and its tables."""
    generator = np.random.default_rng(5)
    columns = "client_id path sentence up_votes down_votes age gender accent locale segment"
    for number, split in enumerate(("train", "dev", "test")):
        rows = [columns.split()]
        for index, (sentence, accent, _) in enumerate(SPOKEN):
            name = f"common_voice_es_{number}{index}.mp3"
            write_noise(root / "clips" / name, generator.uniform(1, 1.5), generator, rate=48000)
            rows.append([f"{split}{index}", name, sentence, "2", "0", "", "", accent, "es", ""])
        (root / f"{split}.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    return root


def make_sbcsae(root: Path) -> Path:
    """SBCSAE as its preprocessing leaves it: wav/ and tables of path and sentence."""
    generator = np.random.default_rng(6)
    for number, split in enumerate(("train", "dev", "test")):
        rows = ["path\tsentence"]
        for index, text in enumerate(("I DON'T KNOW", "WELL I GUESS", "YEAH")):
            name = f"SBC{number:03d}_{index:06d}-{index + 120:06d}.wav"
            write_noise(root / "wav" / name, 1.2, generator)
            rows.append(f"{name}\t{text}")
        (root / f"{split}.tsv").write_text("\r\n".join([*rows, ""]))
    return root
