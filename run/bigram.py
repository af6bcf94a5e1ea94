"""A bigram model of transcripts, for beam search: `python bigram.py FOLDER --out bigram.arpa`."""

import sys
from pathlib import Path

try:
    from s3prl_varan.corpora.bigram import main
except ModuleNotFoundError:  # a clone that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from s3prl_varan.corpora.bigram import main

if __name__ == "__main__":
    sys.exit(main())
